"""What a label costs with OmegaPRM's tree search and with joint estimation, in one run: tokens, error, steps labelled.

Three worlds. *text*: a synthetic policy whose text never repeats; values are exact. *tiny*: a policy that `sft` trained,
with its engine; values are measured by 200 rollouts each. *untied*: the same policy, equal texts of different rollouts
told apart. Sampled rollouts are kept in --cache.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from components.omegaprm import Tree, omegaprm, together
from components.prefixes import mass_of
from components.search import Counts, Outcome, Request, Search, State, monte_carlo, tally

NUM_REFERENCE = 200
POSITIVE = 0.03  # a value above it is worth "+": in 16 rollouts it is seen more often than not


class World(Protocol):
    """A policy with a judge whose values are known."""

    problems: Sequence[str]

    def sample(self, requests: Sequence[Request]) -> list[list[tuple[Outcome, int]]]:
        """Outcomes with their tokens, for each request; determined by (problem, state, index)."""

    def values(self, states: Iterable[tuple[str, State]]) -> dict[tuple[str, State], tuple[float, float]]:
        """The value of each state, and the variance of its error."""


class TinyWorld:
    """A policy folder and the seeds it is asked; what was sampled is kept in one JSON file a kind."""

    def __init__(self, policy: Path, seeds: Path, cache: Path, num_problems: int) -> None:
        from components.records import PROBLEM, read_table

        rows = read_table(seeds / "seeds.parquet", PROBLEM, ["problem_id", "question", "images", "answer", "answer_type"])
        self.rows = {row["problem_id"]: row for row in rows[:num_problems]}
        self.problems = list(self.rows)
        self.policy, self.cache = policy, cache
        self.engine: Any = None
        cache.mkdir(parents=True, exist_ok=True)
        self.rollouts: dict[str, list[Any]] = self._load("texts.json")
        self.references: dict[str, list[int]] = self._load("references.json")

    def _load(self, name: str) -> dict[str, Any]:
        path = self.cache / name
        return json.loads(path.read_text()) if path.exists() else {}

    def save(self) -> None:
        """Keep what was sampled."""
        (self.cache / "texts.json").write_text(json.dumps(self.rollouts))
        (self.cache / "references.json").write_text(json.dumps(self.references))

    def _key(self, problem: str, state: State) -> str:
        return json.dumps([problem, *state])

    def _ask(self, requests: Sequence[Request], purpose: str) -> list[list[list[Any]]]:
        from components.engines import Prompt, open_engine
        from components.grading import Gold, grade
        from components.records import prefix_id, row_images, seed_for
        from components.settings import Sampling, load_runtime
        from components.tasks import MATHS

        if self.engine is None:
            self.engine = open_engine(self.policy, load_runtime())
        prompts = []
        for r in requests:
            row, name = self.rows[r.problem], prefix_id(r.problem, r.state)
            seeds = tuple(seed_for(0, purpose, r.problem, name, i) for i in range(r.first, r.first + r.num))
            prompts.append(Prompt(row["question"], row_images(row), MATHS.prefill(r.state), seeds))
        out = []
        for request, prompt, completions in zip(
            requests, prompts, self.engine.generate(prompts, Sampling(max_tokens=64)), strict=True
        ):
            row = self.rows[request.problem]
            gold = Gold(row["answer"], row["answer_type"])
            verdicts = [grade(prompt.prefill + c.text, gold, finish_reason=c.finish_reason).value for c in completions]
            out.append(
                [
                    [MATHS.splitter.split(c.text), v, c.num_tokens, mass_of(c.logprob) if c.finish_reason == "stop" else 0.0]
                    for c, v in zip(completions, verdicts, strict=True)
                ]
            )
        return out

    def sample(self, requests: Sequence[Request]) -> list[list[tuple[Outcome, int]]]:
        """From the engine, or from what it once wrote."""
        missing = []
        for r in requests:
            have = len(self.rollouts.setdefault(self._key(r.problem, r.state), []))
            if have < r.first + r.num:
                missing.append(Request(r.problem, r.state, have, r.first + r.num - have))
        if missing:
            for r, found in zip(missing, self._ask(missing, "live"), strict=True):
                self.rollouts[self._key(r.problem, r.state)] += found
        return [
            [
                (Outcome(tuple(units), verdict, mass), tokens)
                for units, verdict, tokens, mass in self.rollouts[self._key(r.problem, r.state)][r.first : r.first + r.num]
            ]
            for r in requests
        ]

    def values(self, states: Iterable[tuple[str, State]]) -> dict[tuple[str, State], tuple[float, float]]:
        """Shares of right ones among 200 rollouts that nothing else sees."""
        states = list(states)
        missing = [Request(p, s, 0, NUM_REFERENCE) for p, s in states if self._key(p, s) not in self.references]
        for start in range(0, len(missing), 64):
            some = missing[start : start + 64]
            for r, found in zip(some, self._ask(some, "reference"), strict=True):
                verdicts = [verdict for _, verdict, _, _ in found]
                self.references[self._key(r.problem, r.state)] = [verdicts.count("right"), verdicts.count("wrong")]
        out = {}
        for p, s in states:
            right, wrong = self.references[self._key(p, s)]
            num = right + wrong
            if num > 1:
                out[p, s] = (right / num, right * wrong / num**2 / (num - 1))
        return out


class UntiedWorld:
    """Another world's policy as if no two rollouts ever wrote the same: what free text is like.

    Units are told apart by a number behind a tab. Equal texts are sampled apart, and their labels counted apart.
    """

    def __init__(self, inner: World) -> None:
        self.inner, self.problems = inner, inner.problems
        self._used: Counter[tuple[str, State]] = Counter()
        self._num_units = 0

    def sample(self, requests: Sequence[Request]) -> list[list[tuple[Outcome, int]]]:
        """Rollouts of the inner world that nobody was given yet, in the order in which they are asked for."""
        plain = []
        for r in requests:
            key = (r.problem, _plain(r.state))
            plain.append(Request(*key, self._used[key], r.num))
            self._used[key] += r.num
        return [
            [(Outcome(tuple(self._told_apart(o.units)), o.verdict), t) for o, t in row] for row in self.inner.sample(plain)
        ]

    def _told_apart(self, units: State) -> Iterable[str]:
        for unit in units:
            self._num_units += 1
            yield f"{unit}\t{self._num_units}"

    def values(self, states: Iterable[tuple[str, State]]) -> dict[tuple[str, State], tuple[float, float]]:
        """Those of the inner world."""
        states = list(states)
        known = self.inner.values({(p, _plain(s)): None for p, s in states})
        return {(p, s): known[p, _plain(s)] for p, s in states if (p, _plain(s)) in known}


def _plain(state: State) -> State:
    return tuple(unit.partition("\t")[0] for unit in state)


@dataclass(frozen=True)
class _Law:
    """How one problem of the text world goes: three hidden conditions (on track, messy, wrong) over its steps."""

    step: np.ndarray
    """`[L, 3, 3]` the chance of the next condition."""
    right: np.ndarray
    """`[3]` the chance of a right answer after the last step."""
    values: np.ndarray
    """`[L + 1, 3]` the exact chance to end right."""
    tokens: float
    """Mean tokens a step."""


class TextWorld:
    """Solutions of 9-13 units that never repeat; a unit bears its hidden condition, so that every value is exact."""

    def __init__(self, num_problems: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.seed = seed
        self.laws = {f"p{i}": _law(rng) for i in range(num_problems)}
        self.problems = list(self.laws)

    def sample(self, requests: Sequence[Request]) -> list[list[tuple[Outcome, int]]]:
        """Each continuation from its own random stream."""
        return [[self._one(r.problem, r.state, index) for index in range(r.first, r.first + r.num)] for r in requests]

    def _one(self, problem: str, state: State, index: int) -> tuple[Outcome, int]:
        law = self.laws[problem]
        rng = random.Random(f"{self.seed}/{problem}/{state}/{index}")
        x = int(state[-1][0]) if state else 0
        units, tokens = [], 0
        for t in range(len(state), len(law.step)):
            x = rng.choices(range(3), law.step[t, x])[0]
            units.append(f"{x} {rng.getrandbits(64):x}")
            tokens += max(4, round(rng.gauss(law.tokens, 0.4 * law.tokens)))
        is_right = rng.random() < law.right[x]
        return Outcome(tuple(units), "right" if is_right else "wrong"), tokens

    def values(self, states: Iterable[tuple[str, State]]) -> dict[tuple[str, State], tuple[float, float]]:
        """By dynamic programming, without error."""
        return {(p, s): (float(self.laws[p].values[len(s), int(s[-1][0]) if s else 0]), 0.0) for p, s in states}


def _law(rng: np.random.Generator) -> _Law:
    length = int(rng.integers(9, 14))
    base = np.exp(rng.normal(np.log(0.06), 0.9))
    slip = np.minimum(0.6, base * np.exp(rng.normal(0, 0.9, length)))  # on track -> wrong, by step
    recover, mess, tidy = rng.beta(0.6, 9), rng.beta(1, 9), rng.beta(2, 6)
    messy_slip = np.minimum(0.85, 3 * slip)
    step = np.zeros((length, 3, 3))
    step[:, 0] = np.stack([(1 - slip) * (1 - mess), (1 - slip) * mess, slip], 1)
    step[:, 1] = np.stack([(1 - messy_slip) * tidy, (1 - messy_slip) * (1 - tidy), messy_slip], 1)
    step[:, 2] = [recover, 0, 1 - recover]
    values = np.zeros((length + 1, 3))
    values[length] = [1, 1, rng.beta(0.5, 20)]
    for t in range(length - 1, -1, -1):
        values[t] = step[t] @ values[t + 1]
    return _Law(step, values[length], values, 35 * float(np.exp(rng.normal(0, 0.35))))


@dataclass
class Drive:
    """A search run to its end, with what it cost."""

    value: Any
    outcomes: dict[tuple[str, State], list[Outcome]]
    tokens: dict[str, int]
    """By problem."""
    batches: list[int]
    """Sequences in each."""
    costs: dict[tuple[str, State], list[int]]
    """Tokens of each outcome."""


def driven(world: World, search: Search) -> Drive:
    """Run a search in a world."""
    done = Drive(None, {}, dict.fromkeys(world.problems, 0), [], {})
    answers = None
    while True:
        try:
            requests = next(search) if answers is None else search.send(answers)
        except StopIteration as end:
            done.value = end.value
            return done
        sampled = world.sample(requests)
        done.batches.append(sum(r.num for r in requests))
        answers = [[outcome for outcome, _ in row] for row in sampled]
        for r, row in zip(requests, sampled, strict=True):
            done.outcomes.setdefault((r.problem, r.state), []).extend(outcome for outcome, _ in row)
            done.costs.setdefault((r.problem, r.state), []).extend(tokens for _, tokens in row)
            done.tokens[r.problem] += sum(tokens for _, tokens in row)


Labels = Mapping[tuple[str, State], float]
"""(problem, unfinished prefix) -> its estimated value"""


@dataclass(frozen=True)
class Scores:
    """What a set of labels cost and how far off it was, by problem."""

    tokens_P: np.ndarray
    labels_P: np.ndarray
    squares_P: np.ndarray
    """Squared errors less the references' own."""
    of_16_P: np.ndarray
    """What 16 independent rollouts at each of these prefixes would have."""
    hard_P: np.ndarray
    """Wrong signs."""

    def each(self, what: str) -> float:
        """Per label."""
        return float(getattr(self, what).sum() / self.labels_P.sum())

    @property
    def rmse(self) -> float:
        """Root of the mean squared error."""
        return max(0.0, self.each("squares_P")) ** 0.5


