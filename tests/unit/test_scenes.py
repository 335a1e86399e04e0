"""The scene world: its checker on cases made by hand, its files against truth counted anew from the pictures."""

import io
import itertools
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from components.grading import answer_type
from components.scenes import (
    CELL,
    COLOURS,
    CONFUSED_COLUMN,
    CONFUSED_IN_COLUMN,
    CONFUSED_KINDS,
    CONFUSED_OF_KIND,
    COUNTING,
    GRID,
    KINDS_OF_SHAPE,
    LONG_KIND,
    LOOKS,
    SHAPES,
    SPATIAL,
    Truth,
    check,
    truth_from_row,
    write_scenes,
)
from components.settings import load_params
from components.tasks import SCENE

# Two red squares, one red disc, one blue disc in column 3, no other blue, three green squares.
READINGS = {
    "red": 3,
    "blue": 1,
    "green": 3,
    "square": 5,
    "disc": 2,
    "red-square": 2,
    "red-disc": 1,
    "blue-square": 0,
    "blue-disc": 1,
    "green-square": 3,
    "green-disc": 0,
    "column blue": 3,
    "column 1": 2,
    "column 2": 1,
    "column 3": 3,
    "column 4": 1,
}
BOTH = Truth("both", ("red", "blue"), READINGS)
APART = Truth("apart", ("blue", "red"), READINGS)
EITHER = Truth("either", ("red", "square"), READINGS)
BEFORE = Truth("before", ("blue",), READINGS)
LEFT = Truth("left", ("blue", "green"), READINGS | {"column green": 4})
ALL = Truth(LONG_KIND, COLOURS, READINGS)


def steps(*texts):
    """Texts as steps, the last as the answer."""
    return [*(f"<step>{text}</step>" for text in texts[:-1]), f"<answer>{texts[-1]}</answer>"]


def verdicts(truth, *texts):
    """(alone, so far) of each step as a string of 1 and 0 each."""
    found = check(truth, steps(*texts))
    return "".join(str(int(s.is_right)) for s in found), "".join(str(int(s.is_right_so_far)) for s in found)


@pytest.mark.parametrize(
    ("truth", "solution"),
    [
        (BOTH, ("red: 3", "blue: 1", "3 + 1 = 4", "4")),
        (BOTH, ("blue: 1", "red: 3", "1 + 3 = 4", "4")),
        (APART, ("blue: 1", "red: 3", "3 - 1 = 2", "2")),
        (EITHER, ("red: 3", "square: 5", "red-square: 2", "3 + 5 = 8", "8 - 2 = 6", "6")),
        (EITHER, ("red: 3", "square: 5", "5 + 3 = 8", "red-square: 2", "8 - 2 = 6", "6")),
        (BEFORE, ("column blue: 3", "column 1: 2", "column 2: 1", "2 + 1 = 3", "3")),
        (LEFT, ("column blue: 3", "column green: 4", "3 < 4", "yes")),
        (LEFT, ("column green: 4", "column blue: 3", "4 > 3", "yes")),
        (ALL, ("red: 3", "blue: 1", "3 + 1 = 4", "green: 3", "4 + 3 = 7", "7")),
        (ALL, ("red: 3", "blue: 1", "green: 3", "1 + 3 = 4", "3 + 4 = 7", "7")),
    ],
)
def test_a_right_solution_is_right_in_every_step(truth, solution):
    assert verdicts(truth, *solution) == ("1" * len(solution), "1" * len(solution))
    assert truth.answer == solution[-1]


@pytest.mark.parametrize(
    ("truth", "solution", "alone", "so_far"),
    [
        # misread: wrong alone, and what follows is right alone only
        (BOTH, ("red: 2", "blue: 1", "2 + 1 = 3", "3"), "0111", "0000"),
        (BEFORE, ("column blue: 2", "column 1: 2", "2"), "011", "000"),
        (BEFORE, ("column blue: 4", "column 1: 2", "column 2: 1", "2 + 1 = 3", "3"), "01110", "00000"),
        (LEFT, ("column blue: 3", "column green: 3", "3 = 3", "no"), "1011", "1000"),
        # a wrong method shows in the text
        (BOTH, ("red: 3", "blue: 1", "3 - 1 = 2", "2"), "1100", "1100"),
        (APART, ("blue: 1", "red: 3", "1 + 3 = 4", "4"), "1100", "1100"),
        (EITHER, ("red: 3", "square: 5", "red-square: 2", "3 + 5 = 8", "8"), "11110", "11110"),
        (BEFORE, ("column blue: 3", "column 1: 2", "column 2: 1", "2 + 1 = 3", "column 3: 3"), "11110", "11110"),
        (LEFT, ("column blue: 3", "column green: 4", "3 < 4", "no"), "1110", "1110"),
        # slips, readings that nothing asks for, steps too early, and numbers used twice
        (BOTH, ("red: 3", "blue: 1", "3 + 1 = 5", "5"), "1100", "1100"),
        (BOTH, ("red: 3", "green: 3", "blue: 1", "3 + 1 = 4", "4"), "10111", "10000"),
        (BOTH, ("red: 3", "3 + 1 = 4", "blue: 1", "4"), "1011", "1111"),
        (BOTH, ("red: 3", "blue: 1", "3 + 3 = 6", "6"), "1100", "1100"),
        (LEFT, ("column blue: 3", "column green: 4", "4 < 3", "yes"), "1101", "1100"),
        (BOTH, ("column blue: 3", "4"), "00", "00"),
    ],
)
def test_a_mistake_is_found_where_it_is_made(truth, solution, alone, so_far):
    texts = [f"<step>{text}</step>" for text in solution]
    if not solution[-1].startswith("column"):
        texts = steps(*solution)
    found = check(truth, texts)
    assert "".join(str(int(s.is_right)) for s in found) == alone
    assert "".join(str(int(s.is_right_so_far)) for s in found) == so_far


