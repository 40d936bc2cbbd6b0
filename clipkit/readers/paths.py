"""File names that a corpus gives, resolved so that they cannot lead out of its folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from clipkit.types import Url

IMAGE_SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
        *(".avif", ".heic", ".heif"),
    )
)
OUTSIDE = "the path leads out of the corpus's folder (--allow-outside lets it)"
CAPTION_NUMBER = re.compile(r"#\d+$")  # Flickr8k's `name.jpg#0`
DRIVE = re.compile(r"[A-Za-z]:/")


class BadPath(ValueError):
    """A name in a corpus that is not a file of that corpus."""


class Root:
    """The folder that a corpus's file names are resolved in, and may not leave unless `allow_outside`."""

    def __init__(self, folder: str | Path, *, allow_outside: bool = False) -> None:
        self.folder = os.path.realpath(folder)
        self.allow_outside = allow_outside
        self._inside: dict[str, bool] = {}  # a folder is resolved once, not for each of its files

    def resolve(self, name: str, split: str | None = None) -> Path:
        """The file that a name means; raises BadPath where it lies outside. It need not exist.

        `split` is the record's, which may tell two files of one name apart.
        """
        if not name or "\0" in name:
            raise BadPath("no image file is named")
        full = os.path.join(self.folder, name)
        if not self.allow_outside and not self._contains(full):
            raise BadPath(OUTSIDE)
        return Path(full)

    def locate(self, name: str, split: str | None = None) -> Path | Url:
        """The file or the address that a name means: a path, or a `file:`, `http:` or `https:` URL."""
        scheme = name[:8].partition(":")[0].lower()
        if scheme in ("http", "https") and "://" in name[:8]:
            return Url(name)
        if scheme == "file":
            return self.resolve(_path_of_file_url(name), split)
        if "://" in name[:12]:
            raise BadPath(f"`{name.partition('://')[0]}:` URLs are not fetched; file:, http: and https: are")
        return self.resolve(image_name(name), split)

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
        raise BadPath(f"the URL cannot be parsed: {error}") from error


def image_name(text: str) -> str:
    """A file name as written in a table in its one usual form: `./a.jpg`, `a.jpg#0` and ` a.jpg` are `a.jpg`.

    Backslashes become slashes. URLs stay as they are.
    """
    text = text.strip().lstrip("\ufeff")
    if "://" in text[:12]:
        return text
    if "#" in text:
        bare = CAPTION_NUMBER.sub("", text)
        text = bare if looks_like_image(bare) else text
    if "\\" in text:
        text = text.replace("\\", "/")
    if text.startswith("./") or "//" in text or "/./" in text:
        start = "/" if text.startswith("/") else ""
        text = start + "/".join(part for part in text.split("/") if part not in ("", "."))
    return text


def is_image_name(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def looks_like_image(text: str) -> bool:
    """Whether a table's field is the name or the address of an image; Flickr8k has a `name.jpg.1`."""
    text = CAPTION_NUMBER.sub("", text.strip())
    if text[:8].lower().startswith(("http://", "https://", "file://")):
        return " " not in text
    stem, suffix = os.path.splitext(text)
    return suffix.lower() in IMAGE_SUFFIXES or (suffix[1:].isdigit() and is_image_name(stem))


def without_suffix(name: str) -> str:
    """A name without the suffix of an image file, if it has one."""
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in IMAGE_SUFFIXES else name


def is_absolute(name: str) -> bool:
    """Whether a name in its usual form is absolute, here or on Windows."""
    return name.startswith(("/", "~/")) or DRIVE.match(name) is not None


def is_hidden(name: str) -> bool:
    """Whether a file or folder is none of a corpus: `._a.jpg`, `.DS_Store`, `__MACOSX`, `.git`, `Thumbs.db`."""
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini")


def folders_in(folder: Path, *, follow_links: bool = False) -> list[Path]:
    """The folders in a folder, in order; hidden ones are left out."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=follow_links))
    return [folder / name for name in names if not is_hidden(name)]


def files_in(folder: Path) -> list[Path]:
    """The files in a folder, in order; hidden ones are left out."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if not is_hidden(entry.name) and entry.is_file())
    return [folder / name for name in names]


def images_in(folder: Path) -> list[str]:
    """The names of the images in a folder, in order; hidden files are left out."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if is_image_name(entry.name) and not is_hidden(entry.name))


def join_listed(names: Iterable[str], *, limit: int = 8) -> str:
    """Names in backticks for a message, the first few of them."""
    names = list(names)
    text = ", ".join(f"`{name}`" for name in names[:limit])
    return f"{text}, … ({len(names)})" if len(names) > limit else text or "none"
