"""Stage `rollout`: seeds -> solutions, and Monte-Carlo continuations of every prefix of theirs.

Owns how solutions become prefixes and how rows are named; where to sample is `search`'s business, how text
is generated the engine's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components.errors import DataError
from components.lineage import SUMMARY
from components.progress import say
from components.records import (
    CONTINUATION,
    PROBLEM,
    SOLUTION,
    digest,
    prefix_id,
    read_table,
    row_images,
    seed_for,
    write_json,
    write_table,
)
from components.render import STEP_SEPARATOR, paragraphs, prefill, split_steps
from components.search import Outcome, Request, State, monte_carlo
from components.settings import Params, Runtime

Row = dict[str, Any]


def run(params: Params, runtime: Runtime, *, seeds: Path, policy: Path, out: Path) -> dict[str, Any]:
    """Write solutions.parquet and continuations.parquet into `out`; returns tokens sampled and reused.

    Raises:
        DataError: too many solutions are unusable, or a gate found the rows wrong.
        EngineError: the policy cannot be loaded or asked.
    """
    import pyarrow as pa

    from components import quality
    from components.engines import open_engine
    from components.engines.journaled import JournaledEngine
    from components.store import Journal

    problems = {row["problem_id"]: row for row in read_table(seeds / "seeds.parquet", PROBLEM)}
    engine = JournaledEngine(open_engine(policy, runtime), Journal(runtime.home / "journal.sqlite"), name="rollout")
    try:
        solutions = sample_solutions(engine, problems, params, num=params.rollout.num_solutions)
        usable = [row for row in solutions if is_usable(row)]
        if not usable:
            what = f"none of {len(solutions):,} solutions of {len(problems):,} problems is usable"
            raise DataError("rollout", what, "look at the seeds, the policy and rollout.sampling.max_tokens")
        failed_frac = 1 - len(usable) / max(1, len(solutions))
        say("rollout", f"{len(solutions):,} solutions, {failed_frac:.1%} cut off or without a step")
        if failed_frac > params.rollout.max_failed_frac:
            limit = f"rollout.max_failed_frac allows {params.rollout.max_failed_frac:.1%}"
            what = f"{failed_frac:.1%} of the solutions were cut off or have no step; {limit}"
            raise DataError("rollout", what, "raise rollout.sampling.max_tokens, or look at the policy")
        continuations = _continue(engine, problems, usable, params)
    finally:
        engine.close()
    write_table(out / "solutions.parquet", solutions, SOLUTION)
    write_table(out / "continuations.parquet", continuations, CONTINUATION)
    gate = quality.check_rollouts(
        pa.Table.from_pylist(solutions, schema=SOLUTION), pa.Table.from_pylist(continuations, schema=CONTINUATION)
    )
    quality.enforce(gate, out)
    write_json(out / SUMMARY, _summary(problems, solutions, usable, continuations))
    return engine.cost()


def sample_solutions(engine: Any, problems: Mapping[str, Row], params: Params, *, num: int) -> list[Row]:
    """`num` solutions of every problem, graded; rows of SOLUTION in the problems' order."""
    from components.engines import Prompt
    from components.grading import VERIFIER_DIGEST, grade

    seeds = {key: [seed_for(params.seed, key, "solution", i) for i in range(num)] for key in problems}
    prompts = [Prompt(row["question"], row_images(row), seeds=tuple(seeds[key])) for key, row in problems.items()]
    sampling = params.rollout.sampling
    rows = []
    for (key, problem), completions in zip(problems.items(), engine.generate(prompts, sampling), strict=True):
        for i, completion in enumerate(completions):
            verdict = grade(
                completion.text, problem["answer"], problem["answer_type"], finish_reason=completion.finish_reason
            )
            rows.append(
                {
                    "solution_id": digest(
                        "solution", key, engine.policy_digest, sampling.model_dump(mode="json"), seeds[key][i]
                    ),
                    "problem_id": key,
                    "index": i,
                    "seed": seeds[key][i],
                    "steps": split_steps(completion.text, max_steps=params.rollout.max_steps),
                    "answer": verdict.answer,
                    "verdict": verdict.value,
                    "rule": verdict.rule,
                    "finish_reason": completion.finish_reason,
                    "num_tokens": completion.num_tokens,
                    "logprob": completion.logprob,
                    "policy_digest": engine.policy_digest,
                    "verifier_digest": VERIFIER_DIGEST,
                }
            )
    return rows


