"""Captions gathered by image in bounded memory: past a limit they move to a temporary file."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from clipkit.errors import DataError

MEMORY_LIMIT_BYTES = 256_000_000
ENTRY_BYTES = 350  # what a group takes besides its texts: dict slots, list, integer
SCHEMA = """
    PRAGMA journal_mode = OFF;
    PRAGMA synchronous = OFF;
    PRAGMA cache_size = -65536;
    CREATE TABLE groups (position INTEGER PRIMARY KEY, key TEXT UNIQUE, first INTEGER, texts TEXT);
"""
# A key that was flushed before keeps its position; the new texts go on a new line behind the old ones.
UPSERT = """
    INSERT INTO groups (key, first, texts) VALUES (?, ?, ?)
    ON CONFLICT (key) DO UPDATE SET texts = texts || char(10) || excluded.texts
"""


@dataclass(frozen=True, slots=True)
class Group:
    """A key, the number of its first row, and its texts in order."""

    key: str
    first: int
    texts: tuple[str, ...]


class Groups:
    """Groups of texts, in the order in which their keys first came."""

    def __init__(self, *, memory_limit_bytes: int = MEMORY_LIMIT_BYTES) -> None:
        self._limit = memory_limit_bytes
        self._size = 0
        self._first: dict[str, int] = {}
        self._texts: dict[str, list[str]] = {}
        self._database: sqlite3.Connection | None = None

    @property
    def on_disk(self) -> bool:
        return self._database is not None

    def __len__(self) -> int:
        if self._database is None:
            return len(self._texts)
        self._flush()
        return int(self._database.execute("SELECT count(*) FROM groups").fetchone()[0])

    def __contains__(self, key: str) -> bool:
        if key in self._texts:
            return True
        if self._database is None:
            return False
        return self._database.execute("SELECT 1 FROM groups WHERE key = ?", (key,)).fetchone() is not None

    def add(self, key: str, row: int, texts: Sequence[str]) -> bool:
        """Add texts to a group; whether the key is new, as far as memory tells."""
        own = self._texts.get(key)
        is_new = own is None
        if own is None:
            own = self._texts[key] = []
            self._first[key] = row
            self._size += ENTRY_BYTES + len(key)
        own.extend(texts)
        self._size += sum(map(sys.getsizeof, texts))
        if self._size > self._limit:
            self._flush()
        return is_new

    def __iter__(self) -> Iterator[Group]:
        if self._database is None:
            for key, texts in self._texts.items():
                yield Group(key, self._first[key], tuple(texts))
            return
        self._flush()
        rows = self._database.execute("SELECT key, first, texts FROM groups ORDER BY position")
        for key, first, lines in rows:
            yield Group(key, first, tuple(text for line in lines.split("\n") for text in json.loads(line)))

    def _flush(self) -> None:
        try:
            if self._database is None:
                # An empty name is a file of SQLite's own in TMPDIR, gone with the connection.
                self._database = sqlite3.connect("", check_same_thread=False, isolation_level=None)
                self._database.executescript(SCHEMA)
            self._database.execute("BEGIN")
            rows = ((key, self._first[key], json.dumps(texts)) for key, texts in self._texts.items())
            self._database.executemany(UPSERT, rows)
            self._database.execute("COMMIT")
        except sqlite3.Error as error:
            raise DataError(
                f"the captions do not fit into memory, nor into a temporary file: {error}",
                "point TMPDIR at a disk with room",
            ) from error
        self._first.clear()
        self._texts.clear()
        self._size = 0
