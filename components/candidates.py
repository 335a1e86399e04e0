"""Frozen pools as files: candidates written row group by row group, and the digest that names a pool.

Owns candidates.parquet; does not know who wrote the texts, nor who reads them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from components.records import CANDIDATE, DIGEST_CHARS, TableWriter

FILE = "candidates.parquet"


class PoolDigest:
    """The name of a pool, taken while its rows pass: `digest("pool", [[candidate id, steps, verdict], ..])`."""

    def __init__(self) -> None:
        self._sha = hashlib.sha256(b'["pool",[')
        self._is_first = True

    def add(self, row: Mapping[str, Any]) -> None:
        """Take the next row of records.CANDIDATE."""
        content = json.dumps([row["candidate_id"], row["steps"], row["verdict"]], separators=(",", ":"))
        self._sha.update((content if self._is_first else f",{content}").encode())
        self._is_first = False

    def digest(self) -> str:
        """The name of the rows so far."""
        ended = self._sha.copy()
        ended.update(b"]]")
        return ended.hexdigest()[:DIGEST_CHARS]


class PoolWriter:
    """Writes candidates.parquet as it comes: the texts of 128 candidates of thousands of problems need not be held at once.

    A context manager; the file is gone again if the block fails.
    """

    def __init__(self, out: Path, splits: Iterable[str]) -> None:
        self._table = TableWriter(out / FILE, CANDIDATE)
        self._digests = {name: PoolDigest() for name in splits}
        self.num_tokens = 0
        """Of all candidates whose tokens are known."""

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows of records.CANDIDATE.

        Raises:
            DataError: a value does not fit its column.
        """
        self._table.write(rows)
        for row in rows:
            self._digests[row["split"]].add(row)
            self.num_tokens += row["num_tokens"] or 0

    @property
    def num_rows(self) -> int:
        """Candidates written so far."""
        return self._table.num_rows

    def pools(self) -> dict[str, str]:
        """Split -> the digest of its pool."""
        return {name: digest.digest() for name, digest in self._digests.items()}

    def __enter__(self) -> PoolWriter:
        self._table.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._table.__exit__(*error)
