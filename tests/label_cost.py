"""What a step label costs: tokens at equal error, against brute force with 16 continuations of every step.

Run by `make label-cost`. Worlds with exact values, and the known-truth world with 200 continuations of every prefix as
reference. Each replicate replays a world's continuations; intervals are bootstraps over problems.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from components.estimation import POSITIVE, Posteriors, beta_shrinkage, fit, guard, posteriors
from components.first_errors import first_errors
from components.forest import Forest
from components.joint import Solution, joint, own_texts
from components.prefixes import mass_of
from components.records import seed_for
from components.search import Counts, Outcome, Search, State, monte_carlo, tally
from components.texts import beyond_counts, know, texts_of

NUM_REFERENCE = 200
NUM_BANKED = 400
PRICES = (0.012, 0.006, 0.003, 0.0015, 0.0007, 0.0003)
SIGN_PRICES = (0.2, 0.05, 0.015, 0.005)  # with positive_weight 100


# --- worlds --------------------------------------------------------------------------------------------------------


@dataclass
class World:
    """Solutions to label, the value of each of their prefixes, and continuations of them."""

    name: str
    problems: dict[str, list[Solution]] = field(default_factory=dict)
    values: dict[tuple[str, State], float] = field(default_factory=dict)
    reference_counts: float = np.inf
    """Continuations behind each value; infinite where it is exact."""

    def continuations(self, problem: str, state: State, first: int, num: int, replicate: int) -> list[tuple[Outcome, int]]:
        """Outcomes `first`, `first + 1`, ... of a state in this replicate, each with its tokens."""
        raise NotImplementedError


def _rng(*parts: Any) -> np.random.Generator:
    return np.random.default_rng(seed_for(0, *parts))


class FreeText(World):
    """Texts of 8 to 12 unfinished prefixes that never repeat; the value of each is exact.

    A hidden state is on track, messy (three times as likely to fail) or wrong; each problem has its own chances to
    fail at each step, to recover, and to be right by luck. Values follow backwards from the end.
    """

    def __init__(self, *, num_problems: int = 80, num_solutions: int = 4, seed: int = 0) -> None:
        super().__init__("free text")
        rng = np.random.default_rng(seed)
        self.means: dict[tuple[str, State], float] = {}
        for p in range(num_problems):
            length = int(rng.integers(9, 14))
            fails = np.minimum(0.6, np.exp(rng.normal(np.log(0.06), 0.9)) * np.exp(rng.normal(0, 0.9, length)))
            recovers, messes, tidies, lucky = rng.beta(0.6, 9), rng.beta(1, 9), rng.beta(2, 6), rng.beta(0.5, 20)
            tokens = 35 * np.exp(rng.normal(0, 0.35))
            moves = np.zeros((length, 3, 3))  # from and to: on track, messy, wrong
            moves[:, 0, 2], moves[:, 0, 1], moves[:, 0, 0] = fails, (1 - fails) * messes, (1 - fails) * (1 - messes)
            worse = np.minimum(0.85, 3 * fails)
            moves[:, 1, 2], moves[:, 1, 0], moves[:, 1, 1] = worse, (1 - worse) * tidies, (1 - worse) * (1 - tidies)
            moves[:, 2, 0], moves[:, 2, 2] = recovers, 1 - recovers
            value = np.zeros((length + 1, 3))
            value[length] = [1, 1, lucky]
            for t in range(length - 1, -1, -1):
                value[t] = moves[t] @ value[t + 1]
            self.problems[str(p)] = [self._solution(rng, str(p), s, moves, value, tokens) for s in range(num_solutions)]

    def _solution(self, rng: Any, name: str, index: int, moves: Any, value: Any, tokens: float) -> Solution:
        length = len(moves)
        lengths = np.maximum(4, rng.normal(tokens, 0.4 * tokens, length)).astype(int)
        states, at = [], 0
        for t in range(length):
            at = rng.choice(3, p=moves[t, at])
            if t + 1 < length:
                states.append(tuple(f"{index}.{i}" for i in range(t + 1)))
                self.values[name, states[-1]] = value[t + 1, at]
                self.means[name, states[-1]] = tokens * (length - 1 - t)
        verdict = "right" if rng.random() < value[length, at] else "wrong"
        return Solution(states, [float(lengths[t + 1 :].sum()) for t in range(length - 1)], verdict)

    def continuations(self, problem: str, state: State, first: int, num: int, replicate: int) -> list[tuple[Outcome, int]]:
        luck, lengths = _rng("verdict", self.name, problem, state, replicate), _rng("tokens", problem, state, replicate)
        mean = self.means[problem, state]
        right = luck.random(first + num) < self.values[problem, state]
        tokens = np.maximum(4, lengths.normal(mean, 0.4 * np.sqrt(35 * mean), first + num)).astype(int)
        pairs = zip(right[first:], tokens[first:], strict=True)
        return [(Outcome(("...",), "right" if r else "wrong"), int(t)) for r, t in pairs]


class Unrelated(FreeText):
    """The same texts, but each prefix has a value of its own: no martingale, nothing to infer from step to step."""

    def __init__(self, *, num_problems: int = 80, num_solutions: int = 4, seed: int = 3) -> None:
        super().__init__(num_problems=num_problems, num_solutions=num_solutions, seed=seed)
        self.name = "unrelated steps"
        rng = np.random.default_rng(seed)
        for key in self.values:
            self.values[key] = float(rng.beta(0.5, 0.6))
        for name, solutions in self.problems.items():
            self.problems[name] = [
                Solution(s.states, s.tail_tokens, "right" if rng.random() < self.values[name, s.states[-1]] else "wrong")
                for s in solutions
            ]


class KnownTruth(World):
    """The known-truth world: a tiny policy's solutions, and a bank of continuations of every prefix of them.

    With `equal_prefixes` false, each solution's prefixes are its own, as if no text were ever repeated. With `texts`
    false, nothing is known of how probable a continuation was.
    """

    def __init__(self, bank: Mapping[str, Any], *, equal_prefixes: bool, texts: bool = True) -> None:
        name = "known truth, reuse" if equal_prefixes else "known truth"
        super().__init__(name if texts else f"{name}, verdicts alone")
        self.reference_counts = NUM_REFERENCE
        self.rows: dict[tuple[str, State], list[tuple[Outcome, int]]] = {}

        def shown(units: list[str]) -> State:
            return tuple(units) if equal_prefixes else ("\n\n".join(units),)

        for name, problem in bank.items():
            of_state = {
                tuple(prefix): [
                    (Outcome(shown(units), v, mass_of(logprob) if texts else 0.0), t) for units, v, t, logprob in rows
                ]
                for prefix, rows in problem["prefixes"]
            }
            self.problems[name] = []
            for i, (steps, tail_tokens, verdict) in enumerate(problem["solutions"]):
                states = [tuple(steps[:cut]) for cut in range(1, len(steps))]
                keys = states if equal_prefixes else [(f"#{i}", *state) for state in states]
                for key, state in zip(keys, states, strict=True):
                    self.rows[name, key] = of_state[state]
                    known = [o.verdict == "right" for o, _ in of_state[state][:NUM_REFERENCE] if o.verdict != "unknown"]
                    self.values[name, key] = float(np.mean(known))
                tails = [shown(steps[cut:]) for cut in range(1, len(steps))]
                self.problems[name].append(Solution(keys, tail_tokens, verdict, tails))

    def continuations(self, problem: str, state: State, first: int, num: int, replicate: int) -> list[tuple[Outcome, int]]:
        rows = self.rows[problem, state][NUM_REFERENCE:]
        order = _rng("bank", problem, state, replicate).permutation(len(rows))
        return [rows[order[i % len(rows)]] for i in range(first, first + num)]


def bank(policy: Path, seeds: Path, path: Path, *, num_problems: int = 80) -> dict[str, Any]:
    """Solutions and continuations of every prefix, sampled once with the `hf` engine and kept at `path`."""
    if path.exists():
        content: dict[str, Any] = json.loads(path.read_text())
        return content
    from components.engines import Prompt
    from components.engines.hf import HfEngine
    from components.grading import Gold, grade
    from components.records import PROBLEM, read_table, row_images
    from components.settings import Sampling
    from components.tasks import MATHS

    engine = HfEngine(policy)
    sampling = Sampling(temperature=1.0, top_k=50, top_p=1.0, max_tokens=64)

    def sampled(row: Any, state: State, num: int) -> list[tuple[list[str], str, int, float]]:
        start = MATHS.prefill(state)
        seeds_K = tuple(seed_for(7, row["problem_id"], state, i) for i in range(num))
        gold = Gold(row["answer"], row["answer_type"])
        completions = engine.generate([Prompt(MATHS.question(row["question"]), row_images(row), start, seeds_K)], sampling)[
            0
        ]
        verdicts = [grade(start + c.text, gold, finish_reason=c.finish_reason).value for c in completions]
        pairs = zip(completions, verdicts, strict=True)
        return [(MATHS.splitter.split(c.text), v, c.num_tokens, c.logprob) for c, v in pairs]

    content = {}
    columns = ["problem_id", "question", "images", "answer", "answer_type"]
    for row in read_table(seeds / "seeds.parquet", PROBLEM, columns)[:num_problems]:
        solutions = [s for s in sampled(row, (), 4) if s[1] != "unknown" and len(s[0]) > 1]
        states = dict.fromkeys(tuple(steps[:cut]) for steps, _, _, _ in solutions for cut in range(1, len(steps)))
        content[row["problem_id"]] = {
            "solutions": [
                (
                    steps,
                    [total - len(engine.tokenizer.encode(MATHS.prefill(steps[:cut]))) for cut in range(1, len(steps))],
                    v,
                )
                for steps, v, total, _ in solutions
            ],
            "prefixes": [(state, sampled(row, state, NUM_BANKED)) for state in states],
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return content


# --- one run -------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """What one scheme cost and how far off its labels were, by problem."""

    tokens_P: Any
    squares_P: Any
    steps_P: Any
    hard_errors_P: Any
    estimate: Posteriors | None = None
    num_rounds: int = 1

    @property
    def tokens(self) -> float:
        """Generated tokens a step."""
        return float(self.tokens_P.sum() / self.steps_P.sum())

    @property
    def rmse(self) -> float:
        """Root of the mean squared error of a step's value."""
        return float(np.sqrt(self.squares_P.sum() / self.steps_P.sum()))

    @property
    def hard_error(self) -> float:
        """Share of the steps whose sign is wrong."""
        return float(self.hard_errors_P.sum() / self.steps_P.sum())


