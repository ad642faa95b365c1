"""Where an export goes: a folder or a file, on a disk or in a bucket."""

from __future__ import annotations

import secrets
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from histostore.errors import OptionError
from histostore.files import driver_errors, filesystem, local_path, public_url

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["Target"]


class Target:
    """A place to write files to, each of which appears whole or not at all.

    Parameters
    ----------
    url
        Folder, or for layouts of one file that file.
    storage_options
        For the driver.
    """

    def __init__(self, url: str, storage_options: Mapping[str, Any]) -> None:
        self.url = url
        self.storage_options = dict(storage_options)

    def refuse_if_taken(self) -> None:
        """Make sure that nothing is there yet.

        Raises
        ------
        OptionError
            If there is a file, or a folder that is not empty.
        StorageError
            If the storage refuses.
        """
        fs, path = filesystem(self.url, self.storage_options)
        with driver_errors(self.url, self.storage_options):
            fs.invalidate_cache(path)
            if fs.exists(path) and (fs.isfile(path) or fs.ls(path, detail=False)):
                raise OptionError(
                    f"{public_url(self.url)} is already there; name another target, or overwrite"
                )

    def put(self, name: str, content: bytes) -> None:
        """Write a file of the folder."""
        with self.stream(name) as file:
            file.write(content)

    @contextmanager
    def stream(self, name: str = "") -> Iterator[IO[bytes]]:
        """Write a file in parts; it appears when the block ends without an error.

        Parameters
        ----------
        name
            Path in the folder; the target itself if left out.

        Raises
        ------
        StorageError
            If the storage refuses.
        """
        url = f"{self.url.rstrip('/')}/{name}" if name else self.url
        path = local_path(url)
        with driver_errors(url, self.storage_options):
            if path is not None:
                with _appearing(Path(path)) as file:
                    yield file
                return
            fs, remote = filesystem(url, self.storage_options)
            # Gathered on this machine first: an upload that was begun cannot be called off.
            with tempfile.NamedTemporaryFile() as local:
                yield local.file
                local.file.flush()
                fs.makedirs(remote.rpartition("/")[0], exist_ok=True)
                fs.put_file(local.name, remote)


@contextmanager
def _appearing(target: Path) -> Iterator[IO[bytes]]:
    """Write under a hidden name, and take the real one at the end."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # Not made from the real name, which may be as long as a name can be.
    hidden = target.with_name(f".{secrets.token_hex(8)}")
    try:
        with hidden.open("xb") as file:
            yield file
        hidden.replace(target)
    except BaseException:
        hidden.unlink(missing_ok=True)
        raise
