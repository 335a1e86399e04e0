"""The journal: every completion ever paid for, found again by what determined it.

Owns one SQLite file: atomic, safe to kill at any moment, shared by several processes and from week to week, and mended
as it is opened if it was cut short. Knows nothing of prompts or models; a key is a digest made by the caller.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sqlite3
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

from components.errors import DataError, TryAgainError
from components.progress import say

Row = tuple[str, str, int, float]
"""text, finish_reason, num_tokens, logprob"""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS completion (
    key BLOB PRIMARY KEY, text TEXT NOT NULL, finish_reason TEXT NOT NULL, num_tokens INTEGER NOT NULL, logprob REAL NOT NULL
) WITHOUT ROWID
"""
_KEYS_PER_QUERY = 500
_MAGIC = b"SQLite format 3\0"
_HEADER_BYTES = 100
_LOG_HEADER_BYTES, _FRAME_HEADER_BYTES = 32, 24


class Journal:
    """Completions by key. What `put` returned from survives a kill; a half-written row is never seen."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.with_suffix(".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # two that open a new journal at once: SQLite does not wait for that
                pages = _pages_left(path)
                if pages is not None:
                    _mend(path, pages)
                self._db = _connected(path)
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


def _connected(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=60.0, isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=NORMAL")
    db.execute(_SCHEMA)
    return db


def _log_of(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def _pages_left(path: Path) -> int | None:
    """How many pages are left of a file that was cut short, by a full disk or half a copy; None: it is whole.

    SQLite reads what is missing of the last page as zeros, without a word: half a text would be taken for the text.
    """
    if not path.exists():
        return None
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
    if header and _MAGIC.startswith(header[: len(_MAGIC)]) and len(header) < _HEADER_BYTES:
        return 0
    if not header.startswith(_MAGIC):
        return None  # new, or no journal: SQLite says so
    page_bytes = _page_bytes(header)
    num_pages = int.from_bytes(header[28:32])
    logged = _logged_pages(_log_of(path), page_bytes)
    size = path.stat().st_size  # after the log: whoever empties the log has made the file whole before
    if size >= num_pages * page_bytes:
        return None
    missing = set(range(size // page_bytes + 1, num_pages + 1)) - logged  # a kill may come while the log is written back
    return min(missing) - 1 if missing else None


def _page_bytes(header: bytes) -> int:
    told = int.from_bytes(header[16:18])
    return 65536 if told == 1 else max(512, told)


def _logged_pages(log: Path, page_bytes: int) -> set[int]:
    """The pages that the write-ahead log holds, up to the last transaction that was ended."""
    ended: set[int] = set()
    since: set[int] = set()
    if not log.exists():
        return ended
    with log.open("rb") as file:
        salt = file.read(_LOG_HEADER_BYTES)[16:24]
        while len(frame := file.read(_FRAME_HEADER_BYTES + page_bytes)) == _FRAME_HEADER_BYTES + page_bytes:
            if frame[8:16] != salt:  # left over from an earlier round
                break
            since.add(int.from_bytes(frame[:4]))
            if frame[4:8] != bytes(4):
                ended |= since
    return ended


def _mend(path: Path, num_pages: int) -> None:
    """Put what can still be read into a journal that takes the place of the damaged file; that one is kept aside."""
    torn, copy, mended = (path.with_name(path.name + end) for end in (".torn", ".copy", ".mended"))
    for left in (torn, copy, mended):
        _remove(left)
    for target in (torn, copy):
        shutil.copyfile(path, target)
        if _log_of(path).exists():
            shutil.copyfile(_log_of(path), _log_of(target))
    num_kept = 0
    with closing(_connected(mended)) as new:
        new.execute("BEGIN")
        for row in _readable_rows(copy, num_pages):
            num_kept += new.execute("INSERT OR IGNORE INTO completion VALUES (?, ?, ?, ?, ?)", row).rowcount
        new.execute("COMMIT")
    with mended.open("rb") as file:
        os.fsync(file.fileno())
    _remove(copy)
    for end in ("-shm", "-wal"):  # a log of the old file would spoil the new one
        path.with_name(path.name + end).unlink(missing_ok=True)
    mended.replace(path)
    say("journal", f"{path} was cut short: {num_kept:,} completions are kept, the others are sampled again; see {torn}")


def _remove(path: Path) -> None:
    for end in ("", "-wal", "-shm"):
        path.with_name(path.name + end).unlink(missing_ok=True)


def _readable_rows(path: Path, num_pages: int) -> Iterator[tuple[object, ...]]:
    """Every row that lies whole on the first `num_pages` pages, whatever became of the tree above. The file is changed.

    A row never changes once it is written, so one that a page still holds is right wherever it is found.
    Source: sqlite.org/fileformat2.html, b-tree pages and record format.
    """
    if not num_pages:
        return
    with path.open("r+b") as file:
        header = file.read(_HEADER_BYTES)
        file.truncate(int.from_bytes(header[28:32]) * _page_bytes(header))  # what SQLite needs to write its log back
    if _log_of(path).exists():
        with contextlib.suppress(sqlite3.Error), closing(sqlite3.connect(path)) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with path.open("rb") as file:
        pages = _Pages(file, _page_bytes(header), num_pages)
        for number in range(2, num_pages + 1):
            yield from pages.rows(number)


class _Pages:
    """The pages of an SQLite file of one table without row ids, read one by one."""

    def __init__(self, file: BinaryIO, page_bytes: int, num_pages: int) -> None:
        self.file, self.page_bytes, self.num_pages = file, page_bytes, num_pages

    def rows(self, number: int) -> Iterator[tuple[object, ...]]:
        """The rows of a leaf or of a page above it; of any other page none."""
        page = self._page(number)
        if page[0] not in (2, 10):
            return
        start, child_bytes = (12, 4) if page[0] == 2 else (8, 0)
        for i in range(int.from_bytes(page[3:5])):
            at = int.from_bytes(page[start + 2 * i : start + 2 * i + 2]) + child_bytes
            with contextlib.suppress(
                LookupError, ValueError
            ):  # a page of another kind, or the rest lies on a page that is gone
                yield _record(self._payload(page, at))

    def _page(self, number: int) -> bytes:
        if not 1 <= number <= self.num_pages:
            raise LookupError(number)
        self.file.seek((number - 1) * self.page_bytes)
        return self.file.read(self.page_bytes)

    def _payload(self, page: bytes, at: int) -> bytes:
        size, at = _varint(page, at)
        most, least = ((self.page_bytes - 12) * share // 255 - 23 for share in (64, 32))
        here = least + (size - least) % (self.page_bytes - 4)
        here = size if size <= most else here if here <= most else least
        payload, following = page[at : at + here], page[at + here : at + here + 4]
        while len(payload) < size:
            page = self._page(int.from_bytes(following))
            payload, following = payload + page[4 : 4 + size - len(payload)], page[:4]
        return payload


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """A number of one to nine bytes, and where the next begins."""
    value = 0
    for i in range(8):
        value = value << 7 | content[at + i] & 0x7F
        if content[at + i] < 0x80:
            return value, at + i + 1
    return value << 8 | content[at + 8], at + 9


def _record(payload: bytes) -> tuple[object, ...]:
    """The five values of a row; raises LookupError or ValueError where it is none."""
    end, at = _varint(payload, 0)
    kinds: list[int] = []
    values: list[object] = []
    while at < end:
        kind, at = _varint(payload, at)
        kinds.append(kind)
    for kind in kinds:
        size = (0, 1, 2, 3, 4, 6, 8, 8, 0, 0)[kind] if kind < 10 else (kind - 12) // 2
        content = payload[at : at + size]
        at += size
        if kind >= 12:
            values.append(content.decode() if kind % 2 else content)
        elif kind == 7:
            values.append(struct.unpack(">d", content)[0])
        else:
            values.append(kind - 8 if kind in (8, 9) else int.from_bytes(content, signed=True))
    key, text, finish_reason, num_tokens, logprob = values
    if at != len(payload) or not (isinstance(key, bytes) and isinstance(text, str) and isinstance(finish_reason, str)):
        raise ValueError("no row")
    return key, text, finish_reason, num_tokens, logprob
