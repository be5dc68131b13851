"""The spool of sealed bytes: one file a transfer, appended durably, read from any offset.

Rules of `Spool`:

1. What `sync` answers is on disk, and every 4 MiB are as they come; a process that is killed loses nothing, and
   what a loss of power may have torn behind the last 4 MiB is cut off at the next start.
2. An append must start exactly where the file ends, so that two streams of one transfer, or a repeated
   chunk, can never interleave.
3. A file belongs to one shipment of one transfer (see `spool_key`): bytes of a shipment that a new approval
   replaced can never be continued by the next one's.

The methods block; the servicer calls them in threads.
"""

import fcntl
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final, cast

from synthedge_protocols.errors import LifecycleError, LimitExceededError, UnavailableError
from synthedge_protocols.limits import Limits
from synthedge_protocols.sealing import stream_digest

CHUNK_BYTES: Final = Limits().sent_bytes
# Waiting for the disk after every chunk doubles the relay's CPU.
_SYNC_BYTES: Final = 4 * 1024 * 1024
_BOOTS_KNOWN: Final = 30
_NAME: Final = re.compile("[0-9a-f]{64}")
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def spool_key(transfer_id: bytes, ciphertext_digest: bytes) -> bytes:
    """Name the file of a transfer's shipment; both arguments and the result are 32 bytes."""
    return hashlib.sha256(transfer_id + ciphertext_digest).digest()


def spooled(folder: Path) -> set[bytes]:
    """Keys under which something is stored in a folder; what the file system itself put there is not looked at."""
    return {bytes.fromhex(path.name) for path in folder.iterdir() if _NAME.fullmatch(path.name)}


@contextmanager
def _disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UnavailableError(
            f"the coordinator cannot store or read sealed bytes now ({error.strerror}); its operator has to make room, "
            "or to look at its disk, transfers go on by themselves then"
        ) from None


class Spool:
    """Sealed bytes on disk.

    Parameters
    ----------
    folder : Path
        Created with mode 0700 if missing.

    Raises
    ------
    UnavailableError
        Here and by every method, if the disk is full or does not work.
    """

    @_disk()
    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        self._folder = folder

    @_disk()
    def sync(self, key: bytes) -> int:
        """Wait until everything under a key is on disk; return how many bytes that is, 0 if there are none."""
        try:
            descriptor = os.open(self._path(key), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return 0
        try:
            size = os.fstat(descriptor).st_size
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return size

    @_disk()
    def cut_what_a_power_loss_tore(self, complete: set[bytes]) -> None:
        """Cut unfinished uploads back to what is surely on disk, if the machine was started since.

        Parameters
        ----------
        complete : set of bytes
            Keys of uploads that were on disk as a whole before anybody was told so.
        """
        boot = _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else ""
        # Several machines may work on one folder; each of them may be started anew.
        noted = self._folder.with_suffix(".boot")
        known = noted.read_text().split() if noted.exists() else []
        if not boot or boot in known:
            return
        for key in self.keys() - complete:
            with self._path(key).open("r+b") as file:
                # Another process may be appending.
                fcntl.flock(file, fcntl.LOCK_EX)
                file.truncate(os.fstat(file.fileno()).st_size // _SYNC_BYTES * _SYNC_BYTES)
        noted.write_text("\n".join([*known[-_BOOTS_KNOWN:], boot]))

    @_disk()
    def append(self, key: bytes, offset: int, data: bytes, limit: int) -> int:
        """Append one chunk.

        Parameters
        ----------
        key : bytes
            See `spool_key`.
        offset : int
            Where the sender believes the file ends. Unit: bytes.
        data : bytes
            The chunk.
        limit : int
            Size of the whole ciphertext as its shipment announced it. Unit: bytes.

        Returns
        -------
        int
            Bytes stored now.

        Raises
        ------
        LifecycleError
            If `offset` is not where the file ends.
        LimitExceededError
            If the chunk would exceed `limit`.
        """
        path = self._path(key)
        is_new = not path.exists()
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            size = os.fstat(descriptor).st_size
            if offset != size:
                raise LifecycleError(
                    f"the chunk starts at byte {offset}, {size} bytes are stored; "
                    "ask GetUpload and go on there"
                )
            if size + len(data) > limit:
                raise LimitExceededError(
                    f"the upload exceeds the {limit} bytes its shipment announced"
                )
            try:
                written = 0
                while written < len(data):
                    written += os.pwrite(descriptor, data[written:], size + written)
                if size // _SYNC_BYTES != (size + len(data)) // _SYNC_BYTES:
                    os.fdatasync(descriptor)
            except OSError:
                # Half a chunk is none: the site goes on where the last whole one ended.
                os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)
        if is_new:
            self._sync_folder()
        return size + len(data)

    @_disk()
    def digest(self, key: bytes) -> bytes:
        """Digest of the sealed stream stored under a key, as its shipment names it.

        Raises
        ------
        MalformedError
            If what is stored is no sealed stream.
        """
        path = self._path(key)
        # Unbuffered: of each chunk only the tag is read.
        with path.open("rb", buffering=0) as file:
            return stream_digest(cast(BinaryIO, file), path.stat().st_size)

    @_disk()
    def read(self, key: bytes, offset: int) -> bytes:
        """Read the chunk at an offset: at most `CHUNK_BYTES`, empty at the end.

        Raises
        ------
        LifecycleError
            If the bytes were deleted meanwhile: the transfer ended.
        """
        try:
            with self._path(key).open("rb") as file:
                file.seek(offset)
                return file.read(CHUNK_BYTES)
        except FileNotFoundError:
            raise LifecycleError("the sealed bytes are gone; the transfer has ended") from None

    @_disk()
    def delete(self, key: bytes) -> None:
        """Delete what is stored under a key; nothing happens if nothing is."""
        self._path(key).unlink(missing_ok=True)
        self._sync_folder()

    @_disk()
    def keys(self) -> set[bytes]:
        """Keys under which something is stored."""
        return spooled(self._folder)

    def _path(self, key: bytes) -> Path:
        return self._folder / key.hex()

    def _sync_folder(self) -> None:
        # Without it a new or removed name may not survive a loss of power.
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
