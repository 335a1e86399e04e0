"""What the page is made from: summaries, gates, metrics, receipts and the registry's answer.

Owns where those files lie and that any of them may be missing; does not know how they are shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from components.errors import DataError
from components.records import file_sha256, read_json

# stage -> its folder under artifacts/
FOLDERS = {
    "curate": "seeds",
    "sft": "policy",
    "rollout": "rollouts",
    "label": "labels",
    "train": "prm",
    "sample": "candidates",
    "evaluate": "evaluation",
}

RESTORED = "restored; cost not known here"
ENVIRONMENTS = ("prod", "staging", "dev")  # the best place first


@dataclass(frozen=True)
class Evidence:
    """Everything the page shows but the gallery's rows; an absent file is an empty dict."""

    metrics: dict[str, Any]
    search: dict[str, Any]
    """search.json of a search at inference."""
    summaries: dict[str, dict[str, Any]]
    gates: dict[str, dict[str, Any]]
    receipts: dict[str, dict[str, Any]]
    registry: dict[str, Any]
    ledger: list[dict[str, Any]]
    data_rows: dict[str, int]
    data_sha256: dict[str, str]


def gather(artifacts: Path, data: Path, receipts: Sequence[Mapping[str, Any]], registry: Mapping[str, Any]) -> Evidence:
    """Read what is there.

    Raises:
        DataError: a file is there and cannot be read.
    """
    summaries = {stage: _object(artifacts / folder / "summary.json") for stage, folder in FOLDERS.items()}
    gates = {stage: _object(artifacts / folder / "gate.json") for stage, folder in FOLDERS.items()}
    files = sorted(data.glob("*.parquet"))
    return Evidence(
        metrics=_object(artifacts / FOLDERS["evaluate"] / "metrics.json"),
        search=_object(artifacts / "search" / "search.json"),
        summaries=summaries,
        gates={stage: gate for stage, gate in gates.items() if gate},
        receipts={str(receipt["stage"]): dict(receipt) for receipt in receipts if receipt.get("stage")},
        registry=dict(registry),
        ledger=[_whole(record) for record in registry.get("ledger") or []],
        data_rows={file.stem: _num_rows(file) for file in files},
        data_sha256={file.name: file_sha256(file) for file in files},
    )


def _whole(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record of the ledger with whole reasons, none if it has none."""
    blank = {"gate": "–", "passed": False, "seen": "–", "required": "–"}
    return {"action": "", **record, "reasons": [{**blank, **reason} for reason in record.get("reasons") or []]}


def _object(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    content = read_json(path)
    if not isinstance(content, dict):
        raise DataError(str(path), f"holds {type(content).__name__}, not an object", "run its stage again")
    return content


def _num_rows(path: Path) -> int:
    try:
        return int(pq.read_metadata(path).num_rows)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(str(path), f"not a readable Parquet file: {error}", "restore it: dvc checkout") from error
