"""Rows of any data set as statements, and what makes a true one false: never something that is true of the picture."""

import json
import math
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.errors import DataError
from components.settings import Corruption
from components.statements import (
    CORRUPTIONS,
    QUESTION,
    Corruptions,
    denied,
    normal,
    number_in,
    overlap,
    picture_of,
    read_pictures,
)

ALL = (*CORRUPTIONS, "negation")
BYTES = {"bytes": b"a picture", "path": None}
READINGS = [
    {"image": BYTES, "statements": [f"{c}: {1 + (i + j) % 9}" for j, c in enumerate(("red", "blue", "green", "yellow"))]}
    for i in range(9)
]


def known(*rows, names=ALL):
    return Corruptions([picture_of({"image": BYTES, **row}) for row in rows], names)


def values_of(row):
    return [(s.text, [s.value(span) for span in s.spans]) for s in picture_of({"image": BYTES, **row}).statements]


def drawn(task, num, *, picture=0, statement=0, frac=1.0, seed=0):
    rng = np.random.default_rng(seed)
    return [task.draw(picture, statement, rng, corrupted_frac=frac) for _ in range(num)]


def offered(name, task, *, picture=0, statement=0, span=0, num=60):
    """All values that one operator offers and that are not true."""
    one = task.pictures[picture].statements[statement]
    rng = np.random.default_rng(0)
    found = {v for _ in range(num) for v in CORRUPTIONS[name](task, picture, one, one.spans[span], rng)}
    return {v for v in found if not task.is_true(picture, one, one.spans[span], v)}


# --- rows ----------------------------------------------------------------------------------------------------------


def test_settings_and_operators_have_the_same_names():
    from typing import get_args

    assert get_args(Corruption) == ALL


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"statements": ["red: 5", "<step>the cube is red.</step>"]},
            [("red: 5", ["5"]), ("<step>the cube is red.</step>", ["red"])],
        ),
        ({"statements": ["<step> red: 5 </step>"]}, [("<step> red: 5 </step>", ["5"])]),
        ({"statements": [{"text": "5 red cubes", "value": "5"}]}, [("5 red cubes", ["5"])]),
        (
            {"statements": [{"text": "New York is in New York", "value": "New York"}]},
            [("New York is in New York", ["New York"])],
        ),
        ({"qa": [{"question": "How many cubes?", "answer": 3}]}, [("How many cubes? 3", ["3"])]),
        ({"qa": {"question": "Is it red?", "answer": True}}, [("Is it red? yes", ["yes"])]),
        ({"qa": [{"question": "Which city?", "answer": "New York."}]}, [("Which city? New York.", ["New York"])]),
        ({"ocr": ["TOTAL 12.50"]}, [("text: TOTAL 12.50", ["TOTAL 12.50"])]),
        ({"boxes": [{"label": "cat", "box": [1, 2.5, 30, 40]}]}, [("cat: [1, 2.5, 30, 40]", ["cat", "[1, 2.5, 30, 40]"])]),
        (
            {"caption": "Two red cubes stand to the left of a ball. A street scene."},
            [
                ("Two red cubes stand to the left of a ball.", ["Two", "red", "left"]),
                ("A street scene.", ["A street scene"]),
            ],
        ),
        ({"caption": ["Sales rose by 12.5 % in 2019."]}, [("Sales rose by 12.5 % in 2019.", ["12.5 %", "2019"])]),
        ({"caption": "A man left the room"}, [("A man left the room", ["A man left the room"])]),
    ],
)
def test_a_row_says_what_can_be_wrong_in_it(row, expected):
    assert values_of(row) == expected


