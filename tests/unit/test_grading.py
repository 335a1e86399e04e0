"""Verdicts: right, wrong or unknown; never a false right, and unknown wherever a rule cannot be sure."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.errors import DataError
from components.grading import KINDS, VERIFIER_DIGEST, Gold, Verdict, answer_type, grade

WORLD = "red = 3\n\nblue = 5\n\n3 + 5 = 8\n\nanswer = 8"


def graded(answer, gold):
    kind, why = answer_type(gold)
    assert kind, why
    return grade(rf"\boxed{{{answer}}}", Gold(gold, kind)).value


@pytest.mark.parametrize(
    "text", ["", "3 + 5 = 8", "I cannot answer this", r"so \boxed{3} and \boxed{4", "<think>answer is 4"]
)
def test_nothing_stated_is_no_answer(text):
    assert grade(text, Gold("8", "integer")) == Verdict("unknown", "no_answer", None)


def test_a_cut_off_response_is_unknown_whatever_it_says():
    assert grade(WORLD, Gold("8", "integer"), finish_reason="length") == Verdict("unknown", "truncated", None)
    assert grade(WORLD, Gold("8", "integer"), finish_reason="stop") == Verdict("right", "integer", "8")


@pytest.mark.parametrize(
    ("gold", "kind"),
    [
        ("$$A$$", "choice"),
        ("(C)", "choice"),
        ("$$6$$", "integer"),
        ("-20", "integer"),
        ("11.", "integer"),
        ("1234", "integer"),
        (r"30${}^\circ $", "number"),
        ("360 sets", "number"),
        (r"$\frac{4}{49}$.", "number"),
        ("$$3.5$$", "number"),
        ("145°", "number"),
        ("50%", "number"),
        (r"70$textdegree$", "number"),
        (r"$$108\mathrm \pi$$", "expression"),
        (r"4$\sqrt{3}$", "expression"),
        (r"$\sqrt{2}$π+4$\sqrt{2}$", "expression"),
        ("2n+1.", "expression"),
        ("(-1, -2).", "tuple"),
        (r"$$ \left ( \dfrac{9}{4} , \dfrac{9}{4} \right ) $$", "tuple"),
        ("$$[-4,3]$$", "interval"),
        (r"(-\infty,1]\cup[10,+\infty)", "interval"),
        (r"\{1,2\}", "set"),
        ("$$x^2+y^2=1$$", "equation"),
        ("3, 5, 7", "set"),
        ("6 or 2 or 10", "set"),
        (r"1 \pm \sqrt{19}", "set"),
        ("$$x=-4$$,$$y=-2$$", "set"),
        ("$2:3$", "ratio"),
        ("17:06", "time"),
        ("52_8", "base"),
        (r"\begin{pmatrix} -2 \\ -14 \end{pmatrix}", "matrix"),
        ("x < −2 or 0 < x < 1.", "interval"),
        ("$$8~cm< AB\\leqslant 10~cm$$", "interval"),
        ("A, C", "choices"),
        ("(1)(3)(4)", "choices"),
        ("1.2.4.", "choices"),
        ("rhombus.", "word"),
        ("Yes", "word"),
        ("(1)$$3$$ (2)$$6$$ (3)$$10$$", "parts"),
        ("6\n36\n6", "parts"),
        ("$$7$$ $$10$$", "parts"),
        ("169 555 671 105", "parts"),
        ("Volume $=169.6 \\mathrm{~cm}^{3}$", "number"),
        (r"$$f(x)=2 \sin \left(2x+\dfrac{ \pi }{6}\right)$$", "equation"),
    ],
)
def test_a_gold_answer_has_a_rule(gold, kind):
    assert answer_type(gold) == (kind, "")


@pytest.mark.parametrize(
    ("gold", "reason"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("(1)x<1 (2)y=x+1 2", "several parts"),
        ("4:30p..", "no rule reads it"),
        ("$$2.2$$ (not unique, any value close to it is acceptable)", "any value accepted"),
        ("Let the radius of the base of the cylinder be r, then the length is 2r.", "prose"),
        (">", "no rule reads it"),
        ("x+", "no rule reads it"),
    ],
)
def test_a_gold_answer_that_cannot_be_checked_says_why(gold, reason):
    assert answer_type(gold) == (None, reason)


UNKNOWN = """
5      | 5x = 5 ; 5 m^ ; 5 more ; 5 dozen ; not 5 ; --5 ; 5e3 ; 2^{10^{12}}
8      | a = 3, b = 8 ; x = 1 or y = 8 ; 8 tens ; 8 cos ; 8\\text{ is wrong}
3      | 3%
0.5%   | 0.5
5      | 50 mm
(3,4)  | a(3,4) ; 2(3,4)
12     | 1 2 ; 1:2
10     | 10_{2}
52_8   | 52 ; 42
A      | A or B ; (A) or (B) ; a bird ; red
7 people | 7 children
x      | |x| ; 1/2x
(1,2)  | 1,2
1      | 9^{9^{9^{9}}} ; (10^9)!-(10^9)!
rhombus | square ; a rhombus or a square
4\\sqrt{3}\\text{ cm} | 4\\sqrt{3}\\text{ m} ; 4\\sqrt{3}\\text{ cm}^2
"""


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        (gold.strip(), answer.strip())
        for gold, answers in (line.split(" | ", 1) for line in UNKNOWN.strip().splitlines())
        for answer in answers.split(" ; ")
    ],
)
def test_what_cannot_be_decided_is_unknown(gold, answer):
    assert graded(answer, gold) == "unknown"


@pytest.mark.parametrize(("gold", "answer"), [("5 cm", "5 m"), ("1,-2", "1"), ("A", "B"), ("Yes", "No"), ("[1,2]", "[1,2)")])
def test_what_is_decided_against_is_wrong(gold, answer):
    assert graded(answer, gold) == "wrong"


def test_units_and_bases_that_cannot_be_compared_have_a_rule_of_their_own():
    for gold, answer in [("7 people", "7 children"), ("10", "10_{2}"), ("3", "3%"), ("5", "50 mm")]:
        assert grade(rf"\boxed{{{answer}}}", Gold(gold, answer_type(gold)[0])).rule == "unit"


@pytest.mark.parametrize(
    ("gold", "answer", "value"),
    [
        (Gold("1.2", "number", precision=1), "1.24", "right"),
        (Gold("1.2", "number", precision=1), "1.26", "wrong"),
        (Gold("1.4", "number", precision=1), r"\sqrt{2}", "right"),
        (Gold("3", "integer"), "3.9", "wrong"),
        (Gold("3.3333", "number", tolerance=0.001), r"\frac{10}{3}", "right"),
        (Gold("3.3333", "number", tolerance=0.001), "3.335", "wrong"),
        (Gold("0.003, 5.233", "set", tolerance=0.001), "0.002, 5.234", "right"),
        (Gold("0.003, 5.233", "set", tolerance=0.001), "0.001, 5.234", "wrong"),
        (Gold("7 \\times 10^{35}", "number", tolerance=1e34), r"7.1 \cdot 10^{35}", "right"),
        (Gold("7 \\times 10^{35}", "number", tolerance=1e33), r"7.1 \cdot 10^{35}", "wrong"),
        (Gold("2\\pi", "expression", tolerance=0.001), "6.2832", "right"),
        (Gold("25", "integer", unit="%"), "25%", "right"),
        (Gold("25", "integer", unit="%"), "0.25", "right"),
        (Gold("5", "integer", unit="cm"), "50 mm", "right"),
        (Gold("5", "integer", unit="$cm$"), "5 m", "wrong"),
        (Gold("5", "integer", unit="^{\\circ}"), "5°", "right"),
    ],
)
def test_precision_tolerance_and_the_unit_asked_for(gold, answer, value):
    assert grade(rf"\boxed{{{answer}}}", gold).value == value


OPTIONS = ("12", "13", r"$\sqrt{2}$", "$15 \\mathrm{~cm}$", "none of these")


@pytest.mark.parametrize(
    ("answer", "value", "said"),
    [
        ("B", "right", "B"),
        ("(B) 13", "right", "B"),
        ("13", "right", "B"),
        ("13.0", "right", "B"),
        ("b13", "right", "B"),
        ("(A) 12", "wrong", "A"),
        ("15 cm", "wrong", "D"),
        ("15", "wrong", "D"),
        (r"2^{1/2}", "wrong", "C"),
        ("None of these", "wrong", "E"),
        ("14", "wrong", "14"),
        ("(B) 12", "unknown", "(B) 12"),
        ("B or C", "unknown", "B or C"),
        ("(B) 99", "unknown", "(B) 99"),
    ],
)
def test_a_choice_is_named_by_letter_by_text_or_by_value(answer, value, said):
    verdict = grade(rf"\boxed{{{answer}}}", Gold("B", "choice", OPTIONS))
    assert (verdict.value, verdict.answer) == (value, said)


def test_the_gold_of_a_choice_may_be_its_text():
    assert answer_type("13", OPTIONS) == ("choice", "")
    assert grade("The answer is (B).", Gold("13", "choice", OPTIONS)).value == "right"


def test_options_of_equal_text_are_equally_right():
    assert grade("Answer: C", Gold("B", "choice", ("1", "2", "2"))).value == "right"


def test_any_of_several_texts_is_right():
    gold = Gold("24/7", "any", ("3.429",))
    assert [grade(rf"\boxed{{{answer}}}", gold).value for answer in ("24/7", "3.429", "3.5", "about so")] == [
        "right", "right", "wrong", "unknown",
    ]  # fmt: skip


@given(st.integers(-(10**9), 10**9), st.integers(-(10**9), 10**9))
def test_integers_are_right_exactly_if_they_are_equal(gold, answer):
    assert grade(f"answer = {answer}", Gold(str(gold), "integer")).value == ("right" if gold == answer else "wrong")


@given(st.decimals(-(10**6), 10**6, allow_nan=False, places=4), st.decimals(-(10**6), 10**6, allow_nan=False, places=4))
def test_decimals_are_right_exactly_if_they_are_equal(gold, answer):
    assert grade(rf"\boxed{{{answer}}}", Gold(str(gold), "number")).value == ("right" if gold == answer else "wrong")


@given(st.text(max_size=80))
def test_any_response_gets_a_verdict_with_a_rule(text):
    for gold in ("8", "x^2", "[1,2]", "A", "y=x"):
        kind, _ = answer_type(gold)
        verdict = grade(rf"\boxed{{{text}}}", Gold(gold, kind))
        assert verdict.value in ("right", "wrong", "unknown")
        assert verdict.rule in (*KINDS, "no_answer", "unreadable", "too_complex", "open", "unit")


@given(st.text(alphabet=r"0123456789+-*/^_(){}[]|!.,=xyAB \frac{}sqtin$%", max_size=40))
def test_a_gold_answer_with_a_rule_is_right_against_itself(gold):
    kind, _ = answer_type(gold)
    if kind:
        if "!" not in gold:  # outside a box it ends a sentence
            assert grade(f"answer: {gold}", Gold(gold, kind)).value in ("right", "unknown")
        assert grade(rf"\boxed{{{gold}}}", Gold(gold, kind)).value in ("right", "unknown")


def test_an_unknown_kind_or_a_gold_of_another_kind_is_an_error():
    with pytest.raises(DataError, match="no rule named 'poem'"):
        grade(WORLD, Gold("8", "poem"))
    with pytest.raises(DataError, match="is no answer of kind 'integer'"):
        grade(WORLD, Gold("many", "integer"))


def test_the_verifier_has_a_name():
    assert len(VERIFIER_DIGEST) == 32
