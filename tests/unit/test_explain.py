"""Every label is traced to what counted for it, counted again by the rule of the search, and shown without tricks."""

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from picture_fixture import bars

from components.cli import main
from components.errors import DataError, RefusedError, SettingsError
from components.explain.page import page
from components.explain.show import facts, lines, verdict_line
from components.explain.trace import enforce, explain, recount
from components.prefixes import prefix_rows
from components.records import (
    CONTINUATION,
    LABEL,
    PREFIX,
    PROBLEM,
    SOLUTION,
    bytes_digest,
    digest,
    prefix_id,
    problem_id,
    read_table,
    write_json,
    write_table,
)
from components.search import Outcome, tally
from components.tasks import MATHS, SCENE

PICTURE = bars([1, 2, 3, 4])
DIGESTS = {"policy_digest": "p" * 32, "verifier_digest": "v" * 32}
EVIL = "<script>alert(1)</script>\x1b[2J\u202e\"'&"


def built(folder, continuations, *, steps=("two", "plus one", "so 3"), reuse=True, task=MATHS, evil=""):
    """A run of one problem with one solution, in the files' layout; returns its labels in the order of the steps.

    Args:
        continuations: state -> (units, verdict) of every continuation.
    """
    question = f"2 + 1 ?{evil}"
    problem = problem_id(question, "3", [bytes_digest(PICTURE)])
    seed = {"problem_id": problem, "source_id": f"a/1{evil}", "source": "made", "question": question, "answer": "3"}
    seed |= {"images": [{"bytes": PICTURE, "path": None}], "answer_type": "integer", "options": None}
    steps = [step + evil for step in steps]
    common = {"problem_id": problem, "rule": "integer", "finish_reason": "stop", "num_tokens": 7, "logprob": -1.0} | DIGESTS
    solution = common | {"solution_id": digest("s"), "index": 0, "steps": steps, "seed": 11, "answer": "3"}
    solution |= {"text": task.text(task.units(steps)), "verdict": "right"}
    rows, by_state = [], {}
    for state, outcomes in continuations.items():
        for i, (units, verdict) in enumerate(outcomes):
            row = common | {"continuation_id": digest(state, i), "prefix_id": prefix_id(problem, state), "index": i}
            row |= {"num_prefix_units": len(state), "seed": 100 + i, "text": task.text(units), "verdict": verdict}
            rows.append(row | {"answer": f"{i}{evil}"})
            by_state.setdefault(state, []).append(rows[-1])
    prefixes = prefix_rows(
        task, problem, [solution], by_state, reuse=reuse, stopping_rule=lambda *_: "fixed", digests=DIGESTS
    )
    counts = {row["prefix_id"]: row for row in prefixes}
    labels = []
    for i in range(len(steps)):
        prefix = prefix_id(problem, task.units(steps[: i + 1]))
        final = {"num_right": 1, "num_verdicts": 1, "num_unknown": 0, "num_reused": 0, "stopping_rule": "final"}
        count = final if i + 1 == len(steps) else counts[prefix]
        label = {"label_id": digest("label", i), "problem_id": problem, "solution_id": solution["solution_id"]}
        label |= {"prefix_id": prefix, "step": i, "num_steps": len(steps), **{name: count[name] for name in final}}
        value = count["num_right"] / max(1, count["num_verdicts"])
        labels.append(label | dict.fromkeys(("mc", "mean", "label"), value) | DIGESTS)
        labels[-1] |= {"sd": 0.1, "low": 0.2, "high": 0.9, "weight": 1.0}
    write_table(folder / "seeds" / "seeds.parquet", [seed], PROBLEM)
    write_table(folder / "rollouts" / "solutions.parquet", [solution], SOLUTION)
    write_table(folder / "rollouts" / "continuations.parquet", rows, CONTINUATION)
    write_table(folder / "rollouts" / "prefixes.parquet", prefixes, PREFIX)
    write_table(folder / "labels" / "labels.parquet", labels, LABEL)
    return labels


def explained(folder, label, **options):
    folders = {name: folder / name for name in ("seeds", "rollouts", "labels")}
    return explain(label, **folders, home=folder / "home", **options)