def scored(world: World, labels: Labels, tokens: Mapping[str, float], problems: Sequence[str]) -> Scores:
    """Labels against the values of their prefixes."""
    truth = world.values(labels)
    place = {problem: i for i, problem in enumerate(problems)}
    known = [key for key in labels if key in truth]
    at = np.array([place[problem] for problem, _ in known], dtype=np.int64)
    said, value, noise = (np.array(x) for x in zip(*((labels[key], *truth[key]) for key in known), strict=True))

    def by_problem(x: np.ndarray | None) -> np.ndarray:
        return np.bincount(at, x, minlength=len(problems)).astype(float)

    return Scores(
        np.array([float(tokens[problem]) for problem in problems]),
        by_problem(None),
        by_problem((said - value) ** 2 - noise),
        by_problem(np.maximum(0.0, value * (1 - value) - noise) / 16),
        by_problem((said > POSITIVE) != (value > POSITIVE)),
    )


def times_fewer(trees: Scores, curve: Sequence[Scores], what: str, num_resamples: int = 1000) -> tuple[float, float, float]:
    """The trees' tokens a label over those of a curve at the trees' error, and its 95 % interval over problems.

    Interpolated in (log error, log tokens), never extrapolated: the cheapest setting where even that is better, 0
    where none is as good.

    Args:
        what: rmse | rmse over that of 16 rollouts | hard error
    """
    rng = np.random.default_rng(0)
    num = len(trees.labels_P)
    picks = np.vstack([np.ones(num), rng.multinomial(num, np.full(num, 1 / num), size=num_resamples)])

    def summed(s: Scores) -> tuple[np.ndarray, np.ndarray]:
        error = picks @ (s.hard_P if what == "hard error" else s.squares_P)
        error /= picks @ (s.of_16_P if what == "rmse over that of 16 rollouts" else s.labels_P)
        return np.log(picks @ s.tokens_P) - np.log(picks @ s.labels_P), np.log(np.maximum(error, 1e-9))

    tokens, aim = summed(trees)
    points = [summed(s) for s in curve]
    ratios = []
    for i in range(len(picks)):
        line = sorted((e[i], t[i]) for t, e in points)
        needed = np.interp(aim[i], [e for e, _ in line], [t for _, t in line], left=np.inf)
        ratios.append(float(np.exp(tokens[i] - needed)))
    return ratios[0], *(float(q) for q in np.quantile(ratios[1:], [0.025, 0.975]))


