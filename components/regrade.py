"""Stored rollouts under today's verifier: new verdicts without sampling again, and a report of what changes.

Owns the comparison; how answers are graded is `verifier`'s business, what labels are made of `label`'s.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import pyarrow as pa

from components.errors import DataError, SettingsError
from components.label import Labeller, labelled
from components.lineage import SUMMARY
from components.prefixes import prefix_rows, unfinished
from components.progress import Progress, say
from components.records import (
    CONTINUATION,
    LABEL,
    PREFIX,
    PROBLEM,
    SOLUTION,
    TableWriter,
    iterate_table,
    prefix_id,
    read_json,
    read_table,
    write_json,
)
from components.sampling import gold_of
from components.search import State, passed
from components.settings import Params, Runtime
from components.store import Journal
from components.tasks import load_task
from components.verifier import Asked, Verifier

Row = dict[str, Any]
PROBLEMS_AT_ONCE = 512
LISTED_ABOVE = 0.005
"""A label that moved by no more is counted, not listed: one new verdict shifts every label of its kind a little, because the
kernel is fitted to all of them."""

VERDICT_CHANGE = pa.schema(
    [
        ("kind", pa.string()),  # solution | continuation
        ("name", pa.string()),  # its id
        ("problem_id", pa.string()),
        ("gold", pa.string()),
        *((f"{when}_{what}", pa.string()) for when in ("old", "new") for what in ("answer", "verdict", "rule")),
    ]
)
LABEL_CHANGE = pa.schema(  # labels that came, went or moved by more than LISTED_ABOVE
    [
        ("label_id", pa.string()),  # of the old label; null if there was none
        ("solution_id", pa.string()),
        ("step", pa.int32()),
        *((f"{when}_{what}", pa.int32()) for when in ("old", "new") for what in ("num_right", "num_verdicts")),
        *((f"{when}_label", pa.float64()) for when in ("old", "new")),  # null: there is none
    ]
)


def run(
    params: Params, runtime: Runtime, *, seeds: Path, rollouts: Path, labels: Path | None = None, out: Path
) -> dict[str, Any]:
    """Write the rollouts with new verdicts, verdict_changes.parquet and, with `labels`, label_changes.parquet into `out`.

    Labels that moved by at most LISTED_ABOVE are counted, in summary.json and at the end, and not listed.

    Args:
        labels: folder written by label from the same rollouts; its labels are compared with those of the new verdicts.
    Raises:
        DataError: the files are not of one run.
        SettingsError: `labels` are of another formulation.
    """
    if labels is not None:
        _check_formulation(params, labels)
    task = load_task(params.task)
    problems = {row["problem_id"]: row for row in read_table(seeds / "seeds.parquet", PROBLEM)}
    made = read_json(rollouts / SUMMARY)  # by the run that made them, whatever params.yaml says now
    if "counts_passing" not in made:
        raise DataError(
            str(rollouts / SUMMARY), "does not say what was counted", "written by an older version: run rollout again"
        )
    kept = {"counts_passing": made["counts_passing"], "temperature": made.get("temperature")}
    seen: Counter[str] = Counter()
    progress = Progress("regrade", len(problems), unit="problems")
    with (
        closing(Journal(runtime.home / "journal.sqlite")) as journal,
        Verifier(params.verify, runtime, journal) as verifier,
        TableWriter(out / "solutions.parquet", SOLUTION) as solutions,
        TableWriter(out / "continuations.parquet", CONTINUATION) as continuations,
        TableWriter(out / "prefixes.parquet", PREFIX) as prefixes,
        TableWriter(out / "verdict_changes.parquet", VERDICT_CHANGE) as changes,
    ):
        for some in _problems_at_once(rollouts):
            unknown = [name for name, _ in some if name not in problems]
            if unknown:
                raise DataError(str(rollouts), f"problem {unknown[0]} is no seed", "name the seeds that the rollouts are of")
            states = {name: _states(task, name, group) for name, group in some}
            rows: list[tuple[str, Row, str]] = []
            for name, group in some:
                _check_whole(group)
                rows += [("solution", row, row["text"]) for row in group.solutions]
                for row in group.continuations:
                    state = states[name].get(row["prefix_id"])
                    if state is None:
                        what = f"a continuation of prefix {row['prefix_id']}, which no solution has"
                        raise DataError("continuations.parquet", what, "the two files are not of one run: run rollout again")
                    rows.append(("continuation", row, task.prefill(state) + row["text"]))
            asked = [
                Asked((p := problems[row["problem_id"]])["question"], text, gold_of(p, task), row["finish_reason"])
                for _, row, text in rows
            ]
            for (kind, row, _), verdict in zip(rows, verifier.grade(asked), strict=True):
                seen[f"{row['verdict']} -> {verdict.value}"] += 1
                if row["verdict"] != verdict.value:
                    old = {f"old_{name}": row[name] for name in ("answer", "verdict", "rule")}
                    new = {"new_answer": verdict.answer, "new_verdict": verdict.value, "new_rule": verdict.rule}
                    gold = problems[row["problem_id"]]["answer"]
                    named = {"kind": kind, "name": row[f"{kind}_id"], "problem_id": row["problem_id"], "gold": gold}
                    changes.write([named | old | new])
                row |= {"verdict": verdict.value, "rule": verdict.rule, "answer": verdict.answer}
                row["verifier_digest"] = verifier.digest
            for name, group in some:
                solutions.write(group.solutions)
                continuations.write(group.continuations)
                prefixes.write(_prefix_rows(task, name, group, states[name], verifier.digest, kept))
            progress.advance(len(some))
    summary: dict[str, Any] = {"verdicts": dict(sorted(seen.items())), "changed": changes.num_rows} | kept
    if labels is not None:
        summary |= _compare_labels(params, labels, out)
    write_json(out / SUMMARY, summary)
    say("regrade", f"{sum(seen.values()):,} verdicts, {changes.num_rows:,} changed: {_shown(seen)}")
    if labels is not None:
        say("regrade", f"{summary['labels']:,} labels, {summary['changed_labels']:,} would change")
        if summary["unlisted_labels"]:
            say("regrade", f"{summary['unlisted_labels']:,} labels moved by at most {LISTED_ABOVE} are not listed")
    return {}


class _Group:
    """The rows of one problem."""

    def __init__(self, solutions: list[Row], continuations: list[Row], prefixes: list[Row]) -> None:
        self.solutions, self.continuations, self.prefixes = solutions, continuations, prefixes


def _check_whole(group: _Group) -> None:
    """Stop where continuations that were counted are gone: their verdicts would silently be lost.

    Raises:
        DataError: a prefix has other continuations than it counted.
    """
    judged = Counter(row["prefix_id"] for row in group.continuations if row["verdict"] in ("right", "wrong"))
    for row in group.prefixes:
        counted = (row["num_verdicts"] or 0) - (row["num_reused"] or 0)
        if judged[row["prefix_id"]] != counted:
            what = f"{judged[row['prefix_id']]} verdicts began at prefix {row['prefix_id']}, which counted {counted}"
            raise DataError("continuations.parquet", what, "the two files are not of one run: run rollout again")


def _problems_at_once(rollouts: Path) -> Iterator[list[tuple[str, _Group]]]:
    """Groups of the three files, which name problems in one order."""
    streams = [
        _Ahead(_by_problem(rollouts / f"{name}.parquet", schema))
        for name, schema in (("solutions", SOLUTION), ("continuations", CONTINUATION), ("prefixes", PREFIX))
    ]
    some: list[tuple[str, _Group]] = []
    while (name := streams[2].name) is not None:  # every problem has prefixes, not every one solutions
        some.append((name, _Group(*(stream.take(name) for stream in streams))))
        if len(some) == PROBLEMS_AT_ONCE:
            yield some
            some = []
    if some:
        yield some
    left = streams[0].name or streams[1].name
    if left is not None:
        what = f"nothing about problem {left}, or in another order of the problems"
        raise DataError("prefixes.parquet", what, "the files are not of one run: run rollout again")


def _by_problem(path: Path, schema: pa.Schema) -> Iterator[tuple[str, list[Row]]]:
    rows = chain.from_iterable(table.to_pylist() for table in iterate_table(path, schema, num_rows=8192))
    for name, group in groupby(rows, key=lambda row: row["problem_id"]):
        yield name, list(group)


class _Ahead:
    """Groups with the next one's name known."""

    def __init__(self, groups: Iterator[tuple[str, list[Row]]]) -> None:
        self._groups = groups
        self._next = next(groups, None)

    @property
    def name(self) -> str | None:
        return self._next[0] if self._next else None

    def take(self, name: str) -> list[Row]:
        """The group of this name if it comes next, else nothing."""
        if self._next is None or self._next[0] != name:
            return []
        rows = self._next[1]
        self._next = next(self._groups, None)
        return rows


