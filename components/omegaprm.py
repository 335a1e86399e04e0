"""Tree search for first errors (OmegaPRM), one tree a problem, and how many searches are run as one.

Knows no engine, file or model: a tree is told what its rollouts came to. Where their text is kept is the driver's business.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from components.errors import SettingsError
from components.search import Counts, Outcome, Request, Search, State

PROBLEM_STATE: State = ()
OMEGAPRM_PAPER: dict[str, Any] = {"num_root": 8, "num_probe": 8, "max_searches": 100, "max_rollouts": None, "length": 500}
"""Arguments of `omegaprm` as in arXiv 2406.06592; the defaults are MM-PRM's."""


@dataclass(frozen=True)
class Rollout:
    """The continuation with this index of a measured state."""

    state: State
    index: int
    units: State
    """What it wrote after the state."""
    verdict: str
    """right | wrong"""

    @property
    def solution(self) -> State:
        """The whole solution that it ends."""
        return self.state + self.units

    @property
    def num_words(self) -> int:
        """Its length, without the state."""
        return sum(len(unit.split()) for unit in self.units)


@dataclass
class Node:
    """A state that was measured by rollouts of its own; the rollout that led to it is none of them."""

    state: State
    counts: Counts
    visits: int = 0
    """Searches that began here."""
    right: Rollout | None = None
    """The first of its right rollouts."""


@dataclass(frozen=True)
class Path:
    """A kept solution; as a training row it ends after `num_units` units."""

    rollout: Rollout
    num_units: int
    """Negative: up to the first measured prefix with mc = 0, or the wrong end itself. Positive: up to a leaf."""
    is_positive: bool


@dataclass
class Tree:
    """What the search of one problem found."""

    problem: str
    nodes: dict[State, Node] = field(default_factory=dict)
    """In the order in which they were measured; the first is the problem itself."""
    pool: list[Rollout] = field(default_factory=list)
    """Wrong rollouts of states with mc > 0 that were not searched."""
    paths: list[Path] = field(default_factory=list)
    """All negative ones in the order of the searches, then at most as many positive ones."""
    num_rollouts: int = 0
    num_searches: int = 0
    dropped: str | None = None
    """Why the problem grew no tree: hopeless (mc 0), solved (mc 1), unmeasured (no verdict at all)."""

    def cuts(self, path: Path) -> list[int]:
        """The lengths, in units, of a path's prefixes that have a value: the measured ones, and its end if that is final."""
        solution = path.rollout.solution
        lengths = range(1, path.num_units + 1)
        return [cut for cut in lengths if cut == len(solution) or self._mc(solution[:cut]) is not None]

    def _mc(self, state: State) -> float | None:
        node = self.nodes.get(state)
        return node.counts.mc if node is not None else None

    def _first_zero(self, solution: State) -> int | None:
        """The length of the shortest measured prefix with mc = 0."""
        return next((cut for cut in range(1, len(solution)) if self._mc(solution[:cut]) == 0), None)


def omegaprm(
    problem: str,
    *,
    num_root: int = 16,
    num_probe: int = 16,
    max_searches: int = 200,
    max_rollouts: int | None = 1000,
    alpha: float = 0.5,
    beta: float = 0.9,
    length: int = 2000,
    c_puct: float = 0.125,
) -> Search:
    """Grow the tree of one problem: bisect wrong rollouts for their first step that no rollout recovers from.

    The rollout searched next is that with the highest Q + U (`quality`, `exploration`); of equal ones, the one whose
    state was measured first, then the one with the lower index. A state is measured once, however many rollouts pass
    through it. A prefix with unknown verdicts only decides nothing: the search of its rollout ends there without a path.

    Args:
        num_root, num_probe: rollouts of the problem itself and of every other state.
        max_searches: rollouts bisected.
        max_rollouts: None sets no bound.
        alpha, beta: in [0, 1], bases of `quality`.
        length: L, the words of a long rollout.
        c_puct: weight of `exploration`.
    Returns: a search whose value is a `Tree`; every batch is one request.
    Raises:
        SettingsError: a number is out of its range.
    Source: OmegaPRM (arXiv 2406.06592) algorithm 1 with the parameters of MM-PRM (arXiv 2505.13427).
    Differs: an equal state is not measured again. A whole rollout is not continued, its own verdict counts. The bound
        on rollouts is never passed, a search that would pass it is left unfinished. Positives are taken in the order
        of their leaves, not drawn.
    """
    limit = math.inf if max_rollouts is None else max_rollouts
    if min(num_root, num_probe, length) < 1 or limit < num_root:
        what = f"num_root {num_root}, num_probe {num_probe}, max_rollouts {max_rollouts}, length {length}"
        raise SettingsError("omegaprm", what, "each at least 1, and max_rollouts at least num_root")
    tree = Tree(problem)
    waiting: dict[State, list[tuple[float, Rollout]]] = {}  # Q and the wrong rollouts of a state, best first
    searched: list[Rollout] = []

    def measured(state: State, num: int) -> Search:
        answers = yield [Request(problem, state, 0, num)]
        node = Node(state, Counts())
        wrong = []
        for index, outcome in enumerate(answers[0]):
            node.counts.add(outcome.verdict)
            rollout = Rollout(state, index, outcome.units, outcome.verdict)
            if outcome.verdict == "right":
                node.right = node.right or rollout
            elif outcome.verdict == "wrong" and outcome.units:
                wrong.append(rollout)
        tree.num_rollouts += num
        tree.nodes[state] = node
        if node.counts.num_right and wrong:
            mc = node.counts.num_right / node.counts.num_verdicts
            pairs = [(quality(mc, r.num_words, alpha=alpha, beta=beta, length=length), r) for r in wrong]
            waiting[state] = sorted(pairs, key=lambda pair: (-pair[0], pair[1].index))

    def chosen_state() -> State:
        num_visits = sum(node.visits for node in tree.nodes.values())
        found, best = PROBLEM_STATE, -math.inf
        for state, node in tree.nodes.items():
            if state in waiting:
                value = waiting[state][0][0] + exploration(num_visits, node.visits, c_puct=c_puct)
                if round(value, 12) > best:  # rounded: ties are ties on every machine
                    found, best = state, round(value, 12)
        return found

    yield from measured(PROBLEM_STATE, num_root)
    root_mc = tree.nodes[PROBLEM_STATE].counts.mc
    if root_mc is None or root_mc in (0.0, 1.0):
        tree.dropped = "unmeasured" if root_mc is None else "solved" if root_mc else "hopeless"
        return tree
    while waiting and tree.num_searches < max_searches:
        chosen = chosen_state()
        rollout = waiting[chosen].pop(0)[1]
        if not waiting[chosen]:
            del waiting[chosen]
        tree.num_searches += 1
        # The state has mc > 0 and the whole rollout is wrong: between the two lies the first step with mc = 0.
        low, high = 0, len(rollout.units)
        while high - low > 1:
            middle = (low + high) // 2
            state = chosen + rollout.units[:middle]
            if state not in tree.nodes:
                if tree.num_rollouts + num_probe > limit:
                    break
                yield from measured(state, num_probe)
            mc = tree.nodes[state].counts.mc
            if mc is None:
                break
            low, high = (middle, high) if mc > 0 else (low, middle)
        tree.nodes[chosen].visits += 1
        if high - low == 1:
            searched.append(rollout)
        elif tree.num_rollouts + num_probe > limit:
            break
    tree.pool = [rollout for state in tree.nodes for _, rollout in waiting.get(state, [])]
    tree.paths = _kept(tree, searched)
    return tree


