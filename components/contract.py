"""The contract of a checkpoint: everything that a score depends on, in one JSON beside the weights.

Owns its fields, its digest and the comparison of two sides; knows no model. Written once, checked at every load.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from components.errors import EngineError
from components.metrics import AGGREGATIONS
from components.records import digest, read_json, tree_sha256, write_json

CONTRACT = "prm.json"
FORMAT = 2
_NEEDED = {
    "template": str,
    "renderer_digest": str,
    "formulation": str,
    "label_tokens": list,
    "label_token_ids": list,
    "weights": list,
    "aggregation": str,
    "threshold": float,
    "temperature": float,
    "max_tokens": int,
    "view": str,
    "digest": str,
}


_MAY_HAVE = {"marker": str, "marker_id": int, "task": str, "task_digest": str, "max_steps": int}


def read_contract(folder: Path) -> dict[str, Any]:
    """The contract of a checkpoint.

    Raises:
        EngineError: there is none, it lacks a field, or a field says what no contract can.
    """
    path = folder / CONTRACT
    if not path.exists():
        hint = "name a folder written by train, such as artifacts/prm/prm"
        raise EngineError(str(folder), f"no {CONTRACT}: not a process reward model", hint)
    contract = read_json(path)
    if not isinstance(contract, dict):
        raise EngineError(str(path), f"holds {type(contract).__name__}, not an object", "dvc checkout")
    if contract.get("format") != FORMAT:
        what = f"is of format {contract.get('format')!r}, this version reads {FORMAT}"
        raise EngineError(str(path), what, "train again, or score with the version that trained it")
    said = {name: kind for name, kind in _MAY_HAVE.items() if contract.get(name) is not None}
    for name, kind in (_NEEDED | said).items():
        if not isinstance(contract.get(name), kind) or isinstance(contract.get(name), bool):
            what = f"{name} is {contract.get(name)!r}, not {kind.__name__}"
            raise EngineError(str(path), what, "the checkpoint was changed: dvc checkout")
    for name, what in _impossible(contract):
        raise EngineError(str(path), f"{name} is {contract[name]!r}, {what}", "the checkpoint was changed: dvc checkout")
    return contract


def _impossible(contract: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Fields whose values would give scores without meaning, and what they should be."""
    weights = contract["weights"]
    if not weights or not all(isinstance(w, float) and math.isfinite(w) for w in weights):
        yield "weights", "not finite numbers"
        return
    for name in ("label_tokens", "label_token_ids"):
        if len(contract[name]) != len(weights):
            yield name, f"not one for each of the weights {weights}"
    if not all(isinstance(word, str) for word in contract["label_tokens"]):
        yield "label_tokens", "not words"
    if not (math.isfinite(contract["temperature"]) and contract["temperature"] > 0):
        yield "temperature", "not a number above 0"
    if not min(weights) <= contract["threshold"] <= max(weights):
        yield "threshold", f"not between {min(weights):g} and {max(weights):g}"
    for name in ("max_tokens", "max_steps"):
        if contract.get(name) is not None and contract[name] < 1:
            yield name, "not a number above 0"
    for name, known in (("aggregation", AGGREGATIONS), ("template", ("marker", "chat")), ("view", ("picture", "blind"))):
        if contract[name] not in known:
            yield name, f"not one of {', '.join(known)}"


def write_contract(folder: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Write a contract and the digest of the whole checkpoint into it; returns it."""
    whole = {"format": FORMAT, **{key: value for key, value in content.items() if key not in ("format", "digest")}}
    write_json(folder / CONTRACT, whole)
    whole["digest"] = checkpoint_digest(folder)
    write_json(folder / CONTRACT, whole)
    return whole


def checkpoint_digest(folder: Path) -> str:
    """The digest of everything in a checkpoint, its contract included, but the digest that stands there."""
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.name != CONTRACT)
    contract = {key: value for key, value in read_json(folder / CONTRACT).items() if key != "digest"}
    return digest("prm", [[p.name, tree_sha256(p)] for p in files], contract)


def agree(folder: Path, what: str, *, here: Any, contract: Any, hint: str) -> None:
    """Compare what is so here with what the contract says.

    Raises:
        EngineError: they differ; the message names both sides.
    """
    if here != contract:
        raise EngineError(str(folder), f"{what} is {here!r} here, but the contract says {contract!r}", hint)
