"""The promotion ledger: an append-only, hash-chained record of who moved which version, when and why.

Owns the file's form and its proof; knows nothing of registries, gates or MLflow. MLflow's alias table has
no time and no user, and Prefect forgets after days: this file is the audit record.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from components.errors import RefusedError

Action = Literal["promote", "rollback", "refuse", "done"]
FIRST = "0" * 64  # what the first record names as the one before it


def append(path: Path, action: Action, content: Mapping[str, Any]) -> dict[str, Any]:
    """The record that was added at the end, on disk when this returns.

    Several processes may append at once. `seq` counts from 1, `previous` is the SHA-256 of the record before,
    `sha256` that of this one without the field itself.

    Raises:
        RefusedError: what the file already holds does not prove itself.
    """
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        records = _proven(path, file.read())
        record = {
            **content,
            "seq": len(records) + 1,
            "previous": records[-1]["sha256"] if records else FIRST,
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "action": action,
        }
        record["sha256"] = _sha256(record)
        file.write(json.dumps(record, sort_keys=True, ensure_ascii=False, allow_nan=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    return record


def verify_ledger(path: Path) -> list[dict[str, Any]]:
    """All records, oldest first, after proving that none was changed, added or taken out; none if there is no file.

    A record cut off at the end can only be noticed by somebody who kept a later hash: keep the last one elsewhere.

    Raises:
        RefusedError: a record does not follow from the one before, or the last line is incomplete.
    """
    return _proven(path, path.read_bytes()) if path.exists() else []


def unfinished(records: list[dict[str, Any]], environment: str) -> list[dict[str, Any]]:
    """Promotions and rollbacks that were announced and have no `done`: the process ended between the two."""
    closed = {record["of"] for record in records if record["action"] == "done"}
    open_ones = (record for record in records if record["action"] in ("promote", "rollback") and record["seq"] not in closed)
    return [record for record in open_ones if record["environment"] == environment]


def _proven(path: Path, content: bytes) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    previous = FIRST
    for number, line in enumerate(content.splitlines(keepends=True), 1):
        try:
            record = json.loads(line)
            fault = _fault(record, number, previous) if line.endswith(b"\n") else "the line is incomplete"
        except ValueError as error:
            record, fault = {}, f"no JSON: {error}"
        if fault:
            hint = "the ledger was changed, or a write was cut off: compare it with a copy before anything is promoted"
            raise RefusedError(f"{path} line {number}", fault, hint)
        previous = record["sha256"]
        records.append(record)
    return records


def _fault(record: Any, number: int, previous: str) -> str | None:
    if not isinstance(record, dict):
        return "no record"
    if record.get("seq") != number:
        return f"seq is {record.get('seq')!r}, expected {number}"
    if record.get("previous") != previous:
        return f"does not follow the line before: previous is {record.get('previous')!r}, expected {previous!r}"
    if record.get("sha256") != _sha256(record):
        return f"its content does not give its SHA-256 {record.get('sha256')!r}"
    return None


def _sha256(record: Mapping[str, Any]) -> str:
    content = {key: value for key, value in record.items() if key != "sha256"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
