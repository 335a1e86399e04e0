"""Tasks: what splitters promise, on hand-made and hostile texts, and the door for tasks from elsewhere."""

import itertools
import re
import time
from importlib import metadata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.errors import SettingsError
from components.tasks import (
    ENTRY_POINTS,
    MATHS,
    SCENE,
    TASKS,
    Task,
    blank_lines,
    load_task,
    numbered,
    pattern,
    tagged,
    task_names,
)

SPLITTERS = {
    "blank_lines": blank_lines(),
    "tagged": tagged("step"),
    "numbered": numbered(),
    "pattern": pattern(r"\s*(;|\|)\s*", separator="; "),
}
PIECES = [
    "\n",
    "\n\n",
    " ",
    "\t",
    "a",
    "b c",
    "<step>",
    "</step>",
    "<answer>4</answer>",
    "1. ",
    "2) ",
    "Step 3: ",
    "3.5",
    ";",
    "|",
    "12",
    ".",
]
texts = st.lists(st.sampled_from(PIECES), max_size=14).map("".join) | st.text(max_size=20)


@pytest.mark.parametrize(
    ("name", "text", "units"),
    [
        ("blank_lines", "a\n\nb\nc\n\n\n\n d ", ["a", "b\nc", "d"]),
        ("blank_lines", "\n\n \n\n", []),
        (
            "tagged",
            "<step>a\n\nb</step>\n<step>c</step> <answer>4</answer>",
            ["<step>a\n\nb</step>", "<step>c</step>", "<answer>4</answer>"],
        ),
        ("tagged", "So:<step>a</step><step>b</step>", ["So:<step>a</step>", "<step>b</step>"]),
        ("tagged", "<step>never closed", ["<step>never closed"]),
        ("numbered", "First.\n1. a is 3.5\nthen\n\n2) b\n Step 3: c", ["First.", "1. a is 3.5\nthen", "2) b", "Step 3: c"]),
        ("numbered", "2.5 is no step\n3.5 neither", ["2.5 is no step\n3.5 neither"]),
        ("numbered", "STEP 1. a\nstep 2 : b\nsteps 3", ["STEP 1. a", "step 2 : b\nsteps 3"]),
        ("pattern", "a ; b|c;;", ["a", "b", "c"]),
    ],
)
def test_texts_fall_into_units(name, text, units):
    assert SPLITTERS[name].split(text) == units


@pytest.mark.parametrize("name", SPLITTERS)
@given(text=texts)
def test_units_joined_are_split_alike_wherever_a_prefix_ends(name, text):
    splitter = SPLITTERS[name]
    task = Task("t", splitter=splitter)
    units = splitter.split(text)
    assert all(unit and unit == unit.strip() for unit in units)
    assert splitter.split(task.text(units)) == units
    for cut in range(len(units)):
        assert splitter.split(task.prefill(units[:cut]) + task.text(units[cut:])) == units
        assert splitter.split(task.prefill(units[:cut])) == units[:cut]


@pytest.mark.parametrize("name", SPLITTERS)
@given(text=texts, max_steps=st.integers(1, 5))
def test_steps_are_balanced_groups_that_say_what_the_units_say(name, text, max_steps):
    task = Task("t", splitter=SPLITTERS[name])
    units, steps = tuple(SPLITTERS[name].split(text)), task.steps(text, max_steps=max_steps)
    assert len(steps) == min(max_steps, len(units))
    assert task.units(steps) == units
    sizes = [len(task.units([step])) for step in steps]
    assert max(sizes, default=0) - min(sizes, default=0) <= 1
    prefixes = [task.units(steps[:cut]) for cut in range(len(steps) + 1)]
    assert prefixes == [units[:end] for end in itertools.accumulate(sizes, initial=0)]


def test_a_grouped_pattern_is_a_separator_and_nothing_more():
    for regex in (r"(,)\s*", r"(?P<comma>,)\s*", r"[,(]\s*", r"(?:(,)|\()\s*"):
        assert pattern(regex, separator=", ").split("a, b,c?d:e") == ["a", "b", "c?d:e"]
    assert pattern(r"[()]", separator="(").split("a?b:(c)d") == ["a?b:", "c", "d"]


