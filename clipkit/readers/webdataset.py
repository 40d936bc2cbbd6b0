"""WebDataset: tar shards in which the files of one sample share a name, as webdataset and img2dataset write them.

A shard's headers are read first, so that samples are whole in whatever order their files lie; then a sample's files
are read where they lie. A compressed shard is unpacked into a temporary file.
"""

from __future__ import annotations

import errno
import glob
import gzip
import json
import os
import re
import shutil
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

from clipkit.errors import DataError
from clipkit.readers.paths import IMAGE_SUFFIXES, OUTSIDE, is_hidden
from clipkit.readers.source import Item, ReadOptions, Rejected, SourceReport, split_in_name, split_name
from clipkit.readers.values import NOT_UTF8, RESERVED, as_captions, as_scalar, is_unicode, kept_name
from clipkit.types import Record, Scalar

SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz")
BRACES = re.compile(r"\{([^{}]*)\}")
RANGE = re.compile(r"(\d+)\.\.(\d+)")
CAPTION_SUFFIXES = (".txt", ".caption")
CAPTION_FIELDS = ("captions", "caption", "texts", "text")
JSON_SUFFIX = ".json"
TEXT_SUFFIXES = frozenset((*CAPTION_SUFFIXES, JSON_SUFFIX))
SUFFIXES = IMAGE_SUFFIXES | TEXT_SUFFIXES
ARCHIVER_FOLDER = "__MACOSX"
LINK = -1
DAMAGE = (tarfile.TarError, OSError, EOFError, zlib.error)


class Member(NamedTuple):
    """A file of a sample: its suffix, and where its bytes lie in the shard (size LINK for a link)."""

    suffix: str
    start: int
    size: int


Samples = dict[str, list[Member]]


def detect(source: str) -> bool:
    return any(Path(shard).is_file() for shard in find_shards(source))


def read(source: str, options: ReadOptions, skip: int, report: SourceReport) -> Iterator[Item]:
    """Records in the order in which the shards first name them; of those that are skipped only headers are read."""
    shards = find_shards(source)
    if not shards:
        raise DataError(f"`{source}` is not a tar shard, a folder or a pattern of some", "as in shard-{0000..0012}.tar")
    for shard in map(Path, shards):
        report.files.append(shard.name)
        samples: Samples = {}
        damage = header_damage = ""
        try:
            with _unpacked(shard) as (file, damage):
                samples, header_damage = _index(file)
                for name, members in islice(samples.items(), skip, None):
                    yield _read_sample(file, f"{shard.name}/{name}", name, members, options)
        except OSError as error:
            damage = str(error)
        skip = max(0, skip - len(samples))
        if damage := damage or header_damage:
            if not skip:
                yield Rejected(shard.name, shard.name, f"the shard cannot be read any further: {damage}")
            skip = max(0, skip - 1)


def find_shards(source: str) -> list[str]:
    """The shards of a file name, a brace or glob pattern, or a folder, in order."""
    if Path(source).is_dir():
        names = sorted(name for name in os.listdir(source) if name.endswith(SHARD_SUFFIXES) and not is_hidden(name))
        return [os.path.join(source, name) for name in names]
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


@contextmanager
def _unpacked(shard: Path) -> Iterator[tuple[IO[bytes], str]]:
    """The shard as a plain tar, and what stopped its decompression."""
    if not shard.name.endswith(SHARD_SUFFIXES[1:]):
        with open(shard, "rb") as file:
            yield file, ""
        return
    damage = ""
    with tempfile.TemporaryFile() as plain:
        with gzip.open(shard) as packed:
            try:
                shutil.copyfileobj(packed, plain, 1 << 20)
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                damage = str(error)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                raise DataError(
                    f"`{shard}` does not fit into a temporary file in `{tempfile.gettempdir()}`",
                    "point TMPDIR at a disk with room, or unpack the shard with gunzip",
                ) from error
        plain.flush()
        plain.seek(0)
        yield plain, damage


def _index(file: IO[bytes]) -> tuple[Samples, str]:
    """The samples in the order of their first files, and the damage that ended the search for more.

    A sample's name ends at the first dot of its files' names. `a.left.png` beside `a.jpg` is a further file of `a`;
    where there is no such `a`, or `a.left` has a text too, `a.left` is a sample.
    """
    samples: Samples = {}
    damage = ""
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (entry := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # it would keep all that it has seen
                folder, slash, base = entry.name.rpartition("/")
                if entry.isdir() or is_hidden(base) or ARCHIVER_FOLDER in folder.split("/"):
                    continue
                stem, dot, suffix = base.partition(".")
                if f"{dot}{suffix}".lower() not in SUFFIXES and f".{suffix.rpartition('.')[2]}".lower() in SUFFIXES:
                    stem, dot, suffix = base.rpartition(".")
                size = entry.size if entry.isfile() and not entry.issparse() else LINK
                member = Member(sys.intern(f"{dot}{suffix}".lower()), entry.offset_data, size)
                samples.setdefault(f"{folder}{slash}{stem}", []).append(member)
    except DAMAGE as error:
        damage = str(error)
    for name in [name for name, members in samples.items() if _is_extra(name, members, samples)]:
        del samples[name]
    return samples, damage


def _is_extra(name: str, members: list[Member], samples: Samples) -> bool:
    """Whether these are further files of another sample."""
    folder, slash, base = name.rpartition("/")
    stem, dot, _ = base.partition(".")
    if not dot or f"{folder}{slash}{stem}" not in samples:
        return False
    suffixes = {member.suffix for member in members}
    return not (suffixes & IMAGE_SUFFIXES and suffixes & TEXT_SUFFIXES)


def _read_sample(file: IO[bytes], place: str, name: str, members: list[Member], options: ReadOptions) -> Item:
    files: dict[str, bytes | None] = {}
    for suffix, start, size in members:
        if suffix not in SUFFIXES:
            continue
        if suffix in files:
            return Rejected(name, place, f"the sample has two files `{suffix}`")
        files[suffix] = None if size == LINK else os.pread(file.fileno(), size, start)
        if size != LINK and len(files[suffix] or b"") < size:
            return Rejected(name, place, "the shard is damaged: it ends within the sample")
    return _item(place, name, files, [member.suffix for member in members], options)


def _item(place: str, name: str, files: dict[str, bytes | None], suffixes: list[str], options: ReadOptions) -> Item:
    suffix = next((suffix for suffix in files if suffix in IMAGE_SUFFIXES), None)
    if suffix is None:
        return Rejected(name, place, f"the sample has no image, only {', '.join(sorted(suffixes))}")
    image = files[suffix]
    if image is None:
        return Rejected(name, place, "the image is a link, not a file")
    if not options.allow_outside and (name.startswith("/") or ".." in name.split("/")):
        return Rejected(name, place, OUTSIDE)
    try:
        texts = {suffix: data.decode("utf-8-sig") for suffix, data in files.items() if data and suffix in TEXT_SUFFIXES}
        fields = json.loads(texts.get(JSON_SUFFIX, "{}"))
    except UnicodeDecodeError:
        return Rejected(name, place, NOT_UTF8)
    except ValueError as error:
        return Rejected(name, place, f"the sample's JSON is damaged: {error}")
    if not isinstance(fields, dict):
        return Rejected(name, place, "the sample's JSON is not an object")
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
