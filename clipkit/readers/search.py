"""Which file a corpus means by an image's name, where its images lie in folders that the table does not name."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

from clipkit.errors import DataError
from clipkit.files import permission_hint
from clipkit.readers.paths import BadPath, Root, image_name, is_absolute, is_hidden, join_listed, without_suffix
from clipkit.readers.source import ReadOptions, SourceReport, split_of_folder
from clipkit.types import Url

NUM_SAMPLES = 200  # names that are looked up before the first row is read
MAX_DEPTH = 5  # folders below the corpus's that are searched
IMAGE_FOLDERS = frozenset(
    (
        *("image", "images", "img", "imgs", "picture", "pictures", "pics", "photo", "photos", "rgb"),
        *("jpg", "jpeg", "jpegs", "png", "jpegimages", "flicker8k_dataset", "flickr30k_images", "flickr30k-images"),
    )
)


class ImageSearch(Root):
    """Finds images in and below a folder by the names that a table gives.

    A name is looked up beside the table first, then in every folder below: as it is, in another Unicode form, and
    without its extension. Where several folders hold it, the one with the table's own name counts (`more/` for
    `more.csv`), then the one that is named like images, then the one that the record's split names; DataError where
    two remain. `names` are the table's first ones: DataError where
    none of them is found, unless `--image-dir` was given.
    """

    def __init__(
        self,
        base: Path,
        names: Iterable[str],
        options: ReadOptions,
        report: SourceReport,
        *,
        table: Path | None = None,  # at or below `base`; its names may begin with `..`
    ) -> None:
        super().__init__(options.image_dir or base, allow_outside=options.allow_outside)
        self._table_folder = os.path.relpath(os.path.realpath(table.parent if table else base), self.folder)
        self._table_name = table.stem if table else None
        self._is_given = options.image_dir is not None
        self._report = report
        self._index: _Index | None = None
        self._prefix = ""  # folders of another machine, which are cut off the names
        self._folders: dict[str, bool] = {}
        self._is_flat = False  # the images are beside the table, and no others are meant
        self._copies: set[str] = set()  # folders of other pictures of the same names, which are not meant
        self._is_checked = False
        self._check([image_name(name) for name in islice(names, NUM_SAMPLES)])
        self._is_checked = True

    def locate(self, name: str, split: str | None = None) -> Path | Url:
        place = super().locate(name, split)
        if isinstance(place, Path):
            self._report.count_image(str(place).rpartition("/")[0])
        return place

    def resolve(self, name: str, split: str | None = None) -> Path:
        if self._prefix and name.startswith(self._prefix):
            name = name[len(self._prefix) :]
        found = self._find(name, split)
        if found is not None:
            return found
        if is_absolute(name) and not os.path.exists(name):
            raise BadPath("no such file here: the path is absolute, of another machine (--image-dir says where it is)")
        return super().resolve(name)  # the loader finds that it is missing

    def _find(self, name: str, split: str | None) -> Path | None:
        """The file of this name; None where there is none, and BadPath where it lies outside."""
        if not name or "\0" in name:
            raise BadPath("no image file is named")
        if self._index is not None and not self._is_flat and (folder := self._index.only_folder(name)) is not None:
            return Path(f"{self.folder}/{folder}/{name}") if folder not in self._copies else None
        if os.path.isfile(os.path.join(self.folder, name)):
            return super().resolve(name)
        if is_absolute(name):
            return None
        if self._table_folder != "." and not self._is_given:
            beside = os.path.normpath(os.path.join(self._table_folder, name))
            if not beside.startswith("..") and os.path.isfile(os.path.join(self.folder, beside)):
                return super().resolve(beside)
        if ".." in name.split("/"):
            return None
        if self._index is None:
            self._index = _Index(self.folder, follow_links=self.allow_outside)
        found: Sequence[str] = self._index.find(name)
        place = os.path.dirname(name)
        if self._is_flat if place == "" else self._is_folder(place):
            found = [path for path in found if os.path.dirname(path) == place]
        else:
            found = [path for path in found if os.path.dirname(path) not in self._copies]
        if len(found) > 1:
            found = self._narrow(name, found, split)
        return super().resolve(found[0]) if found else None

    def _is_folder(self, place: str) -> bool:
        """Whether a name's folder is there, so that the image is in it or missing."""
        if place not in self._folders:
            self._folders[place] = os.path.isdir(os.path.join(self.folder, place))
        return self._folders[place]

    def _narrow(self, name: str, found: Sequence[str], split: str | None) -> Sequence[str]:
        """The one of several files that is meant; raises DataError where that cannot be told."""
        folders = {path: os.path.dirname(path) for path in found}
        beside = [path for path in found if folders[path] in ("", self._table_folder)]
        of_table = beside or [path for path in found if os.path.basename(folders[path]) == self._table_name]
        like_images = of_table or [path for path in found if os.path.basename(folders[path]).lower() in IMAGE_FOLDERS]
        if like_images:
            nearest = min(path.count("/") for path in like_images)
            others = found
            found = [path for path in like_images if path.count("/") == nearest]
            if not self._is_checked:
                self._copies |= {folders[path] for path in others if path not in found}
        if len(found) > 1 and split is not None:
            found = [path for path in found if split_of_folder(folders[path]) == split] or found
        if len(found) > 1:
            places = [folder or "." for folder in dict.fromkeys(folders[path] for path in found)]
            if len(places) == 1:
                raise DataError(
                    f"`{name}` may be {join_listed(os.path.basename(path) for path in found)} of `{places[0]}`",
                    "name the images with their extensions",
                )
            example = os.path.join(self.folder, places[0])
            raise DataError(
                f"`{name}` is a file of several folders below `{self.folder}`: {join_listed(places)}",
                f"name the one that is meant, such as --image-dir '{example}'",
            )
        return found

    def _check(self, names: Sequence[str]) -> None:
        """Find out how the table's names relate to the folder; raises DataError where none is found."""
        names = [name for name in names if name and "\0" not in name and "://" not in name[:12]]
        self._is_flat = any("/" not in name and os.path.isfile(os.path.join(self.folder, name)) for name in names)
        found = [self._is_found(name) for name in names]  # each of them, to learn of copies
        if not names or any(found):
            return
        if not self._is_given and all(self._leads_elsewhere(name) for name in names):
            return  # each of them is judged by itself
        foreign = [name for name in names if is_absolute(name) or self._is_given or ".." in name.split("/")]
        for name in foreign:
            parts = name.split("/")
            for cut in range(1, len(parts)):
                if self._is_found("/".join(parts[cut:])):
                    self._prefix = "/".join(parts[:cut]) + "/"
                    self._report.note(
                        f"the table names folders that are not here: `{'/'.join(parts[cut:])}` is read for `{name}`"
                    )
                    return
        if not self._is_given:  # there, each missing image is rejected by itself
            self._refuse(names)

    def _refuse(self, names: Sequence[str]) -> None:
        if self._index is not None and self._index.closed:
            folder = self._index.closed[0]
            raise DataError(f"no permission to read `{folder}`", permission_hint(folder))
        images = self._index.num_images if self._index is not None else 0
        what = "absolute paths of another machine" if is_absolute(names[0]) else "not found"
        raise DataError(
            f"no folder below `{self.folder}` holds the images that the captions name: `{names[0]}`, … are {what}"
            + (f" ({images} other images are there)" if images else ""),
            "say with --image-dir which folder holds them, or with --image-column which column names them"
            + ("" if self.allow_outside else "; links to folders are followed with --allow-outside"),
        )

    def _is_found(self, name: str) -> bool:
        try:
            return self._find(name, None) is not None
        except BadPath:
            return False
        except DataError:
            return True  # in several folders: the record's split may decide

    def _leads_elsewhere(self, name: str) -> bool:
        """Whether a name is of an existing file outside, which is rejected with a word about that."""
        full = os.path.join(self.folder, name)
        return (is_absolute(name) or ".." in name.split("/")) and os.path.exists(full)


