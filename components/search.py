"""Where to sample and what the samples say: pure functions over prefixes and verdicts.

Knows no engine, file or model: a search yields requests and is sent outcomes. A state is the tuple of
paragraphs written so far; `()` is the problem itself.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

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
    """One continuation: the paragraphs written after the state, and the verdict on its answer."""

    paragraphs: State
    verdict: str
    """right | wrong | unknown"""


@dataclass
class Counts:
    """What the continuations of one prefix came to."""

    num_right: int = 0
    num_wrong: int = 0
    num_unknown: int = 0

    def add(self, verdict: str) -> None:
        """Count one verdict; unknown is neither right nor wrong."""
        if verdict == "right":
            self.num_right += 1
        elif verdict == "wrong":
            self.num_wrong += 1
        else:
            self.num_unknown += 1

    @property
    def num(self) -> int:
        """All continuations, unknown ones too."""
        return self.num_right + self.num_wrong + self.num_unknown

    @property
    def num_verdicts(self) -> int:
        """n of (k, n)."""
        return self.num_right + self.num_wrong

    @property
    def mc(self) -> float | None:
        """k / n; None where nothing was measured, which is not 0."""
        return self.num_right / self.num_verdicts if self.num_verdicts else None


@dataclass
class _Tree:
    """The prefixes of one problem's solutions, each with its counts."""

    counts: dict[State, Counts] = field(default_factory=dict)

    def add(self, state: State, outcome: Outcome, *, reuse: bool) -> None:
        """Count an outcome where it was sampled and, if `reuse`, at every known prefix that it passed through."""
        self.counts[state].add(outcome.verdict)
        if reuse:
            path = state
            for paragraph in outcome.paragraphs[:-1]:
                path = (*path, paragraph)
                if path in self.counts:
                    self.counts[path].add(outcome.verdict)


def monte_carlo(
    prefixes: Mapping[str, Iterable[State]], *, num_continuations: int, reuse: bool
) -> Generator[list[Request], Sequence[Sequence[Outcome]], None]:
    """Ask for `num_continuations` outcomes of every prefix, in a few large batches.

    With `reuse`, prefixes are visited from the shortest on, and a continuation of one that happens to pass
    through a longer one is an outcome of that too: given that it passed, its rest is a fair sample of the
    policy from there. How many pass does not depend on their verdicts, so nothing is biased. The solutions'
    own tails are not used: they caused the prefixes to exist.

    Args:
        prefixes: problem -> its distinct unfinished prefixes.
    Yields:
        Batches of requests; send back, for each request, its outcomes.
    Source: VisualPRM (arXiv 2503.10291) section 3, K = 16 continuations of every step.
    Differs: equal prefixes of one problem are sampled once; `reuse` is ours.
    """
    trees = {problem: _Tree({state: Counts() for state in states}) for problem, states in prefixes.items()}
    depths = sorted({len(state) for tree in trees.values() for state in tree.counts})
    waves = [[depth] for depth in depths] if reuse else [depths]
    for wave in waves:
        requests = []
        for problem, tree in trees.items():
            for state, counts in tree.counts.items():
                if len(state) in wave and counts.num < num_continuations:
                    requests.append(Request(problem, state, 0, num_continuations - counts.num))
        if not requests:
            continue
        answers = yield requests
        for request, outcomes in zip(requests, answers, strict=True):
            for outcome in outcomes:
                trees[request.problem].add(request.state, outcome, reuse=reuse)


def tally(prefixes: Iterable[State], outcomes: Iterable[tuple[State, Outcome]], *, reuse: bool) -> dict[State, Counts]:
    """The counts of one problem's prefixes from stored continuations; pure, so that labels can be made again."""
    tree = _Tree({state: Counts() for state in prefixes})
    for state, outcome in outcomes:
        tree.add(state, outcome, reuse=reuse)
    return tree.counts
