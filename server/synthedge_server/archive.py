"""One file with many in it, which tells when a byte of it was changed: a tar behind a magic line, before its SHA-256.

The digest finds damage, not a forger: whoever can write such a file can write its digest too. It holds keys and belongs
to its owner alone.
"""

import hashlib
import io
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final, cast

from synthedge_core.errors import UsageError
from synthedge_protocols.errors import UnavailableError, VerificationError

_MAGIC: Final = b"synthedge-coordinator-backup-1\n"
_DIGEST_BYTES: Final = 32
_BLOCK: Final = 1024 * 1024


class ArchiveWriter:
    """Adds files to an archive that `writing` opened."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar

    def add(self, name: str, file: BinaryIO, *, mode: int = 0o600) -> None:
        """Add everything an open file holds now, from its beginning."""
        entry = tarfile.TarInfo(name)
        entry.size = file.seek(0, os.SEEK_END)
        entry.mode = mode
        file.seek(0)
        self._tar.addfile(entry, file)

    def add_bytes(self, name: str, data: bytes) -> None:
        """Add a short file."""
        self.add(name, io.BytesIO(data))


@contextmanager
def writing(path: Path) -> Iterator[ArchiveWriter]:
    """Write a new archive of mode 0600; it is there as a whole, on disk, or not at all.

    Raises
    ------
    UsageError
        If the file exists.
    UnavailableError
        If it cannot be written.
    """
    if path.exists():
        raise UsageError(f"{path} exists already; name a new file")
    staged = path.with_name(f"{path.name}.partial")
    try:
        try:
            staged.unlink(missing_ok=True)
            descriptor = os.open(staged, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                hashing = _Hashing(file)
                hashing.write(_MAGIC)
                with tarfile.open(fileobj=cast(BinaryIO, hashing), mode="w|") as tar:
                    yield ArchiveWriter(tar)
                file.write(hashing.digest())
                file.flush()
                os.fsync(file.fileno())
            staged.replace(path)
        except OSError as error:
            raise UnavailableError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        staged.unlink(missing_ok=True)


def entries(path: Path) -> Iterator[tuple[tarfile.TarInfo, BinaryIO]]:
    """Check an archive as a whole, then go through its files.

    Yields
    ------
    tuple of (TarInfo, file)
        Name and mode; what it holds, until the next one is asked for.

    Raises
    ------
    UsageError
        If it cannot be read, or is no archive.
    VerificationError
        If a byte of it was changed or is missing.
    """
    try:
        with path.open("rb") as file:
            _check(path, file)
            file.seek(len(_MAGIC))
            with tarfile.open(fileobj=file, mode="r|") as tar:
                for entry in tar:
                    name = PurePosixPath(entry.name)
                    # Written one way only: of "files//etc/x" what follows the first slash would be a path of its own.
                    is_plain = str(name) == entry.name and not name.is_absolute()
                    if not entry.isreg() or not is_plain or ".." in name.parts:
                        raise VerificationError(f"{path} holds an entry that no backup has")
                    yield entry, cast(BinaryIO, tar.extractfile(entry))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from None


def _check(path: Path, file: BinaryIO) -> None:
    left = file.seek(0, os.SEEK_END) - _DIGEST_BYTES
    file.seek(0)
    if file.read(len(_MAGIC)) != _MAGIC:
        raise UsageError(f"{path} is no backup of a coordinator")
    digest = hashlib.sha256(_MAGIC)
    left -= len(_MAGIC)
    while left > 0 and (block := file.read(min(_BLOCK, left))):
        digest.update(block)
        left -= len(block)
    if digest.digest() != file.read():
        raise VerificationError(
            f"{path} was changed or is cut off; nothing was restored: take another backup"
        )


class _Hashing:
    """A file that is written and hashed."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()

    def write(self, data: bytes) -> int:
        """Write on."""
        self._hash.update(data)
        return self._file.write(data)

    def digest(self) -> bytes:
        """Hash of everything written, 32 bytes."""
        return self._hash.digest()