def test_an_answer_before_anything_is_read_follows_from_nothing():
    assert verdicts(BOTH, "4") == ("0", "1")
    assert verdicts(BEFORE, "3") == ("0", "1")


def test_nothing_left_of_the_first_column_needs_no_count():
    first = Truth("before", ("blue",), READINGS | {"column blue": 1})
    assert verdicts(first, "column blue: 1", "0") == ("11", "11")


def test_spaces_inside_tags_and_what_is_no_step_at_all():
    found = check(
        BOTH, ["<step> red: 3 </step>", "red: 3", "<step>red: 3</answer>", "<step></step>", "", "<answer>4</answer>"]
    )
    assert [step.is_right for step in found] == [True, False, False, False, False, False]
    assert [step.kind for step in found] == ["reading", *["reasoning"] * 5]


pieces = st.sampled_from(
    [
        "<step>",
        "</step>",
        "<answer>",
        "</answer>",
        "red: ",
        "column ",
        "blue",
        "1",
        "2",
        "²",
        "٨",
        " + ",
        " < ",
        " = ",
        "99",
        "\n",
        "-",
    ]
)


@given(
    st.sampled_from([BOTH, APART, EITHER, BEFORE, LEFT, ALL]),
    st.lists(st.lists(pieces, max_size=9).map("".join) | st.text(max_size=12), max_size=4),
)
def test_whatever_a_policy_writes_has_a_verdict(truth, texts):
    found = check(truth, texts)
    assert len(found) == len(texts)
    right_so_far = [step.is_right_so_far for step in found]
    assert right_so_far == sorted(right_so_far, reverse=True)  # once wrong, wrong for good


# --- the files -----------------------------------------------------------------------------------------------------

SPLITS = ("demonstrations", "train", "dev", "test", "ood", "step_errors")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "data"
    write_scenes(folder, scale=0.2)
    return folder


@pytest.fixture(scope="module")
def rows(world):
    return {path.stem: pq.read_table(path).to_pylist() for path in world.glob("*.parquet")}


def clean(rows):
    return [row for row in rows if not row["id"].startswith("dirt")]


def counted(row):
    """place -> (colour, number of painted pixels) of a picture, read back from its pixels."""
    pixels = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])), dtype=float) / 255
    paints = np.array([(0.85, 0.12, 0.1), (0.15, 0.3, 0.95), (0.1, 0.65, 0.2), (0.95, 0.95, 0.95), (0.17, 0.17, 0.17)])
    nearest = ((pixels[:, :, None] - paints) ** 2).sum(-1).argmin(-1)
    out = {}
    for place in range(GRID * GRID):
        y, x = (CELL * i for i in divmod(place, GRID))
        areas = np.bincount(nearest[y : y + CELL, x : x + CELL].ravel(), minlength=5)[:3]
        if areas.max() >= 20:
            out[place] = (COLOURS[int(areas.argmax())], int(areas.max()))
    return out


def seen(row):
    """What can be read from a picture without telling squares from discs."""
    places = counted(row)
    out = {colour: sum(found == colour for found, _ in places.values()) for colour in COLOURS}
    for colour in COLOURS:
        columns = [place % GRID + 1 for place, (found, _) in places.items() if found == colour]
        out |= {f"column {colour}": columns[0]} if len(columns) == 1 else {}
    return out | {f"column {c + 1}": sum(place % GRID == c for place in places) for c in range(GRID)}


def test_equal_seeds_give_equal_bytes_and_others_another_world(tmp_path):
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        write_scenes(tmp_path / name, seed=seed, scale=0.01)
        same = [(tmp_path / name / path.name).read_bytes() == path.read_bytes() for path in (tmp_path / "first").iterdir()]
        assert all(same) if seed == 0 else not any(same)


