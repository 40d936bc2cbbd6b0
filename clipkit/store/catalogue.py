"""The ids of a dataset, to ask whether one is there; past a limit they move to a temporary file."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from clipkit.errors import DataError

MAX_IN_MEMORY = 2_000_000  # some 200 MB
SCHEMA = """
    PRAGMA journal_mode = OFF;
    PRAGMA synchronous = OFF;
    PRAGMA cache_size = -65536;
    CREATE TABLE ids (id TEXT PRIMARY KEY, row INTEGER) WITHOUT ROWID;
"""


class IdCatalogue:
    """Ids, each with the number of its row."""

    def __init__(self, ids: Iterable[str] = (), *, max_in_memory: int = MAX_IN_MEMORY) -> None:
        self._max_in_memory = max_in_memory
        self._recent: dict[str, int] = {}
        self._database: sqlite3.Connection | None = None
        for image_id in ids:
            self.add(image_id)

    def __contains__(self, image_id: object) -> bool:
        return isinstance(image_id, str) and self.row(image_id) is not None

    def row(self, image_id: str) -> int | None:
        """The number given to `add` with this id, or None where the id is not there."""
        row = self._recent.get(image_id)
        if row is None and self._database is not None:
            found = self._database.execute("SELECT row FROM ids WHERE id = ?", (image_id,)).fetchone()
            row = found[0] if found else None
        return row

    def add(self, image_id: str, row: int = 0) -> bool:
        """Take in an id; False where it was there before."""
        if image_id in self:
            return False
        self._recent[image_id] = row
        if len(self._recent) >= self._max_in_memory:
            self._flush()
        return True

    def _flush(self) -> None:
        try:
            if self._database is None:
                # An empty name is a file of SQLite's own in TMPDIR, gone with the connection.
                self._database = sqlite3.connect("", isolation_level=None)
                self._database.executescript(SCHEMA)
            self._database.execute("BEGIN")
            self._database.executemany("INSERT INTO ids VALUES (?, ?)", sorted(self._recent.items()))
            self._database.execute("COMMIT")
        except sqlite3.Error as error:
            raise DataError(
                f"the ids do not fit into memory, nor into a temporary file: {error}",
                "point TMPDIR at a disk with room",
            ) from error
        self._recent.clear()
