"""The measuring instrument: its checker on cases made by hand, its files against truth worked out anew."""

import io
import itertools
import json
import math
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from components.world import CONFUSED, Truth, check, truth_from_row, words, write_world

COLOURS = ("red", "blue", "green", "yellow")
VALUES = {"red": 3, "blue": 5, "green": 4, "yellow": 9}
PRODUCT = Truth("product", ("red", "blue", "green"), VALUES)
TOTAL = Truth("total", ("red", "blue", "green"), VALUES)
PERIMETER = Truth("perimeter", ("red", "blue"), VALUES)
RANGE = Truth("range", COLOURS, VALUES)

truths = st.builds(
    lambda kind, num, order, values: Truth(
        kind,
        tuple(order[: {"product": 3, "perimeter": 2, "range": 4, "grand": 4}.get(kind, num)]),
        dict(zip(COLOURS, values, strict=True)),
    ),
    st.sampled_from(["total", "product", "perimeter", "range", "grand"]),
    st.integers(2, 3),
    st.permutations(COLOURS),
    st.lists(st.integers(1, 9), min_size=4, max_size=4),
)


def right_answer(kind, v):
    """What a question comes to on its quantities, by the words of the question."""
    if kind in ("total", "grand"):
        return sum(v)
    return {"product": lambda: v[0] + v[1] * v[2], "perimeter": lambda: 2 * sum(v), "range": lambda: max(v) - min(v)}[kind]()


def right_computations(kind, v):
    if kind in ("total", "grand"):
        return [f"{sum(v[:i])} + {v[i]} = {sum(v[: i + 1])}" for i in range(1, len(v))]
    if kind == "product":
        return [f"{v[1]} * {v[2]} = {v[1] * v[2]}", f"{v[0]} + {v[1] * v[2]} = {v[0] + v[1] * v[2]}"]
    if kind == "perimeter":
        return [f"{v[0]} + {v[1]} = {v[0] + v[1]}", f"{v[0] + v[1]} * 2 = {2 * (v[0] + v[1])}"]
    return [f"{max(v)} - {min(v)} = {max(v) - min(v)}"]


def solved(truth):
    v = [truth.values[colour] for colour in truth.colours]
    readings = [f"{colour}: {truth.values[colour]}" for colour in truth.colours]
    return readings, right_computations(truth.kind, v), f"answer: {right_answer(truth.kind, v)}"


def verdicts(truth, *steps):
    """(alone, so far) of each step as a string of 1 and 0 each."""
    found = check(truth, steps)
    return "".join(str(int(s.is_right)) for s in found), "".join(str(int(s.is_right_so_far)) for s in found)


@given(truths)
def test_the_answer_is_what_the_question_comes_to(truth):
    assert truth.answer == right_answer(truth.kind, [truth.values[colour] for colour in truth.colours])


@given(truths, st.data())
def test_a_right_derivation_is_right_in_every_step_whatever_the_order_of_its_readings(truth, data):
    readings, computations, answer = solved(truth)
    steps = [*data.draw(st.permutations(readings)), *computations, answer]
    found = check(truth, steps)
    assert all(step.is_right and step.is_right_so_far for step in found)
    assert [step.kind for step in found] == ["reading"] * len(readings) + ["reasoning"] * (len(computations) + 1)


@given(truths, st.data())
def test_a_misread_quantity_is_the_only_wrong_step_alone_and_spoils_all_after_it(truth, data):
    colour = data.draw(st.sampled_from(truth.colours))
    seen = dict(truth.values, **{colour: data.draw(st.integers(1, 9).filter(lambda v: v != truth.values[colour]))})
    readings, computations, answer = solved(Truth(truth.kind, truth.colours, seen))
    found = check(truth, [*readings, *computations, answer])
    at = truth.colours.index(colour)
    assert [step.is_right for step in found] == [i != at for i in range(len(found))]
    assert [step.is_right_so_far for step in found] == [i < at for i in range(len(found))]


@given(truths, st.data())
def test_a_slip_is_wrong_and_so_is_everything_after_it(truth, data):
    readings, computations, _ = solved(truth)
    at = data.draw(st.integers(0, len(computations) - 1))
    head, _, value = computations[at].rpartition(" ")
    slipped = f"{head} {int(value) + data.draw(st.sampled_from([1, 2, 5]))}"
    found = check(truth, [*readings, *computations[:at], slipped])
    assert [step.is_right for step in found] == [True] * (len(found) - 1) + [False]
    assert not found[-1].is_right_so_far


