"""Label files from elsewhere and back: what each format says, what it cannot say, and what happens to bad rows."""

import io
import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from picture_fixture import bars, png

from components.cli import main
from components.errors import DataError, SettingsError
from components.grading import grade
from components.interchange import FORMATS, files
from components.interchange import importing as importing_module
from components.interchange.exporting import export_labels, labelled_problems
from components.interchange.fields import label_of, with_image_places, without_image_places
from components.interchange.foreign import BadRow, Mark, Problem, Solution, grouped, rounded
from components.interchange.importing import import_labels
from components.label import run as run_label
from components.records import (
    LABEL,
    PREFIX,
    PROBLEM,
    QUARANTINE,
    SOLUTION,
    bytes_digest,
    prefix_id,
    problem_id,
    read_table,
    row_images,
    write_table,
)
from components.sampling import gold_of
from components.settings import Label, load_params, load_runtime
from components.tasks import load_task
from components.verbs.labels import LABEL_FORMATS

ROOT = Path(__file__).parents[2]
PRM800K = ROOT.parent / "shared" / "realdata" / "prm800k"
PICTURE = bars([1, 2, 3, 4])


def jsonl(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def tables(folder):
    schemas = {"seeds": PROBLEM, "solutions": SOLUTION, "prefixes": PREFIX, "labels": LABEL, "quarantine": QUARANTINE}
    return {name: read_table(folder / f"{name}.parquet", schema) for name, schema in schemas.items()}


def imported(tmp_path, fmt, *rows, **options):
    folder = tmp_path / f"imported-{fmt}"
    import_labels([jsonl(tmp_path / "in" / f"{fmt}.jsonl", *rows)], fmt=fmt, out=folder, **options)
    return folder


def exported(folder, fmt, out):
    export_labels(seeds=folder, rollouts=folder, labels=folder, fmt=fmt, out=out)
    return [json.loads(line) for line in (out / "labels.jsonl").read_text(encoding="utf-8").splitlines()]


def said(folder):
    """What a folder says: question -> steps -> (label, k, n) a step."""
    out = {}
    for problem, solutions in labelled_problems(folder, folder, folder):
        found = out.setdefault((problem.question, problem.answer, problem.images), {})
        for solution in solutions:
            found[solution.steps] = [(m.label, m.num_right, m.num_verdicts) for m in solution.marks]
    return out


# --- what each format says -----------------------------------------------------------------------------------------

CHAT = {
    "id": 7,
    "image": "scenes/1.png",
    "conversations": [
        {"from": "system", "value": "judge"},
        {"from": "human", "value": "### Question:\n<image>\nHow many?\n\n### Solution Process:\nI see two.\n\nAnd one."},
        {"from": "gpt", "value": "+"},
        {"from": "human", "value": "2 + 1 = 4"},
        {"from": "gpt", "value": "-"},
    ],
}
RAW = {
    "image": "scenes/1.png",
    "question": "<image>\nAnswer step by step. How many?",
    "question_orig": "How many?",
    "answer": "3",
    "response": "I see two.\n\nAnd one.\n\n2 + 1 = 3\n\nThe answer is 3.",
    "steps_with_score": [
        {"step": "I see two.\n\nAnd one.", "score": 0.5625, "num_mc_correct": 9, "num_mc_total": 16},
        {"step": "2 + 1 = 3", "score": 0.0, "num_mc_correct": 0, "num_mc_total": 16},
        {"step": "The answer is 3.", "score": 0.0, "num_mc_correct": 0, "num_mc_total": 0},
    ],
    "num_mc_sequences": 16,
}


def node(text, value, *children, right=(), wrong=()):
    rollouts = {"correct_rollouts": [list(r) for r in right], "incorrect_rollouts": [list(r) for r in wrong]}
    return {"partial_solution": text, "mc_value": value, "visit_count": 1, **rollouts, "children": list(children)}


TREE = {
    "question": "2 + 1 ?",
    "answer": "3",
    "image_path": "scenes/1.png",
    "mc_value": 0.5,
    "visit_count": 2,
    "correct_rollouts": [["so 3", "The answer is 3"]],
    "incorrect_rollouts": [["it is 4"]],
    "children": [
        node(["so 3", "The answer is 3"], 1.0),
        node(["two"], 0.5, node(["minus one"], 0.0, wrong=[["x"]] * 4), right=[["a"], ["b"]], wrong=[["c"], ["d"]]),
        node(["it is", "4"], 0.25, node(["no"], 0.0), right=[["a"]], wrong=[["c"]]),  # rollouts were listed once each
    ],
    "id": "k12-5",
}
MM_ROW = {
    "id": 3,
    "image": "scenes/1.png",
    "conversations": [
        {"from": "human", "value": "Question: How many?\nProcess: Two red.<prm>\n\nOne blue.<prm>\n\nSo 3.<prm>"},
        {"from": "gpt", "value": [0.9375, 0.0625, 0.0]},
    ],
}
SHEPHERD = {
    "input": "Tom has 2 кинофильмы. How many? Step 1: He has 2. ки\nStep 2: So 3 ки\nStep 3: The answer is: 3 ки",
    "label": "Tom has 2 кинофильмы. How many? Step 1: He has 2. +\nStep 2: So 3 -\nStep 3: The answer is: 3 -",
    "task": "GSM8K",
}
STEPWISE = {"prompt": "2 + 1 ?", "completions": ["first", "then"], "labels": [0.9375, 0.25]}


@pytest.fixture
def scenes(tmp_path):
    (tmp_path / "pictures" / "scenes").mkdir(parents=True)
    (tmp_path / "pictures" / "scenes" / "1.png").write_bytes(PICTURE)
    return tmp_path / "pictures"


def test_a_conversation_of_signs_is_read_and_written(tmp_path, scenes):
    folder = imported(tmp_path, "visualprm400k", CHAT, images=scenes)
    found = tables(folder)
    (seed,) = found["seeds"]
    assert (seed["question"], seed["answer"], row_images(seed)) == ("How many?", "", (PICTURE,))
    assert seed["problem_id"] == problem_id("How many?", "", [bytes_digest(PICTURE)])
    assert [row["steps"] for row in found["solutions"]] == [["I see two.\n\nAnd one.", "2 + 1 = 4"]]
    assert [(row["label"], row["mean"], row["mc"], row["num_verdicts"]) for row in found["labels"]] == [
        (1.0, 1.0, None, 0),
        (0.0, 0.0, None, 0),
    ]
    assert {row["stopping_rule"] for row in found["labels"] + found["prefixes"]} == {"imported"}
    units = ["I see two.", "And one.", "2 + 1 = 4"]
    assert [row["prefix_id"] for row in found["labels"]] == [prefix_id(seed["problem_id"], units[:i]) for i in (2, 3)]
    assert [(row["prefix_id"], row["num_units"]) for row in found["prefixes"]] == [(found["labels"][0]["prefix_id"], 2)]

    (row,) = exported(folder, "visualprm400k", tmp_path / "out")
    assert row["conversations"][1:] == CHAT["conversations"][1:]
    assert row["conversations"][0]["from"] == "system"
    assert (tmp_path / "out" / row["image"]).read_bytes() == PICTURE


def test_raw_steps_keep_their_counts_and_what_was_never_measured_has_no_label(tmp_path, scenes):
    folder = imported(tmp_path, "visualprm_raw", RAW, images=scenes)
    found = tables(folder)
    assert [(r["num_right"], r["num_verdicts"], r["mc"], r["label"]) for r in found["labels"]] == [
        (9, 16, 0.5625, 0.5625),
        (0, 16, 0.0, 0.0),
    ]
    assert [(r["num_right"], r["num_verdicts"]) for r in found["prefixes"]] == [(9, 16), (0, 16)]
    assert found["labels"][0]["low"] < 0.5625 < found["labels"][0]["high"]
    (solution,) = found["solutions"]
    assert (solution["verdict"], solution["answer"], solution["rule"]) == ("right", "3", "integer")  # graded anew

    (row,) = exported(folder, "visualprm_raw", tmp_path / "out")
    steps = [dict(step) for step in RAW["steps_with_score"]]
    steps[2]["score"] = None  # unmeasured is not 0
    assert row["steps_with_score"] == steps
    for name in ("question_orig", "answer", "response", "num_mc_sequences"):
        assert row[name] == RAW[name]
    assert row["question"] == "<image>\nHow many?"  # the prompt around it is not the problem's


def test_the_paths_of_a_tree_are_solutions_whose_shared_prefixes_count_once(tmp_path, scenes):
    folder = imported(tmp_path, "mmprm_tree", TREE, images=scenes)
    (problem,) = said(folder).values()
    assert problem == {
        ("so 3\n\nThe answer is 3",): [(1.0, 0, 0)],
        ("two", "minus one"): [(0.5, 2, 4), (0.0, 0, 4)],
        ("it is\n\n4", "no"): [(0.25, 0, 0), (0.0, 0, 0)],
    }
    assert [row["verdict"] for row in tables(folder)["solutions"]] == ["right", "unknown", "unknown"]

    (tree,) = exported(folder, "mmprm_tree", tmp_path / "out")
    bare = {"visit_count": 0, "correct_rollouts": [], "incorrect_rollouts": []}

    def stripped(node, mc_value):
        kept = {"mc_value": mc_value, "children": [stripped(c, c["mc_value"]) for c in node["children"]]}
        return bare | kept | {k: v for k, v in node.items() if k == "partial_solution"}

    def without_counts(node):
        children = [without_counts(child) for child in node["children"]]
        return {k: v for k, v in node.items() if not k.startswith("num_")} | {"children": children}

    written = without_counts(tree)
    assert written.pop("image_path").startswith("images/")
    assert (written.pop("question"), written.pop("answer"), written.pop("id")) == ("2 + 1 ?", "3", "k12-5")
    assert written == stripped(TREE, 1.0)  # the root's value is the share of its right solutions
    again = tmp_path / "again"
    import_labels([tmp_path / "out"], fmt="mmprm_tree", out=again)
    assert said(again) == said(folder)  # counts too


def test_soft_labels_behind_markers_stay_what_they_are(tmp_path, scenes):
    folder = imported(tmp_path, "mmprm_rows", MM_ROW, images=scenes)
    (problem,) = said(folder).values()
    assert problem == {("Two red.", "One blue.", "So 3."): [(0.9375, 0, 0), (0.0625, 0, 0), (0.0, 0, 0)]}
    (row,) = exported(folder, "mmprm_rows", tmp_path / "out")
    assert row["conversations"] == MM_ROW["conversations"]
    flat = {"question": "How many?", "answer": "3", "image_path": "scenes/1.png"}
    flat |= {"process": "Two red.<prm>\n\nand a tail", "labels": [0.5]}
    other = imported(tmp_path / "flat", "mmprm_rows", flat, images=scenes)
    assert list(said(other).values()) == [{("Two red.", "and a tail"): [(0.5, 0, 0), (None, 0, 0)]}]


def test_a_marker_is_told_from_the_same_letters_in_a_word(tmp_path):
    folder = imported(tmp_path, "math_shepherd", SHEPHERD)
    assert said(folder) == {
        ("Tom has 2 кинофильмы. How many?", "", ()): {
            ("He has 2.", "So 3", "The answer is: 3"): [(1.0, 0, 0), (0.0, 0, 0), (0.0, 0, 0)]
        }
    }
    assert exported(folder, "math_shepherd", tmp_path / "out") == [SHEPHERD]


def test_the_markers_of_the_data_set_page_are_read_too():
    row = {"input": "How many? \n\nStep 1: two. ки ? \n\nStep 2: so 3. ки ?"}
    row["label"] = "How many? \n\nStep 1: two. ки + \n\nStep 2: so 3. ки -"
    problem, (solution,) = FORMATS["math_shepherd"].read(row)
    assert (problem.question, solution.steps) == ("How many?", ("two.", "so 3."))
    assert [mark.label for mark in solution.marks] == [1.0, 0.0]


def test_stepwise_floats_are_not_cut_and_booleans_are_one_and_zero(tmp_path):
    truths = {"prompt": "3 + 1 ?", "completions": ["a", "b", "c"], "labels": [True, False, None]}
    folder = imported(tmp_path, "stepwise", STEPWISE, truths)
    labels = list(said(folder).values())
    assert labels[0] == {("first", "then"): [(0.9375, 0, 0), (0.25, 0, 0)]}
    assert labels[1] == {("a", "b", "c"): [(1.0, 0, 0), (0.0, 0, 0), (None, 0, 0)]}
    assert exported(folder, "stepwise", tmp_path / "out") == [STEPWISE, truths | {"labels": [1.0, 0.0, None]}]


def rated(text, rating, **more):
    return {"text": text, "rating": rating, "flagged": None} | more


def prm800k(*steps, problem="2 + 1 ?", answer="3", finish_reason="solution", **question):
    question = {"problem": problem, "ground_truth_answer": answer} | question
    names = ("completions", "human_completion", "chosen_completion")
    shown = [dict(zip(names, step, strict=True)) for step in steps]
    return {"question": question, "label": {"steps": shown, "total_time": 1, "finish_reason": finish_reason}}


def test_rated_steps_become_the_path_taken_and_a_solution_for_every_other_rated_completion():
    human = {"text": "by hand", "rating": None, "source": "human", "flagged": False}
    record = prm800k(
        ([rated("two", 1), rated("maybe", 0), rated("ten", -1)], None, 0),
        ([rated("minus", -1), rated("flagged", 1, flagged=True)], human, None),
        ([rated("so 3\n\n# Answer\n\n3", 1)], None, 0),
    )
    problem, solutions = FORMATS["prm800k"].read(record)
    assert (problem.question, problem.answer) == ("2 + 1 ?", "3")
    assert {s.steps: [m.label for m in s.marks] for s in solutions} == {
        ("two", "by hand", "so 3\n\n# Answer\n\n3"): [1.0, None, 1.0],
        ("ten",): [0.0],
        ("two", "minus"): [1.0, 0.0],
    }


def test_the_step_at_which_labelling_ended_is_the_one_of_the_solution_that_was_written_before():
    steps = ["two", "minus", "so 1"]
    first = ([rated("two", 1)], None, 0)
    record = prm800k(first, ([rated("plus", 1), rated("minus", -1)], None, None), pre_generated_steps=steps)
    _, solutions = FORMATS["prm800k"].read(record)
    assert {s.steps: [m.label for m in s.marks] for s in solutions} == {
        ("two", "minus", "so 1"): [1.0, 0.0, None],  # not None in place of the step, and the rest without labels
        ("two", "plus"): [1.0, 1.0],
    }
    unknown = prm800k(first, ([rated("plus", 1)], None, None))
    _, solutions = FORMATS["prm800k"].read(unknown)  # the record does not say how it went on
    assert [s.steps for s in solutions] == [("two",), ("two", "plus")]
    with pytest.raises(BadRow, match="bad_problem"):
        FORMATS["prm800k"].read(prm800k(first, finish_reason="bad_problem"))


@pytest.mark.skipif(not PRM800K.exists(), reason="no real records here")
def test_real_rated_records_come_back_the_same(tmp_path):
    found = sorted(PRM800K.glob("*train-example.json")) + sorted(PRM800K.glob("*test-example.json"))
    summary = import_labels(found, fmt="prm800k", out=tmp_path / "a")
    assert not summary["quarantined"]
    ratings = 0
    for path in found:
        for record in files.read_rows_of(path):
            ratings += sum(c["rating"] in (1, -1) for s in record["label"]["steps"] for c in s["completions"])
    labels = tables(tmp_path / "a")["labels"]
    assert len({row["prefix_id"] for row in labels}) <= ratings
    assert {row["label"] for row in labels} == {0.0, 1.0}
    exported(tmp_path / "a", "prm800k", tmp_path / "out")
    import_labels([tmp_path / "out"], fmt="prm800k", out=tmp_path / "b")
    assert said(tmp_path / "b") == said(tmp_path / "a")


# --- there and back ------------------------------------------------------------------------------------------------

WORDS = st.text(st.sampled_from(list("ab1+- .\nки<>?é\\#")), min_size=1, max_size=12).map(str.strip).filter(bool)
LABELS = st.one_of(st.none(), st.floats(0, 1), st.sampled_from([0.0, 1.0, 1 / 3]))


@st.composite
def solutions_of(draw):
    steps = tuple(draw(st.lists(WORDS, min_size=1, max_size=4)))
    marks = []
    for _ in steps:
        right, wrong = draw(st.integers(0, 5)), draw(st.integers(0, 5))
        label = draw(LABELS)
        marks.append(Mark(label, right, right + wrong) if label is not None else Mark())
    return Solution(steps, tuple(marks))


@pytest.mark.parametrize("name", list(FORMATS))
@given(solution=solutions_of(), question=WORDS)
def test_what_is_written_reads_back_as_text_steps_and_labels(name, solution, question):
    form = FORMATS[name]
    shown = rounded(solution) if form.has_signs else solution
    shown = shown if form.has_gaps else grouped(shown)
    if shown is None or (form.has_gaps and all(mark.label is None for mark in shown.marks)):
        return
    problem = Problem(question, "3", "id-1", "source")
    try:
        found = [form.read(json.loads(json.dumps(row))) for row in form.write(problem, [shown])]
    except BadRow:
        return  # its text holds the format's own marks: export leaves such a row out, see below
    ((read, (again,)),) = found
    if (read.question, again.steps) != (question, shown.steps):
        assert name in ("math_shepherd", "mmprm_tree")
        return
    assert [mark.label for mark in again.marks] == [mark.label for mark in shown.marks]
    assert read.answer == "3"
    if name in ("visualprm_raw", "mmprm_tree", "parquet"):
        counts = [(m.num_right, m.num_verdicts) for m in again.marks]
        assert counts == [(m.num_right, m.num_verdicts) for m in shown.marks]


def test_a_row_whose_text_holds_the_formats_own_marks_is_left_out_and_counted(tmp_path, capsys):
    bad = {"prompt": "Why? Step 1: because", "completions": ["a"], "labels": [1]}
    folder = imported(tmp_path, "stepwise", STEPWISE, bad)
    summary = export_labels(seeds=folder, rollouts=folder, labels=folder, fmt="math_shepherd", out=tmp_path / "out")
    assert (summary["rows"], summary["left_out"]) == (1, 1)
    assert "stepwise/1" in capsys.readouterr().err
    only = imported(tmp_path / "only", "stepwise", bad)
    with pytest.raises(DataError, match="no label to write"):
        export_labels(seeds=only, rollouts=only, labels=only, fmt="math_shepherd", out=tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", [name for name, form in FORMATS.items() if form.has_images])
def test_a_folder_goes_out_and_comes_back_with_its_pictures_steps_and_labels(tmp_path, scenes, name):
    rows = []
    for i, label in enumerate([1.0, 0.0, 1.0]):
        picture = scenes / "scenes" / f"{i // 2}.png"
        picture.write_bytes(bars([i // 2, 1, 2, 3]))
        rows.append({"prompt": f"How many? {i // 2}", "completions": [f"a {i}", "b"], "answer": "3"})
        rows[-1] |= {"labels": [label, 0.0], "images": [f"scenes/{i // 2}.png"]}
    folder = imported(tmp_path, "stepwise", *rows, images=scenes)
    export_labels(seeds=folder, rollouts=folder, labels=folder, fmt=name, out=tmp_path / "out")
    again = tmp_path / "again"
    import_labels([tmp_path / "out"], fmt=name, out=again)
    assert said(again) == said(folder)
    assert len(tables(again)["seeds"]) == 2
    one, other = tables(folder), tables(again)
    assert [row["problem_id"] for row in one["seeds"]] == [row["problem_id"] for row in other["seeds"]]
    assert [row["prefix_id"] for row in one["labels"]] == [row["prefix_id"] for row in other["labels"]]


def test_signs_are_written_by_what_is_hardly_ever_right_and_gaps_join_the_next_step():
    marks = (Mark(None), Mark(0.03), Mark(0.0625, 1, 16), Mark(None))
    solution = Solution(("a", "b", "c", "d"), marks)
    assert [mark.label for mark in rounded(solution).marks] == [None, 0.0, 1.0, None]
    assert grouped(solution) == Solution(("a\n\nb", "c"), marks[1:3])
    assert grouped(replace(solution, marks=(Mark(),) * 4)) is None


def test_our_own_labels_come_back_from_parquet_as_they_were(tmp_path):
    problem = problem_id("2 + 1 ?", "3", [bytes_digest(PICTURE)])
    seed = {"problem_id": problem, "source_id": "a/1", "source": "a", "question": "2 + 1 ?", "answer": "3"}
    seed |= {"images": [{"bytes": PICTURE, "path": None}], "answer_type": "integer", "options": None}
    digests = {"policy_digest": "p" * 32, "verifier_digest": "v" * 32}
    solutions, prefixes = [], {}
    for i, (steps, verdict) in enumerate([(("two", "so 3"), "right"), (("two", "so 3"), "right"), (("two", "4"), "wrong")]):
        row = {"solution_id": f"{i}" * 32, "problem_id": problem, "index": i, "steps": list(steps), "seed": i}
        row |= {"text": "\n\n".join(steps), "answer": steps[-1][-1], "verdict": verdict, "rule": "integer"}
        solutions.append(row | {"finish_reason": "stop", "num_tokens": 5, "logprob": -0.5} | digests)
        prefix = prefix_id(problem, steps[:1])
        prefixes[prefix] = {"problem_id": problem, "prefix_id": prefix, "num_units": 1, "num_right": 5} | digests
        prefixes[prefix] |= {
            "num_verdicts": 8,
            "num_unknown": 1,
            "num_reused": 2,
            "num_reused_right": None,
            **dict.fromkeys(["right_masses", "wrong_masses", "num_repeated_right", "num_repeated_wrong"]),
            "stopping_rule": "adaptive",
        }
    write_table(tmp_path / "seeds" / "seeds.parquet", [seed], PROBLEM)
    write_table(tmp_path / "rollouts" / "solutions.parquet", solutions, SOLUTION)
    write_table(tmp_path / "rollouts" / "prefixes.parquet", list(prefixes.values()), PREFIX)
    params = load_params(ROOT / "params.yaml").model_copy(update={"label": Label(estimator="counts")})
    folders = {"seeds": tmp_path / "seeds", "rollouts": tmp_path / "rollouts"}
    (tmp_path / "labels").mkdir()
    run_label(params, load_runtime({}), **folders, out=tmp_path / "labels")
    export_labels(**folders, labels=tmp_path / "labels", fmt="parquet", out=tmp_path / "one.parquet")
    import_labels([tmp_path / "one.parquet"], fmt="parquet", out=tmp_path / "again")
    found = tables(tmp_path / "again")
    assert found["labels"] == read_table(tmp_path / "labels" / "labels.parquet", LABEL)
    assert (found["seeds"], found["solutions"], found["prefixes"]) == ([seed], solutions, list(prefixes.values()))


def test_datasets_reads_our_parquet_with_its_pictures(tmp_path, scenes):
    folder = imported(tmp_path, "visualprm_raw", RAW, images=scenes)
    export_labels(seeds=folder, rollouts=folder, labels=folder, fmt="parquet", out=tmp_path / "one.parquet")
    features = json.loads(pq.read_schema(tmp_path / "one.parquet").metadata[b"huggingface"])["info"]["features"]
    assert features["images"] == {"feature": {"_type": "Image"}, "_type": "List"}
    assert features["labels"] == {"feature": {"dtype": "double", "_type": "Value"}, "_type": "List"}
    datasets = pytest.importorskip("datasets")
    from PIL import Image

    loaded = datasets.Dataset.from_parquet(str(tmp_path / "one.parquet"), cache_dir=str(tmp_path / "cache"))
    assert loaded[0]["labels"] == [0.5625, 0.0, None]
    assert loaded[0]["num_verdicts"] == [16, 16, None]
    (picture,) = loaded[0]["images"]
    assert picture.tobytes() == Image.open(io.BytesIO(PICTURE)).tobytes()


# --- bad rows ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fmt", "row", "reason"),
    [
        ("stepwise", "[1, 2]", "bad_row"),
        ("stepwise", '{"prompt": "q", "completions": ["a"]', "bad_row"),
        ("stepwise", '{"prompt": "q", "completions": "a", "labels": [1]}', "bad_row"),
        ("stepwise", '{"prompt": "q", "completions": ["a", "b"], "labels": [1]}', "bad_label"),
        ("stepwise", '{"prompt": "q", "completions": ["a"], "labels": [1.5]}', "bad_label"),
        ("stepwise", '{"prompt": "q", "completions": ["a"], "labels": [NaN]}', "bad_label"),
        ("stepwise", '{"prompt": "q", "completions": ["a"], "labels": ["1"]}', "bad_label"),
        ("stepwise", '{"prompt": "q", "completions": ["a"], "labels": [null]}', "no_label"),
        ("stepwise", '{"prompt": "q", "completions": [" "], "labels": [1]}', "bad_steps"),
        ("stepwise", '{"prompt": "q", "completions": [], "labels": []}', "bad_steps"),
        ("stepwise", '{"prompt": " ", "completions": ["a"], "labels": [1]}', "missing_question"),
        ("stepwise", '{"prompt": "q", "completions": ["\\ud800"], "labels": [1]}', "bad_row"),
        ("stepwise", '{"prompt": "q", "completions": ["a"], "labels": [1], "image": "../x.png"}', "path_outside"),
        ("stepwise", '{"prompt": "q", "completions": ["a"], "labels": [1], "image": "/etc/passwd"}', "path_outside"),
        ("stepwise", '{"prompt": "q", "completions": ["a"], "labels": [1], "image": "none.png"}', "missing_image"),
        ("stepwise", '{"prompt": "q", "completions": ["a"], "labels": [1], "image": "broken.png"}', "broken_image"),
        ("visualprm400k", '{"conversations": [{"from": "human", "value": "x"}]}', "bad_row"),
        ("visualprm_raw", '{"question": "q", "steps_with_score": ["x"]}', "bad_steps"),
        (
            "visualprm_raw",
            '{"question": "q", "steps_with_score": [{"step": "a", "score": 1, "num_mc_correct": 3, "num_mc_total": 2}]}',
            "bad_label",
        ),
        ("mmprm_tree", '{"question": "q", "children": []}', "no_label"),
        ("mmprm_tree", '{"question": "q", "children": [1]}', "bad_row"),
        ("mmprm_rows", '{"question": "q", "process": "a<prm>b<prm>", "labels": [1]}', "bad_label"),
        ("prm800k", '{"question": {"problem": "q"}, "label": {"steps": [{"completions": [{"text": 1}]}]}}', "bad_row"),
        ("math_shepherd", '{"input": "q Step 1: a ки", "label": "q Step 1: b +"}', "bad_label"),
        ("math_shepherd", '{"input": "q a ки", "label": "q a +"}', "bad_steps"),
        ("math_shepherd", '{"input": "q Step 1: a ки", "label": "q Step 1: a +", "task": "\\ud800"}', "bad_row"),
        ("parquet", '{"question": "q", "steps": ["a"], "labels": [1], "verdict": "perhaps"}', "bad_row"),
        ("parquet", '{"question": "q", "steps": ["a"], "labels": [1], "seed": 1180591620717411303424}', "bad_row"),
        ("parquet", '{"question": "q", "steps": ["a"], "labels": [1], "num_tokens": 1.5}', "bad_row"),
        ("parquet", '{"question": "q", "steps": ["a"], "labels": [1], "rule": "\\ud800"}', "bad_row"),
        ("parquet", '{"question": "q", "steps": ["a"], "labels": [1], "mean": [NaN]}', "bad_row"),
        ("parquet", '{"question": "q", "steps": ["a"], "labels": [1], "stopping_rule": ["tired"]}', "bad_row"),
    ],
)
def test_a_bad_row_is_set_aside_with_its_reason_and_stops_nothing(tmp_path, fmt, row, reason):
    good = {
        "stepwise": STEPWISE,
        "visualprm400k": CHAT | {"image": None},
        "visualprm_raw": RAW | {"image": None},
        "mmprm_tree": TREE | {"image_path": ""},
        "mmprm_rows": MM_ROW | {"image": []},
        "prm800k": prm800k(([rated("two", 1)], None, 0)),
        "math_shepherd": SHEPHERD,
        "parquet": {"question": "q", "steps": ["a"], "labels": [1]},
    }[fmt]
    (tmp_path / "broken.png").write_bytes(PICTURE[:100])
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(good)}\n{row}\n\n{json.dumps(good)}\n")
    import_labels([tmp_path / "rows.jsonl"], fmt=fmt, out=tmp_path / "out", max_quarantined_frac=0.5)
    found = tables(tmp_path / "out")
    assert [(q["row"], q["reason"], q["file"]) for q in found["quarantine"]] == [(1, reason, "rows.jsonl")]
    assert len(found["seeds"]) == 1
    assert found["labels"]


def spoiled(value):
    """Copies of a row in which one value, at any depth, is something else or is missing."""
    inside = list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    for key, old in inside:
        for new in (None, True, 7, 0.5, "", "x", [], [[]], [None], {}, {"x": []}, 10**400, float("nan")):
            yield {**value, key: new} if isinstance(value, dict) else [*value[:key], new, *value[key + 1 :]]
        for new in spoiled(old):
            yield {**value, key: new} if isinstance(value, dict) else [*value[:key], new, *value[key + 1 :]]
        yield {k: v for k, v in inside if k != key} if isinstance(value, dict) else value[:key] + value[key + 1 :]


@pytest.mark.parametrize("name", list(FORMATS))
def test_a_value_of_another_kind_makes_a_bad_row_and_no_crash(name):
    marks = (Mark(1.0, 4, 4), Mark(0.0, 0, 4))
    rows = list(FORMATS[name].write(Problem("1 + 1 ?", "2", "7"), [Solution(("One.", "So 3."), marks)]))
    if name == "mmprm_tree":
        rows.append({**rows[0], "children": [{**rows[0]["children"][0], "correct_rollouts": ["a"], "mc_value": 1}]})
        del rows[-1]["children"][0]["num_correct_rollouts"]
    for row in (one for good in rows for one in spoiled(good)):
        with suppress(BadRow):
            FORMATS[name].read(row)


def test_too_many_bad_rows_are_an_error_and_nothing_is_written(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(STEPWISE) + "\nnot json\n")
    with pytest.raises(DataError, match="1 of 2 rows are unusable, more than 10%"):
        import_labels([path], fmt="stepwise", out=tmp_path / "out")
    with pytest.raises(DataError, match="none of 2 rows is usable"):
        import_labels([path], fmt="prm800k", out=tmp_path / "out", max_quarantined_frac=1.0)
    assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]
    with pytest.raises(SettingsError) as error:
        import_labels([path], fmt="step_wise", out=tmp_path / "out")
    assert "did you mean 'stepwise'?" in error.value.hint


def test_a_file_of_another_format_is_recognised(tmp_path):
    path = jsonl(tmp_path / "rows.jsonl", STEPWISE)
    with pytest.raises(DataError) as error:
        import_labels([path], fmt="prm800k", out=tmp_path / "out")
    assert error.value.hint == "it reads as stepwise: --as stepwise"


def test_a_solution_of_tagged_units_keeps_the_names_of_its_prefixes_in_every_format(tmp_path):
    units = ("<step>red: 2</step>", "<step>blue:\n\n1</step>", "<answer>3</answer>")
    row = {"prompt": "How many?", "completions": ["\n".join(units[:2]), units[2]], "labels": [1.0, 0.0], "answer": "3"}
    folder = imported(tmp_path, "stepwise", row, task="scene")
    (seed,) = tables(folder)["seeds"]
    names = [prefix_id(seed["problem_id"], units[:i]) for i in (2, 3)]
    for name in FORMATS:
        export_labels(seeds=folder, rollouts=folder, labels=folder, fmt=name, out=tmp_path / name)
        import_labels([tmp_path / name], fmt=name, out=tmp_path / "again", task="scene")
        assert [label["prefix_id"] for label in tables(tmp_path / "again")["labels"]] == names


def test_equal_rows_are_kept_once_and_a_prefix_keeps_its_best_measurement(tmp_path):
    rows = []
    for right, total, tail in ((1, 4, "x"), (6, 8, "y"), (3, 4, "z"), (1, 4, "x")):
        steps = [{"step": "same", "score": right / total, "num_mc_correct": right, "num_mc_total": total}]
        steps.append({"step": tail, "score": 1.0, "num_mc_correct": None, "num_mc_total": None})
        rows.append({"question": "q", "answer": "3", "steps_with_score": steps, "response": f"same\n\n{tail}"})
    folder = imported(tmp_path, "visualprm_raw", *rows)
    found = tables(folder)
    assert len(found["solutions"]) == 3
    assert [(row["num_right"], row["num_verdicts"]) for row in found["prefixes"]] == [(6, 8)]
    assert [row["label"] for row in found["labels"] if row["step"] == 0] == [0.25, 0.75, 0.75]
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["repeated_solutions"], summary["prefixes_measured_again"]) == (1, 2)


# --- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [3, 17, 1 << 20])
@pytest.mark.parametrize("write", ["list", "pretty", "objects", "lines"])
def test_json_is_read_however_it_is_laid_out(tmp_path, monkeypatch, chunk, write):
    rows = [STEPWISE | {"prompt": f"2 + {i} ? {{[ é"} for i in range(5)]
    text = {
        "list": json.dumps(rows),
        "pretty": json.dumps(rows, indent=2),
        "objects": "\n".join(json.dumps(row, indent=4) for row in rows),
        "lines": "\n\n".join(json.dumps(row) for row in rows) + "\n",
    }[write]
    monkeypatch.setattr(files, "_CHUNK_CHARS", chunk)
    (tmp_path / "x.json").write_text("\ufeff" + text, encoding="utf-8")
    assert list(files.read_rows_of(tmp_path / "x.json")) == rows


def test_a_list_that_breaks_off_is_an_error_and_a_line_that_is_no_text_a_bad_row(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps([STEPWISE, STEPWISE])[:-10])
    with pytest.raises(DataError, match="not JSON behind row 1"):
        list(files.read_rows_of(path))
    path.write_text(json.dumps([STEPWISE])[:-1])
    with pytest.raises(DataError, match="the list ends nowhere: 1 rows"):
        list(files.read_rows_of(path))
    path.write_bytes(json.dumps(STEPWISE).encode() + b"\n\xff\xfe\n" + b"[" * 100_000 + b"\n")
    first, second, third = files.read_rows_of(path)
    assert first == STEPWISE
    assert "not UTF-8" in str(second)
    assert "not JSON" in str(third)
    for name in ("none.jsonl", "x.csv"):
        (tmp_path / "x.csv").touch()
        with pytest.raises(DataError):
            files.label_files([tmp_path / name])


def test_what_is_written_does_not_depend_on_the_shares_on_disk(tmp_path, monkeypatch, scenes):
    rows = [STEPWISE | {"prompt": f"2 + {i % 7} ?", "completions": [f"{i}", "then"]} for i in range(40)]
    rows = [row | {"images": ["scenes/1.png"]} for row in rows]
    whole = tables(imported(tmp_path, "stepwise", *rows, images=scenes))
    monkeypatch.setattr(importing_module, "_BYTES_PER_SHARE", 256)
    parts = tables(imported(tmp_path, "stepwise", *rows, images=scenes))

    def unordered(found):
        return {name: sorted(map(repr, rows)) for name, rows in found.items()}

    assert unordered(whole) == unordered(parts)
    order = [row["problem_id"] for row in parts["seeds"]]
    assert order != [row["problem_id"] for row in whole["seeds"]]
    for name in ("solutions", "prefixes", "labels"):  # whole problems, in one order, as every other stage expects
        assert list(dict.fromkeys(row["problem_id"] for row in parts[name])) == order


def test_parquet_of_other_makers_is_read(tmp_path):
    import pyarrow as pa

    table = pa.table({"prompt": ["q"], "completions": [["a", "b"]], "labels": [[True, False]]})
    pq.write_table(table, tmp_path / "trl.parquet")
    import_labels([tmp_path / "trl.parquet"], fmt="stepwise", out=tmp_path / "out")
    assert list(said(tmp_path / "out").values()) == [{("a", "b"): [(1.0, 0, 0), (0.0, 0, 0)]}]
    row = {
        "prompt": "q2",
        "completions": ["a"],
        "labels": [1.0],
        "image": {"bytes": png([[[0.5] * 3] * 4] * 4), "path": None},
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "picture.parquet")
    import_labels([tmp_path / "picture.parquet"], fmt="stepwise", out=tmp_path / "other")
    (seed,) = tables(tmp_path / "other")["seeds"]
    assert row_images(seed) == (row["image"]["bytes"],)


# --- what a format cannot hold -------------------------------------------------------------------------------------


def test_pictures_and_advantage_labels_are_refused_where_they_would_be_lost(tmp_path, scenes):
    folder = imported(tmp_path, "visualprm_raw", RAW, images=scenes)
    folders = {"seeds": folder, "rollouts": folder, "labels": folder}
    with pytest.raises(DataError, match="has a picture, which math_shepherd cannot hold"):
        export_labels(**folders, fmt="math_shepherd", out=tmp_path / "out")
    with pytest.raises(DataError, match="pictures, which stand beside"):
        export_labels(**folders, fmt="stepwise", out=tmp_path / "out.jsonl")
    with pytest.raises(DataError, match="written as parquet"):
        export_labels(**folders, fmt="parquet", out=tmp_path / "out.jsonl")
    worse = imported(tmp_path, "stepwise", STEPWISE | {"labels": [-1, 1]})
    with pytest.raises(DataError, match="advantage labels"):
        export_labels(seeds=worse, rollouts=worse, labels=worse, fmt="prm800k", out=tmp_path / "out")
    assert exported(worse, "stepwise", tmp_path / "fine")[0]["labels"] == [-1.0, 1.0]
    assert tables(worse)["labels"][0]["mean"] is None
    assert {p.name for p in tmp_path.iterdir()}.isdisjoint({"out", "out.jsonl"})


def test_folders_of_two_runs_are_not_mixed(tmp_path):
    one = imported(tmp_path / "1", "stepwise", STEPWISE)
    other = imported(tmp_path / "2", "stepwise", STEPWISE | {"prompt": "5 + 5 ?"})
    with pytest.raises(DataError, match="which the rollouts lack"):
        export_labels(seeds=one, rollouts=one, labels=other, fmt="stepwise", out=tmp_path / "out")
    with pytest.raises(DataError, match="is no seed"):
        export_labels(seeds=other, rollouts=one, labels=one, fmt="stepwise", out=tmp_path / "out")


@pytest.mark.parametrize("value", [0, 1, 0.5, True, -1])
def test_labels_are_numbers_in_range(value):
    assert label_of(value) == float(value)


def test_image_places_ahead_of_a_question_are_its_pictures():
    assert without_image_places("<image>\n<image>\nHow many?") == "How many?"
    assert with_image_places("How many?", 2) == "<image>\n<image>\nHow many?"
    assert with_image_places("In <image>, how many?", 1) == without_image_places("In <image>, how many?")


# --- command line --------------------------------------------------------------------------------------------------


def test_the_verbs_run_and_leave_a_receipt(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("STEPFORGE_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    jsonl(tmp_path / "in.jsonl", STEPWISE)
    assert main(["import", "in.jsonl", "--as", "stepwise", "--out", "imported"]) == 0
    assert "1 problems, 1 solutions, 2 labels" in capsys.readouterr().out
    assert len(list((tmp_path / ".stepforge" / "receipts" / "import").iterdir())) == 1
    folders = [word for name in ("seeds", "rollouts", "labels") for word in (f"--{name}", "imported")]
    assert main(["export", *folders, "--as", "stepwise", "--out", "out.jsonl"]) == 0
    assert json.loads((tmp_path / "out.jsonl").read_text()) == STEPWISE
    assert main(["import", "in.jsonl", "--as", "nothing", "--out", "imported"]) == 2
    assert main(["import", "none.jsonl", "--as", "stepwise", "--out", "imported"]) == 3
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").touch()
    assert main(["import", "in.jsonl", "--as", "stepwise", "--out", "mine"]) == 2


def test_the_help_names_every_format():
    assert LABEL_FORMATS.split(", ") == list(FORMATS)


def test_an_answer_that_is_the_text_of_an_option_is_a_choice_that_regrading_keeps(tmp_path):
    row = {"id": "a", "question": "Which?", "answer": "12", "options": ["10", "12"], "labels": [0.9, 0.1]}
    rows = [{**row, "steps": ["Look.", rf"\boxed{{{said}}}"]} for said in ("B", "12", "A", "10")]
    found = tables(imported(tmp_path, "parquet", *rows))
    (seed,) = found["seeds"]
    assert (seed["answer_type"], seed["options"]) == ("choice", ["10", "12"])
    verdicts = {solution["steps"][-1]: solution["verdict"] for solution in found["solutions"]}
    assert list(verdicts.values()) == ["right", "right", "wrong", "wrong"]
    gold = gold_of(seed, load_task("maths"))
    assert {text: grade(text, gold).value for text in verdicts} == verdicts
