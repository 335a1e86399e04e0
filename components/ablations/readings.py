"""What a run's outputs say about the values that a sweep shows. Reads metrics.json, summary.json and selections.parquet.

Owns where a shown value stands in them; does not know how a run came about, nor what several runs say together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components.ablations.declared import DEFAULT, Shown, Sweep
from components.ablations.estimates import Value
from components.errors import DataError, SettingsError
from components.lineage import SUMMARY
from components.metrics import AGGREGATIONS
from components.records import read_json

METRICS = "metrics.json"
SELECTIONS = "selections.parquet"


def read_run(sweep: Sweep, outs: Mapping[str, Path]) -> dict[str, dict[str, Value]]:
    """Variant -> shown value -> what this run measured; one variant, unless the sweep `reads` several out of one run.

    Args:
        outs: stage -> the folder that it wrote.
    Raises:
        SettingsError: the run measured no such thing.
        DataError: a file of the run cannot be read.
    """
    if sweep.reads is None:
        return {DEFAULT: {one.value: _value(one, outs) for one in sweep.shown}}
    metrics = read_json(outs["evaluate"] / METRICS)
    found: dict[str, dict[str, Value]] = {}
    for one in sweep.shown:
        assert one.selectors is not None
        split, selector, _ = one.selectors
        for variant, estimate in _inside(metrics, one.value, split, selector, sweep.reads).items():
            found.setdefault(variant, {})[one.value] = estimate
    return found


def _inside(metrics: Mapping[str, Any], place: str, split: str, selector: str, reads: str) -> dict[str, Value]:
    """Variant -> estimate, as metrics.json has them."""
    known = metrics["splits"].get(split)
    if known is None:
        raise _absent(place, split, list(metrics["splits"]))
    if reads == "aggregations":
        if selector != "prm":
            raise _absent(place, selector, ["prm"])
        return {how: _ends(known["aggregations"][how]) for how in AGGREGATIONS if how in known["aggregations"]}
    curves = known.get("curves", {})
    if selector not in curves:
        raise _absent(place, selector, list(curves))
    return {f"N = {row['n']}": _ends(row) for row in curves[selector]}


def _ends(estimate: Mapping[str, float]) -> dict[str, float]:
    return {name: float(estimate[name]) for name in ("mean", "low", "high")}


def _value(one: Shown, outs: Mapping[str, Path]) -> Value:
    if one.selectors is None:
        return _number(one.value, outs)
    split, a, b = one.selectors
    values = _selections(outs["evaluate"] / SELECTIONS, split)
    for name in (a, *([b] if b else [])):
        if name not in values:
            raise _absent(one.value, f"{split}: {name}", list(values) or ["no such split"])
    if b is None:
        return values[a]
    return {key: values[a][key] - values[b][key] for key in values[a].keys() & values[b].keys()}


def _number(dotted: str, outs: Mapping[str, Path]) -> float | None:
    """None where the run says that there is no such number, an AUROC of steps of one kind for example."""
    stage, *way = dotted.split(".")
    if stage not in outs:
        raise _absent(dotted, stage, list(outs))
    inside: Any = read_json(outs[stage] / (METRICS if stage == "evaluate" else SUMMARY))
    for part in way:
        if not isinstance(inside, Mapping) or part not in inside:
            raise _absent(dotted, part, list(inside) if isinstance(inside, Mapping) else [])
        inside = inside[part]
    if inside is None:
        return None
    if isinstance(inside, bool) or not isinstance(inside, (int, float)):
        raise SettingsError(f"shown value {dotted!r}", f"is no number but {inside!r}", "name a number below it")
    return float(inside)


def _selections(path: Path, split: str) -> dict[str, dict[str, float]]:
    """Selector -> problem -> value of one split."""
    import pyarrow.parquet as pq
    from pyarrow.lib import ArrowException

    try:
        rows = pq.read_table(path, filters=[("split", "=", split)]).to_pylist()
    except (OSError, ArrowException) as error:
        raise DataError(str(path), f"cannot be read: {error}", "run the sweep again") from error
    out: dict[str, dict[str, float]] = {}
    for row in rows:
        out.setdefault(row["selector"], {})[row["problem_id"]] = row["value"]
    return out


def _absent(place: str, name: str, known: Sequence[str]) -> SettingsError:
    return SettingsError(f"shown value {place!r}", f"the run measured no {name!r}", f"there are: {', '.join(known)}")
