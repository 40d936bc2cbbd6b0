"""Files: read whole, written so that they survive a power cut, and errors that say who may not write where."""

from __future__ import annotations

import json
import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from clipkit.errors import DataError


def write_whole(path: Path, text: str, *, durable: bool = True) -> None:
    """Replace the file's text atomically; if `durable`, also in case of a power cut."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("w", encoding="utf-8") as file:
            file.write(text)
            if durable:
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
    beside.replace(path)
    if durable:
        sync(path.parent)


@contextmanager
def permission_to(verb: Literal["read", "write"], place: str | Path) -> Iterator[None]:
    """Turn a missing permission into a DataError that names the file, its owner and this process's user."""
    try:
        yield
    except PermissionError as error:
        path = error.filename or place
        raise DataError(f"no permission to {verb} `{path}`", permission_hint(path)) from error


def permission_hint(path: str | Path) -> str:
    """Who owns the path, or the nearest folder above it that is there, and who this process is."""
    path = Path(path).absolute()
    there = next(folder for folder in (path, *path.parents) if os.path.exists(folder))
    return f"`{there}` belongs to `{_owner(there)}`, this process runs as `{_user()}`: change its permissions"


def _owner(path: Path) -> str:
    try:
        return path.owner()
    except (KeyError, OSError):  # a user of another machine
        return f"user {path.stat().st_uid}"


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"user {os.geteuid()}"


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty if the file is missing or incomplete."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