RUN = {
    (): [(("two", "plus one", "so 3"), "right"), (("two", "other"), "wrong"), (("three",), "right")],
    ("two",): [(("plus one", "so 3"), "right"), (("plus one",), "wrong"), (("minus", "so 1"), "unknown")],
    ("two", "plus one"): [(("so 3",), "right"), (("so 4",), "wrong"), (("?",), "unknown")],
}


def test_what_began_at_the_prefix_and_what_passed_through_it_is_listed_and_counted(tmp_path):
    first, second, last = built(tmp_path, RUN)
    found = explained(tmp_path, first["label_id"][:6])
    assert [(one.num_units_before, one.tail, one.row["verdict"]) for one in found.counted] == [
        (0, ("plus one", "so 3"), "right"),
        (0, ("other",), "wrong"),
        (1, ("plus one", "so 3"), "right"),
        (1, ("plus one",), "wrong"),
        (1, ("minus", "so 1"), "unknown"),
    ]
    assert (found.counts.num_right, found.counts.num_verdicts, found.counts.num_unknown) == (2, 4, 1)
    assert found.counts.num_reused == first["num_reused"] == 2
    assert found.mismatch is None
    enforce(found)
    found = explained(tmp_path, second["label_id"])
    # "plus one" as the end of a continuation is a finished text, no prefix
    assert [(one.num_units_before, one.tail) for one in found.counted] == [
        (0, ("so 3",)),
        (1, ("so 3",)),
        (2, ("so 3",)),
        (2, ("so 4",)),
        (2, ("?",)),
    ]
    assert found.mismatch is None
    found = explained(tmp_path, last["label_id"])
    assert (found.is_final, found.counted, found.mismatch) == (True, (), None)
    assert "its own verdict is its worth (right)" in verdict_line(found)


def test_without_reuse_only_what_began_at_the_prefix_counts(tmp_path):
    first, *_ = built(tmp_path, RUN, reuse=False)
    found = explained(tmp_path, first["label_id"])
    assert {one.num_units_before for one in found.counted} == {1}
    assert found.mismatch is None


UNITS = st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(tuple)
OUTCOMES = st.lists(st.tuples(UNITS, st.sampled_from(["right", "wrong", "unknown"])), max_size=6)


@given(
    runs=st.dictionaries(st.lists(st.sampled_from("abc"), max_size=3).map(tuple), OUTCOMES, max_size=6), reuse=st.booleans()
)
def test_the_recount_is_the_tally_of_the_search_for_every_prefix(runs, reuse):
    rows = [
        {"prefix_id": prefix_id("p", state), "text": "\n\n".join(units), "verdict": verdict}
        for state, outcomes in runs.items()
        for units, verdict in outcomes
    ]
    states = {("a",), ("a", "b"), ("a", "b", "c"), ("c", "c")} | set(runs)
    outcomes = [(state, Outcome(units, verdict)) for state, some in runs.items() for units, verdict in some]
    for state, counts in tally(states, outcomes, reuse=reuse).items():
        counted, again = recount(rows, "p", MATHS, state, reuse=reuse)
        assert again == counts
        assert len(counted) == counts.num


def test_a_label_that_its_continuations_contradict_is_said_loudly(tmp_path, monkeypatch, capsys):
    labels = built(tmp_path, RUN)
    labels[0] |= {"num_right": 3}
    write_table(tmp_path / "labels" / "labels.parquet", labels, LABEL)
    found = explained(tmp_path, labels[0]["label_id"])
    assert found.mismatch == "what is listed comes to num_right 2 instead of 3"
    with pytest.raises(RefusedError):
        enforce(found)
    assert "CONTRADICTION" in "\n".join(lines(found, home=tmp_path))
    assert 'class="bad">CONTRADICTION' in page(found)
    monkeypatch.chdir(tmp_path)
    folders = [word for name in ("seeds", "rollouts", "labels") for word in (f"--{name}", name)]
    assert main(["explain", labels[0]["label_id"], *folders]) == 5
    captured = capsys.readouterr()
    assert "num_right 2 instead of 3" in captured.err
    assert "right by integer" in captured.out
    assert main(["explain", labels[1]["label_id"], *folders]) == 0
    final = labels[2] | {"num_right": 0}
    write_table(tmp_path / "labels" / "labels.parquet", [*labels[:2], final], LABEL)
    assert main(["explain", final["label_id"], *folders]) == 5


