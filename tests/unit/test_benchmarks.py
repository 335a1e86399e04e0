"""Answer rules: what a benchmark's own fields say of the right answer, one row of a table each."""

import pytest

from components.benchmarks import ANSWER_RULES, answer_rule, listed_options
from components.errors import DataError, SettingsError
from components.grading import Gold, grade


@pytest.mark.parametrize(
    ("name", "row", "gold"),
    [
        ("mathvision", {"answer": "B", "options": ["12", "13"]}, Gold("B", "choice", ("12", "13"))),
        ("mathvision", {"answer": "B", "options": ["A", "B", "C"]}, Gold("B", "choice")),
        ("mathvision", {"answer": r"$\frac{1}{60}$", "options": []}, Gold(r"$\frac{1}{60}$", "number")),
        (
            "mathvista",
            {"answer": "yes", "choices": ["yes", "no"], "answer_type": "text"},
            Gold("yes", "choice", ("yes", "no"), is_prose=True),
        ),
        (
            "mathvista",
            {"answer": "1.2", "choices": None, "answer_type": "float", "precision": 1.0, "unit": None},
            Gold("1.2", "number", precision=1, is_prose=True),
        ),
        (
            "mathvista",
            {"answer": "1000", "choices": None, "answer_type": "integer", "precision": None, "unit": "g"},
            Gold("1000", "integer", unit="g", is_prose=True),
        ),
        (
            "mathverse",
            {"answer": "D", "question_type": "multi-choice", "question": "then ()\nChoices:\nA:40°\nB:60°\nC:120°\nD:140°"},
            Gold("D", "choice", ("40°", "60°", "120°", "140°")),
        ),
        ("mathverse", {"answer": "D", "question_type": "multi-choice", "question": ""}, Gold("D", "choice")),
        ("mathverse", {"answer": "14", "question_type": "free-form"}, Gold("14", "integer")),
        ("olympiadbench", {"final_answer": ["5,15"], "unit": None, "error": None}, Gold("5,15", "set")),
        (
            "olympiadbench",
            {"final_answer": ["$166$"], "unit": "$cm^2$", "error": None},
            Gold("$166$", "integer", unit="$cm^2$"),
        ),
        (
            "olympiadbench",
            {"final_answer": ["0.3, 5"], "error": "1e-1,,0.01"},
            Gold("0.3, 5", "set", tolerance=0.01),
        ),
        ("gsm8k", {"answer": "2 * 9 = 1,800\n#### 1,800", "question": "How much?"}, Gold("1800", "integer")),
        ("gsm8k", {"answer": "so\n#### 25", "question": "What percent is it?"}, Gold("25", "integer", unit="%")),
        ("gsm8k", {"answer": "so\n#### 10", "question": "What is 20 percent of 50?"}, Gold("10", "integer")),
        ("math", {"gt": r"\frac{1}{9}", "answer": r"\dfrac{1}{9}"}, Gold(r"\frac{1}{9}", "number")),
        ("mmk12", {"answer": "$$6$$"}, Gold("$$6$$", "integer")),
        ("dynamath", {"answer": "12", "answer_type": "float"}, Gold("12", "integer", tolerance=0.001)),
        (
            "dynamath",
            {"ground_truth": "B", "answer_type": "multiple choice", "question": "Which? choice: (A) up (B) down (C) left"},
            Gold("B", "choice", ("up", "down", "left")),
        ),
        ("dynamath", {"answer": "17:06", "answer_type": "text"}, Gold("17:06", "time")),
        (
            "wemath",
            {"answer": "D", "option": "A. F;    B. D;    C. B;    D. I; E. No correct answer"},
            Gold("D", "choice", ("F", "D", "B", "I", "No correct answer")),
        ),
        ("logicvista", {"answer": "A, C"}, Gold("A, C", "choices", is_prose=True)),
        ("logicvista", {"true answer": "['c']"}, Gold("C", "choices", is_prose=True)),
        ("mmmu", {"answer": "B", "options": "['$6', '$7']"}, Gold("B", "choice", ("$6", "$7"))),
        ("mmmu", {"answer": "B", "index2ans": {"A": "$6", "B": "$7"}}, Gold("B", "choice", ("$6", "$7"))),
        ("mmmu", {"answer": "['24/7', '3.429']", "question_type": "open"}, Gold("24/7", "any", ("3.429",))),
        ("auto", {"correct_answer": "3, 5", "options": None}, Gold("3, 5", "set")),
        ("auto", {"answer": "13", "choices": ["12", "13"]}, Gold("13", "choice", ("12", "13"))),
    ],
)
def test_a_row_says_what_is_right(name, row, gold):
    assert answer_rule(name).read(row) == gold


def test_a_gold_answer_that_no_rule_reads_has_no_gold():
    assert answer_rule("mmk12").read({"answer": "any value will do (not unique)"}) is None
    assert answer_rule("logicvista").read({"answer": ""}) is None


@pytest.mark.parametrize("name", ANSWER_RULES)
def test_a_row_without_its_gold_field_is_an_error(name):
    with pytest.raises(DataError, match="no field"):
        answer_rule(name).read({"response": "8"})


def test_an_unknown_rule_names_those_that_are_known():
    with pytest.raises(SettingsError, match="no answer rule named 'mathvison'") as error:
        answer_rule("mathvison")
    assert "mathvision" in error.value.hint


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("A. 12; B. 13", ("12", "13")),
        ("(A) one (B) two words (C) three", ("one", "two words", "three")),
        ("A:40°\nB:60°", ("40°", "60°")),
        ("A. a; b; B. c", ("a; b", "c")),
        ("Plan A. is good", ()),
        ("B. 12 C. 13", ()),
        ("", ()),
    ],
)
def test_listed_options_run_in_order(text, options):
    assert listed_options(text) == options


def test_an_answer_in_json_counts_by_its_short_answer():
    rule = answer_rule("dynamath")
    gold = rule.read({"answer": "0.785", "answer_type": "float"})
    for text in (
        '{"solution": "x", "short answer": "0.7854"}',
        '```json\n{"solution": "\\x", "short answer": 0.7854}\n```',
        "Answer: 0.785",
    ):
        assert grade(rule.said(text), gold).value == "right"
    assert grade(rule.said('{"solution": "0.785", "short answer": "0.79"}'), gold).value == "wrong"