def report_curve(trees: Scores, curve: Sequence[Scores]) -> None:
    """How many times fewer tokens a label than the trees, at each of their errors."""
    for what in ("rmse", "rmse over that of 16 rollouts", "hard error"):
        found = times_fewer(trees, curve, what)
        print("    fewer tokens at the trees' {:31} {:.2f}x [{:.2f}, {:.2f}]".format(what + ":", *found), flush=True)


def tree_labels(trees: Mapping[str, Tree]) -> dict[tuple[str, State], float]:
    """Every measured unfinished prefix; the problem itself is no step."""
    return {
        (problem, state): node.counts.num_right / node.counts.num_verdicts
        for problem, tree in trees.items()
        for state, node in tree.nodes.items()
        if state and node.counts.num_verdicts
    }


def labelled_frac(trees: Mapping[str, Tree], *, whole: bool) -> float:
    """The mean share of a kept solution's steps with a value, of the whole one or up to the end of its path."""
    shares = []
    for tree in trees.values():
        for path in tree.paths:
            solution = path.rollout.solution
            end = len(solution) if whole else path.num_units
            with_value = [c for c in range(1, end + 1) if c == len(solution) or _is_measured(tree, solution[:c])]
            shares.append(len(with_value) / end)
    return float(np.mean(shares))


