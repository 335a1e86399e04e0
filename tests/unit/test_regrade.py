"""Stored rollouts under today's verifier: what was judged otherwise is judged anew, and every label that moves is listed."""

import pytest

from components import regrade
from components.errors import DataError, SettingsError
from components.label import Labeller, labelled
from components.prefixes import prefix_rows
from components.records import (
    CONTINUATION,
    LABEL,
    PREFIX,
    PROBLEM,
    SOLUTION,
    digest,
    prefix_id,
    read_json,
    read_table,
    write_json,
    write_table,
)
from components.settings import load_params, load_runtime
from components.tasks import MATHS

DIGESTS = {"policy_digest": "p" * 32, "verifier_digest": "an older one"}
GOLD = "3"


@pytest.fixture
def run_of(tmp_path):
    """A folder of seeds, rollouts and labels: one solution `two / <end>` of each problem, two continuations each."""

    def made(ends, *, verdict_of, label=None):
        """`verdict_of` is the older verifier: the final text -> its verdict."""
        problems, solutions, continuations, prefixes = [], [], [], []
        for i, end in enumerate(ends):
            name = digest("problem", i)
            problem = {"problem_id": name, "source_id": str(i), "source": "made", "question": "2 + 1 ?", "images": []}
            problems.append(problem | {"answer": GOLD, "answer_type": "integer", "options": None})
            common = {"problem_id": name, "rule": "old", "finish_reason": "stop", "num_tokens": 5, "logprob": -1.0} | DIGESTS
            steps = [f"two {i}", end]
            row = common | {"solution_id": digest("s", i), "index": 0, "steps": steps, "seed": 1, "answer": None}
            solutions.append(row | {"text": "\n\n".join(steps), "verdict": verdict_of(end)})
            state = (f"two {i}",)
            rows = [
                common | {"seed": j, "text": text, "verdict": verdict_of(text), "answer": None, "index": j}
                for j, text in enumerate([end, rf"\boxed{{{GOLD}}}"])
            ]
            named = {"prefix_id": prefix_id(name, state), "num_prefix_units": 1}
            continuations += [r | named | {"continuation_id": digest("c", i, r["seed"])} for r in rows]
            prefixes += prefix_rows(
                MATHS,
                name,
                [solutions[-1]],
                {state: rows},
                reuse=True,
                stopping_rule=lambda _n, _c: "fixed",
                digests=DIGESTS,
                temperature=1.0,
            )
        for name, rows, schema in (
            ("seeds", problems, PROBLEM),
            ("solutions", solutions, SOLUTION),
            ("continuations", continuations, CONTINUATION),
            ("prefixes", prefixes, PREFIX),
        ):
            write_table(tmp_path / f"{name}.parquet", rows, schema)
        write_json(tmp_path / "summary.json", {"counts_passing": True, "temperature": 1.0})
        params = load_params()
        params = params.model_copy(
            update={"label": params.label.model_copy(update={"estimator": "counts", **(label or {})})}
        )
        found = [row for table in labelled(Labeller(params.label, MATHS), tmp_path) for row in table.to_pylist()]
        write_table(tmp_path / "labels.parquet", found, LABEL)
        return params

    return made


def regraded(params, folder):
    out = folder / "out"
    out.mkdir()
    runtime = load_runtime({"STEPFORGE_HOME": str(folder / "home")})
    regrade.run(params, runtime, seeds=folder, rollouts=folder, labels=folder, out=out)
    return out


def by_name(path, schema):
    return [
        {k: v for k, v in row.items() if k not in ("verifier_digest", "rule", "answer")} for row in read_table(path, schema)
    ]


NO_MINIMUM = {"min_verdicts": 0}
ENDS = [r"\boxed{3}", r"\boxed{4}", r"\boxed{3.0}"]


def test_continuations_that_were_counted_and_are_gone_are_refused(run_of, tmp_path):
    params = run_of(ENDS, verdict_of=lambda text: "right", label=NO_MINIMUM)
    rows = read_table(tmp_path / "continuations.parquet", CONTINUATION)
    for left in (rows[:-1], [], [*rows, rows[-1] | {"continuation_id": "more"}]):
        write_table(tmp_path / "continuations.parquet", left, CONTINUATION)
        with pytest.raises(DataError, match=r"verdicts began at prefix .*, which counted 2"):
            regraded(params, tmp_path)
        (tmp_path / "out").rmdir()