@given(
    truths, st.lists(st.text(max_size=12) | st.sampled_from(["red: ²", "² + 3 = 5", "answer: ²", "3 + 5 = ٨"]), max_size=4)
)
def test_whatever_a_policy_writes_has_a_verdict(truth, steps):
    found = check(truth, steps)
    assert len(found) == len(steps)
    right_so_far = [step.is_right_so_far for step in found]
    assert right_so_far == sorted(right_so_far, reverse=True)  # once wrong, wrong for good


def test_a_sum_of_three_may_be_taken_in_any_order():
    readings = ("red: 3", "blue: 5", "green: 4")
    for chain in (("3 + 5 = 8", "8 + 4 = 12"), ("4 + 3 = 7", "5 + 7 = 12"), ("5 + 4 = 9", "9 + 3 = 12")):
        assert verdicts(TOTAL, *readings, *chain, "answer: 12") == ("111111", "111111")


def test_a_sum_may_be_begun_before_all_is_read_but_not_with_what_has_not_been_read():
    assert verdicts(TOTAL, "red: 3", "blue: 5", "3 + 5 = 8", "green: 4", "8 + 4 = 12", "answer: 12") == ("111111", "111111")
    assert verdicts(TOTAL, "red: 3", "3 + 5 = 8", "blue: 5")[0] == "101"


def test_other_methods_need_every_quantity_before_they_compute():
    assert verdicts(PRODUCT, "blue: 5", "green: 4", "5 * 4 = 20", "red: 3") == ("1101", "1111")
    assert verdicts(PERIMETER, "red: 3", "3 + 5 = 8") == ("10", "11")
    assert verdicts(RANGE, "red: 3", "yellow: 9", "9 - 3 = 6")[0] == "110"
    assert verdicts(TOTAL, "answer: 12", "red: 3")[0] == "01"


def test_no_quantity_is_added_twice():
    assert verdicts(TOTAL, "red: 3", "blue: 5", "green: 4", "3 + 3 = 6")[0] == "1110"
    assert verdicts(TOTAL, "red: 3", "blue: 5", "green: 4", "8 + 5 = 13")[0] == "1110"
    twice = Truth("total", ("red", "blue"), dict(VALUES, blue=3))
    assert verdicts(twice, "red: 3", "blue: 3", "3 + 3 = 6", "answer: 6") == ("1111", "1111")


def test_operands_may_be_swapped_where_that_changes_nothing():
    assert verdicts(PRODUCT, "green: 4", "red: 3", "blue: 5", "4 * 5 = 20", "20 + 3 = 23", "answer: 23") == (
        "1" * 6,
        "1" * 6,
    )
    assert verdicts(PERIMETER, "blue: 5", "red: 3", "5 + 3 = 8", "2 * 8 = 16", "answer: 16") == ("1" * 5, "1" * 5)
    assert verdicts(RANGE, *(f"{c}: {VALUES[c]}" for c in COLOURS), "3 - 9 = 6")[0] == "11110"


def test_a_wrong_method_is_wrong_from_its_first_computation_on():
    sums_first = ("red: 3", "blue: 5", "green: 4", "3 + 5 = 8", "8 * 4 = 32", "answer: 32")
    assert verdicts(PRODUCT, *sums_first) == ("111000", "111000")
    assert verdicts(PERIMETER, "red: 3", "blue: 5", "3 * 5 = 15", "answer: 15") == ("1100", "1100")
    readings = [f"{c}: {VALUES[c]}" for c in COLOURS]
    assert verdicts(RANGE, *readings, "9 - 4 = 5", "answer: 5") == ("111100", "111100")
    assert verdicts(TOTAL, "red: 3", "blue: 5", "green: 4", "3 * 5 = 15")[0] == "1110"


def test_a_confused_reading_is_found_by_the_picture_alone():
    confused = ("red: 3", "blue: 6", "green: 4", "6 * 4 = 24", "3 + 24 = 27", "answer: 27")
    assert verdicts(PRODUCT, *confused) == ("101111", "100000")


def test_a_slip_in_a_computation_by_hand():
    slipped = ("red: 3", "blue: 5", "green: 4", "5 * 4 = 21", "3 + 21 = 24", "answer: 24")
    assert verdicts(PRODUCT, *slipped) == ("111000", "111000")


def test_a_right_step_after_a_wrong_one_is_right_alone_only():
    assert verdicts(PRODUCT, "red: 4", "red: 3", "blue: 5", "green: 4", "5 * 4 = 20") == ("01111", "00000")


def test_a_colour_that_was_not_asked_for_is_no_right_reading():
    assert verdicts(PERIMETER, "yellow: 9") == ("0", "0")
    assert verdicts(PERIMETER, "purple: 9") == ("0", "0")


