"""Where to sample and what the samples say: the protocol of all searches, and Monte-Carlo estimation.

Knows no engine, file or model: a search is a generator that yields requests and is sent outcomes. A state is the
tuple of units (paragraphs, or what the task says) written so far; `()` is the problem itself.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

State = tuple[str, ...]


@dataclass(frozen=True)
class Request:
    """Continue this state `num` times; the continuations carry the indices `first`, `first + 1`, ..."""

    problem: str
    state: State
    first: int
    num: int


@dataclass(frozen=True)
class Outcome:
    """One continuation: the units written after the state, and the verdict on its answer."""

    units: State
    verdict: str
    """right | wrong | unknown"""
    mass: float = 0.0
    """At least how probable the policy writes just this after the state; 0 where that is not known or not noticeable."""


Search = Generator[list[Request], Sequence[Sequence[Outcome]], Any]
"""Yields batches of requests and is sent, for each request, its outcomes."""


@dataclass
class Counts:
    """What the continuations of one prefix came to."""

    num_right: int = 0
    num_wrong: int = 0
    num_unknown: int = 0
    num_reused: int = 0
    """Of the verdicts (right and wrong), those of continuations that began at an earlier prefix."""
    num_reused_right: int = 0
    texts: dict[tuple[str, State], tuple[float, int]] = field(default_factory=dict, compare=False, repr=False)
    """(verdict, units after the prefix) -> the largest probability known of them, and how often they came."""

    def add(self, verdict: str, *, is_reused: bool = False, units: State = (), mass: float = 0.0) -> None:
        """Count one verdict; unknown is neither right nor wrong.

        Args:
            units: what was written after the prefix.
            mass: at least how probable that was; 0: the text is not remembered.
        """
        if mass > 0 and verdict in ("right", "wrong"):
            known, times = self.texts.get((verdict, units), (0.0, 0))
            self.texts[verdict, units] = max(known, mass), times + 1
        if verdict == "right":
            self.num_right += 1
        elif verdict == "wrong":
            self.num_wrong += 1
        else:
            self.num_unknown += 1
        self.num_reused += is_reused and verdict != "unknown"
        self.num_reused_right += is_reused and verdict == "right"

    @property
    def num(self) -> int:
        """All continuations, unknown ones too."""
        return self.num_right + self.num_wrong + self.num_unknown

    @property
    def num_verdicts(self) -> int:
        """n of (k, n)."""
        return self.num_right + self.num_wrong

    def seen(self, verdict: str) -> tuple[list[float], int]:
        """Probabilities of the distinct texts of this verdict that are remembered, and how often one of them came again."""
        found = [text for (v, _), text in self.texts.items() if v == verdict and text[0] > 0]
        return sorted((mass for mass, _ in found), reverse=True), sum(times - 1 for _, times in found)

    @property
    def mc(self) -> float | None:
        """k / n; None where nothing was measured, which is not 0."""
        return self.num_right / self.num_verdicts if self.num_verdicts else None


@dataclass
class Tally:
    """The counts of one problem's prefixes."""

    counts: dict[State, Counts] = field(default_factory=dict)

    def add(self, state: State, outcome: Outcome, *, reuse: bool) -> None:
        """Count an outcome where it was sampled and, if `reuse`, at every known prefix that it passed through."""
        self.counts[state].add(outcome.verdict, units=outcome.units, mass=outcome.mass)
        if reuse:
            for path in passed(state, outcome.units):
                if path in self.counts:
                    # What is left is at least as probable after the longer prefix as the whole was after the shorter.
                    left = outcome.units[len(path) - len(state) :]
                    self.counts[path].add(outcome.verdict, is_reused=True, units=left, mass=outcome.mass)


def passed(state: State, units: State) -> Iterable[State]:
    """The unfinished prefixes that a continuation of `state` passed through, from the shortest on; its end is none."""
    for cut in range(1, len(units)):
        yield state + units[:cut]


def tally(prefixes: Iterable[State], outcomes: Iterable[tuple[State, Outcome]], *, reuse: bool) -> dict[State, Counts]:
    """The counts of one problem's prefixes from all its continuations."""
    found = Tally({state: Counts() for state in prefixes})
    for state, outcome in outcomes:
        if state not in found.counts:  # asked for by a search that keeps no such prefix, such as the problem itself
            found.counts[state] = Counts()
        found.add(state, outcome, reuse=reuse)
    return found.counts


def monte_carlo(
    prefixes: Mapping[str, Iterable[State]], *, num_continuations: int, reuse: bool, stop_at_zero: bool = False
) -> Search:
    """Ask for `num_continuations` outcomes of every prefix, in a few large batches.

    With `reuse`, prefixes are visited from the shortest on, and a continuation of one that happens to pass
    through a longer one is an outcome of that too: given that it passed, its rest is a fair sample of the
    policy from there. How many pass does not depend on their verdicts, so nothing is biased. The solutions'
    own tails are not used: they caused the prefixes to exist.

    Args:
        prefixes: problem -> its distinct unfinished prefixes.
        stop_at_zero: do not sample behind a prefix without any right continuation; what lies there stays
            unmeasured, which is not 0.
    Source: VisualPRM (arXiv 2503.10291) section 3, K = 16 continuations of every step.
    Differs: equal prefixes of one problem are sampled once; `reuse` is ours.
    """
    trees = {problem: Tally({state: Counts() for state in states}) for problem, states in prefixes.items()}
    depths = sorted({len(state) for tree in trees.values() for state in tree.counts})
    for wave in [[depth] for depth in depths] if reuse or stop_at_zero else [depths]:
        requests = []
        for problem, tree in trees.items():
            for state, counts in tree.counts.items():
                if len(state) not in wave or counts.num >= num_continuations:
                    continue
                if stop_at_zero and _is_behind_zero(state, tree.counts):
                    continue
                requests.append(Request(problem, state, 0, num_continuations - counts.num))
        if not requests:
            continue
        answers = yield requests
        for request, outcomes in zip(requests, answers, strict=True):
            for outcome in outcomes:
                trees[request.problem].add(request.state, outcome, reuse=reuse)


def _is_behind_zero(state: State, counts: Mapping[State, Counts]) -> bool:
    for cut in range(1, len(state)):
        before = counts.get(state[:cut])
        if before is not None and before.num_verdicts and not before.num_right:
            return True
    return False