def test_a_row_may_have_several_kinds_and_says_nothing_twice():
    row = {"statements": ["red: 5", "red: 5"], "caption": "red: 5", "qa": None, "ocr": []}
    assert values_of(row) == [("red: 5", ["5"])]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({}, "nothing is said of the picture"),
        ({"statements": [""]}, "statements[0] is '': a statement is no text"),
        ({"statements": [{"text": "red: 5", "value": "6"}]}, "the value '6' does not stand in the text"),
        ({"qa": [{"question": "How many?"}]}, "qa[0]"),
        ({"boxes": [{"label": "cat", "box": [1, 2, 3]}]}, "a box is [x, y, width, height]"),
        ({"boxes": [{"label": "cat", "box": [1, 2, 0, 4]}]}, "a box is [x, y, width, height]"),
        ({"statements": ["red: 5"], "image": None}, "no picture"),
        ({"statements": ["red: 5"], "image": "/etc/passwd"}, "leaves the folder"),
        ({"statements": ["red: 5"], "image": "none.png"}, "does not exist"),
        ({"statements": ["red: 5"], "question": 5}, "question is 5"),
    ],
)
def test_what_cannot_be_understood_is_named_with_row_and_field(row, said):
    with pytest.raises(DataError) as caught:
        picture_of({"image": BYTES, **row}, "pictures.jsonl, row 7")
    assert caught.value.place == "pictures.jsonl, row 7"
    assert said in caught.value.what
    assert len(caught.value.lines().splitlines()) == 2


