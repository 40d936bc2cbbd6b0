"""Texts gathered by key, and the keys themselves, in bounded memory: past a limit they move to a temporary file."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from clipkit.errors import DataError

MEMORY_LIMIT_BYTES = 256_000_000
KEY_BYTES, TEXTS_BYTES = 150, 200  # what a key and its list of texts cost besides their characters
SCHEMA = """
    PRAGMA journal_mode = OFF;
    PRAGMA synchronous = OFF;
    PRAGMA cache_size = -65536;
    CREATE TABLE groups (position INTEGER PRIMARY KEY, key TEXT UNIQUE, first INTEGER, texts TEXT);
"""
# A key that was flushed before keeps its position; the new texts go on a new line after the old ones.
UPSERT = """
    INSERT INTO groups (key, first, texts) VALUES (?, ?, ?)
    ON CONFLICT (key) DO UPDATE SET texts = texts || char(10) || excluded.texts
"""


@dataclass(frozen=True, slots=True)
class Group:
    """A key, the number that it first came with, and its texts in order."""

    key: str
    first: int
    texts: tuple[str, ...]


class Groups:
    """Keys in the order in which they first came, each with a number and perhaps with texts.

    The keys given at first are numbered from 0.
    """

    def __init__(self, keys: Iterable[str] = (), *, memory_limit_bytes: int = MEMORY_LIMIT_BYTES) -> None:
        self._limit = memory_limit_bytes
        self._size = 0
        self._first: dict[str, int] = {}
        self._texts: dict[str, list[str]] = {}
        self._database: sqlite3.Connection | None = None
        for number, key in enumerate(keys):
            self.add(key, number)

    @property
    def on_disk(self) -> bool:
        return self._database is not None

    def __len__(self) -> int:
        if self._database is None:
            return len(self._first)
        self._flush()
        return int(self._database.execute("SELECT count(*) FROM groups").fetchone()[0])

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self.first(key) is not None

    def first(self, key: str) -> int | None:
        """The number that the key first came with; None where it has not come."""
        if self._database is not None:
            found = self._database.execute("SELECT first FROM groups WHERE key = ?", (key,)).fetchone()
            if found:
                return int(found[0])
        return self._first.get(key)

    def add(self, key: str, number: int = 0, texts: Sequence[str] = ()) -> bool:
        """Add a key or its texts; whether the key is new, as far as memory tells."""
        is_new = key not in self._first
        if is_new:
            self._first[key] = number
            self._size += KEY_BYTES + len(key)
        if texts:
            own = self._texts.get(key)
            if own is None:
                own = self._texts[key] = []
                self._size += TEXTS_BYTES
            own.extend(texts)
            self._size += sum(map(sys.getsizeof, texts))
        if self._size > self._limit:
            self._flush()
        return is_new

    def __iter__(self) -> Iterator[Group]:
        if self._database is None:
            for key, number in self._first.items():
                yield Group(key, number, tuple(self._texts.get(key, ())))
            return
        self._flush()
        rows = self._database.execute("SELECT key, first, texts FROM groups ORDER BY position")
        for key, number, lines in rows:
            yield Group(key, number, tuple(text for line in lines.split("\n") for text in json.loads(line)))

    def _flush(self) -> None:
        try:
            if self._database is None:
                # An empty name is a file of SQLite's own in TMPDIR, deleted with the connection.
                self._database = sqlite3.connect("", check_same_thread=False, isolation_level=None)
                self._database.executescript(SCHEMA)
            self._database.execute("BEGIN")
            rows = ((key, number, json.dumps(self._texts.get(key, ()))) for key, number in self._first.items())
            self._database.executemany(UPSERT, rows)
            self._database.execute("COMMIT")
        except sqlite3.Error as error:
            raise DataError(
                f"the ids and captions fit neither into memory nor into a temporary file: {error}",
                "point TMPDIR at a disk with room",
            ) from error
        self._first.clear()
        self._texts.clear()
        self._size = 0
