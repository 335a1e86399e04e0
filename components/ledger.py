"""The promotion ledger: an append-only, hash-chained record of who moved which version, when and why.

Owns the file's form and its proof; knows nothing of registries, gates or MLflow. MLflow's alias table has
no time and no user, and Prefect forgets after days: this file is the audit record.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from components.errors import DataError, RefusedError

Action = Literal["promote", "rollback", "refuse", "done"]
FIRST = "0" * 64  # what the first record names as the one before it
_MOVE: dict[str, type] = {"environment": str, "version": str, "prm_digest": str, "actor": str, "time": str}
_NEEDED: dict[str, dict[str, type]] = {
    "promote": _MOVE,
    "refuse": _MOVE,
    "rollback": {**_MOVE, "reason": str},
    "done": {"of": int, "moved": bool, "time": str},
}


def append(path: Path, action: Action, content: Mapping[str, Any]) -> dict[str, Any]:
    """The record that was added at the end, on disk when this returns.

    Several processes may append at once. `seq` counts from 1, `previous` is the SHA-256 of the record before,
    `sha256` that of this one without the field itself.

    Raises:
        RefusedError: what the file already holds does not prove itself.
        DataError: it cannot be written; it then holds what it held before.
        ValueError: `content` lacks what `action` needs.
    """
    try:
        return _append(path, action, content)
    except OSError as error:
        hint = "free space or correct the rights of that folder, then run the same command again"
        raise DataError(str(path), f"cannot be written: {error.strerror or error}", hint) from error


def _append(path: Path, action: Action, content: Mapping[str, Any]) -> dict[str, Any]:
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b", buffering=0) as file:  # no buffer: closing one would write what was just taken back
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
        if fault := _lack(record):
            raise ValueError(fault)
        record["sha256"] = _sha256(record)
        rest = json.dumps(record, sort_keys=True, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        size = file.seek(0, os.SEEK_END)
        try:
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):  # then the half record stays, and the next command says so
                file.truncate(size)
            raise
    return record


def verify_ledger(path: Path) -> list[dict[str, Any]]:
    """All records, oldest first, after proving that none was changed, added or taken out; none if there is no file.

    A record cut off at the end can only be noticed by somebody who kept a later hash: keep the last one elsewhere.

    Raises:
        RefusedError: a record does not follow from the one before or lacks a field, or the last line is incomplete.
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
    return _lack(record)


def _lack(record: Mapping[str, Any]) -> str | None:
    """What is missing for its action: whoever reads a proven record may rely on these fields."""
    action = record.get("action")
    needed = _NEEDED.get(action) if isinstance(action, str) else None
    if needed is None:
        return f"action is {action!r}, expected one of {', '.join(_NEEDED)}"
    for field, kind in needed.items():
        if type(record.get(field)) is not kind:  # exactly: True is no number of a record
            return f"a {action} record needs {field}, which is {record.get(field)!r}"
    return None


def _sha256(record: Mapping[str, Any]) -> str:
    content = {key: value for key, value in record.items() if key != "sha256"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
