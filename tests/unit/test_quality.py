"""Data gates: sound tables pass, each planted fault is found, named by its row, and told from a broken check."""

import json

import pyarrow as pa
import pytest

from components.errors import DataError
from components.expectations import Suites, within
from components.quality import check_candidates, check_labels, check_rollouts, check_seeds, enforce
from components.records import CANDIDATE, CONTINUATION, LABEL, PREFIX, PROBLEM, QUARANTINE, SOLUTION, digest, prefix_id

SAMPLED = {
    "seed": 1,
    "rule": "integer",
    "finish_reason": "stop",
    "num_tokens": 9,
    "policy_digest": "p",
    "verifier_digest": "v",
}


def problem(name, **changes):
    row = {
        "problem_id": digest(name),
        "source_id": name,
        "source": "s",
        "question": f"question {name}",
        "answer": "1",
        "answer_type": "integer",
    }
    return row | {"images": [{"bytes": name.encode(), "path": None}]} | changes


def quarantined(row, reason="missing_answer"):
    return {"source_id": f"bad{row}", "file": "a.json", "row": row, "reason": reason, "detail": "no answer"}


def solution(name, index, **changes):
    row = {
        "solution_id": digest(name, index),
        "problem_id": digest(name),
        "index": index,
        "steps": [f"a {index}", f"b {index}", "c"],
    }
    return row | {"answer": "1", "verdict": "right" if index else "wrong", "logprob": -1.0} | SAMPLED | changes


def continuation(name, of, cut, index, **changes):
    prefix = prefix_id(digest(name), [f"a {of}", f"b {of}", "c"][:cut])
    row = {
        "continuation_id": digest(prefix, index),
        "problem_id": digest(name),
        "prefix_id": prefix,
        "num_prefix_units": cut,
        "index": index,
    }
    return row | {"text": "c", "verdict": "right"} | SAMPLED | changes


def label(name, step, right, verdicts, **changes):
    row = {
        "label_id": digest(name, step),
        "problem_id": digest(name),
        "solution_id": digest("s", name),
        "prefix_id": digest(name, step, "x"),
    }
    row |= {"step": step, "num_steps": 3, "num_right": right, "num_verdicts": verdicts, "num_unknown": 0}
    share = right / verdicts
    row |= {"stopping_rule": "final" if step == 2 else "fixed", "mc": share, "label": share, "mean": share, "num_reused": 0}
    row |= {"sd": 0.1, "low": share * 0.9, "high": share + (1 - share) * 0.1, "weight": 1.0}
    return row | {"policy_digest": "p", "verifier_digest": "v"} | changes


def candidate(name, index, decoding="sample", split="dev", **changes):
    row = {
        "candidate_id": digest(split, name, index, decoding),
        "split": split,
        "problem_id": digest(name),
        "decoding": decoding,
        "index": index,
    }
    return row | {"steps": ["a"], "answer": "1", "verdict": "right", "logprob": -1.0} | SAMPLED | changes


def table(rows, schema):
    return pa.Table.from_pylist(rows, schema=schema)


def seeds_gate(seeds, bad=(), rows_in=None, held=()):
    rows_in = len(seeds) + len(bad) if rows_in is None else rows_in
    return check_seeds(table(seeds, PROBLEM), table(list(bad), QUARANTINE), rows_in, table(list(held), PROBLEM))


SOLUTIONS = [solution(name, index) for name in "xyz" for index in range(4)]
CONTINUATIONS = [continuation(name, of, cut, i) for name in "xyz" for of in range(4) for cut in (1, 2) for i in range(4)]
PREFIXES = [
    {
        "problem_id": digest(name),
        "prefix_id": prefix_id(digest(name), [f"a {of}", f"b {of}", "c"][:cut]),
        "num_units": cut,
        "num_right": 4,
        "num_verdicts": 4,
        "num_unknown": 0,
        "num_reused": 0,
        "stopping_rule": "fixed",
        "policy_digest": "p",
        "verifier_digest": "v",
    }
    for name in "xyz"
    for of in range(4)
    for cut in (1, 2)
]
LABELS = [
    label(f"{name}", step, right, 4 if step < 2 else 1)
    for name in range(6)
    for step, right in ((0, 4), (1, name % 5), (2, name % 2))
]
CANDIDATES = [c for name in "xy" for c in (*(candidate(name, i) for i in range(8)), candidate(name, 0, "greedy"))]


