"""Problem files: every usual shape reads to the same problems; every bad row comes back with its reason."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from picture_fixture import bars, bomb, png, problem_rows, write_json_problems

from components.errors import DataError
from components.grading import grade
from components.problems import READ_REASONS, Quarantined, load_benchmark, load_problems, picture_fault
from components.records import PROBLEM
from components.sampling import gold_of
from components.tasks import load_task

LIMIT = 40_000_000


def load(path):
    return [problem for _, problem in load_problems(path, max_image_pixels=LIMIT)]


def reason_of(tmp_path, row):
    path = write_json_problems(tmp_path, [{"id": "a", "question": "q", "answer": "1"} | row])
    (problem,) = load(path)
    return problem.reason if isinstance(problem, Quarantined) else None


def test_every_shape_of_file_reads_to_the_same_problems(tmp_path):
    rows = problem_rows(5)
    listed = write_json_problems(tmp_path, rows)
    named = [dict(row, image_path=f"images/{row['id']}.png") for row in rows]
    for row in named:
        del row["picture"]
    seeds = [{("correct_answer" if key == "answer" else key): value for key, value in row.items()} for row in named]
    lines = tmp_path / "seeds.jsonl"
    lines.write_text("\n".join(map(json.dumps, seeds)) + "\n")
    structs = [
        {"id": r["id"], "question": r["question"], "answer": r["answer"], "image": {"bytes": r["picture"], "path": None}}
        for r in rows
    ]
    raw = [dict(r, image=r["image"]["bytes"]) for r in structs]
    many = [{k: v for k, v in r.items() if k != "image"} | {"images": [r["image"]]} for r in structs]
    paths = [listed, lines]
    for number, table in enumerate([structs, raw, many, named]):
        path = tmp_path / f"{number}.parquet"
        pq.write_table(pa.Table.from_pylist(table), path)
        paths.append(path)
    feather.write_feather(pa.Table.from_pylist(structs), tmp_path / "file.arrow", compression="uncompressed")
    with (
        pa.OSFile(str(tmp_path / "stream.arrow"), "wb") as file,
        pa.ipc.new_stream(file, pa.Table.from_pylist(structs).schema) as writer,
    ):
        writer.write_table(pa.Table.from_pylist(structs))
    paths += [tmp_path / "file.arrow", tmp_path / "stream.arrow"]
    first = [{**problem, "source": ""} for problem in load(listed)]
    assert [problem["source_id"] for problem in first] == [row["id"] for row in rows]
    assert first[0]["images"] == [{"bytes": rows[0]["picture"], "path": None}]
    for path in paths[1:]:
        assert [{**problem, "source": ""} for problem in load(path)] == first, path.name
    pa.Table.from_pylist(first, schema=PROBLEM)


def test_text_is_normalised_and_latex_kept(tmp_path):
    row = {"id": 7, "question": " cafe\u0301  \r\nWhat is \\frac{1}{2}?\t\n", "answer": 6, "source": "k12/algebra"}
    (problem,) = load(write_json_problems(tmp_path, [row]))
    assert problem["question"] == "caf\u00e9\nWhat is \\frac{1}{2}?"
    assert (problem["source_id"], problem["answer"], problem["answer_type"], problem["source"]) == (
        "7",
        "6",
        "integer",
        "k12/algebra",
    )


def test_backslashes_that_json_ate_are_put_back(tmp_path):
    (problem,) = load(write_json_problems(tmp_path, [{"id": "a", "question": "q", "answer": "\x0crac{36}{13}"}]))
    assert (problem["answer"], problem["answer_type"]) == (r"\frac{36}{13}", "number")


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps([{"id": "a", "question": "q", "answer": "1"}]).encode())
    assert load(path)[0]["source_id"] == "a"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, None),
        ({"answer": None}, "missing_answer"),
        ({"answer": "  "}, "missing_answer"),
        ({"question": ""}, "missing_question"),
        ({"question": ["q"]}, "bad_row"),
        ({"answer": True}, "bad_row"),
        ({"answer": float("nan")}, "bad_row"),
        ({"id": None}, "bad_row"),
        ({"question": "\ud800"}, "bad_row"),
        ({"answer": "(1)x<1 (2)y=x+1 2"}, "uncheckable_answer"),
        ({"image_path": "images/none.png"}, "missing_image"),
        ({"image_path": "../secret.png"}, "path_outside"),
        ({"image_path": "/etc/hostname"}, "path_outside"),
        ({"image_path": "images/../../x.png"}, "path_outside"),
        ({"image_path": "images"}, "missing_image"),
        ({"image_path": "a\x00b"}, "missing_image"),
        ({"image_path": 5}, "missing_image"),
        ({"picture": bars([1, 2, 3, 4])}, None),
        ({"picture": bars([1, 2, 3, 4])[:-40]}, "broken_image"),
        ({"picture": b"no picture"}, "broken_image"),
        ({"picture": b""}, "missing_image"),
        ({"picture": bomb()}, "huge_image"),
        ({"picture": png(np.zeros((1, 1, 3)))}, "broken_image"),
        ({"picture": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"}, "broken_image"),
    ],
)
def test_a_bad_row_has_its_reason(tmp_path, row, reason):
    assert reason_of(tmp_path, row) == reason
    assert reason is None or reason in READ_REASONS


def test_a_link_that_leaves_the_folder_is_refused(tmp_path):
    (tmp_path / "outside.png").write_bytes(bars([1, 2, 3, 4]))
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "inside.png").symlink_to(tmp_path / "outside.png")
    path = write_json_problems(folder, [{"id": "a", "question": "q", "answer": "1", "image_path": "inside.png"}])
    assert load(path)[0].reason == "path_outside"


CHOICES = {"id": "a", "question": "Which?", "options": ["a cat", "12 ", "a dog", "no"]}


def test_options_are_read_from_every_kind_of_file_and_make_a_text_a_choice(tmp_path):
    rows = [{**CHOICES, "answer": "B"}, {**CHOICES, "id": "b", "answer": "a dog"}]
    listed = write_json_problems(tmp_path, rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    for path in (listed, tmp_path / "rows.parquet"):
        found = load(path)
        assert [row["options"] for row in found] == [["a cat", "12", "a dog", "no"]] * 2
        assert [row["answer_type"] for row in found] == ["choice", "choice"]
        task = load_task("maths")
        for problem, texts in ((found[0], ("B", "12", "(B) 12")), (found[1], ("C", "A dog"))):
            gold = gold_of(problem, task)
            assert [grade(rf"\boxed{{{text}}}", gold).value for text in texts] == ["right"] * len(texts)
            assert grade(r"\boxed{a cat}", gold).value == grade(r"\boxed{A}", gold).value == "wrong"


@pytest.mark.parametrize("options", [None, [], "['x', 'y']", ["x"], ["x", ""], ["x", None], ["A", "B", "C"], 7])
def test_what_is_no_list_of_texts_are_no_options(tmp_path, options):
    (problem,) = load(write_json_problems(tmp_path, [{**CHOICES, "options": options, "answer": "A"}]))
    assert (problem["options"], problem["answer_type"]) == (None, "choice")


def test_an_uncheckable_problem_still_comes_with_its_content(tmp_path):
    (found,) = load(write_json_problems(tmp_path, [{"id": "a", "question": "q", "answer": "a rhombus"}]))
    assert (found.reason, found.detail) == ("uncheckable_answer", "prose: a rhombus")
    assert found.problem["question"] == "q"


def test_one_bad_line_of_many_is_one_bad_row(tmp_path):
    path = tmp_path / "a.jsonl"
    good = json.dumps({"id": "a", "question": "q", "answer": "1"})
    path.write_text("\n".join([good, "{broken", '"text"', good.replace('"a"', '"b"')]))
    assert [problem.reason if isinstance(problem, Quarantined) else None for problem in load(path)] == [
        None,
        "bad_row",
        "bad_row",
        None,
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"", "is empty"),
        ("a.json", b"[]", "has no rows"),
        ("a.json", b'[{"id": 1', "not JSON"),
        ("a.json", "[é]".encode("latin-1"), "not UTF-8: byte 0xe9 at position 1"),
        ("a.json", b"[" * 100_000, "not JSON"),
        ("a.json", b'[{"id": 1, "text": "q", "answer": "1"}]', "no column 'question'; it has: answer, id, text"),
        ("a.jsonl", b'{"id": 1, "question": "q"}', "no column 'answer or correct_answer'"),
        ("a.parquet", b"PAR1 but no", "not a readable parquet file"),
        ("a.arrow", b"ARROW1 but no", "not a readable arrow file"),
        ("a.csv", b"id,question", "unknown kind of file '.csv'"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        load(path)
    assert message in str(caught.value)
    assert caught.value.hint


def test_a_missing_file_and_a_folder_are_one_line(tmp_path):
    for path, message in ((tmp_path / "none.json", "no such file"), (tmp_path, "is a folder")):
        with pytest.raises(DataError, match=message):
            load(path)


def test_an_empty_table_has_no_rows(tmp_path):
    pq.write_table(
        pa.table(
            {"id": pa.array([], pa.string()), "question": pa.array([], pa.string()), "answer": pa.array([], pa.string())}
        ),
        tmp_path / "a.parquet",
    )
    with pytest.raises(DataError, match="has no rows"):
        load(tmp_path / "a.parquet")


def test_a_benchmark_is_its_usable_problems_each_once(tmp_path, capsys):
    rows = [{"id": i, "question": "q", "answer": a} for i, a in enumerate(["1", "2", "1", "a rhombus"])]
    problems = load_benchmark(write_json_problems(tmp_path, rows), max_image_pixels=LIMIT)
    assert [problem["source_id"] for problem in problems] == ["0", "1"]
    assert "2 of 4 rows left out; the first: row 2 is the same problem as 0" in capsys.readouterr().err
    with pytest.raises(DataError, match="none of 1 rows is usable"):
        load_benchmark(write_json_problems(tmp_path, rows[3:], "b.json"), max_image_pixels=LIMIT)


def test_the_size_is_read_before_a_picture_is_decoded():
    assert picture_fault(bomb(8000, 8000), max_pixels=LIMIT) == (
        "huge_image",
        "8000 x 8000 = 64,000,000 pixels, more than 40,000,000",
    )
    assert picture_fault(bomb(10**8, 10**8), max_pixels=LIMIT)[0] == "huge_image"
    assert picture_fault(bars([1, 2, 3, 4]), max_pixels=1024) is None
    assert picture_fault(bars([1, 2, 3, 4]), max_pixels=1023)[0] == "huge_image"
