"""Problems -> graded completions: the one door through which every stage samples.

Owns how a problem and its first units become a prompt, and how a completion becomes the columns that every sampled
row has. Knows nothing of solutions, continuations or candidates: the stages name their rows themselves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.engines import Prompt, open_engine
from components.engines.journaled import JournaledEngine
from components.grading import Gold
from components.records import row_images
from components.settings import Params, Runtime, Sampling
from components.store import Journal
from components.tasks import Task, load_task
from components.verifier import Asked, Verifier

Row = dict[str, Any]
BLOCK = 8  # whole texts of one request, where a server counts the seeds of a request as one: a pool then grows by blocks


@dataclass(frozen=True)
class Ask:
    """Complete a problem, from the start or behind some units, once for each seed."""

    problem: Mapping[str, Any]
    """A row of records.PROBLEM."""
    seeds: tuple[int, ...]
    units: tuple[str, ...] = ()


class Sampler:
    """Samples with the journal behind the engine, and grades. A context manager: closing ends the processes it started.

    Args:
        continues: whether units will stand before what is asked; see `open_engine`.
    Raises:
        EngineError: the policy cannot be loaded or asked.
    """

    def __init__(self, params: Params, runtime: Runtime, policy: Path, *, name: str, continues: bool = True) -> None:
        self.task: Task = load_task(params.task)
        self.journal = Journal(runtime.home / "journal.sqlite")
        self.verifier = Verifier(params.verify, runtime, self.journal)
        self.engine = JournaledEngine(open_engine(policy, runtime, continues=continues), self.journal, name=name)
        self.policy_digest = self.engine.policy_digest

    def rows(self, asks: Sequence[Ask], sampling: Sampling) -> list[list[Row]]:
        """The columns that records._COMPLETION lists, for every completion: `[asks][seeds]`."""
        prompts = [
            Prompt(
                self.task.question(ask.problem["question"]),
                row_images(ask.problem),
                self.task.prefill(ask.units),
                ask.seeds,
            )
            for ask in asks
        ]
        completions = self.engine.generate(prompts, sampling)
        verdicts = iter(
            self.verifier.grade(
                [
                    Asked(ask.problem["question"], prompt.prefill + c.text, gold_of(ask.problem, self.task), c.finish_reason)
                    for ask, prompt, row in zip(asks, prompts, completions, strict=True)
                    for c in row
                ]
            )
        )
        return [
            [
                {
                    "seed": seed,
                    "text": completion.text,
                    "answer": (verdict := next(verdicts)).answer,
                    "verdict": verdict.value,
                    "rule": verdict.rule,
                    "finish_reason": completion.finish_reason,
                    "num_tokens": completion.num_tokens,
                    "logprob": completion.logprob,
                    "policy_digest": self.policy_digest,
                    "verifier_digest": self.verifier.digest,
                }
                for seed, completion in zip(ask.seeds, row, strict=True)
            ]
            for ask, row in zip(asks, completions, strict=True)
        ]

    def cost(self) -> dict[str, int]:
        """Tokens sampled by this run, and tokens that the journal gave back."""
        return self.engine.cost()

    def __enter__(self) -> Sampler:
        return self

    def __exit__(self, *_: object) -> None:
        self.verifier.close()
        self.engine.close()


def gold_of(problem: Mapping[str, Any], task: Task) -> Gold:
    """What responses to a problem (a row of records.PROBLEM) are compared with."""
    return Gold(problem["answer"], task.answer_type or problem["answer_type"], options=tuple(problem.get("options") or ()))