def lines(gate, severity):
    return {result.check: result.line() for result in gate.failures(severity)}


def test_sound_tables_pass_every_check():
    gates = [
        seeds_gate([problem("a"), problem("b")], held=[problem("c")]),
        check_rollouts(table(SOLUTIONS, SOLUTION), table(CONTINUATIONS, CONTINUATION), table(PREFIXES, PREFIX)),
        check_labels(table(LABELS, LABEL)),
        check_candidates(table(CANDIDATES, CANDIDATE), 8),
    ]
    for gate in gates:
        assert not gate.failures("critical"), lines(gate, "critical")
        assert not gate.failures("warning"), lines(gate, "warning")
        assert len(gate.results) >= 10


@pytest.mark.parametrize(
    ("change", "check", "says"),
    [
        ({"label": 1.7}, "labels/label", "1 of 18 outside [0, 1]; first: problem {p} solution {s} step 1 = 1.7 (critical)"),
        ({"label": float("nan")}, "labels/label", "1 of 18 missing"),
        (
            {"label": 0.4},
            "labels/label",
            "1 of 18 no target of the formulation soft; first: problem {p} solution {s} step 1",
        ),
        ({"mean": 1.2, "label": 1.0}, "labels/mean", "1 of 18 outside [0, 1]"),
        ({"low": 0.9, "high": 0.1}, "labels/low", "1 of 18 above high"),
        ({"weight": -1.0}, "labels/weight", "1 of 18 below 0"),
        ({"num_reused": 5}, "labels/num_reused", "1 of 18 above num_verdicts"),
        ({"mc": 0.5}, "labels/mc", "1 of 18 not num_right / num_verdicts"),
        ({"num_right": 5, "mc": 1.25}, "labels/num_right", "1 of 18 above num_verdicts"),
        ({"num_right": -1, "mc": -0.25}, "labels/num_right", "1 of 18 below 0"),
        ({"num_verdicts": -1}, "labels/num_verdicts", "1 of 18 below 0"),
        ({"step": 3}, "labels/step", "1 of 18 behind the last step of the solution"),
        ({"step": -1}, "labels/step", "1 of 18 below 0"),
        ({"step": 0}, "labels/step", "2 of 18 label one step twice"),
        ({"stopping_rule": "bored"}, "labels/stopping_rule", "1 of 18 unknown"),
        ({"num_steps": 4}, "labelled solutions/num_steps", "1 of 6 have two lengths"),
        ({"policy_digest": "q"}, "labels/policy_digest", "several in one file: 2"),
        ({"verifier_digest": "w"}, "labels/verifier_digest", "several in one file: 2"),
    ],
)
def test_a_planted_fault_in_a_label_is_found_and_named(change, check, says):
    rows = [dict(row) for row in LABELS]
    rows[4] |= change
    found = lines(check_labels(table(rows, LABEL)), "critical")
    expected = says.format(p=rows[4]["problem_id"], s=rows[4]["solution_id"])
    assert check in found
    every = [result.line() for result in check_labels(table(rows, LABEL)).failures("critical")]
    assert any(expected in line for line in every), every


def test_a_missing_label_is_a_warning_and_equal_labels_are_critical():
    gate = check_labels(table(LABELS[1:], LABEL))
    assert not gate.failures("critical")
    assert lines(gate, "warning")["labelled solutions/num_unlabelled"].startswith(
        "1 of 6 have steps without a label; first: problem"
    )
    equal = [row | {"num_right": row["num_verdicts"], "mc": 1.0, "label": 1.0, "mean": 1.0, "high": 1.0} for row in LABELS]
    assert lines(check_labels(table(equal, LABEL)), "critical") == {
        "labels/histogram": "all labels are equal, distinct values: 1 (critical)"
    }
    lopsided = [label(str(n), s, 4, 4) for n in range(200) for s in range(3)]
    lopsided[0] |= {"num_right": 0, "mc": 0.0, "label": 0.0, "mean": 0.0, "low": 0.0}
    gate = check_labels(table(lopsided, LABEL))
    assert "labels/top_bin_frac" in lines(gate, "warning")
    assert not gate.failures("critical")