def _is_measured(tree: Tree, state: State) -> bool:
    return state in tree.nodes and tree.nodes[state].counts.num_verdicts > 0


def report_trees(world: World, **arguments: Any) -> tuple[Scores, dict[str, Tree], Drive]:
    """Grow the trees of all problems together and print what they cost; returns that of the problems with a tree."""
    drive = driven(world, together({p: omegaprm(p, **arguments) for p in world.problems}))
    trees: dict[str, Tree] = drive.value
    labels = tree_labels(trees)
    grown = [p for p, tree in trees.items() if tree.dropped is None]
    tokens = sum(drive.tokens.values())
    found = scored(world, labels, drive.tokens, grown)
    sequences = np.array(drive.batches)
    out = {
        "problems": len(trees),
        "trees": len(grown),
        "rollouts": sum(tree.num_rollouts for tree in trees.values()),
        "tokens": tokens,
        "labels": len(labels),
        "tokens_per_label": tokens / len(labels),
        "tokens_per_label_of_trees": sum(drive.tokens[p] for p in grown) / len(labels),
        "rmse": found.rmse,
        "rmse_of_16": found.each("of_16_P") ** 0.5,
        "hard_error": found.each("hard_P"),
        "kept_solutions": sum(len(tree.paths) for tree in trees.values()),
        "labelled_frac_whole": labelled_frac(trees, whole=True),
        "labelled_frac_path": labelled_frac(trees, whole=False),
        "batches": len(sequences),
        "sequences_median": float(np.median(sequences)),
        "sequences_in_large_frac": float(sequences[sequences >= 256].sum() / sequences.sum()),
        "batches_alone": sum(tree.num_rollouts // 16 for tree in trees.values()),
    }
    for name, value in out.items():
        print(f"  {name:28} {value:,.4f}" if isinstance(value, float) else f"  {name:28} {value:,}", flush=True)
    return found, {p: trees[p] for p in grown}, drive


PRICES = (0.1, 0.03, 0.01, 0.005, 0.002, 0.001, 0.0005, 0.0002, 0.0001)
COUNTS = (4, 8, 16)


@dataclass(frozen=True)
class Solutions:
    """A few solutions of every problem, none chosen, and what they cost."""

    texts: dict[str, list[tuple[State, str, int]]]
    """Problem -> units, verdict and tokens of each."""

    @classmethod
    def sampled(cls, world: World, problems: Sequence[str], num: int) -> Solutions:
        """The first `num` continuations of each problem itself."""
        rows = world.sample([Request(problem, (), 0, num) for problem in problems])
        return cls({p: [(o.units, o.verdict, t) for o, t in row if o.units] for p, row in zip(problems, rows, strict=True)})

    @property
    def tokens(self) -> int:
        """Of all solutions."""
        return sum(tokens for texts in self.texts.values() for _, _, tokens in texts)

    def states(self, problem: str) -> dict[State, None]:
        """The distinct unfinished prefixes."""
        return dict.fromkeys(u[:cut] for u, _, _ in self.texts[problem] for cut in range(1, len(u)))

    def tally(self, drive: Drive, *, reuse: bool) -> dict[str, dict[State, Counts]]:
        """What a search's rollouts came to at every prefix."""
        outcomes: dict[str, list[tuple[State, Outcome]]] = {p: [] for p in self.texts}
        for (problem, state), found in drive.outcomes.items():
            outcomes[problem] += [(state, outcome) for outcome in found]
        return {p: tally(self.states(p), outcomes[p], reuse=reuse) for p in self.texts}


def brute_force(world: World, solutions: Solutions, num_continuations: float, *, reuse: bool) -> tuple[Drive, Labels]:
    """Every prefix alone: the share of right rollouts."""
    states = {p: solutions.states(p) for p in solutions.texts}
    drive = driven(world, monte_carlo(states, num_continuations=int(num_continuations), reuse=reuse))
    counts = solutions.tally(drive, reuse=reuse)
    return drive, {(p, s): c.mc for p, known in counts.items() for s, c in known.items() if c.mc is not None}


def jointly(world: World, solutions: Solutions, price: float, *, reuse: bool) -> tuple[Drive, Labels]:
    """All prefixes of a problem together, sampled where it tells most: the posterior mean."""
    from components.joint import Solution

    chains: dict[str, list[Solution]] = {p: [] for p in solutions.texts}
    for problem, texts in solutions.texts.items():
        for units, verdict, tokens in texts:
            lengths = [len(unit) for unit in _plain(units)]
            cuts = range(1, len(units))
            tails = [tokens * sum(lengths[cut:]) / sum(lengths) for cut in cuts]
            written = [units[cut:] for cut in cuts]
            chains[problem].append(Solution([units[:cut] for cut in cuts], tails, verdict, written))
    return estimated(world, chains, price, reuse=reuse)


def estimated(world: World, chains: Mapping[str, Sequence[Any]], price: float, *, reuse: bool) -> tuple[Drive, Labels]:
    """Placement and the posterior mean of every prefix of these solutions."""
    from components.estimation import fit, posteriors
    from components.forest import Forest
    from components.joint import joint, own_texts
    from components.texts import beyond_counts, know, texts_of

    drive = driven(world, joint(chains, price=price, reuse=reuse))
    outcomes: dict[str, list[tuple[State, Outcome]]] = {p: [] for p in chains}
    for (problem, state), found in drive.outcomes.items():
        outcomes[problem] += [(state, outcome) for outcome in found]
    counts = {p: tally(dict.fromkeys(s for c in chains[p] for s in c.states), outcomes[p], reuse=reuse) for p in chains}
    names = list(chains)
    forest = Forest.build([[(chain.states, chain.verdict) for chain in chains[p]] for p in names])
    keys: list[tuple[str, Any]] = [(names[forest.problem[i]], forest.keys[i]) for i in range(forest.num_nodes)]
    own = [Counts() if state is None else counts[problem][state] for problem, state in keys]
    places = {(int(p), key): i for i, (p, key) in enumerate(zip(forest.problem, forest.keys, strict=True))}
    for node, verdict, units in own_texts(chains, places):
        know(own[node], verdict, units)
    right, total = np.array([c.num_right for c in own]), np.array([c.num_verdicts for c in own])
    beyond = beyond_counts(right, total, {i: texts_of(count) for i, count in enumerate(own)})
    kernel = fit(forest, right, total, beyond_NG=beyond)
    posterior = posteriors(forest, right, total, kernel, beyond_NG=beyond)
    return drive, {key: float(posterior.mean[i]) for i, key in enumerate(keys) if key[1] is not None}


def same_prefixes(trees: Mapping[str, Tree], drive: Drive) -> tuple[dict[str, list[Any]], dict[str, float]]:
    """The trees' labelled prefixes as solutions without a verdict, and the tokens of the rollouts that wrote them.

    One solution for each labelled prefix that no other one continues. The trees chose them for how their rollouts
    ended, so that their ends must say nothing.
    """
    from components.joint import Solution

    chains: dict[str, list[Any]] = {}
    writing: dict[str, float] = {}
    for problem, tree in trees.items():
        known = {state for p, state in tree_labels({problem: tree})}
        made_by: dict[State, tuple[State, int]] = {}  # prefix -> the first rollout that wrote it
        for state in tree.nodes:
            for index, outcome in enumerate(drive.outcomes.get((problem, state), ())):
                for cut in range(1, len(outcome.units)):
                    made_by.setdefault(state + outcome.units[:cut], (state, index))
        inner = {state[:cut] for state in known for cut in range(1, len(state))}
        chains[problem], written = [], set()
        for last in sorted(known - inner):
            states = [last[:cut] for cut in range(1, len(last) + 1) if last[:cut] in known]
            start, index = made_by[last]
            written.add((start, index))
            outcome, tokens = drive.outcomes[problem, start][index], drive.costs[problem, start][index]
            lengths = [len(unit) for unit in _plain(outcome.units)]
            each = tokens / max(1, sum(lengths))  # of a character
            whole = _plain(start + outcome.units)
            tails = [each * sum(len(unit) for unit in whole[len(state) :]) for state in states]
            chains[problem].append(Solution(states, tails, "unknown"))
        writing[problem] = float(sum(drive.costs[problem, start][index] for start, index in written))
    return chains, writing


def report_same(world: World, trees: Mapping[str, Tree], of_trees: Scores, tree_drive: Drive) -> None:
    """Label exactly the prefixes that the trees label, and compare at equal error: like for like."""
    chains, writing = same_prefixes(trees, tree_drive)
    for reuse in (False, True):
        print(f"  joint on the trees' own labelled prefixes{', with reuse' if reuse else ''}")
        print("  setting   labels  tokens a label  and to write them    rmse  of 16  hard error")
        alone, whole = [], []
        for price in PRICES:
            drive, labels = estimated(world, chains, price, reuse=reuse)
            s = scored(world, labels, drive.tokens, list(trees))
            alone.append(s)
            whole.append(replace(s, tokens_P=s.tokens_P + np.array([writing[p] for p in trees])))
            print(
                f"  {price:7} {int(s.labels_P.sum()):8,} {s.each('tokens_P'):15,.1f} {whole[-1].each('tokens_P'):18,.1f}"
                f" {s.rmse:7.4f} {s.each('of_16_P') ** 0.5:6.4f} {s.each('hard_P'):11.4f}",
                flush=True,
            )
        report_curve(of_trees, whole)
        print("    without the rollouts that wrote these prefixes:")
        report_curve(of_trees, alone)


def report_modes(world: World, problems: Sequence[str], trees: Scores, num_solutions: int) -> None:
    """Label every step of a few solutions of each problem by other means, and compare at equal error.

    Tokens count the solutions too. Labels are distinct prefixes, as in the trees.
    """
    solutions = Solutions.sampled(world, problems, num_solutions)
    modes = [("brute force", brute_force, COUNTS), ("joint", jointly, PRICES)]
    for (name, mode, settings), reuse in itertools.product(modes, (False, True)):
        curve = []
        print(f"  {name}, {num_solutions} solutions of each problem with a tree{', with reuse' if reuse else ''}")
        print("  setting   labels  steps labelled  tokens a label    rmse  of 16  hard error  batches")
        for setting in settings:
            drive, labels = mode(world, solutions, setting, reuse=reuse)
            tokens = {p: drive.tokens[p] + sum(t for _, _, t in solutions.texts[p]) for p in problems}
            s = scored(world, labels, tokens, problems)
            curve.append(s)
            steps = [
                (p, u[:cut]) for p, texts in solutions.texts.items() for u, _, _ in texts for cut in range(1, len(u) + 1)
            ]
            ends = {(p, u) for p, texts in solutions.texts.items() for u, _, _ in texts}
            labelled = float(np.mean([step in labels or step in ends for step in steps]))
            print(
                f"  {setting:7} {len(labels):8,} {labelled:15.4f} {s.each('tokens_P'):15,.1f} {s.rmse:7.4f}"
                f" {s.each('of_16_P') ** 0.5:6.4f} {s.each('hard_P'):11.4f} {len(drive.batches):8}",
                flush=True,
            )
        report_curve(trees, curve)


def main() -> None:
    """Print both worlds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policy", type=Path, default=Path("artifacts/policy"))
    parser.add_argument("--seeds", type=Path, default=Path("artifacts/seeds"))
    parser.add_argument("--cache", type=Path, default=Path(".stepforge/tree_cost"))
    parser.add_argument("--problems", type=int, default=64)
    parser.add_argument("--solutions", type=int, default=4, help="of each problem, for the joint mode")
    parser.add_argument("--worlds", nargs="+", default=["text", "tiny", "untied"], choices=["text", "tiny", "untied"])
    args = parser.parse_args()
    for name in args.worlds:
        tiny = TinyWorld(args.policy, args.seeds, args.cache, args.problems) if name != "text" else None
        print(f"{name}: OmegaPRM, MM-PRM's parameters")
        world = (UntiedWorld(tiny) if name == "untied" else tiny) if tiny else TextWorld(args.problems)
        of_trees, trees, drive = report_trees(world)
        report_same(world, trees, of_trees, drive)
        report_modes(world, list(trees), of_trees, args.solutions)
        if tiny:
            tiny.save()


if __name__ == "__main__":
    main()