def quality(mc: float, num_words: int, *, alpha: float, beta: float, length: int) -> float:
    """Q in [0, 1] of a wrong rollout: highest where its state is nearly always right and the rollout is short.

    Source: OmegaPRM (arXiv 2406.06592) equation 2, alpha^(1 - mc) beta^(words / L).
    """
    return float(alpha ** (1.0 - mc) * beta ** (num_words / length))


def exploration(num_visits: int, visits: int, *, c_puct: float) -> float:
    """U of a state with `visits` searches of `num_visits` in the whole tree: lower the more often it was chosen.

    Source: OmegaPRM (arXiv 2406.06592) equation 3, c sqrt(sum of all visits) / (1 + visits).
    """
    return c_puct * math.sqrt(num_visits) / (1 + visits)


def _kept(tree: Tree, searched: list[Rollout]) -> list[Path]:
    """Training paths: every searched rollout up to its first zero, and as many leaves at most with a right rollout."""
    negative = [Path(r, tree._first_zero(r.solution) or len(r.solution), is_positive=False) for r in searched]
    inner = {state[:cut] for state in tree.nodes for cut in range(len(state))}
    positive = [
        Path(node.right, len(state), is_positive=True)
        for state, node in tree.nodes.items()
        if state not in inner and node.right is not None and tree._first_zero(node.right.solution) is None
    ]
    return negative + positive[: len(negative)]


@dataclass
class _Live:
    search: Search
    requests: list[Request]


def together(searches: Mapping[str, Search], *, min_sequences: int = 256, max_live: int = 4096) -> Search:
    """Run many searches as one: what the live ones ask for makes one batch.

    Searches are begun in their order, as many as it takes for a batch of `min_sequences` sequences; when one ends,
    the next begins. The last ones are begun early, so that no few of them trail behind in small batches. What a
    search finds depends on its own outcomes alone, not on its company.

    Args:
        searches: name -> a search that was not begun.
        max_live: searches alive at a time, however few sequences they ask for: it bounds memory.
    Returns: a search whose value is the mapping name -> value, in the order of `searches`.
    """
    ahead = deque(searches.items())
    live: dict[str, _Live] = {}
    values: dict[str, Any] = {}
    try:
        while True:
            num_sequences = sum(r.num for one in live.values() for r in one.requests)
            while ahead and len(live) < max_live and (num_sequences < min_sequences or len(ahead) <= 2 * len(live)):
                name, search = ahead.popleft()
                live[name] = _Live(search, [])
                num_sequences += _advance(live, values, name, None)
            if not live:
                return {name: values[name] for name in searches}
            answers = iter((yield [request for one in live.values() for request in one.requests]))
            for name in list(live):
                _advance(live, values, name, answers)
    finally:
        for one in live.values():
            one.search.close()


def _advance(live: dict[str, _Live], values: dict[str, Any], name: str, answers: Iterator[Any] | None) -> int:
    """Let one search go on to its next requests, or to its end; returns the sequences it asks for."""
    one = live[name]
    try:
        if answers is None:
            one.requests = next(one.search)
        else:
            own: list[list[Outcome]] = [next(answers) for _ in one.requests]
            one.requests = one.search.send(own)
        while not one.requests:  # nothing to ask for: it goes on at once
            one.requests = one.search.send([])
    except StopIteration as end:
        values[name] = end.value
        del live[name]
        return 0
    return sum(request.num for request in one.requests)
