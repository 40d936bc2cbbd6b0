"""File names that a corpus gives, resolved so that they cannot lead out of its folder."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit

from clipkit.types import Url

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".heif")
)


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
            raise BadPath("the path leads out of the corpus's folder (--allow-outside lets it)")
        return Path(full)

    def locate(self, name: str) -> Path | Url:
        """The file or the address that a name means: a path, or a `file:`, `http:` or `https:` URL."""
        scheme = name[:8].partition("://")[0].lower()
        if scheme in ("http", "https"):
            return Url(name)
        if scheme == "file" or name.startswith("file:"):
            return self.resolve(unquote(urlsplit(name).path))
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


def is_image_name(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