def _states(task: Any, problem: str, group: _Group) -> dict[str, State]:
    """Prefix id -> its units, of every prefix that the texts of a problem pass through."""
    known: dict[str, State] = {prefix_id(problem, ()): ()}
    for row in group.solutions:
        known |= {prefix_id(problem, state): state for state in unfinished(task, row["steps"])}
    for row in sorted(group.continuations, key=lambda r: r["num_prefix_units"]):
        state = known.get(row["prefix_id"])
        if state is not None:
            for longer in passed(state, tuple(task.splitter.split(row["text"]))):
                known.setdefault(prefix_id(problem, longer), longer)
    return known


def _prefix_rows(
    task: Any, problem: str, group: _Group, states: dict[str, State], verifier_digest: str, made: dict[str, Any]
) -> list[Row]:
    rules = {row["prefix_id"]: row["stopping_rule"] for row in group.prefixes}
    continuations: dict[State, list[Row]] = {}
    for row in group.continuations:
        continuations.setdefault(states[row["prefix_id"]], []).append(row)
    policy = group.prefixes[0]["policy_digest"]
    return prefix_rows(
        task,
        problem,
        group.solutions,
        continuations,
        reuse=made["counts_passing"],
        stopping_rule=lambda name, _: rules.get(name, "unmeasured"),
        digests={"policy_digest": policy, "verifier_digest": verifier_digest},
        temperature=made["temperature"],
    )