def test_labels_of_another_formulation_are_not_compared_with(run_of, tmp_path):
    params = run_of(ENDS, verdict_of=lambda text: "right", label=NO_MINIMUM)
    write_json(tmp_path / "summary.json", {"counts_passing": True, "temperature": 1.0, "formulation": "advantage"})
    with pytest.raises(SettingsError, match="formulation 'advantage', to compare with 'soft'"):
        regraded(params, tmp_path)


def test_the_same_verdicts_give_the_same_rows_and_move_no_label(run_of, tmp_path):
    params = run_of(ENDS, verdict_of=lambda text: "wrong" if "4" in text else "right", label=NO_MINIMUM)
    out = regraded(params, tmp_path)
    for name, schema in (("solutions", SOLUTION), ("continuations", CONTINUATION), ("prefixes", PREFIX)):
        assert by_name(out / f"{name}.parquet", schema) == by_name(tmp_path / f"{name}.parquet", schema)
    summary = read_json(out / "summary.json")
    assert (summary["changed"], summary["changed_labels"], summary["labels"]) == (0, 0, 6)


def test_other_verdicts_are_listed_with_the_labels_they_move(run_of, tmp_path):
    params = run_of(ENDS, verdict_of=lambda text: "right" if text == r"\boxed{3}" else "wrong", label=NO_MINIMUM)
    out = regraded(params, tmp_path)
    changes = read_table(out / "verdict_changes.parquet", regrade.VERDICT_CHANGE)
    assert [(c["kind"], c["old_verdict"], c["new_verdict"], c["gold"]) for c in changes] == [
        ("solution", "wrong", "right", GOLD),
        ("continuation", "wrong", "right", GOLD),
    ]
    moved = read_table(out / "label_changes.parquet", regrade.LABEL_CHANGE)
    assert [(m["step"], m["old_num_right"], m["new_num_right"], m["new_num_verdicts"], m["new_label"]) for m in moved] == [
        (0, 1, 2, 2, 1.0),
        (1, 0, 1, 1, 1.0),
    ]


def test_a_solution_that_loses_all_its_labels_moves_no_other_one(run_of, tmp_path):
    ends = [*ENDS, r"\boxed{5}"]
    params = run_of(ends, verdict_of=lambda text: "right" if "3" in text else "wrong", label=NO_MINIMUM)
    kept = params.model_copy(update={"label": params.label.model_copy(update={"best_frac": 0.5})})
    out = regraded(kept, tmp_path)
    moved = read_table(out / "label_changes.parquet", regrade.LABEL_CHANGE)
    assert len(moved) == 4  # two solutions of two steps are no longer kept
    assert all(row["old_label"] is not None and row["new_label"] is None for row in moved)


def test_labels_that_moved_a_little_are_counted_and_said_not_listed(run_of, tmp_path, capsys):
    params = run_of(ENDS, verdict_of=lambda text: "wrong" if "4" in text else "right", label=NO_MINIMUM)
    rows = read_table(tmp_path / "labels.parquet", LABEL)
    moved = [0.0, 0.003, 0.004, 0.006, -0.1, 0.0]
    exact = [row["label"] for row in rows]
    for row, by in zip(rows, moved, strict=True):
        row["label"] = by if row["label"] == 0 else row["label"] - by
    write_table(tmp_path / "labels.parquet", rows, LABEL)
    out = regraded(params, tmp_path)
    summary = read_json(out / "summary.json")
    bound = regrade.LISTED_ABOVE
    by = [abs(row["label"] - label) for row, label in zip(rows, exact, strict=True)]
    assert (summary["listed_above"], summary["unlisted_labels"]) == (bound, sum(0 < d <= bound for d in by)) == (0.005, 2)
    assert summary["changed_labels"] == len(read_table(out / "label_changes.parquet", regrade.LABEL_CHANGE)) == 2
    assert "2 labels moved by at most 0.005 are not listed" in capsys.readouterr().err


def test_labels_of_another_run_are_refused(run_of, tmp_path):
    params = run_of(ENDS, verdict_of=lambda _: "wrong", label=NO_MINIMUM)
    rows = read_table(tmp_path / "labels.parquet", LABEL)
    write_table(tmp_path / "labels.parquet", [row | {"solution_id": "other"} for row in rows], LABEL)
    with pytest.raises(DataError, match="labels of solution other"):
        regraded(params, tmp_path)


def test_rollouts_of_an_older_version_are_refused(run_of, tmp_path):
    params = run_of(ENDS, verdict_of=lambda _: "wrong", label=NO_MINIMUM)
    write_json(tmp_path / "summary.json", {"prefixes": 3})
    with pytest.raises(DataError, match="does not say what was counted"):
        regraded(params, tmp_path)