def test_a_pattern_that_could_not_be_joined_is_refused():
    with pytest.raises(SettingsError, match="no regular expression"):
        pattern("(", separator=";")
    with pytest.raises(SettingsError, match="does not match"):
        pattern(r";\n", separator="; ")


@pytest.mark.parametrize("name", ["blank_lines", "tagged", "numbered"])
@pytest.mark.parametrize(
    "text", ["\n" * 30_000, "\n " * 15_000, " " * 30_000, "</step>" * 5_000, "1.\n" * 10_000, "Step " * 8_000, ";" * 30_000]
)
def test_no_text_takes_long_to_split(name, text):
    started = time.process_time()
    SPLITTERS[name].split(text)
    assert time.process_time() - started < 0.5


def test_the_question_goes_where_the_prompt_says_and_is_not_read():
    task = Task("t", prompt="Answer in tags. {question} Think first.")
    assert task.question("what is {question} ?") == "Answer in tags. what is {question} ? Think first."
    assert MATHS.question("2 + 2 ?") == "2 + 2 ?"


def test_a_task_that_drops_the_question_or_has_no_known_unit_is_refused():
    with pytest.raises(SettingsError, match="no place for the question"):
        Task("t", prompt="Answer.")
    with pytest.raises(SettingsError, match="'row'"):
        Task("t", unit="row")


def test_whatever_changes_a_prompt_or_a_prefix_changes_the_digest():
    tasks = [
        Task("t"),
        Task("t", prompt="Q: {question}"),
        Task("t", splitter=tagged()),
        Task("t", splitter=tagged("s")),
        Task("t", splitter=pattern(";", separator=";")),
        Task("t", splitter=pattern("[;]", separator=";")),
        Task("t", answer_type="integer"),
        Task("t", unit="picture"),
    ]
    assert len({task.digest for task in tasks}) == len(tasks)
    assert Task("another name").digest == Task("t").digest


def test_the_tasks_that_ship():
    assert {name: load_task(name) for name in TASKS} == {"maths": MATHS, "scene": SCENE}
    assert MATHS.prefill(["a", "b"]) == "a\n\nb\n\n"
    assert SCENE.prefill(["<step>a</step>"]) == "<step>a</step>\n"
    assert (MATHS.unit, SCENE.unit) == ("problem", "picture")


def test_an_unknown_task_is_named_with_its_nearest():
    with pytest.raises(SettingsError, match="'scenes' is unknown") as caught:
        load_task("scenes")
    assert "'scene'" in caught.value.hint
    with pytest.raises(SettingsError) as caught:
        load_task("xyz")
    assert all(name in caught.value.hint for name in (*TASKS, ENTRY_POINTS))


OURS = Task("geography", prompt="On this map: {question}", splitter=numbered())


def made():
    """A task, when asked."""
    return OURS


NO_TASK = re.compile("x")


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package with entry points, as pip would leave it."""
    info = tmp_path / "geo-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: geo\nVersion: 1\n")
    names = {"geography": "OURS", "made": "made", "nothing": "NO_TASK", "absent": "NOT_THERE"}
    lines = "".join(f"{name} = {__name__}:{value}\n" for name, value in names.items())
    (info / "entry_points.txt").write_text(f"[{ENTRY_POINTS}]\n{lines}")
    monkeypatch.syspath_prepend(tmp_path)
    return metadata.entry_points(group=ENTRY_POINTS)


def test_an_installed_package_brings_a_task(installed):
    assert {entry.name for entry in installed} >= {"geography", "made"}
    assert load_task("geography") == load_task("made") == OURS
    assert task_names()[:2] == ["maths", "scene"]
    assert {"geography", "made"} < set(task_names())
    with pytest.raises(SettingsError, match=r"no components\.tasks\.Task"):
        load_task("nothing")
    with pytest.raises(SettingsError, match="cannot be loaded"):
        load_task("absent")
