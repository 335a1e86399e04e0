"""The journal: every completion ever paid for, found again by what determined it.

Owns one SQLite file: atomic, safe to kill at any moment, shared by several processes and from week to week.
Knows nothing of prompts or models; a key is a digest made by the caller.
"""

from __future__ import annotations

import fcntl
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path

from components.errors import DataError, TryAgainError

Row = tuple[str, str, int, float]
"""text, finish_reason, num_tokens, logprob"""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS completion (
    key BLOB PRIMARY KEY, text TEXT NOT NULL, finish_reason TEXT NOT NULL, num_tokens INTEGER NOT NULL, logprob REAL NOT NULL
) WITHOUT ROWID
"""
_KEYS_PER_QUERY = 500


class Journal:
    """Completions by key. What `put` returned from survives a kill; a half-written row is never seen."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.with_suffix(".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # two that open a new journal at once: SQLite does not wait for that
                self._db = sqlite3.connect(path, timeout=60.0, isolation_level=None)
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.execute("PRAGMA synchronous=NORMAL")
                self._db.execute(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise self._readable(error) from error

    def get(self, keys: Sequence[str]) -> dict[str, Row]:
        """The completions that are known, by key."""
        found: dict[str, Row] = {}
        try:
            for start in range(0, len(keys), _KEYS_PER_QUERY):
                part = keys[start : start + _KEYS_PER_QUERY]
                marks = ",".join("?" * len(part))
                query = f"SELECT key, text, finish_reason, num_tokens, logprob FROM completion WHERE key IN ({marks})"
                for key, *row in self._db.execute(query, [bytes.fromhex(k) for k in part]):
                    found[key.hex()] = (row[0], row[1], row[2], row[3])
        except sqlite3.Error as error:
            raise self._readable(error) from error
        return found

    def put(self, rows: Iterable[tuple[str, Row]]) -> None:
        """Keep completions, all or none. The first writer of a key wins. Half a character becomes U+FFFD."""
        values = [(bytes.fromhex(key), _whole(text), *rest) for key, (text, *rest) in rows]
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany("INSERT INTO completion VALUES (?, ?, ?, ?, ?) ON CONFLICT(key) DO NOTHING", values)
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a full disk makes SQLite roll back by itself
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise self._readable(error) from error

    def close(self) -> None:
        """Release the file."""
        self._db.close()

    def _readable(self, error: Exception) -> DataError | TryAgainError:
        if "locked" in str(error):
            return TryAgainError(str(self.path), "the journal is busy", "another run is writing; try again")
        return DataError(
            str(self.path), f"the journal cannot be used: {error}", "check the free space; move the file away to start anew"
        )


def _whole(text: str) -> str:
    """Text that UTF-8 can hold: a server cuts between tokens, and may send half of a surrogate pair."""
    return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