class Bench:
    """A world with its forest, to run schemes in."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.names = list(world.problems)
        self.forest = Forest.build([[(s.states, s.verdict) for s in world.problems[name]] for name in self.names])
        self.keys = [(self.names[p], key) for p, key in zip(self.forest.problem, self.forest.keys, strict=True)]
        self.node = {(int(p), key): i for i, (p, key) in enumerate(zip(self.forest.problem, self.forest.keys, strict=True))}
        self.truth = np.array([world.values.get(key, np.nan) for key in self.keys])[self.forest.path]
        self.problem = self.forest.problem[self.forest.path]
        verdicts = [s.verdict for name in self.names for s in world.problems[name]]
        self.verdict = np.repeat(verdicts, np.diff(self.forest.offset))

    def drive(self, search: Search, replicate: int) -> tuple[dict[Any, list[Outcome]], Any, int, Any]:
        """All outcomes by prefix, tokens by problem, rounds, and what the search returned."""
        outcomes: dict[Any, list[Outcome]] = {}
        tokens = dict.fromkeys(self.names, 0)
        answers, num_rounds = None, 0
        while True:
            try:
                requests = next(search) if answers is None else search.send(answers)
            except StopIteration as end:
                return outcomes, np.array([tokens[name] for name in self.names]), num_rounds, end.value
            num_rounds += 1
            answers = []
            for r in requests:
                found = self.world.continuations(r.problem, r.state, r.first, r.num, replicate)
                tokens[r.problem] += sum(t for _, t in found)
                answers.append([o for o, _ in found])
                outcomes.setdefault((r.problem, r.state), []).extend(answers[-1])

    def tallies(self, outcomes: Mapping[Any, Sequence[Outcome]], *, reuse: bool) -> list[Counts]:
        """What the outcomes at every node came to."""
        known: dict[str, list[State]] = {name: [] for name in self.names}
        for name, state in self.keys:
            if state is not None:
                known[name].append(state)
        found: dict[str, list[tuple[State, Outcome]]] = {name: [] for name in self.names}
        for (name, state), some in outcomes.items():
            found[name] += [(state, outcome) for outcome in some]
        tallies = {name: tally(known[name], found[name], reuse=reuse) for name in self.names}
        counts = [tallies[name].get(state, Counts()) for name, state in self.keys]
        for node, verdict, units in own_texts(self.world.problems, self.node):
            know(counts[node], verdict, units)
        return counts

    def counts(self, outcomes: Mapping[Any, Sequence[Outcome]], *, reuse: bool) -> tuple[Any, Any]:
        """(k, n) of every node."""
        tallies = self.tallies(outcomes, reuse=reuse)
        return np.array([c.num_right for c in tallies]), np.array([c.num_verdicts for c in tallies])

    def run(
        self, mean_N: Any, positive_N: Any, tokens_P: Any, estimate: Posteriors | None = None, num_rounds: int = 1
    ) -> Run:
        """Labels against the truth."""
        num = len(self.names)
        off = mean_N[self.forest.path] - self.truth
        wrong = positive_N[self.forest.path] != (self.truth > POSITIVE)
        return Run(
            tokens_P,
            np.bincount(self.problem, off**2, minlength=num),
            np.bincount(self.problem, minlength=num),
            np.bincount(self.problem, wrong, minlength=num),
            estimate,
            num_rounds,
        )

    def brute(self, num: int, replicate: int) -> Run:
        """Brute force: each step of each solution on its own; equal prefixes are sampled as often as they occur."""
        mean, positive, tokens = np.zeros(len(self.keys)), np.zeros(len(self.keys), bool), np.zeros(len(self.names))
        for node, (name, state) in enumerate(self.keys):
            if state is not None:
                found = self.world.continuations(name, state, 0, num, replicate)
                known = [o.verdict == "right" for o, _ in found if o.verdict != "unknown"]
                mean[node], positive[node] = np.mean(known) if known else 0.5, any(known)
                tokens[self.forest.problem[node]] += sum(t for _, t in found) * self.forest.multiplicity[node]
        return self.run(mean, positive, tokens)

    def every_prefix(self, num: int, replicate: int) -> Run:
        """Brute force with reuse of every rollout that passed through an equal prefix; no estimation."""
        prefixes = {name: list(dict.fromkeys(q for s in ss for q in s.states)) for name, ss in self.world.problems.items()}
        outcomes, tokens, num_rounds, _ = self.drive(monte_carlo(prefixes, num_continuations=num, reuse=True), replicate)
        right, total = self.counts(outcomes, reuse=True)
        return self.run(right / np.maximum(total, 1), right > 0, tokens, None, num_rounds)

    def joint(self, price: float, replicate: int, *, reuse: bool, positive_weight: float = 0.0) -> Run:
        """Placement, the held-out check, and the estimate that it allows."""
        search = joint(self.world.problems, price=price, reuse=reuse, positive_weight=positive_weight)
        outcomes, tokens, num_rounds, _ = self.drive(search, replicate)
        right, total = self.counts(outcomes, reuse=reuse)
        if guard(self.forest, *self.counts(outcomes, reuse=False)).uses_chain:
            texts = {node: texts_of(c) for node, c in enumerate(self.tallies(outcomes, reuse=reuse))}
            beyond = beyond_counts(right, total, texts)
            known = posteriors(self.forest, right, total, fit(self.forest, right, total, beyond_NG=beyond), beyond_NG=beyond)
        else:
            known = beta_shrinkage(right, total)
        return self.run(known.mean, known.p_positive > 0.5, tokens, known, num_rounds)

    def first_errors(self, num: int, replicate: int, *, reuse: bool) -> Run:
        """Hard labels by binary search; its means are its signs."""
        search = first_errors(self.world.problems, num_continuations=num, reuse=reuse)
        _, tokens, num_rounds, positive = self.drive(search, replicate)
        sign = np.zeros(len(self.keys), bool)
        for name, numbers in positive.items():
            for solution, number in zip(self.world.problems[name], numbers, strict=True):
                for state in solution.states[:number]:
                    sign[self.keys.index((name, state))] = True
        return self.run(sign.astype(float), sign, tokens, None, num_rounds)

    def quality(self, known: Posteriors) -> dict[str, float]:
        """Calibration (largest bin), coverage of the 90 % intervals, and bias by verdict."""
        mean = known.mean[self.forest.path]
        off = mean - self.truth
        noise = np.sqrt(self.truth * (1 - self.truth) / self.world.reference_counts)
        low, high = known.low[self.forest.path] - 1.645 * noise - 0.005, known.high[self.forest.path] + 1.645 * noise + 0.005
        bins = np.minimum((mean * 10).astype(int), 9)
        gaps = [abs(off[bins == b].mean()) for b in range(10) if (bins == b).sum() >= 50]
        right, wrong = off[self.verdict == "right"].mean(), off[self.verdict == "wrong"].mean()
        covered = (low <= self.truth) & (self.truth <= high)
        return {
            "bias": off.mean(),
            "right": right,
            "wrong": wrong,
            "leak": right - wrong,
            "cover": covered.mean(),
            "bin": max(gaps),
        }


# --- comparisons ---------------------------------------------------------------------------------------------------


def pooled(runs: Sequence[Run]) -> Run:
    """The mean of replicates, by problem."""
    fields = ("tokens_P", "squares_P", "steps_P", "hard_errors_P")
    means = [np.mean([getattr(run, name) for run in runs], axis=0) for name in fields]
    return Run(*means, runs[0].estimate, max(run.num_rounds for run in runs))


def times_fewer(
    brute: Run, curve: Sequence[Run], *, hard: bool = False, num_resamples: int = 1000
) -> tuple[float, float, float]:
    """Brute force's tokens over those of a scheme at equal error, and its 95 % interval over problems.

    Interpolated in (log error, log tokens) between the scheme's settings and never extrapolated: its cheapest setting
    counts where even that is better, and 0 where none is as good.
    """
    rng = np.random.default_rng(0)
    num = len(brute.steps_P)
    picks = np.vstack([np.ones(num), rng.multinomial(num, np.full(num, 1 / num), size=num_resamples)])

    def summed(run: Run) -> tuple[Any, Any]:
        errors = run.hard_errors_P if hard else run.squares_P
        return np.log(picks @ run.tokens_P), np.log(np.maximum(picks @ errors, 1e-9))

    tokens, error = summed(brute)
    points = [summed(run) for run in curve]
    ratios = []
    for i in range(len(picks)):
        line = sorted((e[i], t[i]) for t, e in points)
        ratios.append(np.exp(tokens[i] - np.interp(error[i], [e for e, _ in line], [t for _, t in line], left=np.inf)))
    return ratios[0], *np.quantile(ratios[1:], [0.025, 0.975])


def at_equal_tokens(run: Run, brutes: Sequence[Run]) -> float:
    """The RMSE of brute force with as many tokens."""
    line = sorted((np.log(b.tokens), np.log(b.rmse)) for b in brutes)
    return float(np.exp(np.interp(np.log(run.tokens), [t for t, _ in line], [r for _, r in line])))


def report(
    world: World, *, reuse: bool, num_replicates: int = 3, brute: Run | None = None, prices: Sequence[float] = PRICES
) -> dict:
    """Print the tables of one world; returns the numbers that the bars speak of."""
    bench = Bench(world)
    replicates = range(num_replicates)
    brute = brute or pooled([bench.brute(16, r) for r in range(3 * num_replicates)])
    print(f"\n{world.name}: {len(bench.names)} problems, {len(bench.truth):,} steps", flush=True)
    line = "{:32} {:8.1f} tok/step  RMSE {:.4f}  hard {:.4f}  rounds {:2d}".format
    print(line("brute force 16", brute.tokens, brute.rmse, brute.hard_error, 1))
    if reuse:
        again = [pooled([bench.every_prefix(num, r) for r in replicates]) for num in (8, 16, 24)]
        print(line("every prefix 16, reuse", again[1].tokens, again[1].rmse, again[1].hard_error, again[1].num_rounds))
        print("  fewer tokens at equal RMSE: {:.1f} [{:.1f}, {:.1f}]".format(*times_fewer(brute, again)))
    curve = []
    for price in prices:
        runs = [bench.joint(price, r, reuse=reuse) for r in replicates]
        curve.append(pooled(runs))
        known = [bench.quality(run.estimate) for run in runs if run.estimate]
        q = {name: float(np.mean([k[name] for k in known])) for name in known[0]}
        last = curve[-1]
        print(
            line(f"joint, price {price}", last.tokens, last.rmse, last.hard_error, last.num_rounds),
            "bias {bias:+.3f} (right {right:+.3f}, wrong {wrong:+.3f})  cover {cover:.3f}  worst bin {bin:.3f}".format(**q),
            flush=True,
        )
    soft = times_fewer(brute, curve)
    print("  fewer tokens at equal RMSE: {:.1f} [{:.1f}, {:.1f}]".format(*soft))
    signs = [pooled([bench.first_errors(num, r, reuse=reuse) for r in replicates]) for num in (4, 8, 16, 32)]
    print(line("first errors, 16", signs[2].tokens, signs[2].rmse, signs[2].hard_error, signs[2].num_rounds))
    hard = times_fewer(brute, signs, hard=True)
    print("  fewer tokens at equal hard error: {:.1f} [{:.1f}, {:.1f}]".format(*hard))
    curve = [pooled([bench.joint(p, r, reuse=reuse, positive_weight=100.0) for r in replicates]) for p in SIGN_PRICES]
    for price, run in zip(SIGN_PRICES, curve, strict=True):
        print(line(f"joint, price {price}, weight 100", run.tokens, run.rmse, run.hard_error, run.num_rounds), flush=True)
    both = times_fewer(brute, curve, hard=True)
    print("  fewer tokens at equal hard error: {:.1f} [{:.1f}, {:.1f}]".format(*both))
    return {"soft": soft, "hard": hard, "hard_joint": both, "brute": brute}


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policy", type=Path, default=Path("artifacts/policy"))
    parser.add_argument("--seeds", type=Path, default=Path("artifacts/seeds"))
    parser.add_argument("--bank", type=Path, default=Path(".stepforge/label-texts.json"))
    parser.add_argument("--replicates", type=int, default=3)
    options = parser.parse_args()
    report(FreeText(), reuse=False, num_replicates=options.replicates)
    world = Unrelated()
    bench = Bench(world)
    brutes = [pooled([bench.brute(num, r) for r in range(options.replicates)]) for num in (1, 2, 4, 8, 16)]
    print(f"\n{world.name}: the values of adjacent steps have nothing to do with each other")
    line = "joint, price {:<8} {:8.1f} tok/step  RMSE {:.4f}  brute force with as many: {:.4f}"
    for price in PRICES:
        run = pooled([bench.joint(price, r, reuse=False) for r in range(options.replicates)])
        print(line.format(price, run.tokens, run.rmse, at_equal_tokens(run, brutes)), flush=True)
    if options.bank.exists() or (options.policy / "config.json").exists():
        rows = bank(options.policy, options.seeds, options.bank)
        brute = None
        for texts in (True, False):
            for reuse in (False, True):
                world = KnownTruth(rows, equal_prefixes=reuse, texts=texts)
                brute = report(world, reuse=reuse, num_replicates=options.replicates, brute=brute)["brute"]
    else:
        print(f"\nknown truth: skipped, no policy in {options.policy}: run `make demo` first")


if __name__ == "__main__":
    main()
