"""Stage `rollout`: seeds -> solutions, continuations of their prefixes, and what these came to.

Owns how solutions become prefixes and how rows are named; where to sample is `search`'s business, how text
is generated and graded `sampling`'s. Works on a bounded number of problems at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from components.errors import DataError
from components.lineage import SUMMARY
from components.prefixes import is_usable, outcome, own_tails, prefix_rows, unfinished
from components.progress import say
from components.records import (
    CONTINUATION,
    PREFIX,
    PROBLEM,
    SOLUTION,
    TableWriter,
    digest,
    prefix_id,
    read_table,
    seed_for,
    write_json,
)
from components.sampling import Ask, Sampler
from components.search import Counts, Outcome, Request, Search, State, monte_carlo
from components.settings import FirstErrors, Joint, MonteCarlo, OmegaPrm, Params, Runtime
from components.tasks import Task

Row = dict[str, Any]
PROBLEMS_AT_ONCE = 1024  # in flight together: full batches, bounded memory; decides no result
TREES_AT_ONCE = 256  # a tree holds up to 1000 rollouts, and asks for 16 at a time
_MIN_SOLUTIONS = 200  # before the share of failed ones means something


def run(params: Params, runtime: Runtime, *, seeds: Path, policy: Path, out: Path) -> dict[str, Any]:
    """Write solutions.parquet, continuations.parquet and prefixes.parquet into `out`; returns tokens sampled and reused.

    Raises:
        DataError: too many solutions are unusable, or a gate found the rows wrong.
        EngineError: the policy cannot be loaded or asked.
    """
    from components.quality import RolloutsGate, enforce

    problems = read_table(seeds / "seeds.parquet", PROBLEM)
    if not problems:
        raise DataError(str(seeds / "seeds.parquet"), "no rows", "there is nothing to roll out: look at what curate left")
    gate = RolloutsGate()
    seen: Counter[str] = Counter(problems=len(problems))
    with (
        Sampler(params, runtime, policy, name="rollout") as sampler,
        TableWriter(out / "solutions.parquet", SOLUTION) as solutions,
        TableWriter(out / "continuations.parquet", CONTINUATION) as continuations,
        TableWriter(out / "prefixes.parquet", PREFIX) as prefixes,
    ):
        at_once = TREES_AT_ONCE if isinstance(params.rollout.search, OmegaPrm) else PROBLEMS_AT_ONCE
        for start in range(0, len(problems), at_once):
            some = {row["problem_id"]: row for row in problems[start : start + at_once]}
            rolled = roll_out(sampler, some, params)
            _count(seen, rolled)
            _refuse_failures(seen, params.rollout.max_failed_frac, is_last=start + at_once >= len(problems))
            tables = [
                writer.write(rows)
                for writer, rows in zip(
                    (solutions, continuations, prefixes),
                    (rolled.solutions, rolled.continuations(), rolled.prefixes()),
                    strict=True,
                )
            ]
            gate.add(*tables)
            say("rollout", f"{min(start + at_once, len(problems)):,} of {len(problems):,} problems done")
        cost = sampler.cost()
    enforce(gate.gate(), out)
    settings = {"counts_passing": params.rollout.counts_passing, "temperature": params.rollout.sampling.temperature}
    write_json(out / SUMMARY, _summary(seen) | settings)
    return cost


class Rolled:
    """What was sampled for some problems; fills up as a search asks."""

    def __init__(self, sampler: Sampler, problems: Mapping[str, Row], params: Params) -> None:
        self.sampler, self.problems, self.settings, self.seed = sampler, problems, params.rollout, params.seed
        self.task: Task = sampler.task
        self.solutions: list[Row] = []
        self._num_solutions: Counter[str] = Counter()
        self.rows: dict[tuple[str, State], list[Row]] = {}
        """Continuations by (problem, state), in the order of their indices."""

    def sample_solutions(self) -> None:
        """`num_solutions` solutions of every problem."""
        indices = range(self.settings.num_solutions)
        asks = [
            Ask(problem, tuple(seed_for(self.seed, key, "solution", i) for i in indices))
            for key, problem in self.problems.items()
        ]
        for key, rows in zip(self.problems, self.sampler.rows(asks, self.settings.sampling), strict=True):
            self.solutions += [self._solution(key, row, ("solution", row["seed"])) for row in rows]

    def usable(self) -> list[Row]:
        """The solutions that have steps to label."""
        return [row for row in self.solutions if is_usable(row)]

    def tail_tokens(self, solution: Row) -> list[float]:
        """The tokens that the solution itself spent behind each of its unfinished prefixes; by characters."""
        lengths = [len(step) for step in solution["steps"]]
        total = max(1, sum(lengths))
        return [solution["num_tokens"] * sum(lengths[cut:]) / total for cut in range(1, len(lengths))]

    def drive(self, search: Search) -> Any:
        """Sample what a search asks for; returns what it returns."""
        outcomes: Sequence[Sequence[Outcome]] | None = None
        while True:
            try:
                requests = next(search) if outcomes is None else search.send(outcomes)
            except StopIteration as stop:
                return stop.value
            outcomes = self._outcomes(requests)

    def _outcomes(self, requests: Sequence[Request]) -> list[list[Outcome]]:
        asks = []
        for request in requests:
            prefix = prefix_id(request.problem, request.state)
            indices = range(request.first, request.first + request.num)
            seeds = tuple(seed_for(self.seed, request.problem, prefix, index) for index in indices)
            asks.append(Ask(self.problems[request.problem], seeds, request.state))
        say("rollout", f"{sum(len(a.seeds) for a in asks):,} continuations of {len(asks):,} prefixes")
        outcomes = []
        for request, rows in zip(requests, self.sampler.rows(asks, self.settings.sampling), strict=True):
            self.rows.setdefault((request.problem, request.state), []).extend(rows)
            outcomes.append([outcome(self.task, row, temperature=self.settings.sampling.temperature) for row in rows])
        return outcomes

    def keep_path(self, problem: str, state: State, index: int) -> None:
        """Make a solution of a continuation that a tree search found: the state it continued, and its text."""
        row = self.rows[problem, state][index]
        text = self.task.prefill(state) + row["text"]
        self.solutions.append(self._solution(problem, row | {"text": text}, ("path", list(state), row["seed"])))

    def _solution(self, problem: str, row: Row, made_by: tuple[Any, ...]) -> Row:
        sampling = self.settings.sampling.model_dump(mode="json")
        name = digest("solution", problem, self.sampler.policy_digest, self.task.digest, sampling, made_by)
        index = self._num_solutions[problem]
        self._num_solutions[problem] += 1
        steps = self.task.steps(row["text"], max_steps=self.settings.max_steps)
        return {"solution_id": name, "problem_id": problem, "index": index, "steps": steps, **row}

    def continuations(self) -> list[Row]:
        """Rows of CONTINUATION, in the order of the problems, then from the shortest prefix on."""
        order = {problem: i for i, problem in enumerate(self.problems)}
        named = [(order[p], len(state), prefix_id(p, state), p, rows) for (p, state), rows in self.rows.items()]
        return [
            {
                "continuation_id": digest("continuation", prefix, self.sampler.policy_digest, row["seed"]),
                "problem_id": problem,
                "prefix_id": prefix,
                "num_prefix_units": num_units,
                "index": index,
                **row,
            }
            for _, num_units, prefix, problem, rows in sorted(named, key=lambda n: n[:3])
            for index, row in enumerate(rows)
        ]

    def prefixes(self) -> list[Row]:
        """Rows of PREFIX, in the order of the problems."""
        solutions: dict[str, list[Row]] = {problem: [] for problem in self.problems}
        continuations: dict[str, dict[State, list[Row]]] = {problem: {} for problem in self.problems}
        for row in self.solutions:
            solutions[row["problem_id"]].append(row)
        for (problem, state), rows in self.rows.items():
            continuations[problem][state] = rows
        digests = {"policy_digest": self.sampler.policy_digest, "verifier_digest": self.sampler.verifier.digest}
        return [
            row
            for problem in self.problems
            for row in prefix_rows(
                self.task,
                problem,
                solutions[problem],
                continuations[problem],
                reuse=self.settings.counts_passing,
                stopping_rule=lambda _, counts: _stopping_rule(self.settings.search, counts),
                digests=digests,
                temperature=self.settings.sampling.temperature,
            )
        ]


def roll_out(sampler: Sampler, problems: Mapping[str, Row], params: Params) -> Rolled:
    """Solutions and continuations of some problems; what one problem gets does not depend on the others."""
    rolled = Rolled(sampler, problems, params)
    settings, reuse = params.rollout.search, params.rollout.reuse_prefixes
    options = settings.model_dump(exclude={"type"})
    if isinstance(settings, OmegaPrm):
        from components.omegaprm import omegaprm, together

        trees = rolled.drive(together({problem: omegaprm(problem, **options) for problem in problems}))
        for problem, tree in trees.items():
            for path in tree.paths:
                rolled.keep_path(problem, path.rollout.state, path.rollout.index)
        return rolled
    rolled.sample_solutions()
    if isinstance(settings, MonteCarlo):
        prefixes: dict[str, dict[State, None]] = {problem: {} for problem in problems}
        for row in rolled.usable():
            prefixes[row["problem_id"]] |= dict.fromkeys(unfinished(rolled.task, row["steps"]))
        rolled.drive(monte_carlo(prefixes, reuse=reuse, **options))
        return rolled
    from components.first_errors import first_errors
    from components.joint import Solution, joint

    known: dict[str, list[Solution]] = {problem: [] for problem in problems}
    for row in rolled.usable():
        states = unfinished(rolled.task, row["steps"])
        tails = own_tails(rolled.task, row["steps"])
        known[row["problem_id"]].append(Solution(states, rolled.tail_tokens(row), row["verdict"], tails))
    rolled.drive((joint if isinstance(settings, Joint) else first_errors)(known, reuse=reuse, **options))
    return rolled


def _stopping_rule(settings: MonteCarlo | Joint | FirstErrors | OmegaPrm, counts: Counts) -> str:
    if isinstance(settings, FirstErrors):
        return "first_success"
    if isinstance(settings, Joint):
        return "adaptive"
    if not counts.num:
        return "early_stop" if isinstance(settings, MonteCarlo) and settings.stop_at_zero else "unmeasured"
    return "tree_search" if isinstance(settings, OmegaPrm) else "fixed"


def _count(seen: Counter[str], rolled: Rolled) -> None:
    rows: Iterable[Row] = [row for rows in rolled.rows.values() for row in rows]
    for row in rows:
        seen[f"verdict_{row['verdict']}"] += 1
        seen["tokens"] += row["num_tokens"]
        seen["continuations"] += 1
    seen["prefixes"] += len(rolled.rows)
    for row in rolled.solutions:
        if not isinstance(rolled.settings.search, OmegaPrm):  # there they are continuations, and counted as such
            seen["tokens"] += row["num_tokens"]
        seen["right_solutions"] += row["verdict"] == "right"
    seen["solutions"] += len(rolled.solutions)
    seen["failed_solutions"] += len(rolled.solutions) - len(rolled.usable())


def _refuse_failures(seen: Counter[str], max_failed_frac: float, *, is_last: bool) -> None:
    if not is_last and seen["solutions"] < _MIN_SOLUTIONS:
        return
    failed, total = seen["failed_solutions"], seen["solutions"]
    if failed == total:
        what = f"none of {total:,} solutions of {seen['problems']:,} problems is usable"
        raise DataError("rollout", what, "look at the seeds, the policy and rollout.sampling.max_tokens")
    if failed > max_failed_frac * total:
        limit = f"rollout.max_failed_frac allows {max_failed_frac:.1%}"
        what = f"{failed / total:.1%} of the solutions were cut off or have no step; {limit}"
        raise DataError("rollout", what, "raise rollout.sampling.max_tokens, or look at the policy")


def _summary(seen: Mapping[str, int]) -> dict[str, Any]:
    names = ("problems", "solutions", "failed_solutions", "right_solutions", "prefixes", "continuations", "tokens")
    verdicts = {value: seen[f"verdict_{value}"] for value in ("right", "wrong", "unknown")}
    return {name: seen[name] for name in names} | {"verdicts": verdicts}
