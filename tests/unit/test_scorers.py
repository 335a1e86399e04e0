"""The benchmarks' own rules, worked out by hand, and against their authors' verdicts where real rows are on this machine."""

import json
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.grade import read_rows
from components.scorers import (
    dynamath,
    dynamath_short,
    edit_distance,
    logicvista,
    mathvision,
    mathvista,
    mathvista_answer,
    mmmu,
    mmmu_choice,
    mmmu_open,
    mmmu_open_is_right,
    mmmu_pro,
    mmmu_pro_choice,
    olympiad_is_right,
    olympiad_parts,
    olympiadbench,
    tolerances,
    wemath_letter,
)

REALDATA = Path(__file__).parents[3] / "shared" / "realdata"
needs_rows = pytest.mark.skipif(not REALDATA.is_dir(), reason="real rows are not on this machine")
OPTIONS = {"A": "red", "B": "blue whale", "C": "green", "D": "a blue"}


def files(pattern: str) -> list[Path]:
    return sorted(REALDATA.glob(pattern))


# --- MMMU ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("B", "B"),
        ("The answer is (C).", "C"),
        ("(A) is wrong, so (B)", "B"),
        ("(A) then B ", "A"),  # brackets go before bare letters
        ("A or C ?", "C"),
        (r"\boxed{A}", None),  # not recognised there
        ("it must be the blue whale of course", "B"),
        ("blue whale", None),  # five words or fewer are not searched for texts
        ("", None),
    ],
)
def test_a_choice_is_read_as_mmmu_does(response, letter):
    assert mmmu_choice(response, OPTIONS) == letter


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("so A and then Answer: C", "C"),
        ("Answer: (B) blue whale", "B"),
        ("Answer: A or B, I think (C)", "C"),  # two letters behind it: brackets decide
        ("B.", "B"),
        ("I take B. surely", "B"),
        ("none of them", None),
    ],
)
def test_a_choice_is_read_as_mmmu_pro_does(response, letter):
    assert mmmu_pro_choice(response, OPTIONS) == letter


@needs_rows
@pytest.mark.parametrize("path", files("mmmu/judged/mmmu_pro_*.jsonl"), ids=lambda path: path.stem)
def test_mmmu_pro_verdicts_are_reproduced_where_nothing_was_guessed(path):
    rows = read_rows(path)
    said = mmmu_pro(rows, [row["response"] for row in rows])
    read = [(one, row) for one, row in zip(said, rows, strict=True) if not one.is_guess]
    assert len(read) >= 0.95 * len(rows)
    assert [one.said for one, _ in read] == [row["pred_indexs"] for _, row in read]
    assert [one.is_right for one, _ in read] == [row["if_right"] for _, row in read]


def test_of_option_texts_the_one_that_stands_last_counts():
    assert mmmu_choice("not red but in the end surely green", OPTIONS) == "C"


@pytest.mark.parametrize(
    ("response", "gold", "is_right"),
    [
        ("The answer is 3.429", ["24/7", "3.429"], True),
        ("so x = 1,234.5", ["1234.5"], True),
        ("It is 3.4289", ["3.43"], True),  # rounded to two decimals
        ("It is Trans-National", ["national"], True),  # inside any text
        ("3.41", ["3.429"], False),
        ("It is red", ["d"], False),  # one letter alone needs a blank beside it
        ("perhaps a d here", ["d"], True),
    ],
)
def test_an_open_answer_is_judged_as_mmmu_does(response, gold, is_right):
    assert mmmu_open_is_right(gold, mmmu_open(response)) is is_right


def test_what_cannot_be_read_is_drawn_from_one_stream_of_random_numbers():
    rows = [{"options": ["x", "y", "z"], "answer": "A"}] * 40
    said = mmmu(rows, ["?"] * 40)
    assert all(one.is_guess for one in said)
    assert {one.said for one in said} == {"A", "B", "C"}
    assert mmmu(rows, ["?"] * 40) == said
    assert [one.is_right for one in said] == [one.said == "A" for one in said]


@needs_rows
@pytest.mark.parametrize("path", files("mmmu/judged/[!m]*.jsonl"), ids=lambda path: path.stem)
def test_mmmu_verdicts_are_reproduced_with_their_random_guesses(path):
    rows = read_rows(path)
    said = mmmu(rows, [row["response"] for row in rows])
    assert [one.is_right for one in said] == [row["official_correct"] for row in rows]
    assert [one.is_guess for one in said] == [row["official_guessed_at_random"] for row in rows]
    if path.stem == "llava1.5_13b":
        assert (sum(one.is_right for one in said), len(said), sum(one.is_guess for one in said)) == (330, 900, 2)