def test_no_labels_at_all_are_critical():
    assert "labels/num_labels" in lines(check_labels(table([], LABEL)), "critical")


@pytest.mark.parametrize(
    ("seeds", "bad", "rows_in", "held", "check"),
    [
        ([problem("a"), problem("a")], [], None, [], "seeds/problem_id"),
        ([problem("a", question="")], [], None, [], "seeds/question"),
        ([problem("a", question=None)], [], None, [], "seeds/question"),
        ([problem("a", answer=None)], [], None, [], "seeds/answer"),
        ([problem("a", answer_type=None)], [], None, [], "seeds/answer_type"),
        ([problem("a", answer_type="poem")], [], None, [], "seeds/answer_type"),
        ([problem("a")], [], None, [problem("a")], "seeds/problem_id"),
        ([problem("a")], [], None, [problem("b", images=[{"bytes": b"a", "path": None}])], "seeds/images"),
        ([problem("a")], [quarantined(1, "bored")], None, [], "quarantine/reason"),
        ([problem("a")], [], 2, [], "curate/num_unaccounted"),
    ],
)
def test_a_planted_fault_in_the_seeds_is_found(seeds, bad, rows_in, held, check):
    assert check in lines(seeds_gate(seeds, bad, rows_in, held), "critical")


def test_a_large_quarantine_is_a_warning():
    gate = seeds_gate([problem("a")], [quarantined(1)])
    assert lines(gate, "warning") == {"curate/quarantined_frac": "more than 0.3: 0.5 (warning)"}
    assert not gate.failures("critical")


@pytest.mark.parametrize(
    ("change", "check"),
    [
        ({"verdict": "maybe"}, "solutions/verdict"),
        ({"verdict": None}, "solutions/verdict"),
        ({"finish_reason": "length"}, "solutions/verdict"),
        ({"finish_reason": "tired"}, "solutions/finish_reason"),
        ({"answer": None}, "solutions/answer"),
        ({"index": 0}, "solutions/index"),
        ({"solution_id": digest("x", 0)}, "solutions/solution_id"),
        ({"num_tokens": -1}, "solutions/num_tokens"),
        ({"policy_digest": "q"}, "rollouts/policy_digest"),
        ({"problem_id": digest("w")}, "solutions/problem_id"),
    ],
)
def test_a_planted_fault_in_a_solution_is_found(change, check):
    rows = [dict(row) for row in SOLUTIONS]
    rows[1] |= change
    assert check in lines(
        check_rollouts(table(rows, SOLUTION), table(CONTINUATIONS, CONTINUATION), table(PREFIXES, PREFIX)), "critical"
    )


@pytest.mark.parametrize(
    ("change", "check"),
    [
        ({"verdict": "Right"}, "continuations/verdict"),
        ({"finish_reason": "length"}, "continuations/verdict"),
        ({"index": 0}, "continuations/index"),
        ({"prefix_id": digest("nothing")}, "continuations/prefix_id"),
        ({"prefix_id": prefix_id(digest("x"), ["a 0", "b 0", "c"])}, "continuations/prefix_id"),  # a finished solution
        ({"verifier_digest": "w"}, "rollouts/verifier_digest"),
    ],
)
def test_a_planted_fault_in_a_continuation_is_found(change, check):
    rows = [dict(row) for row in CONTINUATIONS]
    rows[1] |= change
    assert check in lines(
        check_rollouts(table(SOLUTIONS, SOLUTION), table(rows, CONTINUATION), table(PREFIXES, PREFIX)), "critical"
    )