class _Index:
    """The files below a folder, by their names."""

    def __init__(self, folder: str, *, follow_links: bool) -> None:
        self.num_images = 0
        self.closed: list[str] = []  # folders that there is no permission to read
        self._folders: dict[str, str] = {}  # a file's name, NFC, to its folder
        self._more: dict[str, list[str]] = {}  # to further paths
        self._spelled: dict[str, str] = {}  # to its name on disk, where that is another
        self._links: set[str] = set()  # names of links to files, which may lead elsewhere
        self._stems: dict[str, list[str]] | None = None
        seen: set[str] = set()
        waiting = [("", 0)]
        for place, depth in waiting:  # grows while it is gone through: nearest folders first
            real = os.path.realpath(os.path.join(folder, place))
            if real in seen:
                continue
            seen.add(real)
            below = self._add_files(folder, place, follow_links=follow_links)
            if depth < MAX_DEPTH:
                waiting.extend((f"{place}/{name}" if place else name, depth + 1) for name in sorted(below))

    def only_folder(self, name: str) -> str | None:
        """The folder below this one that alone holds a file of this very name; None where `find` must decide."""
        if name in self._more or name in self._links or name in self._spelled:
            return None
        return self._folders.get(name) or None

    def find(self, name: str) -> list[str]:
        """Paths of the files that a name may mean: those of just this name, else of this name with an extension."""
        folder, _, base = name.rpartition("/")
        base = unicodedata.normalize("NFC", base)
        found = self._paths(base, folder)
        if found or without_suffix(base) != base:
            return found
        if self._stems is None:
            self._stems = {}
            for file in self._folders:
                if (stem := without_suffix(file)) != file:
                    self._stems.setdefault(stem, []).append(file)
        return [path for file in self._stems.get(base, ()) for path in self._paths(file, folder)]

    def _paths(self, base: str, folder: str) -> list[str]:
        if base not in self._folders:
            return []
        spelled = self._spelled.get(base, base)
        place = self._folders[base]
        paths = [f"{place}/{spelled}" if place else spelled, *self._more.get(base, ())]
        if not folder:
            return paths
        end = "/" + unicodedata.normalize("NFC", folder)
        return [path for path in paths if ("/" + unicodedata.normalize("NFC", os.path.dirname(path))).endswith(end)]

    def _add_files(self, folder: str, place: str, *, follow_links: bool) -> list[str]:
        """Take in the files of one folder, and return the names of the folders in it."""
        below: list[str] = []
        try:
            with os.scandir(os.path.join(folder, place)) as entries:
                for entry in entries:
                    if is_hidden(entry.name):
                        continue
                    if entry.is_dir(follow_symlinks=follow_links):
                        below.append(entry.name)
                    elif not entry.is_symlink():
                        self._add(place, entry.name)
                    elif not entry.is_dir():
                        self._links.add(entry.name)
                        self._add(place, entry.name)
        except PermissionError:  # of a folder that may have nothing to do with the corpus
            self.closed.append(os.path.join(folder, place))
        return below

    def _add(self, place: str, name: str) -> None:
        key = name if name.isascii() else unicodedata.normalize("NFC", name)
        self.num_images += without_suffix(name) != name
        if key in self._folders:
            self._more.setdefault(key, []).append(f"{place}/{name}" if place else name)
            return
        self._folders[key] = place
        if key != name:
            self._spelled[key] = name