# --- MathVista -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "row", "form"),
    [
        ("(B) no", {"question_type": "multi_choice", "choices": ["yes", "no"]}, "no"),
        ("b", {"question_type": "multi_choice", "choices": ["yes", "no"]}, "no"),  # the nearest text
        ("", {"question_type": "multi_choice", "choices": ["yes", "no"]}, "no"),  # even to nothing
        ("3.9", {"answer_type": "integer"}, "3"),
        ("about 3", {"answer_type": "integer"}, None),
        ("1.25", {"answer_type": "float", "precision": 1.0}, "1.2"),
        ("[1, 2]", {"answer_type": "list"}, "[1, 2]"),
        (None, {"answer_type": "float", "precision": 1}, None),
    ],
)
def test_an_extraction_takes_the_form_that_mathvista_compares(said, row, form):
    assert mathvista_answer(said, row) == form


def brute_force_distance(one: str, other: str) -> int:
    @cache
    def between(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        replaced = between(i - 1, j - 1) + (one[i - 1] != other[j - 1])
        return min(between(i - 1, j) + 1, between(i, j - 1) + 1, replaced)

    return between(len(one), len(other))


@given(st.text("abc", max_size=7), st.text("abc", max_size=7))
def test_the_edit_distance_is_the_least_number_of_edits(one, other):
    assert edit_distance(one, other) == brute_force_distance(one, other)


@needs_rows
@pytest.mark.parametrize("path", files("mathvista/judged/*.jsonl"), ids=lambda path: path.stem)
def test_mathvista_verdicts_are_reproduced(path):
    rows = read_rows(path)
    assert [mathvista(row, row["response"]).is_right for row in rows] == [row["true_false"] for row in rows]


# --- We-Math, LogicVista, DynaMath, MATH-Vision --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("Thought: ..\nAnswer: B", "B"),
        ("<Answer>: <C>.", "C"),
        ("Answer: A. Answer: D", "D"),
        ("B", "B"),
        ("The result is B", None),
        ("Answer: 12", None),
        ("Answer: H", "H"),
        ("", None),
    ],
)
def test_a_letter_is_read_as_we_math_does(response, letter):
    assert wemath_letter(response) == letter


@pytest.mark.parametrize(
    ("row", "response", "is_right"),
    [
        ({"true answer": "['c']", "X answer extracted": "['C']"}, "", True),
        ({"true answer": "['a', 'c']", "X answer extracted": "['c', 'a']"}, "", True),
        ({"true answer": "['a', 'c']", "X answer extracted": "['a']"}, "", False),
        ({"answer": "A, C"}, "The answer is A and C.", True),
        ({"answer": "A, C"}, "The answer is AC.", True),
        ({"answer": "B"}, "The answer is C.", False),
    ],
)
def test_letters_are_compared_as_sorted_lists(row, response, is_right):
    assert logicvista(row, response).is_right is is_right


@needs_rows
@pytest.mark.parametrize("path", files("logicvista/judged/*.csv"), ids=lambda path: path.stem)
def test_logicvista_verdicts_are_reproduced(path):
    rows = read_rows(path)
    assert [logicvista(row, "").is_right for row in rows] == [row["match?"] == "1" for row in rows]


@pytest.mark.parametrize(
    ("gold", "kind", "said", "is_right"),
    [
        ("3.142", "float", "1π", True),
        ("2.5", "float", "2.5 cm", True),
        ("2.5", "float", "2.502", False),
        ("12", "float", "12", True),
        ("B", "multiple choice", "(B) up", True),
        ("B", "multiple choice", "b", False),
        ("B", "multiple choice", "It is B", False),
        ("Oct", "text", "October 3", True),  # anywhere inside
        ("no", "text", "", False),
    ],
)
def test_a_short_answer_is_judged_as_dynamath_does(gold, kind, said, is_right):
    row = {"answer": gold, "answer_type": kind}
    assert dynamath(row, json.dumps({"solution": "..", "short answer": said})).is_right is is_right


def test_a_response_that_is_no_json_has_no_short_answer():
    assert dynamath_short("the answer is 3") == "wait for check"
    assert dynamath_short('```json\n{"solution": "x", "short answer": "3"}\n```') == "3"