def test_cut_off_and_unknown_is_sound_and_many_unknown_are_a_warning():
    rows = [dict(row, verdict="unknown", finish_reason="length") if i < 12 else row for i, row in enumerate(CONTINUATIONS)]
    gate = check_rollouts(table(SOLUTIONS, SOLUTION), table(rows, CONTINUATION), table(PREFIXES, PREFIX))
    assert not gate.failures("critical")
    assert lines(gate, "warning") == {"rollouts/unknown_continuation_frac": "more than 0.05: 0.125 (warning)"}


def test_rollouts_without_continuations_are_sound():
    assert not check_rollouts(table(SOLUTIONS, SOLUTION), table([], CONTINUATION), table(PREFIXES, PREFIX)).failures(
        "critical"
    )


@pytest.mark.parametrize(
    ("rows", "check"),
    [
        (CANDIDATES[1:], "pools/num_sample"),
        (CANDIDATES[:-1], "pools/num_greedy"),
        ([*CANDIDATES, candidate("x", 8)], "candidates/index"),
        ([*CANDIDATES, CANDIDATES[0]], "candidates/candidate_id"),
        ([*CANDIDATES[:-1], dict(CANDIDATES[-1], decoding="beam")], "candidates/decoding"),
        ([*CANDIDATES[:-1], dict(CANDIDATES[-1], verdict="?")], "candidates/verdict"),
        (
            [*CANDIDATES, *(dict(c, split="test", candidate_id=c["candidate_id"] + "t") for c in CANDIDATES[:9])],
            "pools/split",
        ),
        ([], "candidates/num_candidates"),
    ],
)
def test_a_planted_fault_in_a_pool_is_found(rows, check):
    assert check in lines(check_candidates(table(rows, CANDIDATE), 8), "critical")


def test_a_critical_failure_stops_with_one_readable_line(tmp_path):
    rows = [dict(row) for row in LABELS]
    rows[4]["label"] = 1.7
    with pytest.raises(DataError) as caught:
        enforce(check_labels(table(rows, LABEL)), tmp_path)
    first, hint = caught.value.lines().splitlines()
    where = f"problem {rows[4]['problem_id']} solution {rows[4]['solution_id']} step 1"
    assert first == f"error: labels/label: 1 of 18 outside [0, 1]; first: {where} = 1.7 (critical)"
    assert hint.startswith("hint: 2 of ")
    assert json.loads((tmp_path / "gate.json").read_text())["passed"] is False


def test_a_warning_is_shown_and_recorded_and_the_record_is_the_same_every_time(tmp_path, capsys):
    contents = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        enforce(check_labels(table(LABELS[1:], LABEL)), tmp_path / name)
        contents.append((tmp_path / name / "gate.json").read_bytes())
    assert contents[0] == contents[1]
    shown = capsys.readouterr()
    assert "labelled solutions/num_unlabelled: 1 of 6 have steps without a label" in shown.err
    assert "Calculating Metrics" not in shown.err + shown.out
    checks = json.loads(contents[0])["checks"]
    assert [c["check"] for c in checks if not c["passed"]] == ["labelled solutions/num_unlabelled"]


def test_a_check_that_cannot_run_is_broken_and_not_bad_data():
    import pandas as pd

    with pytest.raises(DataError, match="the check itself is broken, the data may be sound"):
        Suites("x").run("x", pd.DataFrame({"a": [1]}), ("a",), [within("nowhere", 0, 1, says="outside")])
    with pytest.raises(DataError, match="the check itself is broken"):
        Suites("x").run("x", pd.DataFrame({"a": ["text"]}), ("a",), [within("a", 0, 1, says="outside")])


def test_many_rows_are_checked_in_a_moment():
    import time

    rows = table(
        [label(str(n), s, n % 5 if s < 2 else n % 2, 4 if s < 2 else 1) for n in range(10_000) for s in range(3)], LABEL
    )
    started = time.perf_counter()
    gate = check_labels(rows)
    assert time.perf_counter() - started < 3
    assert not gate.failures("critical")
