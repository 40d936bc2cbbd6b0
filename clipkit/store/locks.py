"""One ingest at a time into a dataset, and the folder where uncommitted work lies."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from clipkit.errors import DataError
from clipkit.files import permission_to

STAGING_NAME = "_ingest"
ATTEMPTS = 100  # while other ingests remove the folder as they end


def is_remote(uri: str) -> bool:
    return "://" in uri and not uri.startswith("file://")


def staging_folder(uri: str) -> Path:
    """Inside a local dataset; in the user's state folder for an object store, where files cannot be renamed."""
    if not is_remote(uri):
        return Path(uri.removeprefix("file://")) / STAGING_NAME
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(state) / "clipkit" / "ingest" / hashlib.sha256(uri.encode()).hexdigest()[:16]


@contextmanager
def exclusive(uri: str) -> Iterator[Path]:
    """Hold the dataset's lock and return its staging folder; raises DataError where another process holds it.

    The kernel releases the lock when the process dies. For an object store it covers only the ingests of this
    machine.
    """
    folder = staging_folder(uri)
    new_folders = [path for path in (folder, folder.parent) if not path.exists()]
    handle = _acquire(uri, folder)
    try:
        yield folder
    finally:
        if not any(path.name != "lock" for path in folder.iterdir()):
            (folder / "lock").unlink()
            _remove_empty([folder, *(path for path in new_folders if path != folder)])
        os.close(handle)


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Wait for a folder's lock and hold it, for a file that ingests into several datasets share."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _acquire(uri: str, folder: Path) -> int:
    """A descriptor that holds the lock on `folder/lock`."""
    path = folder / "lock"
    for attempt in range(ATTEMPTS):
        try:
            with permission_to("write", uri):
                folder.mkdir(parents=True, exist_ok=True)
                handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError as error:  # another ingest has just finished and removed the folder
            if attempt < ATTEMPTS - 1:
                continue
            raise DataError(
                f"`{uri}` cannot be written: no folder can be created there", "choose another place"
            ) from error
        except OSError as error:
            raise DataError(f"`{uri}` cannot be written: {error.strerror}", "choose another place") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            pid = os.read(handle, 32).decode(errors="replace").strip()
            os.close(handle)
            raise DataError(
                f"another ingest is writing `{uri}`" + (f" (process {pid})" if pid else ""),
                "wait until it ends, or write to another dataset",
            ) from error
        if _is_same_file(handle, path):
            os.ftruncate(handle, 0)
            os.write(handle, f"{os.getpid()}\n".encode())
            return handle
        os.close(handle)
    raise DataError(f"the lock of `{uri}` could not be taken: other ingests keep starting", "try again")


def _is_same_file(handle: int, path: Path) -> bool:
    """Whether the locked file still lies at that path: the last holder may have removed it."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return