def test_json_lines_and_parquet_say_the_same(tmp_path):
    (tmp_path / "a.png").write_bytes(b"one")
    rows = [
        {"image_path": "a.png", "question": "what?", "qa": [{"question": "How many?", "answer": "3"}], "statements": None},
        {"image_path": "a.png", "question": None, "qa": None, "statements": ["red: 5"]},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    text, table = (read_pictures(tmp_path / name, str.upper) for name in ("rows.jsonl", "rows.parquet"))
    assert text == table
    assert [p.question for p in text] == ["WHAT?", QUESTION.upper()]
    assert [p.contents() for p in text] == [[b"one"], [b"one"]]


def test_a_broken_line_is_named(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"statements": ["red: 5"], "image_path": "a.png"}\n{"statements"\n')
    with pytest.raises(DataError, match=r"rows.jsonl, line 2: not JSON"):
        read_pictures(tmp_path / "rows.jsonl")


# --- numbers and boxes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "near"),
    [
        ("5", {"4", "6"}),
        ("1", {"2"}),
        ("23", {"22", "24", "13", "33"}),
        ("12.5 %", {"12.4 %", "12.6 %", "11.5 %", "13.5 %", "2.5 %", "22.5 %"}),
        ("$1,999", {"$1,998", "$2,000", "$1,989", "$2,009", "$1,899", "$2,099", "$999", "$2,999"}),
        ("-3 cm", {"-2 cm", "-4 cm"}),
        ("0.5", {"0.4", "0.6", "1.5"}),
        ("007", {"006", "008", "017", "107"}),
        ("3/4", set()),
        ("²", set()),
        ("cube", set()),
    ],
)
def test_neighbouring_numbers_by_hand(value, near):
    number = number_in(value)
    assert set(number.neighbours() if number else []) == near


@given(st.integers(1, 10**6), st.integers(0, 3), st.sampled_from(["", " cm", "%"]))
def test_a_neighbour_differs_by_a_power_of_ten_and_is_written_alike(units, scale, unit):
    value = f"{units / 10**scale:.{scale}f}{unit}"
    for text in number_in(value).neighbours():
        other = number_in(text)
        difference = abs(round(other.value * 10**scale) - units)
        assert math.log10(difference) == pytest.approx(round(math.log10(difference)))
        assert other.value > 0
        assert (other.after, len(other.decimals)) == (unit, scale + 1 if scale else 0)


@pytest.mark.parametrize(
    ("one", "other"),
    [("5.0 %", "5%"), ("1,000", "1000"), ("Two dogs.", "2 dogs"), ("−3", "-3.00"), ("50 percent", "50%"), ("A  b", "a b")],
)
def test_what_means_the_same_is_the_same(one, other):
    assert normal(one) == normal(other)


@pytest.mark.parametrize(("one", "other"), [("5", "6"), ("1.5", "15"), ("10", "1"), ("red cube", "blue cube"), ("-3", "3")])
def test_what_does_not_is_not(one, other):
    assert normal(one) != normal(other)


def test_overlap_by_hand():
    assert overlap((0, 0, 2, 2), (1, 1, 2, 2)) == pytest.approx(1 / 7)
    assert overlap((0, 0, 2, 2), (2, 0, 2, 2)) == 0
    assert overlap((0, 0, 2, 2), (0, 0, 2, 2)) == 1


# --- operators -----------------------------------------------------------------------------------------------------


def test_a_neighbour_lies_within_what_the_slot_has():
    task = known(*READINGS)
    assert offered("neighbour", task) == {"2"}  # red: 1; 0 is never true of a red one
    assert offered("neighbour", task, picture=4) == {"4", "6"}
    assert offered("neighbour", known({"statements": ["width: 9 cm"]})) == {"8 cm", "10 cm"}  # nothing to compare with
    assert offered("neighbour", known({"caption": "Three dogs"})) == {"Two", "Four"}


def test_elsewhere_offers_what_other_pictures_have_in_the_same_place():
    task = known({"statements": ["red: 5", "blue: 7"]}, {"statements": ["red: 6"]}, {"statements": ["red: 5.0", "green: 8"]})
    assert offered("elsewhere", task) == {"6"}  # 5.0 is 5


def test_elsewhere_asks_like_places_where_the_same_is_nowhere_else():
    rows = [
        {"qa": [{"question": f"What colour is the {t}?", "answer": c}]}
        for t, c in zip("abc", ("red", "blue", "teal"), strict=True)
    ]
    other = {"qa": [{"question": "Who is it?", "answer": "Ann"}]}
    assert offered("elsewhere", known(*rows, other)) == {"blue", "teal"}


def test_rare_values_are_as_rare_when_false():
    task = known(
        *[{"statements": ["it is round"]}] * 90, *[{"statements": ["it is flat"]}] * 10, {"statements": ["it is odd"]}
    )
    rng = np.random.default_rng(0)
    shown = Counter(task.corrupt(100, s := task.pictures[100].statements[0], s.spans[0], rng).shown for _ in range(2000))
    assert shown["it is round"] / 2000 == pytest.approx(0.9, abs=0.03)


def test_beside_offers_the_values_of_the_same_picture_that_fit():
    task = known(*READINGS)
    assert offered("beside", task) == {"2", "3", "4"}
    shapes = known({"statements": ["shape: round", "colour: red"]}, {"statements": ["shape: flat", "colour: blue"]})
    assert offered("beside", shapes) == set()  # a shape is never red, picture or none


def test_beside_swaps_words_of_one_sort_only():
    task = known({"caption": "The red bar is higher. The blue line is longer, and left of the green one."})
    assert offered("beside", task) == {"blue", "green"}
    assert offered("beside", task, span=1) == set()


def test_opposite_offers_the_contrary_written_alike():
    task = known({"caption": "Left or not, the Red one is above the line"})
    assert [task.pictures[0].statements[0].value(s) for s in task.pictures[0].statements[0].spans] == ["Red", "above"]
    assert offered("opposite", task, span=1) == {"below"}
    assert "Blue" in offered("opposite", task, span=0)
    assert "Red" not in offered("opposite", task, span=0)
    answer = known({"qa": [{"question": "Is it red?", "answer": "Yes"}]})
    assert offered("opposite", answer) == {"No"}


def test_a_shifted_box_lies_in_the_picture_and_shows_something_else():
    boxes = [{"label": "cat", "box": [10, 10, 20, 20]}, {"label": "dog", "box": [60, 60, 40, 40]}]
    task = known({"boxes": boxes})
    places = offered("shifted", task, span=1)
    assert places
    for text in places:
        x, y, width, height = json.loads(text)
        assert (width, height) == (20, 20)
        assert min(x, y) >= 0
        assert max(x + width, y + height) <= 100
        assert overlap((x, y, width, height), (10, 10, 20, 20)) < 0.5


def test_a_box_on_another_of_the_same_label_is_no_mistake():
    cats = [
        {"label": "cat", "box": [0, 0, 10, 10]},
        {"label": "cat", "box": [10, 0, 10, 10]},
        {"label": "dog", "box": [0, 10, 10, 10]},
    ]
    task = known({"boxes": cats})
    place = task.pictures[0].statements[0].spans[1]
    assert task.is_true(0, task.pictures[0].statements[0], place, "[9, 0, 10, 10]")
    assert not task.is_true(0, task.pictures[0].statements[0], place, "[0, 10, 10, 10]")
    assert offered("beside", task, span=1) == {"[0, 10, 10, 10]"}
    assert offered("beside", task, span=0) == {"dog"}


def test_a_line_that_is_part_of_another_is_no_mistake():
    task = known({"ocr": ["STOP HERE", "exit"]}, {"ocr": ["stop"]}, {"ocr": ["go"]})
    assert offered("elsewhere", task) == {"go"}


def test_a_denial_is_true_or_false_as_often_as_the_statement_alone():
    task = known(*[{"statements": [f"the cube is {c}"]} for c in ("red", "blue", "green")])
    for frac in (0.2, 0.5, 0.8):
        found = drawn(task, 4000, frac=frac)
        for is_negated in (True, False):
            some = [c.is_true for c in found if c.is_negated == is_negated]
            assert abs(len(some) / 4000 - 0.5) < 0.04
            assert np.mean(some) == pytest.approx(1 - frac, abs=0.04)
        for c in found:
            value = c.shown.split()[-1]
            assert c.is_true == ((value == "red") != (" not " in c.shown))


@pytest.mark.parametrize("text", ["red: 5", "it is not red", "there isn't one", "it is red and that is blue", "is it red?"])
def test_what_one_word_does_not_deny_is_not_denied(text):
    (statement,) = picture_of({"image": BYTES, "statements": [text]}).statements
    assert denied(statement) is None


# --- drawing -------------------------------------------------------------------------------------------------------


def test_only_the_value_is_corrupted_and_the_truth_is_kept():
    task = known(*READINGS)
    for checked in drawn(task, 300, picture=4):
        head, _, last = checked.shown.rpartition(" ")
        assert head == "red:"
        assert last in set("123456789") - {"5"}
        assert checked.true == "red: 5"
        assert not checked.is_true


@pytest.mark.parametrize("frac", [0.0, 0.3, 0.5, 1.0])
def test_as_many_statements_are_corrupted_as_the_setting_says(frac):
    checked = drawn(known(*READINGS), 3000, picture=2, statement=1, frac=frac)
    false = sum(not c.is_true for c in checked)
    assert false == sum(c.shown != "blue: 4" for c in checked)
    assert abs(false / 3000 - frac) <= 4 * math.sqrt(frac * (1 - frac) / 3000)


def test_every_operator_that_can_is_as_likely_as_any_other():
    counts = Counter(c.operator for c in drawn(known(*READINGS), 3000, picture=4))
    assert set(counts) == {"neighbour", "elsewhere", "beside"}
    for count in counts.values():
        assert abs(count / 3000 - 1 / 3) < 4 * math.sqrt(2 / 9 / 3000)


def test_only_the_operators_that_are_asked_for_are_used():
    task = known(*READINGS, names=("neighbour",))
    assert {c.operator for c in drawn(task, 100)} == {"neighbour"}


@pytest.mark.parametrize(
    "rows",
    [
        [{"statements": ["red: 5"]}],
        [{"statements": ["it is round", "it is flat"]}],  # both are true of the picture
        [{"statements": ["it is 5.0"]}, {"statements": ["it is 5"]}],
    ],
)
def test_a_statement_with_nothing_to_confuse_stays_true(rows):
    task = known(*rows, names=("elsewhere", "beside", "opposite", "shifted"))
    assert all(c.is_true and c.shown == c.true for c in drawn(task, 20))


texts = st.sampled_from(
    ["red: 5", "red: 6", "red: 5.0", "blue: 6", "it is red", "it is Red.", "two cubes", "2 cubes", "text 12 %"]
)


@given(st.lists(st.lists(texts, min_size=1, max_size=5), min_size=1, max_size=5), st.integers(0, 2**32))
def test_what_is_shown_as_false_is_never_said_of_the_picture(rows, seed):
    task = known(*[{"statements": row, "caption": row[0]} for row in rows], names=list(CORRUPTIONS))
    rng = np.random.default_rng(seed)
    for i, picture in enumerate(task.pictures):
        truths = {normal(s.text) for s in picture.statements}
        for j in range(len(picture.statements)):
            checked = task.draw(i, j, rng, corrupted_frac=0.7)
            assert checked.is_true == (normal(checked.shown) in truths)