def test_the_files_are_those_of_the_first_world_with_its_columns(world, tmp_path):
    from components.world import write_world

    write_world(tmp_path / "maths", scale=0.01)
    for path in (tmp_path / "maths").glob("*.parquet"):
        ours, theirs = pq.read_schema(world / path.name), pq.read_schema(path)
        assert ours.names[: len(theirs.names)] == theirs.names
        assert [ours.field(name).type for name in theirs.names] == theirs.types
        assert set(ours.names) - set(theirs.names) == ({"places"} if path.stem == "demonstrations" else set())
    assert {path.name for path in world.iterdir()} == {path.name for path in (tmp_path / "maths").iterdir()}


def test_the_truth_is_what_the_pixels_show(rows):
    pictures = {row["id"]: row for split in ("dev", "test", "ood") for row in rows[split]}
    assert {row["id"] for row in rows["truth"]} == set(pictures)
    for row in rows["truth"]:
        truth, found = truth_from_row(row), seen(pictures[row["id"]])
        assert found == {name: n for name, n in truth.readings.items() if name in found}
        assert {name for name in truth.readings if name.startswith("column")} == {n for n in found if n.startswith("column")}
        assert truth.readings["square"] + truth.readings["disc"] == sum(found[colour] for colour in COLOURS)
        for colour in COLOURS:
            assert truth.readings[colour] == sum(truth.readings[f"{colour}-{shape}"] for shape in SHAPES)


def test_a_square_covers_more_of_the_picture_than_a_disc(rows):
    areas = defaultdict(list)
    for row in rows["demonstrations"]:
        if "outlined" not in row["source"]:
            for place, (_, area) in counted(row).items():
                areas[row["places"][place].split()[1]].append(area)
    assert np.mean(areas["square:"]) > np.mean(areas["disc:"]) + 8


def test_every_answer_is_what_the_question_comes_to_and_has_a_rule(rows):
    of_id = {row["id"]: row for split in ("dev", "test", "ood") for row in rows[split]}
    for row in rows["truth"]:
        truth, problem = truth_from_row(row), of_id[row["id"]]
        r, a = truth.readings, truth.asked
        expected = {
            "both": lambda r=r, a=a: r[a[0]] + r[a[1]],
            "apart": lambda r=r, a=a: abs(r[a[0]] - r[a[1]]),
            "either": lambda r=r, a=a: sum(r[kind] for kind in KINDS_OF_SHAPE if a[0] in kind or a[1] in kind),
            "left": lambda r=r, a=a: "yes" if r[f"column {a[0]}"] < r[f"column {a[1]}"] else "no",
            "before": lambda r=r, a=a: sum(r[f"column {i}"] for i in range(1, r[f"column {a[0]}"])),
            LONG_KIND: lambda r=r: sum(r[colour] for colour in COLOURS),
        }[truth.kind]()
        assert problem["answer"] == truth.answer == str(expected)
        assert all(name in problem["question"] for name in a)
        assert answer_type(problem["answer"])[0] is not None


def test_questions_share_pictures_and_no_picture_is_in_two_splits_but_those_that_leak(rows):
    pictures = {name: {row["image"]["bytes"] for row in clean(rows[name])} for name in SPLITS}
    for a, b in itertools.combinations(SPLITS, 2):
        assert not pictures[a] & pictures[b]
    for name in SPLITS[1:]:
        questions = defaultdict(set)
        for row in clean(rows[name]):
            questions[row["image"]["bytes"]].add(row["question"])
        assert {len(asked) for asked in questions.values()} == {2}
    assert len(pictures["demonstrations"]) == len(rows["demonstrations"])
    dirt = [row for row in rows["train"] if row["id"].startswith("dirt")]
    assert len(dirt) == 8
    leaked = [row for row in dirt if row["image"]["bytes"] in pictures["test"]]
    asked_in_test = {(row["question"], row["image"]["bytes"]) for row in rows["test"]}
    assert sorted((row["question"], row["image"]["bytes"]) in asked_in_test for row in leaked) == [False, True]


def test_a_look_and_a_question_are_kept_for_the_benchmark_out_of_domain(rows):
    for name in SPLITS:
        found = {tuple(row["source"].split("/")[1:]) for row in rows[name]}
        if name == "ood":
            assert found == {("outlined", LONG_KIND), ("outlined", "either")}
        else:
            assert found == set(itertools.product(LOOKS, (*COUNTING, *SPATIAL))) - {("outlined", "either")}