def test_an_id_is_found_by_its_beginning_or_refused_in_one_line(tmp_path):
    labels = built(tmp_path, RUN)
    labels[1]["label_id"] = labels[0]["label_id"][:10] + "f" * 22
    write_table(tmp_path / "labels" / "labels.parquet", labels, LABEL)
    assert explained(tmp_path, f" {labels[0]['label_id'][:12].upper()} ").label["label_id"] == labels[0]["label_id"]
    with pytest.raises(DataError, match="2 labels begin with"):
        explained(tmp_path, labels[0]["label_id"][:8])
    with pytest.raises(DataError, match="no label begins with ffffff"):
        explained(tmp_path, "ffffff")
    for bad in ("abc", "xyzxyz", "a" * 33, "../../etc"):
        with pytest.raises(SettingsError, match="is no label id"):
            explained(tmp_path, bad)


def test_a_damaged_file_is_said_in_one_line(tmp_path):
    label, *_ = built(tmp_path, {("two",): [(("plus one", "so 3"), "right")]})
    for name in ("rollouts/solutions", "rollouts/continuations", "labels/labels"):
        path = tmp_path / f"{name}.parquet"
        whole = path.read_bytes()
        path.write_bytes(whole[:4] + b"\x5a" * 600 + whole[604:])
        with pytest.raises(DataError, match="not a readable Parquet file"):
            explained(tmp_path, label["label_id"])
        path.write_bytes(whole)


def test_without_a_receipt_unknown_ones_that_passed_through_count_too(tmp_path):
    _, label, _ = built(
        tmp_path, {("two",): [(("plus one", "so 3"), "unknown")], ("two", "plus one"): [(("so 3",), "right")]}
    )
    found = explained(tmp_path, label["label_id"])
    assert (label["num_reused"], label["num_unknown"], found.mismatch) == (0, 1, None)


def test_files_of_two_runs_are_not_explained_with_each_other(tmp_path):
    first, *_ = built(tmp_path / "a", RUN)
    built(tmp_path / "b", RUN, evil="!")
    with pytest.raises(DataError, match="no problem_id"):
        explain(
            first["label_id"],
            seeds=tmp_path / "b" / "seeds",
            rollouts=tmp_path / "a" / "rollouts",
            labels=tmp_path / "a" / "labels",
            home=tmp_path,
        )
    with pytest.raises(DataError, match="no such file"):
        explained(tmp_path, first["label_id"])
    write_table(tmp_path / "a" / "labels" / "labels.parquet", [first | {"prefix_id": "0" * 32}], LABEL)
    with pytest.raises(DataError, match="are not the prefix"):
        explained(tmp_path / "a", first["label_id"])


def test_the_task_is_the_one_under_which_the_prefix_has_its_name(tmp_path):
    steps = ("<step>red: 2</step>\n<step>blue: 1</step>", "<step>2 + 1 = 3</step>", "<answer>3</answer>")
    state = SCENE.units(steps[:1])
    label, *_ = built(tmp_path, {state: [(SCENE.units(steps[1:]), "right")]}, steps=steps, task=SCENE)
    found = explained(tmp_path, label["label_id"])
    assert (found.task.name, found.state) == ("scene", ("<step>red: 2</step>", "<step>blue: 1</step>"))
    assert found.mismatch is None


def test_imported_labels_have_nothing_to_count_again(tmp_path):
    label, *_ = built(tmp_path, {("two",): [], ("two", "plus one"): []})
    (tmp_path / "rollouts" / "continuations.parquet").unlink()
    found = explained(tmp_path, label["label_id"])
    assert not found.has_continuations
    assert "made elsewhere" in verdict_line(found)
    enforce(found)


def test_continuations_that_the_run_had_are_missed(tmp_path):
    label, *_ = built(tmp_path, RUN)
    write_json(tmp_path / "rollouts" / "summary.json", {"continuations": 9})
    (tmp_path / "rollouts" / "continuations.parquet").unlink()
    with pytest.raises(DataError, match=r"continuations\.parquet: no such file"):
        explained(tmp_path, label["label_id"])


