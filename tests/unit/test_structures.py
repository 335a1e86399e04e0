"""Structures: the shape of an answer of several values, read from text; one value has none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.formulas import normal_text
from components.structures import Structure, expanded, read_labels, read_parts, read_structure, split


def structure(text):
    return read_structure(normal_text(text))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(1,2)", Structure("tuple", ("1", "2"))),
        ("A(1, 2)", Structure("tuple", ("1", "2"))),
        ("(x,y) = (1,2)", Structure("tuple", ("1", "2"))),
        ("[1,2,3]", Structure("tuple", ("1", "2", "3"))),
        ("[1,2]", Structure("interval", (("[", "1", "2", "]"),))),
        (r"(-\infty,1]", Structure("interval", (("(", r"-\infty", "1", "]"),))),
        ("(0,1) ∪ [2,3)", Structure("interval", (("(", "0", "1", ")"), ("[", "2", "3", ")")))),
        ("t(0,4]", Structure("interval", (("(", "0", "4", "]"),))),
        ("1 < x ≤ 2", Structure("interval", (("(", "1", "2", "]"),), name="x")),
        ("2 ≥ x > 1", Structure("interval", (("(", "1", "2", "]"),), name="x")),
        ("x > 1", Structure("interval", (("(", "1", r"\infty", ")"),), name="x")),
        ("1 < x", Structure("interval", (("(", "1", r"\infty", ")"),), name="x")),
        ("x > 1 and x < 3", Structure("interval", (("(", "1", "3", ")"),), name="x")),
        (r"\{x \mid x \le 1\}", Structure("interval", (("(", r"-\infty", "1", "]"),), name="x")),
        (
            "x < 1 or x > 2",
            Structure("interval", (("(", r"-\infty", "1", ")"), ("(", "2", r"\infty", ")")), name="x"),
        ),
        (r"\{1, 2\}", Structure("set", ("1", "2"))),
        ("1, 2 and 3", Structure("set", ("1", "2", "3"), is_bare=True)),
        ("x = 1 or x = 2", Structure("set", ("1", "2"), is_bare=True)),
        ("x = 1, y = 2", Structure("set", ("1", "2"), names=("x", "y"), is_bare=True)),
        ("(1,2), (3,4)", Structure("set", ("(1,2)", "(3,4)"), is_bare=True)),
        ("±2", Structure("set", ("+ 2", "- 2"), is_bare=True)),
        ("1:2:3", Structure("ratio", ("1", "2", "3"))),
        ("AB : BC = 2 : 3", Structure("ratio", ("2", "3"))),
        ("17:06", Structure("time", (1026, ""))),
        ("4:30 p.m.", Structure("time", (270, "pm"))),
        ("52_8", Structure("base", ("52", 8))),
        ("1A_{16}", Structure("base", ("1A", 16))),
        (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", Structure("matrix", (("1", "2"), ("3", "4")))),
    ],
)
def test_a_structure_is_read(text, expected):
    assert structure(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "8",
        "x",
        "x+1",
        "(x+1)(x-1)",
        "f(x)",
        "92_8",
        "x < y",
        "1 < 2",
        "{1",
        r"\begin{pmatrix} 1 & 2 \\ 3 \end{pmatrix}",
    ],
)
def test_one_value_or_a_broken_text_has_no_structure(text):
    assert structure(text) is None


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("(1) 3; (2) 5", ["3", "5"]),
        ("①3②5", ["3", "5"]),
        ("6\n36\n6", ["6", "36", "6"]),
        ("3; 5", ["3", "5"]),
        ("169 555 671", ["169", "555", "671"]),
        ("$$7$$ $$10$$", ["7", "10"]),
        ("(1) 3 (3) 5", None),
        ("(1,2)", None),
        ("8", None),
        ("3, 5", None),
    ],
)
def test_ordered_parts_are_read(text, parts):
    assert read_parts(text) == parts


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("(1)(3)(4)", {"1", "3", "4"}),
        ("①③", {"1", "3"}),
        ("1.3.4.", {"1", "3", "4"}),
        ("1, 3", {"1", "3"}),
        ("3.14", None),
        ("134", None),
        ("(1)(1)", None),
    ],
)
def test_numbers_of_statements_are_read(text, labels):
    assert read_labels(text) == (frozenset(labels) if labels else None)


def test_plus_minus_stands_for_two_values():
    assert expanded(r"1 \pm \sqrt{2}") == [r"1 + \sqrt{2}", r"1 - \sqrt{2}"]
    assert expanded(r"\pm 1 \mp 2") == ["+ 1 - 2", "- 1 + 2"]
    assert expanded("1 + 2") == ["1 + 2"]


@given(st.lists(st.text(alphabet="abc123+", min_size=1, max_size=4), min_size=1, max_size=6))
def test_a_list_is_cut_where_it_was_joined(values):
    assert split(",".join(values), ",") == values
    assert split(f"({','.join(values)})", ",") == [f"({','.join(values)})"]


@given(st.text(max_size=60))
def test_any_text_has_a_structure_or_none(text):
    structure(text)
    read_parts(text)
    read_labels(text)