@pytest.mark.parametrize(
    ("row", "is_right"),
    [
        ({"answer": "B", "options": ["12", "13"], "model_answer": "b"}, True),
        ({"answer": "B", "options": ["12", "13"], "model_answer": "13"}, True),
        ({"answer": "B", "options": [r"$12 \mathrm{~cm}$", r"$13 \mathrm{~cm}$"], "model_answer": "13"}, False),
        ({"answer": "1/60", "options": [], "model_answer": "1/55"}, True),  # both round to 0.02
        ({"answer": "0.5", "options": [], "model_answer": r"\frac{1}{2}"}, True),
        ({"answer": "0.5", "options": [], "model_answer": ""}, False),
    ],
)
def test_numbers_agree_to_two_decimals_as_in_math_vision(row, is_right):
    assert mathvision(row, "").is_right is is_right


@needs_rows
@pytest.mark.parametrize("path", files("mathvision/judged/*.jsonl"), ids=lambda path: path.stem)
def test_math_vision_verdicts_are_reproduced_but_for_what_evaluates_model_text(path):
    gold = {row["id"]: row for row in read_rows(REALDATA / "mathvision/test_all_3040_noimages.jsonl")}
    rows = [{**gold[row["id"]], **row} for row in read_rows(path)]
    differing = [row["id"] for row in rows if mathvision(row, row["response"]).is_right != row["correct"]]
    assert len(differing) <= 0.005 * len(rows)


# --- OlympiadBench -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (r"so \boxed{3} and \boxed{5}", ["3", "5"]),
        (r"first $x=1$" + "\n" + r"then $(1,2)$ and $7$", ["(1,2)", "7"]),
        (r"\boxed{\pm 2}", ["+ 2", "- 2"]),
        (r"\boxed{(1,2),[3,4]}", ["(1,2)", "[3,4]"]),
        (r"\boxed{60^{\circ}}", ["60"]),
    ],
)
def test_answers_are_parted_as_olympiad_bench_does(text, parts):
    assert olympiad_parts(text) == parts


@pytest.mark.parametrize(
    ("error", "bounds"), [(None, [1e-8]), ("1e-1", [0.1]), ("1e-1,,0.01", [0.1, 1e-8, 0.01]), ([0.001], [0.001])]
)
def test_every_answer_has_its_own_tolerance(error, bounds):
    assert tolerances(error) == bounds


@pytest.mark.parametrize(
    ("gold", "said", "error", "is_right"),
    [
        ("0.3,5", r"\boxed{5.005, 0.39}", "1e-1,0.01", True),
        ("0.3,5", r"\boxed{5.05, 0.39}", "1e-1,0.01", False),
        ("2,3", r"\boxed{3,2}", None, True),
        ("2,3", r"\boxed{2}", None, False),
        ("2,2", r"\boxed{2,3}", None, False),  # an answer is used once
        ("50", r"\boxed{0.5}", None, True),  # a hundredth is accepted there
        (r"\frac{1}{3}", r"\boxed{\frac{2}{6}}", None, True),
        ("9", r"\boxed{}", None, False),
    ],
)
def test_answers_are_paired_within_their_tolerances(gold, said, error, is_right):
    assert olympiad_is_right(gold, said, error=error) is is_right


@needs_rows
@pytest.mark.parametrize("path", files("olympiadbench/scoring_examples*.json"), ids=lambda path: path.stem)
def test_every_scoring_example_of_olympiad_bench(path):
    for example in json.loads(path.read_text()):
        for case in example["Ans"]:
            assert olympiad_is_right(example["GT"], case["answer"], error=case.get("precision")) == case["equal"], case


@needs_rows
@pytest.mark.parametrize("path", files("olympiadbench/*judged*.jsonl"), ids=lambda path: path.stem)
def test_olympiad_bench_verdicts_are_reproduced(path):
    rows = [row for row in read_rows(path) if row.get("official_correct") is not None]
    if not all("final_answer" in row for row in rows):
        pytest.skip("the rows lack their gold answers")
    field = next(name for name in ("model_output", "output", "response") if name in rows[0])
    said = [olympiadbench(row, row[field]).is_right for row in rows]
    assert sum(one == bool(row["official_correct"]) for one, row in zip(said, rows, strict=True)) >= 0.99 * len(rows)