@pytest.mark.parametrize(
    ("file", "schema", "gone"),
    [
        ("seeds/seeds", PROBLEM, "question"),
        ("rollouts/solutions", SOLUTION, "steps"),
        ("rollouts/continuations", CONTINUATION, "text"),
    ],
)
def test_a_null_where_a_text_belongs_is_said_in_one_line(tmp_path, file, schema, gone):
    label, *_ = built(tmp_path, RUN)
    path = tmp_path / f"{file}.parquet"
    write_table(path, [row | {gone: None} for row in read_table(path, schema)], schema)
    with pytest.raises(DataError, match=f"{gone} is null in a row of problem"):
        explained(tmp_path, label["label_id"])


def test_a_picture_that_the_seeds_only_name_is_said(tmp_path):
    label, *_ = built(tmp_path, RUN)
    path = tmp_path / "seeds" / "seeds.parquet"
    gone = {"images": [{"bytes": None, "path": "gone.png"}]}
    write_table(path, [row | gone for row in read_table(path, PROBLEM)], PROBLEM)
    found = explained(tmp_path, label["label_id"])
    assert "picture   gone.png: no bytes in the seeds" in lines(found, home=tmp_path)
    assert "gone.png: no bytes in the seeds" in page(found)


def test_settings_come_from_the_receipt_of_the_very_folder(tmp_path):
    from components.records import tree_sha256

    label, *_ = built(tmp_path, RUN)
    assert dict(facts(explained(tmp_path, label["label_id"])))["receipt"].startswith("none here")
    sha256 = tree_sha256(tmp_path / "rollouts")
    receipt = {"output": {"sha256": sha256}, "started_at": "2026-01-01", "params": {"rollout": {"sampling": {"top_k": 7}}}}
    write_json(tmp_path / "home" / "receipts" / "rollout" / f"{sha256}.json", receipt)
    said = dict(facts(explained(tmp_path, label["label_id"])))
    assert said["sampling"] == "top_k 7"
    assert said["receipt"].startswith("rollout: 2026-01-01")


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_stands_alone_and_no_text_becomes_markup_or_steers_a_terminal(tmp_path):
    state = {(f"two{EVIL}",): [((f"x{EVIL}",), "right"), ((f"y{EVIL}", "z"), "wrong")]}
    label, *_ = built(tmp_path, state, evil=EVIL)
    found = explained(tmp_path, label["label_id"])
    assert found.mismatch is None
    seen = Page()
    seen.feed(page(found))
    assert {"script", "link", "iframe", "object", "a"}.isdisjoint(seen.tags)
    assert not [name for name, _ in seen.attributes if name.startswith("on")]
    sources = [value for name, value in seen.attributes if name in ("src", "href")]
    assert len(sources) == 1
    assert sources[0].startswith("data:image/png;base64,")
    assert "alert(1)" in "".join(seen.text)
    assert "\u202e" not in page(found)
    shown = "\n".join(lines(found, home=tmp_path / "home", colour=False))
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202e]", shown)
    assert "<script>" in shown
    path = re.search(r"^picture   (\S+) \(32 x 32\)$", shown, flags=re.MULTILINE)[1]
    assert Path(path).read_bytes() == PICTURE
    assert html.escape("<script>") in page(found)


def test_the_command_prints_or_writes_a_page(tmp_path, monkeypatch, capsys):
    label, *_ = built(tmp_path, RUN)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "artifacts").mkdir()
    for name in ("seeds", "rollouts", "labels"):
        (tmp_path / name).rename(tmp_path / "artifacts" / name)
    assert main(["explain", label["label_id"][:9]]) == 0
    out = capsys.readouterr().out
    for part in (f"label {label['label_id']}", ">  1  two", "   2  plus one", "seed 102", "7 tokens", "recounted: 2 of 4"):
        assert part in out
    assert main(["explain", label["label_id"], "--html", "x.html"]) == 0
    assert (tmp_path / "x.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert main(["explain", "abc"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2
    assert json.dumps(label["label_id"]) not in out
