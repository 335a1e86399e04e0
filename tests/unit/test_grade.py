"""`stepforge grade`: any file of gold fields and responses, a table, and agreement with official verdicts."""

import json

import pytest

from components.benchmarks import answer_rule
from components.cli import main
from components.errors import DataError
from components.grade import graded_rows, joined, official_verdict, read_rows, report, wilson

ROWS = [
    {"id": "a", "answer": "8", "response": r"\boxed{8}", "official": True},
    {"id": "b", "answer": "8", "response": r"\boxed{9}", "official": False},
    {"id": "c", "answer": "8", "response": "I do not know that number", "official": False},
    {"id": "d", "answer": "8", "response": r"\boxed{8}", "official": False},
]


def written(tmp_path, rows, name="rows.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def graded(rows, **how):
    return list(graded_rows(rows, answer_rule("auto"), **how))


def test_every_response_gets_a_verdict_and_is_compared_with_the_official_one():
    rows = graded(ROWS, official="official")
    assert [(row.id, row.verdict, row.rule, row.official, row.is_disagreement) for row in rows] == [
        ("a", "right", "integer", True, False),
        ("b", "wrong", "integer", False, False),
        ("c", "unknown", "no_answer", False, False),
        ("d", "right", "integer", False, True),
    ]


def test_the_table_counts_rules_and_lists_every_disagreement():
    lines = report(graded(ROWS, official="official"))
    assert lines[1].split() == ["integer", "2", "1", "0"]
    assert lines[2].split() == ["no_answer", "0", "0", "1"]
    assert lines[3].split() == ["all", "2", "1", "1"]
    assert "decided   3 of 4 = 75.0 %" in lines
    assert "agreement 3 of 4 = 75.00 % [30.06, 95.44]; unknown counts as not right" in lines
    assert lines[-1].split() == ["d", "8", "8", "right", "(integer)", "wrong"]


def test_wilson_is_the_interval_of_the_book():
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)  # Newcombe 1998, table I
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(0, 0) == (0.0, 1.0)


def test_a_row_may_hold_several_responses_and_nested_fields():
    row = {"idx": 7, "answer": "8", "deep": {"pred": ["8", "9"], "score": [True, False]}}
    rows = graded([row], response="deep.pred", official="deep.score")
    assert [(r.id, r.index, r.verdict, r.is_disagreement) for r in rows] == [
        ("7", 0, "right", False),
        ("7", 1, "wrong", False),
    ]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *[(value, True) for value in (True, 1, 1.0, "1", "True", "yes", "Correct", "right")],
        *[(value, False) for value in (False, 0, "0", "false", "No", "fail", "wrong", "incorrect")],
        *[(value, None) for value in (None, "", "2", "maybe", [])],
    ],
)
def test_official_verdicts_come_in_many_spellings(value, expected):
    assert official_verdict(value) is expected


def test_an_inverted_field_says_zero_for_right():
    rows = graded([{"answer": "8", "response": "8", "match": "0"}], official="match", inverted=True)
    assert rows[0].official is True


def test_gold_rows_are_joined_by_id():
    merged = joined([{"id": 1, "response": "8"}], [{"id": "1", "answer": "8", "response": "none"}], None)
    assert merged == [{"id": 1, "answer": "8", "response": "8"}]
    with pytest.raises(DataError, match="no gold row has the id 2"):
        joined([{"id": 2}], [{"id": 1}], None)
    with pytest.raises(DataError, match="two gold rows"):
        joined([{"id": 1}], [{"id": 1}, {"id": 1}], None)
    with pytest.raises(DataError, match="no id field in common"):
        joined([{"id": 1}], [{"pid": 1}], None)


