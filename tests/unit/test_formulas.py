"""Reading formulas: every accepted spelling of one formula gives one tree, every ambiguous text is refused."""

import contextlib
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.formulas import TooComplex, Unreadable, normal_text, read


def tree(text, **how):
    return read(normal_text(text), **how)


@pytest.mark.parametrize(
    ("spellings", "value"),
    [
        (["1/2", r"\frac{1}{2}", r"\frac12", r"\dfrac{1}{2}", r"\tfrac 1 2", "½", r"\frac1{2}"], Fraction(1, 2)),
        (["-3", "−3", "－3", "- 3"], Fraction(-3)),
    ],
)
def test_spellings_of_a_number_have_one_tree(spellings, value):
    from components.identities import exact

    assert {exact(tree(text)) for text in spellings} == {value}


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("2x", r"2 \cdot x"),
        ("x^2", "x²"),
        ("x^{10}", "x^10"),
        ("3√2", r"3\sqrt{2}"),
        ("√18", r"\sqrt{18}"),
        (r"\left( x+1 \right)", "(x+1)"),
        (r"\text{n}", "n"),
        (r"\mathrm \pi", "π"),
        (r"6{{a}^{2}}", "6a^2"),
        (r"v^2_0", "v_0^2"),
        ("sqrt(3)", r"\sqrt{3}"),
        ("sinA", r"\sin A"),
        (r"\number{24}", "24"),
        ("a×b", "a*b"),
        (r"\overrightarrow{a}", r"\vec a"),
        ("AB", "BA"),
    ],
)
def test_two_spellings_have_one_tree(a, b):
    assert tree(a) == tree(b)


@pytest.mark.parametrize(
    "text",
    [
        "1/2x",  # (1/2) x, or 1/(2x)?
        "5 5",
        "2 3/4 5",
        "2^3^2",
        r"\log^{-1} x",
        r"\frac123",
        r"\sqrt23",
        r"2\frac{3}{2}",  # a mixed number would be written 3 1/2
        r"\overrightarrow{AB}",  # AB = -BA
        "f(x)",
        "x+",
        "(x",
        "x)",
        "3}",
        "--3",
        "+-3",
        r"\pm 2",
        "10_{2}",
        "the answer",
        "Jia",
        "No",
        "5 cm",
        "x = 5",
        "1,2",
        "50%",
        "",
        r"\int x",
        "1.2.3",
    ],
)
def test_what_may_be_read_in_two_ways_or_not_at_all_is_refused(text):
    with pytest.raises(Unreadable):
        tree(text)


def test_an_inverse_function_may_be_written_as_a_power():
    assert tree(r"\tan^{-1} 2") == tree(r"\arctan 2") == ("fn", "arctan", ("num", Fraction(2)))


def test_rows_of_a_matrix_and_commands_escaped_twice_keep_their_meaning():
    assert normal_text(r"\begin{pmatrix} 1 \\ -2 \end{pmatrix}") == r"\begin{pmatrix} 1 \cr  -2 \end{pmatrix}"
    assert tree(r"\\frac{1}{2}") == tree(r"\frac{1}{2}")


def test_capitals_are_one_name_or_a_product_as_asked():
    assert tree("AB") == ("name", "AB")
    assert tree("AB", segments=False) == ("mul", ("name", "A"), ("name", "B"))


def test_a_mixed_number_is_a_sum_and_a_coefficient_a_product():
    assert tree(r"3\frac{1}{2}") == ("num", Fraction(7, 2))
    assert tree(r"3\frac{a}{2}")[0] == "mul"


@pytest.mark.parametrize("text", ["(" * 60 + "2" + ")" * 60, "1+" * 100 + "1", "x" * 5000, "2" + "!" * 300])
def test_monsters_are_too_complex(text):
    with pytest.raises(TooComplex):
        tree(text)


@given(st.text(alphabet=r"0123456789+-*/^_(){}[]|!.,xyAe \frac{}sqtin", max_size=60))
def test_any_text_is_read_or_refused_and_nothing_else_happens(text):
    with contextlib.suppress(Unreadable):
        assert isinstance(tree(text), tuple)


@given(st.integers(-(10**6), 10**6), st.integers(1, 10**6))
def test_fractions_read_back_exactly(over, under):
    from components.identities import exact

    sign = "-" if over < 0 else ""
    assert exact(tree(rf"{sign}\frac{{{abs(over)}}}{{{under}}}")) == Fraction(over, under)