def is_usable(solution: Row) -> bool:
    """Whether a solution has steps to label: it ended by itself and says something."""
    return solution["finish_reason"] == "stop" and bool(solution["steps"])


def _continue(engine: Any, problems: Mapping[str, Row], solutions: Sequence[Row], params: Params) -> list[Row]:
    """Continuations of every unfinished prefix of the solutions; rows of CONTINUATION."""
    from components.engines import Prompt
    from components.grading import VERIFIER_DIGEST, grade

    prefixes: dict[str, dict[State, None]] = {}
    for row in solutions:
        states = prefixes.setdefault(row["problem_id"], {})
        for cut in range(1, len(row["steps"])):
            states[paragraphs(row["steps"][:cut])] = None
    settings = params.rollout
    search = monte_carlo(prefixes, num_continuations=settings.num_continuations, reuse=settings.reuse_prefixes)
    rows: list[Row] = []
    answers: Sequence[Sequence[Outcome]] | None = None
    while True:
        try:
            requests = next(search) if answers is None else search.send(answers)
        except StopIteration:
            return rows
        asked = [_Asked(request, params.seed) for request in requests]
        prompts = [
            Prompt(problems[a.request.problem]["question"], row_images(problems[a.request.problem]), a.prefill, a.seeds)
            for a in asked
        ]
        say("rollout", f"{sum(len(p.seeds) for p in prompts):,} continuations of {len(prompts):,} prefixes")
        answers = []
        for a, completions in zip(asked, engine.generate(prompts, settings.sampling), strict=True):
            problem = problems[a.request.problem]
            outcomes = []
            for i, completion in enumerate(completions):
                text = a.prefill + completion.text
                verdict = grade(text, problem["answer"], problem["answer_type"], finish_reason=completion.finish_reason)
                steps = [part.strip() for part in completion.text.split(STEP_SEPARATOR) if part.strip()]
                outcomes.append(Outcome(tuple(steps), verdict.value))
                rows.append(
                    {
                        "continuation_id": digest("continuation", a.prefix_id, engine.policy_digest, a.seeds[i]),
                        "problem_id": a.request.problem,
                        "prefix_id": a.prefix_id,
                        "num_prefix_steps": len(a.request.state),
                        "index": a.request.first + i,
                        "seed": a.seeds[i],
                        "steps": steps,
                        "verdict": verdict.value,
                        "rule": verdict.rule,
                        "finish_reason": completion.finish_reason,
                        "num_tokens": completion.num_tokens,
                        "policy_digest": engine.policy_digest,
                        "verifier_digest": VERIFIER_DIGEST,
                    }
                )
            answers.append(outcomes)


class _Asked:
    """A request with its name, its text and its seeds."""

    def __init__(self, request: Request, seed: int) -> None:
        self.request = request
        self.prefix_id = prefix_id(request.problem, request.state)
        self.prefill = prefill(request.state)
        indices = range(request.first, request.first + request.num)
        self.seeds = tuple(seed_for(seed, request.problem, self.prefix_id, index) for index in indices)


def _summary(
    problems: Mapping[str, Row], solutions: Sequence[Row], usable: Sequence[Row], continuations: Sequence[Row]
) -> dict[str, Any]:
    verdicts = {"right": 0, "wrong": 0, "unknown": 0}
    for row in continuations:
        verdicts[row["verdict"]] += 1
    return {
        "problems": len(problems),
        "solutions": len(solutions),
        "failed_solutions": len(solutions) - len(usable),
        "right_solutions": sum(row["verdict"] == "right" for row in solutions),
        "prefixes": len({row["prefix_id"] for row in continuations}),
        "continuations": len(continuations),
        "tokens": sum(row["num_tokens"] for row in (*solutions, *continuations)),
        "verdicts": verdicts,
    }
