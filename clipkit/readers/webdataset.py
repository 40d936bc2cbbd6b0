"""WebDataset: tar shards in which the files of one sample share a name, as webdataset and img2dataset write them."""

from __future__ import annotations

import glob
import json
import re
import tarfile
import zlib
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from clipkit.errors import DataError
from clipkit.readers.paths import IMAGE_SUFFIXES, OUTSIDE
from clipkit.readers.source import Item, ReadOptions, Rejected, SourceReport, split_in_name, split_name
from clipkit.readers.values import NOT_UTF8, RESERVED, as_captions, as_scalar, is_unicode, kept_name
from clipkit.types import Record, Scalar

SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz")
BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")
CAPTION_SUFFIXES = (".txt", ".caption")
CAPTION_FIELDS = ("captions", "caption", "texts", "text")
JSON_SUFFIX = ".json"

NO_IMAGE = "the sample has no image (a sample's name ends at its first dot)"

TEXT_SUFFIXES = frozenset((*CAPTION_SUFFIXES, JSON_SUFFIX))
SUFFIXES = IMAGE_SUFFIXES | TEXT_SUFFIXES

DAMAGE = (tarfile.TarError, OSError, EOFError, zlib.error)

Files = dict[str, bytes | None]
Member = tuple[str, str, tuple[tarfile.TarFile, tarfile.TarInfo] | None]  # the sample's name, the suffix, the entry


def detect(source: str) -> bool:
    return any(Path(shard).is_file() for shard in find_shards(source))


def read(source: str, options: ReadOptions, skip: int, report: SourceReport) -> Iterator[Item]:
    """Records in the shards' order; what is skipped in a plain tar is sought over and not read."""
    shards = find_shards(source)
    if not shards:
        raise DataError(f"`{source}` is no tar shard, nor a folder or pattern of some", "as in shard-{0000..0012}.tar")
    position = 0
    for shard in shards:
        for item in _read_shard(Path(shard), options, skip - position):
            position += 1
            if item is not None:
                yield item


def find_shards(source: str) -> list[str]:
    """The shards of a file name, a brace or glob pattern, or a folder, in order."""
    if Path(source).is_dir():
        return sorted(str(path) for path in Path(source).iterdir() if path.name.endswith(SHARD_SUFFIXES))
    if not source.endswith(SHARD_SUFFIXES):
        return []
    return [path for pattern in expand_braces(source) for path in sorted(glob.glob(pattern)) or [pattern]]


def expand_braces(pattern: str) -> list[str]:
    """`a-{000..002}.tar` and `{a,b}.tar` written out."""
    match = BRACES.search(pattern)
    if match is None:
        return [pattern]
    if bounds := RANGE.fullmatch(match[1]):
        first, last = int(bounds[1]), int(bounds[2])
        choices = [str(number).zfill(len(bounds[1])) for number in range(first, last + 1)]
    else:
        choices = match[1].split(",")
    before, after = pattern[: match.start()], pattern[match.end() :]
    return [text for choice in choices for text in expand_braces(before + choice + after)]


def _read_shard(shard: Path, options: ReadOptions, skip: int) -> Iterator[Item | None]:
    """The shard's items, None for each of the first `skip`, of which nothing is read."""
    samples = groupby(_members(shard), key=lambda member: member[0])
    for position, (name, members) in enumerate(samples):
        if position < skip:
            yield None
            continue
        if not name:
            _, error, _ = next(members)
            yield Rejected(shard.name, shard.name, f"the shard cannot be read on: {error}")
            return
        place = f"{shard.name}/{name}"
        files: Files = {}
        twice = ""
        try:  # in the order of the tar: going back in a compressed one means starting over
            for _, suffix, entry in members:
                twice = suffix if suffix in files else twice
                if entry and suffix in SUFFIXES:
                    files[suffix] = _contents(*entry)
            yield Rejected(name, place, f"it has two files `{twice}`") if twice else _item(place, name, files, options)
        except DAMAGE as error:
            yield Rejected(name, place, f"the shard is damaged: {error}")


def _members(shard: Path) -> Iterator[Member]:
    """The shard's files; where it cannot be read on, a last one without a name, and the error for a suffix."""
    mode: Literal["r:gz", "r:"] = "r:gz" if shard.name.endswith(SHARD_SUFFIXES[1:]) else "r:"
    try:
        with tarfile.open(shard, mode) as tar:
            while (entry := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it would keep all that it has seen
                folder, slash, base = entry.name.rpartition("/")
                stem, dot, suffix = base.partition(".")
                if not entry.isdir() and stem:
                    yield folder + slash + stem, f"{dot}{suffix}".lower(), (tar, entry)
    except DAMAGE as error:
        yield "", str(error), None


def _contents(tar: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes | None:
    """The file's bytes; None for a link, which a tar of samples has no need of."""
    file = tar.extractfile(entry) if entry.isfile() else None
    return file.read() if file else None


def _item(place: str, name: str, files: Files, options: ReadOptions) -> Item:
    suffix = next((suffix for suffix in files if suffix in IMAGE_SUFFIXES), None)
    image = files[suffix] if suffix else None
    if image is None:
        return Rejected(name, place, "the image is a link, not a file" if suffix else NO_IMAGE)
    if not options.allow_outside and (name.startswith("/") or ".." in name.split("/")):
        return Rejected(name, place, OUTSIDE)
    try:
        texts = {suffix: data.decode() for suffix, data in files.items() if data and suffix in TEXT_SUFFIXES}
        fields = json.loads(texts.get(JSON_SUFFIX, "{}"))
    except UnicodeDecodeError:
        return Rejected(name, place, NOT_UTF8)
    except ValueError as error:
        return Rejected(name, place, f"the sample's JSON is damaged: {error}")
    if not isinstance(fields, dict):
        return Rejected(name, place, "the sample's JSON is no object")
    captions = _captions(texts, fields, options)
    if not captions or not all(map(is_unicode, captions)):
        return Rejected(name, place, NOT_UTF8 if captions else "no caption")
    split = split_name(str(fields.get("split") or "")) or split_in_name(place.partition("/")[0])
    image_id = fields.get(options.id_column or "image_id")
    return Record(str(image_id or name), image, captions, place, split, _extra(fields, options))


def _captions(texts: dict[str, str], fields: dict[str, Any], options: ReadOptions) -> tuple[str, ...]:
    """From the JSON fields asked for, else from a list of captions there, the text file, or one caption there."""
    if options.caption_columns:
        return tuple(as_captions([fields.get(name) for name in options.caption_columns]))
    if isinstance(fields.get("captions"), list):
        return tuple(as_captions(fields["captions"]))
    text = next((texts[suffix] for suffix in CAPTION_SUFFIXES if suffix in texts), None)
    if text is not None:
        return (text.strip(),) if text.strip() else ()
    return tuple(as_captions([next((fields[name] for name in CAPTION_FIELDS if fields.get(name)), None)]))


def _extra(fields: dict[str, Any], options: ReadOptions) -> dict[str, Scalar]:
    """The JSON's other fields, or those asked for."""
    left_out = RESERVED | set(CAPTION_FIELDS) | set(options.caption_columns)
    if options.keep and "*" not in options.keep:
        return {kept_name(name): as_scalar(fields.get(name)) for name in options.keep}
    return {kept_name(name): as_scalar(value) for name, value in fields.items() if name not in left_out}
