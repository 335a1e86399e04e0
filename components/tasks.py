"""What the work is about: how a question is put, what a step is, which rule compares answers, what counts as one problem.

Owns the two tasks that ship and the door for others (entry points of the group `stepforge.tasks`). Knows no file,
model or stage: the whole pipeline runs on any task.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata

from components.errors import SettingsError
from components.records import digest

ENTRY_POINTS = "stepforge.tasks"
UNITS = ("problem", "picture")


@dataclass(frozen=True)
class Splitter:
    """How a text falls into units, and how units become text again.

    `split(join(units))` must give the units back: a prefix has one name however its steps were grouped.
    """

    name: str
    """Names what the splitter does; part of the digests of all that was split by it."""
    split: Callable[[str], list[str]]
    """Text -> its units in order, stripped, none empty."""
    separator: str
    """Stands between units, and after the last one of a prefix."""


def blank_lines() -> Splitter:
    """Units are paragraphs (VisualPRM section 3)."""
    return Splitter("blank_lines", lambda text: _filled(text.split("\n\n")), "\n\n")


def tagged(tag: str = "step") -> Splitter:
    """Units are `<tag>..</tag>`; what follows the last one, such as `<answer>..</answer>`, is a unit too (MM-PRM)."""
    end = re.compile(rf"(?<=</{re.escape(tag)}>)\s*")
    return Splitter(f"tagged/{tag}", lambda text: _filled(end.split(text)), "\n")


def numbered(word: str = "Step") -> Splitter:
    """Units begin on a line with `Step 1:`, `1.` or `1)`."""
    # Looking behind keeps the time linear; a number that ends the text begins a unit, as it does once more follows.
    start = re.compile(rf"(?<!\n)\n+(?=[ \t]*(?:{re.escape(word)}\s+\d+\s*[:.)]|\d+[.)](?:\s|\Z)))", re.IGNORECASE)
    return Splitter(f"numbered/{word}", lambda text: _filled(start.split(text)), "\n")


def pattern(regex: str, *, separator: str) -> Splitter:
    """Units stand between matches of a regular expression; `separator` must match it.

    Raises:
        SettingsError: not a regular expression, or `separator` would not be split at.
    """
    try:
        between = re.compile(regex)
    except re.error as error:
        raise SettingsError("task", f"{regex!r} is no regular expression: {error}", "correct it") from error
    if not between.fullmatch(separator):
        raise SettingsError(
            "task", f"the separator {separator!r} does not match {regex!r}", "units could not be told apart again"
        )
    return Splitter(f"pattern/{regex}", lambda text: _filled(_apart(between, text)), separator)


def _apart(between: re.Pattern[str], text: str) -> list[str]:
    """As `between.split(text)`, without the groups that this would bring."""
    ends = [0, *itertools.chain.from_iterable(match.span() for match in between.finditer(text)), len(text)]
    return [text[a:b] for a, b in zip(ends[::2], ends[1::2], strict=True)]


def _filled(parts: Sequence[str]) -> list[str]:
    return [stripped for part in parts if (stripped := part.strip())]


@dataclass(frozen=True)
class Task:
    """One kind of work."""

    name: str
    prompt: str = "{question}"
    """What the policy and the reward model are asked; `{question}` stands for the problem's question."""
    splitter: Splitter = field(default_factory=blank_lines)
    answer_type: str | None = None
    """The grading rule of every answer (one of grading.KINDS); None: each gold answer says which."""
    unit: str = "problem"
    """problem | picture: rows that share one are never counted as independent."""

    def __post_init__(self) -> None:
        if "{question}" not in self.prompt:
            what = f"the prompt of task {self.name!r} has no place for the question"
            raise SettingsError("task", what, "write {question} where it belongs")
        if self.unit not in UNITS:
            raise SettingsError("task", f"unit {self.unit!r} of task {self.name!r}", f"known: {', '.join(UNITS)}")

    @property
    def digest(self) -> str:
        """Names everything that decides what a prompt or a prefix is."""
        return digest("task-1", self.prompt, self.splitter.name, self.splitter.separator, self.answer_type, self.unit)

    def question(self, question: str) -> str:
        """The question as it is put to a model."""
        return self.prompt.replace("{question}", question)

    def steps(self, text: str, *, max_steps: int) -> list[str]:
        """The steps of a generated solution: its units, merged into at most `max_steps` balanced groups.

        Source: VisualPRM (arXiv 2503.10291), at most 12 steps.
        Differs: 13 units become 12 steps, not 7: group sizes differ by one at most.
        """
        units = self.splitter.split(text)
        if len(units) <= max_steps:
            return units
        bounds = [round(i * len(units) / max_steps) for i in range(max_steps + 1)]
        return [self.splitter.separator.join(units[a:b]) for a, b in itertools.pairwise(bounds)]

    def units(self, steps: Sequence[str]) -> tuple[str, ...]:
        """What steps say, however they are grouped: their units in order."""
        return tuple(unit for step in steps for unit in self.splitter.split(step))

    def prefill(self, units: Sequence[str]) -> str:
        """The start of the assistant's turn that holds these units and awaits the next one."""
        return "".join(unit + self.splitter.separator for unit in units)

    def text(self, units: Sequence[str]) -> str:
        """A whole solution."""
        return self.splitter.separator.join(units)


MATHS = Task("maths")
SCENE = Task("scene", splitter=tagged("step"), unit="picture")
TASKS: dict[str, Task] = {task.name: task for task in (MATHS, SCENE)}


def task_names() -> list[str]:
    """The tasks that `load_task` knows, those that ship first."""
    return [*TASKS, *sorted({entry.name for entry in metadata.entry_points(group=ENTRY_POINTS)} - set(TASKS))]


def load_task(name: str) -> Task:
    """The task of this name: one that ships, or one that an installed package offers.

    Raises:
        SettingsError: no such task, or what the entry point names is none.
    """
    if name in TASKS:
        return TASKS[name]
    found = {entry.name: entry for entry in metadata.entry_points(group=ENTRY_POINTS)}
    if name not in found:
        known = task_names()
        close = difflib.get_close_matches(name, known, n=1)
        hint = (
            f"did you mean {close[0]!r}?"
            if close
            else f"known: {', '.join(known)}; others come by entry point {ENTRY_POINTS!r}"
        )
        raise SettingsError("params.yaml", f"task {name!r} is unknown", hint)
    try:
        task = found[name].load()
        task = task() if callable(task) else task
    except Exception as error:  # someone else's code
        raise SettingsError("params.yaml", f"task {name!r} cannot be loaded: {error}", f"see {found[name].value}") from error
    if not isinstance(task, Task):
        raise SettingsError("params.yaml", f"task {name!r}: {found[name].value} is no components.tasks.Task", "return one")
    return task
