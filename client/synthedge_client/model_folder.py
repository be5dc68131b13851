"""A folder of trained models, readable by its owner alone."""

from collections.abc import Iterator, MutableMapping
from pathlib import Path

from synthedge_core.errors import TableError


class ModelFolder(MutableMapping[str, bytes]):
    """Trained models by the digest of what they depend on.

    Parameters
    ----------
    folder : Path
        Made on the first write, for the owner alone.

    Raises
    ------
    TableError
        On use, if the folder is one that others can write to: a model is code when it is loaded.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _path(self, key: str) -> Path:
        if self._folder.exists() and self._folder.stat().st_mode & 0o022:
            raise TableError(
                f"others can write to the model folder '{self._folder}', and a model is code when "
                f"it is loaded; run: chmod go-w {self._folder}"
            )
        return self._folder / f"{key}.model"

    def __getitem__(self, key: str) -> bytes:
        """Read a model; KeyError if there is none."""
        try:
            return self._path(key).read_bytes()
        except FileNotFoundError:
            raise KeyError(key) from None

    def __setitem__(self, key: str, value: bytes) -> None:
        """Write a model, whole or not at all."""
        path = self._path(key)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.touch(mode=0o600)
        part.write_bytes(value)
        part.replace(path)

    def __delitem__(self, key: str) -> None:
        """Delete a model; KeyError if there is none."""
        try:
            self._path(key).unlink()
        except FileNotFoundError:
            raise KeyError(key) from None

    def __iter__(self) -> Iterator[str]:
        """Give the digests."""
        return (path.stem for path in sorted(self._folder.glob("*.model")))

    def __len__(self) -> int:
        """Count the models."""
        return sum(1 for _ in self)