def _check_formulation(params: Params, labels: Path) -> None:
    """Stop before anything is graded where the report would list every label."""
    told = read_json(labels / SUMMARY) if (labels / SUMMARY).exists() else {}
    made = told.get("formulation", params.label.formulation)
    if made != params.label.formulation:
        what = f"labels of formulation {made!r}, to compare with {params.label.formulation!r}"
        raise SettingsError(
            str(labels), what, "every label would change: set label.formulation to the one they were made with"
        )


def _compare_labels(params: Params, labels: Path, rollouts: Path) -> dict[str, Any]:
    """Label the new rollouts and list what differs from the old labels; both files are in the order of the solutions."""
    labeller = Labeller(params.label, load_task(params.task))
    columns = ["label_id", "solution_id", "step", "num_right", "num_verdicts", "label"]
    old = _Ahead(_by_solution(iterate_table(labels / "labels.parquet", LABEL, columns, num_rows=1 << 16)))
    new = _Ahead(_by_solution(labelled(labeller, rollouts)))
    num_labels = num_unlisted = 0
    ids = iterate_table(rollouts / "solutions.parquet", SOLUTION, ["solution_id"], num_rows=1 << 16)
    with TableWriter(rollouts / "label_changes.parquet", LABEL_CHANGE) as writer:
        for name in chain.from_iterable(table.column("solution_id").to_pylist() for table in ids):
            olds = {row["step"]: row for row in old.take(name)}
            news = {row["step"]: row for row in new.take(name)}
            num_labels += len(news)
            for step in sorted({*olds, *news}):
                a, b = olds.get(step), news.get(step)
                if a and b and abs(a["label"] - b["label"]) <= LISTED_ABOVE:
                    num_unlisted += a["label"] != b["label"]
                    continue
                row: Row = {"label_id": a["label_id"] if a else None, "solution_id": name, "step": step}
                for when, label in (("old", a), ("new", b)):
                    row |= {f"{when}_{key}": label[key] if label else None for key in ("num_right", "num_verdicts", "label")}
                writer.write([row])
    if old.name is not None:
        what = f"labels of solution {old.name}, or in another order of the solutions"
        raise DataError(str(labels / "labels.parquet"), what, "name the labels made of these rollouts")
    unlisted = {"listed_above": LISTED_ABOVE, "unlisted_labels": num_unlisted}
    return {"labels": num_labels, "changed_labels": writer.num_rows} | unlisted


def _by_solution(tables: Iterator[pa.Table]) -> Iterator[tuple[str, list[Row]]]:
    rows = chain.from_iterable(table.to_pylist() for table in tables)
    for name, group in groupby(rows, key=lambda row: row["solution_id"]):
        yield name, list(group)


def _shown(seen: Counter[str]) -> str:
    moved = [f"{name} {count:,}" for name, count in sorted(seen.items()) if name.split(" -> ")[0] != name.split(" -> ")[1]]
    return ", ".join(moved) or "none"
