"""Records with their images read, checked and re-encoded in threads, in the records' order."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import cv2

from clipkit.errors import DataError
from clipkit.hardware import usable_cores
from clipkit.images.header import BadImage
from clipkit.images.prepare import ImageOptions, PreparedImage, prepare
from clipkit.readers.fetch import FetchOptions, fetch_urls
from clipkit.readers.source import Item, Rejected
from clipkit.types import Record

IN_FLIGHT_BYTES = 64_000_000
MAX_IN_FLIGHT = 512  # images
MAX_CHUNK = 16  # images that one task reads: small ones are not worth one each
CHUNK_BYTES = 500_000
POLL_S = 0.2  # how often a long wait checks whether to stop


@dataclass(frozen=True, slots=True)
class Loaded:
    """An item after reading; a record without an image was not wanted."""

    item: Item
    image: PreparedImage | None = None
    digest: str = ""  # of the bytes that are stored, where digests are asked for


class SourceGuard:
    """Tells a missing image from a source that vanished, such as an unmounted disk."""

    def __init__(self, source: str) -> None:
        self._source = Path(source)
        self._was_there = self._source.exists()
        self._folders: set[Path] = set()

    def saw(self, image: Path) -> None:
        self._folders.add(image.parent)

    def check(self, image: Path) -> None:
        """Raise DataError where the source, or a folder that images were read from, is gone."""
        gone = next((folder for folder in (self._source, image.parent) if not folder.exists()), None)
        if gone is not None and (gone in self._folders or (gone == self._source and self._was_there)):
            raise DataError(
                f"`{gone}` vanished while it was read",
                "restore it, then run the same command with --resume: finished shards are kept",
            )


def load_images(
    items: Iterator[Item],
    options: ImageOptions,
    *,
    fetch: FetchOptions,
    wanted: Callable[[Record], bool],
    guard: SourceGuard,
    stopped: Callable[[], bool],
    digests: bool = False,
) -> Iterator[Loaded]:
    """Each item once, in order; ends early once `stopped` says so."""
    cv2.setNumThreads(1)  # images are prepared in parallel already
    loader = _Loader(options, guard, digests)
    items = fetch_urls(items, fetch, wanted=wanted, stopped=stopped)
    window = _Window()
    pending: deque[tuple[int, Future[list[Loaded]]]] = deque()
    num_pending = 0
    with ThreadPoolExecutor(max(4, 2 * usable_cores()), thread_name_prefix="load") as pool:
        try:
            while not stopped():
                while num_pending < window.size and (chunk := list(islice(items, window.chunk))):
                    skipped = [isinstance(item, Record) and not wanted(item) for item in chunk]
                    future = pool.submit(loader.load_chunk, chunk, skipped)
                    pending.append((len(chunk), future))
                    num_pending += len(chunk)
                if not pending:
                    return
                size, future = pending[0]
                try:
                    loaded = future.result(timeout=POLL_S)
                except NotYet:
                    continue
                pending.popleft()
                num_pending -= size
                window.measure(loaded)
                yield from loaded
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class _Window:
    """How many images are read ahead: about as many as fit into `IN_FLIGHT_BYTES`."""

    def __init__(self) -> None:
        self._mean_bytes = 500_000.0

    @property
    def size(self) -> int:
        return max(4, min(MAX_IN_FLIGHT, int(IN_FLIGHT_BYTES / self._mean_bytes)))

    @property
    def chunk(self) -> int:
        return max(1, min(MAX_CHUNK, int(CHUNK_BYTES / self._mean_bytes)))

    def measure(self, loaded: Sequence[Loaded]) -> None:
        for one in loaded:
            if one.image is not None:
                self._mean_bytes += 0.05 * (len(one.image.data) - self._mean_bytes)


@dataclass(frozen=True, slots=True)
class _Loader:
    """What the threads run."""

    options: ImageOptions
    guard: SourceGuard
    digests: bool

    def load_chunk(self, items: Sequence[Item], skipped: Sequence[bool]) -> list[Loaded]:
        return [
            Loaded(item) if skip or isinstance(item, Rejected) else self.load(item)
            for item, skip in zip(items, skipped, strict=True)
        ]

    def load(self, record: Record) -> Loaded:
        """A record with its image, or rejected for what is wrong with it."""
        if not record.captions:
            return _rejected(record, "no caption")
        try:
            data = self._read(record)
            image = prepare(data, self.options)
            return Loaded(record, image, content_digest(image.data) if self.digests else "")
        except BadImage as error:
            return _rejected(record, str(error))
        except FileNotFoundError:
            if isinstance(record.image, Path):
                self.guard.check(record.image)
            return _rejected(record, "missing")
        except OSError as error:
            return _rejected(record, f"cannot be read: {error.strerror or error}")

    def _read(self, record: Record) -> bytes:
        if isinstance(record.image, bytes):
            return record.image
        if isinstance(record.image, Path):
            data = read_file(record.image)
            self.guard.saw(record.image)
            return data
        raise AssertionError("URLs are fetched before images are loaded")


def content_digest(data: bytes | memoryview) -> str:
    """Equal for equal bytes."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _rejected(record: Record, reason: str) -> Loaded:
    return Loaded(Rejected(record.image_id, record.source, reason))


def read_file(path: Path) -> bytes:
    """A file's bytes, with fewer system calls than `Path.read_bytes`; raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would wait for a writer
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("not a regular file")
        size = status.st_size
        data = os.read(handle, size + 1)
        while len(data) <= size and (more := os.read(handle, size + 1 - len(data))):
            data += more
        return data
    finally:
        os.close(handle)