def test_a_demonstration_is_right_in_every_step_or_shows_its_mistake(rows):
    """The pixels tell every reading but those of shapes, which the places tell."""
    right = Counter()
    for row in rows["demonstrations"]:
        readings = seen(row) | Counter(place.split()[2].rstrip(":") for place in row["places"])
        readings |= {shape: sum(f" {shape}: " in place for place in row["places"]) for shape in SHAPES}
        readings |= {kind: readings.get(kind, 0) for kind in KINDS_OF_SHAPE}
        kind = row["source"].split("/")[2]
        words = row["question"].replace("?", " ").split()
        truth = Truth(kind, tuple(word for word in words if word in (*COLOURS, *SHAPES)), readings)
        assert truth.answer == row["answer"]
        for column in ("steps", "warmup_steps"):
            assert SCENE.steps(SCENE.text(row[column]), max_steps=64) == row[column]
            found = check(truth, row[column])
            if all(step.is_right for step in found):
                assert row[column][-1] == f"<answer>{row['answer']}</answer>"
                right[column] += 1
            readings_right = [step.is_right_so_far for step in found if step.kind == "reading"]
            right[f"{column} read"] += all(readings_right)
        for statement in row["statements"]:
            name, _, value = statement.removeprefix("<step>").removesuffix("</step>").partition(": ")
            assert readings[name] == int(value)
    num = len(rows["demonstrations"])
    assert 0.3 < right["steps"] / num < 0.55
    assert 0.7 < right["warmup_steps"] / num < 0.85
    assert right["warmup_steps read"] / num > 0.85  # the rest reads one column too many, or slips


def test_the_step_errors_are_labelled_by_the_checker(rows):
    wrong = 0
    for row in rows["step_errors"]:
        alone = [label == 1 for label in row["process_correctness"]]
        assert len(row["steps"]) == len(alone) == len(row["right_so_far"]) == len(row["step_kinds"])
        assert row["right_so_far"] == sorted(row["right_so_far"], reverse=True)
        assert row["step_kinds"] == ["reading" if ": " in step else "reasoning" for step in row["steps"]]
        if all(row["right_so_far"]):
            assert row["steps"][-1] == f"<answer>{row['answer']}</answer>"
        wrong += not all(alone)
    assert 0.3 < wrong / len(rows["step_errors"]) < 0.8


def test_confusions_have_no_direction(rows):
    """What is read wrongly is read wrongly as often one way as the other."""
    for pairs in (CONFUSED_OF_KIND, CONFUSED_IN_COLUMN, *CONFUSED_COLUMN.values()):
        assert all(pairs[pairs[value]] == value for value in pairs)
    assert {len(set(kinds)) for kinds in CONFUSED_KINDS.values()} == {2}
    table = Counter()
    for row in rows["demonstrations"]:
        look, readings = row["source"].split("/")[1], seen(row)
        for step in row["steps"]:
            name, colon, value = step.removeprefix("<step>").removesuffix("</step>").partition(": ")
            if (
                colon
                and name.startswith("column ")
                and name.split()[1] in COLOURS
                and readings[name] in CONFUSED_COLUMN[look]
            ):
                low = min(CONFUSED_COLUMN[look])
                table[readings[name] - low, int(value) - low] += 1
    swapped, num = table[0, 1] + table[1, 0], table.total()
    assert num > 100
    assert abs(swapped / num - 0.5) < 4 * np.sqrt(0.25 / num)
    for shown in (0, 1):
        of_shown = table[shown, 0] + table[shown, 1]
        assert abs(table[shown, 1] / of_shown - 0.5) < 4 * np.sqrt(0.25 / of_shown)


def test_a_vocabulary_made_from_the_demonstrations_knows_every_other_text_and_gives_it_back(rows):
    from components import tiny

    texts = [row["question"] for row in rows["demonstrations"]]
    texts += [
        SCENE.text(row[c]) for row in rows["demonstrations"] for c in ("steps", "warmup_steps", "statements", "places")
    ]
    tokenizer = tiny._tokenizer(texts)
    for text in {row["question"] for row in rows["ood"]} | {SCENE.text(row["steps"]) for row in rows["step_errors"]}:
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids) == text


def test_the_maths_world_keeps_its_token_ids_when_they_come_from_its_demonstrations(tmp_path):
    from components import tiny
    from components.tasks import MATHS
    from components.world import write_world

    write_world(tmp_path / "maths", scale=0.1)
    demonstrations = pq.read_table(tmp_path / "maths/demonstrations.parquet").to_pylist()
    texts = [row["question"] for row in demonstrations] + [MATHS.text(row["steps"]) for row in demonstrations]
    assert tiny._tokenizer(texts).backend_tokenizer.to_str() == tiny._tokenizer().backend_tokenizer.to_str()


def test_the_settings_file_of_the_task_is_complete_and_names_it():
    params = load_params(Path(__file__).parents[2] / "params/scene.yaml")
    assert params.task == "scene"
    assert (params.sft.base.image_size // params.sft.base.patch_size // 2) ** 2 == GRID**2  # a token for each place
