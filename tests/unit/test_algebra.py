"""Formulas are read in one way or not at all, and mean the same after they were written out for another reader."""

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.algebra import Undefined, is_discrete, latex, names, read, value
from components.equality import _math_verify, compare
from components.formulas import Unreadable


@pytest.fixture(scope="module")
def mp():
    from mpmath.ctx_mp import MPContext

    context = MPContext()
    context.dps = 60
    return context


@pytest.fixture(scope="module")
def is_same():
    pytest.importorskip("math_verify")
    return _math_verify()


def exact(tree):
    """Oracle: the value of a formula of whole numbers, in fractions; None where it has none."""
    kind, *parts = tree
    if kind == "num":
        return parts[0]
    values = [exact(part) for part in parts if isinstance(part, tuple)]
    if None in values:
        return None
    a, b = values[0], values[-1]
    whole = all(v.denominator == 1 and 0 <= v <= 30 for v in values)
    if kind == "div":
        return a / b if b else None
    if kind == "pow":
        return a ** int(b) if b.denominator == 1 and abs(b) <= 6 and (a or b > 0) else None
    if kind == "factorial":
        return Fraction(math.factorial(int(a))) if whole else None
    if kind == "binom":
        return Fraction(math.comb(int(a), int(b))) if whole else None
    simple = {"neg": -a, "abs": abs(a), "add": a + b, "mul": a * b, "floor": a.__floor__(), "ceil": a.__ceil__()}
    return Fraction(simple[kind])


NUMBERS = st.integers(0, 12).map(lambda n: ("num", Fraction(n)))
TREES = st.recursive(
    NUMBERS,
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(["neg", "factorial", "floor", "ceil"]), inner),
        st.tuples(st.sampled_from(["add", "mul", "div", "pow", "binom"]), inner, inner),
    ),
    max_leaves=5,
).filter(lambda tree: exact(tree) is not None)


@given(TREES)
def test_what_is_written_out_is_read_back_with_the_same_value(mp, tree):
    wanted = exact(tree)
    for formula in (tree, read(latex(tree))):
        found = value(mp, formula, {})
        assert abs(found - mp.mpf(wanted.numerator) / wanted.denominator) <= abs(found) * mp.mpf(10) ** -50


@settings(max_examples=25, deadline=None)
@given(TREES, TREES)
def test_two_formulas_of_numbers_are_right_only_if_they_are_equal(is_same, first, second):
    for gold, answer in ((first, second), (first, first), (first, ("add", first, ("num", Fraction(0))))):
        verdict = compare("expression", latex(gold), latex(answer), is_same)
        assert verdict in ("unknown", "right" if exact(gold) == exact(answer) else "wrong")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (r"\binom{7}{3}", 35),
        ("2(3)", 6),
        ("-2^2", -4),
        ("2^{-1}", 0.5),
        ("3!!", None),
        ("(3!)!", 720),
        (r"\sum_{k=1}^{4} k^2", 30),
        (r"\sum_{k=0}^{3} \binom{3}{k}", 8),
        (r"3\sum_{i=1}^4 i \cdot 2", 60),
        (r"\prod_{k=2}^{4} (k-1)", 6),
        (r"\sum_{k=3}^{2} k", 0),
        (r"\lfloor 2.7 \rfloor + \lceil 2.1 \rceil", 5),
        (r"\log_{2} 8", 3),
        (r"\log_3(9)", 2),
        (r"\ln(e^2)", 2),
        (r"\sqrt[3]{27}", 3),
        (r"\sin(0)\cos(0)", 0),
        (r"|3-5|", 2),
        (r"\frac{1}{2}\pi-\arcsin(1)", 0),
        (r"6 \div 3 \times 2", 4),
        (r"\sqrt{-1}", None),
        (r"\frac{1}{0}", None),
        (r"(-8)^{\frac{1}{3}}", None),
        (r"(\frac{1}{2})!", None),
        (r"\sum_{k=1}^{10^9} k", None),
    ],
)
def test_values(mp, text, wanted):
    if wanted is None:
        with pytest.raises((Undefined, Unreadable, ZeroDivisionError)):
            value(mp, read(text), {})
    else:
        assert abs(value(mp, read(text), {}) - wanted) < 1e-40


@pytest.mark.parametrize(
    "text",
    ["1/2x", "2^3^2", "5 5", r"2\frac{1}{2}", "f(x)", "P(A)", "x'", "x^10", r"\frac12", r"\log 5", r"\sum_{k=1}^{k} k"],
)
@pytest.mark.parametrize("more", ["{}", "{}+1", "({})"])
def test_what_may_be_meant_in_two_ways_is_refused(text, more):
    with pytest.raises(Unreadable):
        read(more.format(text))


def test_choices_are_read_only_where_they_are_asked_for():
    assert read("C_5^2", choices=True) == ("binom", ("num", 5), ("num", 2))
    assert names(read("A_n^2")) == {"A_{n}"}
    with pytest.raises(Unreadable):
        read("C_2^5", choices=True)
    with pytest.raises(Unreadable):
        read("C_5", choices=True)


def test_the_index_of_a_sum_is_no_variable_and_makes_it_discrete():
    tree = read(r"x + \sum_{k=1}^{n} (k+x)")
    assert names(tree) == {"x", "n"}
    assert is_discrete(tree) and not is_discrete(read("x+n"))
    assert names(read(r"k\sum_{k=1}^{n} k")) == {"k", "n"}