def test_the_same_rows_come_from_every_kind_of_file(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"id": "a", "answer": "8"}, {"id": "b", "answer": "9"}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "keyed.json").write_text(json.dumps({row["id"]: {"answer": row["answer"]} for row in rows}))
    (tmp_path / "rows.csv").write_text("id,answer\na,8\nb,9\n")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    written(tmp_path, rows)
    for name in ("rows.json", "keyed.json", "rows.csv", "rows.parquet", "rows.jsonl"):
        assert read_rows(tmp_path / name) == rows


def test_the_verb_prints_the_table_and_writes_every_verdict(tmp_path, capsys):
    out = tmp_path / "verdicts.jsonl"
    assert main(["grade", written(tmp_path, ROWS), "--rule", "auto", "--official", "official", "--out", str(out)]) == 0
    assert "agreement 3 of 4" in capsys.readouterr().out
    verdicts = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["verdict"] for row in verdicts] == ["right", "wrong", "unknown", "right"]
    assert verdicts[0]["answer"] == "8"


@pytest.mark.parametrize(
    ("arguments", "rows", "code", "said"),
    [
        (["--rule", "nosuch"], ROWS, 2, "no answer rule named 'nosuch'"),
        (["--rule", "auto", "--inverted"], ROWS, 2, "--inverted without --official"),
        (["--rule", "auto", "--response", "text"], ROWS, 3, "no field 'text'"),
        (["--rule", "auto", "--official", "match"], ROWS, 3, "no field 'match'"),
        (["--rule", "auto", "--official", "id"], ROWS[:3], 3, "says right or wrong"),
        (["--rule", "auto"], [{"id": 1, "response": "8"}], 3, "no field 'answer'"),
        (["--rule", "auto"], [], 3, "has no rows"),
        (["--rule", "auto", "--gold", "nosuch.jsonl"], ROWS, 3, "no such file"),
        (["--rule", "auto", "--out", "."], ROWS, 2, "is a folder"),
        (["--rule", "auto"], [{"answer": float("nan"), "response": "8"}], 3, "no field 'answer'"),
        (
            ["--rule", "olympiadbench"],
            [{"final_answer": ["8"], "error": "abc", "response": "8"}],
            3,
            "error 'abc' is no number",
        ),
        (
            ["--rule", "mathvista"],
            [{"answer": "8.1", "answer_type": "float", "precision": float("inf"), "response": "8"}],
            3,
            "precision inf is no number",
        ),
    ],
)
def test_bad_input_is_one_line_and_a_hint(arguments, rows, code, said, tmp_path, capsys):
    assert main(["grade", written(tmp_path, rows), *arguments]) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert said in lines[0]
    assert lines[1].startswith("hint: ")


@pytest.mark.parametrize("content", [b"{", b"[1, 2]", b'"text"', b"\xff\xfe", b'{"a": 1}\n{"b"'])
def test_a_file_that_is_no_table_is_refused(content, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError):
        read_rows(path)


def test_the_file_that_is_read_is_never_written(tmp_path, capsys):
    path = written(tmp_path, ROWS)
    before = (tmp_path / "rows.jsonl").read_bytes()
    assert main(["grade", path, "--rule", "auto", "--out", str(tmp_path / "." / "rows.jsonl")]) == 2
    assert "is a file that is read" in capsys.readouterr().err
    assert (tmp_path / "rows.jsonl").read_bytes() == before


def test_half_a_surrogate_pair_is_written_and_printed(tmp_path, capsys):
    rows = [{"answer": "8", "response": "\\boxed{\ud83d}", "official": True}]
    out = tmp_path / "verdicts.jsonl"
    assert main(["grade", written(tmp_path, rows), "--rule", "auto", "--official", "official", "--out", str(out)]) == 0
    assert json.loads(out.read_text())["verdict"] == "unknown"
    assert list(tmp_path.glob(".*.part")) == []


def test_a_cell_may_be_long_and_hold_odd_line_ends(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(f"answer,response\n8,{'x' * 200_000} the answer is 8\n9,the answer\u2028is 9\n")
    assert [row["answer"] for row in read_rows(path)] == ["8", "9"]
