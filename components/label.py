"""Stage `label`: rollouts -> step labels, each with its counts (k, n) and the rule that stopped the sampling.

Pure: no model, no sampling. Owns what a label is made of; does not know how it will be learnt.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from components.errors import DataError
from components.lineage import SUMMARY
from components.records import CONTINUATION, LABEL, SOLUTION, digest, prefix_id, read_table, write_json, write_table
from components.render import paragraphs
from components.search import Counts, Outcome, State, tally
from components.settings import Label, Params, Runtime

Row = dict[str, Any]
NUM_BINS = 10


def run(params: Params, runtime: Runtime, *, seeds: Path, rollouts: Path, out: Path) -> dict[str, Any]:
    """Write labels.parquet into `out`.

    Raises:
        DataError: a gate found the labels wrong.
    """
    import pyarrow as pa

    from components import quality

    solutions = read_table(rollouts / "solutions.parquet", SOLUTION)
    columns = ["problem_id", "prefix_id", "steps", "verdict"]
    continuations = read_table(rollouts / "continuations.parquet", CONTINUATION, columns)
    rows, unlabelled = step_labels(solutions, continuations, params.label, reuse=params.rollout.reuse_prefixes)
    write_table(out / "labels.parquet", rows, LABEL)
    quality.enforce(quality.check_labels(pa.Table.from_pylist(rows, schema=LABEL)), out)
    values = [row["label"] for row in rows]
    histogram = [0] * NUM_BINS
    for value in values:
        histogram[min(NUM_BINS - 1, int(value * NUM_BINS))] += 1
    write_json(
        out / SUMMARY,
        {
            "labels": len(rows),
            "unlabelled": unlabelled,
            "solutions": len({row["solution_id"] for row in rows}),
            "mean_mc": round(sum(row["mc"] for row in rows) / max(1, len(rows)), 6),
            "histogram": [[i / NUM_BINS, (i + 1) / NUM_BINS, count] for i, count in enumerate(histogram)],
        },
    )
    return {}


def step_labels(
    solutions: Sequence[Row], continuations: Sequence[Row], settings: Label, *, reuse: bool
) -> tuple[list[Row], int]:
    """A label for every step with enough verdicts, and the number of steps without one.

    An unfinished prefix is worth the share k/n of its continuations that end right. A whole solution is worth
    its own verdict: its final answer is not "continued".
    """
    states: dict[str, dict[str, State]] = defaultdict(dict)  # problem -> prefix id -> state
    for row in solutions:
        for cut in range(1, len(row["steps"])):
            state = paragraphs(row["steps"][:cut])
            states[row["problem_id"]][prefix_id(row["problem_id"], state)] = state
    outcomes: dict[str, list[tuple[State, Outcome]]] = defaultdict(list)
    for row in continuations:
        if row["prefix_id"] not in states[row["problem_id"]]:
            what = f"a continuation of prefix {row['prefix_id']}, which no solution has"
            raise DataError("continuations.parquet", what, "the two files are not of one run: run rollout again")
        outcomes[row["problem_id"]].append(
            (states[row["problem_id"]][row["prefix_id"]], Outcome(tuple(row["steps"]), row["verdict"]))
        )
    sampled = {row["prefix_id"] for row in continuations}
    counts = {
        problem: tally([s for key, s in known.items() if key in sampled or reuse], outcomes[problem], reuse=reuse)
        for problem, known in states.items()
    }
    rows: list[Row] = []
    unlabelled = 0
    for solution in solutions:
        if solution["finish_reason"] != "stop":
            unlabelled += len(solution["steps"])
            continue
        steps = solution["steps"]
        for i in range(len(steps)):
            state = paragraphs(steps[: i + 1])
            is_final = i + 1 == len(steps)
            if is_final:
                count = Counts()
                count.add(solution["verdict"])
            else:
                count = counts[solution["problem_id"]].get(state, Counts())
            if count.num_verdicts < (1 if is_final else settings.min_verdicts):
                unlabelled += 1
                continue
            rows.append(_row(solution, i, state, count, settings, "final" if is_final else "fixed"))
    return rows, unlabelled


def _row(solution: Row, step: int, state: State, count: Counts, settings: Label, stopping_rule: str) -> Row:
    mc = count.mc
    assert mc is not None
    label = mc if settings.formulation == "soft" else float(mc > settings.threshold)
    identity = (solution["solution_id"], step, count.num_right, count.num_verdicts, label, solution["verifier_digest"])
    return {
        "label_id": digest("label", *identity),
        "problem_id": solution["problem_id"],
        "solution_id": solution["solution_id"],
        "prefix_id": prefix_id(solution["problem_id"], state),
        "step": step,
        "num_steps": len(solution["steps"]),
        "num_right": count.num_right,
        "num_verdicts": count.num_verdicts,
        "num_unknown": count.num_unknown,
        "stopping_rule": stopping_rule,
        "mc": mc,
        "label": label,
        "policy_digest": solution["policy_digest"],
        "verifier_digest": solution["verifier_digest"],
    }
