"""File names that a corpus gives, resolved so that they cannot lead out of its folder."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from urllib.parse import unquote, urlsplit

from clipkit.errors import DataError
from clipkit.types import Url

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".heif")
)
NUM_PROBES = 200  # images looked for to tell which folder holds them
MAX_DEPTH = 3
OUTSIDE = "the path leads out of the corpus's folder (--allow-outside lets it)"


class BadPath(ValueError):
    """A name in a corpus that is no file of that corpus."""


class Root:
    """The folder that a corpus's file names are resolved in, and may not leave unless `allow_outside`."""

    def __init__(self, folder: str | Path, *, allow_outside: bool = False) -> None:
        self.folder = os.path.realpath(folder)
        self.allow_outside = allow_outside
        self._inside: dict[str, bool] = {}  # a folder is resolved once, not for each of its files

    def resolve(self, name: str) -> Path:
        """The file that a name means; raises BadPath where it lies outside. It need not exist."""
        if not name or "\0" in name:
            raise BadPath("names no image file")
        full = os.path.join(self.folder, name)
        if not self.allow_outside and not self._contains(full):
            raise BadPath(OUTSIDE)
        return Path(full)

    def locate(self, name: str) -> Path | Url:
        """The file or the address that a name means: a path, or a `file:`, `http:` or `https:` URL."""
        scheme = name[:8].partition(":")[0].lower()
        if scheme in ("http", "https") and "://" in name[:8]:
            return Url(name)
        if scheme == "file":
            return self.resolve(_path_of_file_url(name))
        if "://" in name[:12]:
            raise BadPath(f"`{name.partition('://')[0]}:` URLs are not fetched; file:, http: and https: are")
        return self.resolve(name)

    def _contains(self, full: str) -> bool:
        folder, base = os.path.split(full)
        inside = self._inside.get(folder)
        if inside is None:
            inside = self._inside[folder] = self._is_below(os.path.realpath(folder))
        if base in ("..", ".") or os.path.islink(full):
            return self._is_below(os.path.realpath(full))
        return inside

    def _is_below(self, real: str) -> bool:
        return real == self.folder or real.startswith(self.folder.rstrip(os.sep) + os.sep)


def _path_of_file_url(address: str) -> str:
    try:
        return unquote(urlsplit(address).path)
    except ValueError as error:
        raise BadPath(f"no URL that can be read: {error}") from error


def is_image_name(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def find_image_folder(base: Path, names: Iterable[str], *, allow_outside: bool) -> Path:
    """The folder at or below `base` that holds one of the first images named, the nearest one.

    Links to folders are followed only with `allow_outside`.
    """
    first = list(islice(names, NUM_PROBES))
    probes = [name for name in first if not os.path.isabs(name) and ".." not in name.split("/") and "\0" not in name]
    waiting = deque([(base, 0)])
    while waiting:
        folder, depth = waiting.popleft()
        if any((folder / name).is_file() for name in probes):
            return folder
        if depth < MAX_DEPTH and not _holds_images(folder):
            waiting.extend((path, depth + 1) for path in folders_in(folder, follow_links=allow_outside))
    if not probes:  # paths that lead elsewhere, of which each is judged by itself
        return base
    raise DataError(
        f"no folder below `{base}` holds the images that the captions name (`{probes[0]}`, …)",
        "say where they are with --image-dir; links to folders are followed with --allow-outside",
    )


def folders_in(folder: Path, *, follow_links: bool = False) -> list[Path]:
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=follow_links))
    return [folder / name for name in names if not name.startswith(".")]


def _holds_images(folder: Path) -> bool:
    """Whether the folder is one of images, other ones, that need not be searched for folders."""
    with os.scandir(folder) as entries:
        return sum(is_image_name(entry.name) for entry in islice(entries, 50)) > 25