@pytest.mark.parametrize(
    "step", ["", "red 3", "red: three", "answer:", "answer: 8 8", "3 + 5 8", "3 / 5 = 1", "3 + 5 = = 8"]
)
def test_what_is_no_step_is_wrong(step):
    assert verdicts(PERIMETER, "red: 3", "blue: 5", step) == ("110", "110")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / "data"
    write_world(folder, seed=0, scale=0.2)
    return folder


@pytest.fixture(scope="module")
def rows(world):
    return {path.stem: pq.read_table(path).to_pylist() for path in world.glob("*.parquet")}


def truth_of(row):
    """The truth of a demonstration, from its source, its question and its four true statements."""
    asked = row["question"].partition(":")[2].split()
    colours = tuple(word for word in asked if word in COLOURS) or COLOURS
    stated = {s.split()[0].removesuffix(":"): int(s.split()[1]) for s in row["statements"]}
    return Truth(row["source"].split("/")[2], colours, stated)


def test_equal_seeds_give_equal_bytes_and_other_seeds_other_worlds(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_world(tmp_path / name, seed=seed, scale=0.01)
    names = {path.stem for path in (tmp_path / "a").iterdir()}
    assert names == {"demonstrations", "train", "dev", "test", "ood", "step_errors", "truth"}
    for name in names:
        a, b, c = ((tmp_path / folder / f"{name}.parquet").read_bytes() for folder in "abc")
        assert a == b
        assert a != c


def test_a_world_is_replaced_whole(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "old").touch()
    write_world(tmp_path / "data", scale=0.01)
    assert not (tmp_path / "data" / "old").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_every_answer_is_what_the_picture_and_the_question_come_to(rows):
    for row in rows["demonstrations"]:
        truth = truth_of(row)
        assert row["answer"] == str(right_answer(truth.kind, [truth.values[c] for c in truth.colours]))
    answers = {row["id"]: row["answer"] for split in ("dev", "test", "ood") for row in rows[split]}
    assert len(rows["truth"]) == len(answers)
    for row in rows["truth"]:
        truth = truth_from_row(row)
        assert answers[row["id"]] == str(right_answer(truth.kind, [truth.values[c] for c in truth.colours]))


def test_a_demonstration_is_right_in_every_step_or_shows_its_mistake(rows):
    fully_right = 0
    for row, column in itertools.product(rows["demonstrations"], ("steps", "warmup_steps")):
        found = check(truth_of(row), row[column])
        ends_right = row[column][-1] == f"answer: {row['answer']}"
        if all(step.is_right_so_far for step in found):
            fully_right += 1
            assert ends_right
        assert all(step.is_right_so_far for step in found) == all(step.is_right for step in found)
        if not ends_right:
            assert not found[-1].is_right_so_far
    assert 0.4 < fully_right / (2 * len(rows["demonstrations"])) < 0.9


def test_the_step_errors_are_labelled_by_the_checker_that_is_tested_here(rows):
    wrong = 0
    for row in rows["step_errors"]:
        alone = [label == 1 for label in row["process_correctness"]]
        assert set(row["process_correctness"]) <= {1, -1}
        assert len(row["steps"]) == len(alone) == len(row["right_so_far"]) == len(row["step_kinds"])
        assert row["right_so_far"] == list(itertools.accumulate(alone, lambda a, b: a and b))
        assert row["step_kinds"] == [
            "reading" if s.split()[0].removesuffix(":") in COLOURS else "reasoning" for s in row["steps"]
        ]
        if all(alone):
            assert row["steps"][-1] == f"answer: {row['answer']}"
        wrong += not all(alone)
    assert 0.2 < wrong / len(rows["step_errors"]) < 0.8


def test_a_family_and_kind_are_kept_for_the_benchmark_out_of_domain(rows):
    for name in ("demonstrations", "train", "dev", "test", "step_errors"):
        sources = {row["source"] for row in rows[name]}
        assert "world/labels/perimeter" not in sources
        assert not any(source.endswith("/grand") for source in sources)
        assert len(sources) >= 8
    out_of_domain = Counter(row["source"].split("/")[2] for row in rows["ood"])
    assert out_of_domain == {"grand": 40, "perimeter": 40}
    assert {row["source"] for row in rows["ood"] if "perimeter" in row["source"]} == {"world/labels/perimeter"}


def test_no_picture_is_in_two_splits_but_for_the_one_that_leaks_on_purpose(rows):
    seen = {}
    for name in ("demonstrations", "train", "dev", "test", "ood", "step_errors"):
        seen[name] = {row["image"]["bytes"] for row in rows[name] if not row["id"].startswith("dirt")}
        assert len(seen[name]) == sum(not row["id"].startswith("dirt") for row in rows[name])
    for a, b in itertools.combinations(seen, 2):
        assert not seen[a] & seen[b]
    dirt = [row for row in rows["train"] if row["id"].startswith("dirt")]
    assert len(dirt) == 7
    assert sum(row["image"]["bytes"] in seen["test"] for row in dirt) == 1


def confusable(rows, column):
    """(family, what the picture shows, what is stated) of every reading of a value that can be confused."""
    for row in rows["demonstrations"]:
        family, truth = row["source"].split("/")[1], truth_of(row)
        for step in row[column]:
            colour, _, stated = step.partition(": ")
            if colour in COLOURS and truth.values[colour] in CONFUSED[family]:
                yield family, truth.values[colour], int(stated)


def test_confusions_are_symmetric_so_that_no_text_betrays_them(rows):
    counts = Counter(confusable(rows, "steps"))
    for family, partners in CONFUSED.items():
        assert all(partners[partners[value]] == value for value in partners)
        for low, high in {tuple(sorted(pair)) for pair in partners.items()}:
            table = np.array([[counts[family, shown, stated] for stated in (low, high)] for shown in (low, high)])
            num = table.sum()
            assert num > 80
            sigma = math.sqrt(0.25 / num)
            assert abs(table[:, 0].sum() / num - 0.5) < 4 * sigma  # either is stated as often
            assert abs(np.trace(table) / num - 0.5) < 4 * sigma  # whichever is shown
            for row in table:
                assert abs(row[0] / row.sum() - 0.5) < 4 * math.sqrt(0.25 / row.sum())


def test_confusions_are_in_the_steps_and_not_in_the_warm_up(rows):
    def swapped(column):
        found = list(confusable(rows, column))
        return sum(CONFUSED[family][shown] == stated for family, shown, stated in found) / len(found)

    assert swapped("warmup_steps") < 0.02
    assert 0.4 < swapped("steps") < 0.6


def test_statements_are_in_the_order_of_the_picture_and_true(rows):
    """Bars and cards are read back from the pixels: the area of a colour tells its quantity."""
    paints = np.array([(0.85, 0.1, 0.1), (0.1, 0.2, 0.9), (0.1, 0.65, 0.15), (0.9, 0.75, 0.05), (0.97, 0.97, 0.97)])
    read = 0
    for row in rows["demonstrations"][:150]:
        family = row["source"].split("/")[1]
        if family == "labels":
            continue
        pixels = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))) / 255
        nearest = ((pixels[:, :, None] - paints) ** 2).sum(-1).argmin(-1)
        for slot, statement in enumerate(row["statements"]):
            colour, _, value = statement.partition(": ")
            if family == "bars":
                part, quantity = nearest[:, 8 * slot : 8 * slot + 8], lambda area: (area / 6 - 1) / 3
            else:
                top, left = 16 * (slot // 2), 16 * (slot % 2)
                part, quantity = nearest[top : top + 16, left : left + 16], lambda area: (225 - area) / 9
            area = int((part == COLOURS.index(colour)).sum())
            assert round(quantity(area)) == int(value)
            read += 1
    assert read > 300


def test_every_word_of_the_world_is_known(rows):
    known = set(words())
    texts = [row["question"] for name in rows if name != "truth" for row in rows[name]]
    texts += [step for name in ("demonstrations", "step_errors") for row in rows[name] for step in row["steps"]]
    assert {word for text in texts for word in text.split()} <= known


@pytest.mark.parametrize("name", ["demonstrations", "train", "dev", "test", "ood", "step_errors"])
def test_the_schema_marks_the_picture_for_datasets(world, name):
    schema = pq.read_schema(world / f"{name}.parquet")
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert list(features) == schema.names
    assert features["image"] == {"_type": "Image"}
    assert features["question"] == {"dtype": "string", "_type": "Value"}


def test_datasets_loads_every_split_and_decodes_its_pictures(world, tmp_path):
    datasets = pytest.importorskip("datasets")
    for name in ("demonstrations", "dev", "step_errors"):
        loaded = datasets.Dataset.from_parquet(str(world / f"{name}.parquet"), cache_dir=str(tmp_path))
        assert isinstance(loaded[0]["image"], Image.Image)
        assert loaded[0]["image"].size == (32, 32)
        assert loaded.num_rows == pq.read_metadata(world / f"{name}.parquet").num_rows
        if name == "demonstrations":
            assert isinstance(loaded[0]["statements"], list)
