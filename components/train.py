"""Stage `train`: labels -> the process reward model, and the blind control trained with the same settings.

Owns what is put together for training; the model and its losses are `prm`'s. The models train side by side,
one process each, so that none of them can disturb another.
"""

from __future__ import annotations

import math
import multiprocessing
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import DataError, SettingsError, StepForgeError
from components.lineage import SUMMARY, exclusive
from components.progress import say
from components.records import (
    LABEL,
    PROBLEM,
    SOLUTION,
    digest,
    read_json,
    read_rows,
    read_table,
    row_images,
    seed_for,
    tree_sha256,
    write_json,
)
from components.settings import Params, Runtime, limit_threads
from components.tasks import Task, load_task

if TYPE_CHECKING:  # torch is imported where it is needed
    from components.formulations import Targets
    from components.packing import Tree
    from components.prm import RewardModel
    from components.render import Encoded, Rendered


def run(
    params: Params,
    runtime: Runtime,
    *,
    seeds: Path,
    rollouts: Path,
    labels: Path,
    policy: Path,
    statements: Path | None,
    out: Path,
) -> dict[str, Any]:
    """Write one checkpoint folder a model (`prm`, then the controls) into `out`.

    Raises:
        SettingsError: the perception task is on but there are no statements.
        DataError: nothing to learn from, or a loss that is not finite.
        EngineError: the policy cannot be loaded.
    """
    if params.train.perception is not None and statements is None:
        raise SettingsError(
            "command line", "train.perception is on but there are no statements", "add --statements FILE, or set it to null"
        )
    names = ["prm", *params.train.controls]
    inputs = [seeds, rollouts, labels, policy] + ([statements] if statements else [])
    threads = max(1, runtime.num_threads // len(names))
    work_digest = digest(
        "train-2", params.seed, params.task, params.train.model_dump(mode="json"), [tree_sha256(p) for p in inputs], threads
    )
    with exclusive(runtime.home, f"train-{work_digest}") as work:
        jobs = [
            (params, runtime, threads, name, seeds, rollouts, labels, policy, statements, work, out / name) for name in names
        ]
        _side_by_side(jobs, runtime.num_workers)
        reports = {name: read_json(work / f"{name}-report.json") for name in names}
        shutil.rmtree(work, ignore_errors=True)
    summary = {**reports["prm"], "controls": params.train.controls, "prm_digest": reports["prm"]["digest"]}
    summary |= {f"{name}_final_loss": reports[name]["final_loss"] for name in params.train.controls}
    summary.pop("digest")
    write_json(out / SUMMARY, summary)
    return {}


def _side_by_side(jobs: list[tuple[Any, ...]], num_workers: int) -> None:
    """Run the jobs in processes of their own, `num_workers` at a time; the first failure ends them all."""
    context = multiprocessing.get_context("spawn")
    errors = context.SimpleQueue()
    waiting = list(jobs)
    running: list[Any] = []
    try:
        while waiting or running:
            while waiting and len(running) < num_workers:
                process = context.Process(target=_job, args=(waiting.pop(0), errors), daemon=True)
                process.start()
                running.append(process)
            running[0].join(0.2)
            for process in [p for p in running if p.exitcode is not None]:
                running.remove(process)
                if process.exitcode != 0:
                    if not errors.empty():
                        raise errors.get()
                    if process.exitcode >= 0:
                        raise DataError(
                            "train", f"a training process ended with {process.exitcode}", "its own lines stand above"
                        )
                    raise DataError(
                        "train",
                        f"a training process ended with {process.exitcode}",
                        "out of memory? lower train.optimiser.batch_size",
                    )
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.join(10)


def _job(job: tuple[Any, ...], errors: Any) -> None:
    limit_threads(job[2])
    try:
        _train(*job)
    except StepForgeError as error:
        errors.put(error)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _train(
    params: Params,
    runtime: Runtime,
    threads: int,
    name: str,
    seeds: Path,
    rollouts: Path,
    labels: Path,
    policy: Path,
    statements: Path | None,
    work: Path,
    out: Path,
) -> None:
    import numpy as np
    import torch

    from components.checkpoints import policy_digest
    from components.optim import batch_rows, fit, freeze_vision
    from components.perception import Perception
    from components.prm import RewardModel

    torch.set_num_threads(threads)
    settings = params.train
    task = load_task(params.task)
    model = RewardModel.from_policy(
        policy,
        formulation=params.label.formulation,
        template=settings.template,
        marker=settings.marker,
        label_tokens=settings.label_tokens,
        separator=task.splitter.separator,
        device=runtime.device,
        sees=name != "blind",
        max_tokens=settings.max_tokens,
    )
    if settings.freeze_vision:
        freeze_vision(model.model)
    model.train()
    examples = _examples(model, task, seeds, rollouts, labels)
    if not examples:
        raise DataError(str(labels), "no labelled step", "lower label.min_verdicts, or sample more continuations")
    say("train", f"{name}: {len(examples):,} solutions, {sum(len(e.targets) for e in examples):,} labelled steps")

    perception, accuracies = None, [float("nan")]
    if settings.perception is not None and statements is not None:
        seeing, asked = settings.perception, load_task(params.task)
        statement_rows = [
            row | {"question": asked.question(row["question"])} for row in read_rows(statements, ["question", "statements"])
        ]
        perception = Perception(statement_rows, model, corrupted_frac=seeing.corrupted_frac)
        warmed = perception

        def warmup_at(step: int) -> tuple[Any, str]:
            loss, accuracy = warmed.loss(seeing.warmup.batch_size, seed_for(params.seed, "perception", step))
            accuracies.append(accuracy)
            return loss, f"{name} sees {accuracy:.3f}"

        fit(model, warmup_at, seeing.warmup, name="train", checkpoint=work / f"{name}-warmup.pt")

    def loss_at(step: int) -> tuple[Any, str]:
        picked = [
            examples[i]
            for i in batch_rows(len(examples), settings.optimiser.batch_size, step, seed_for(params.seed, "train"))
        ]
        trees, order = trees_of(model, picked)
        loss = model.formulation.loss(model.logits(trees), targets_of(order, str(model.head.device)))
        note = f"{name} loss {loss.item():.3f}"
        if perception is not None and settings.perception is not None and settings.perception.aux_weight > 0:
            aux, _ = perception.loss(settings.perception.aux_batch_size, seed_for(params.seed, "auxiliary", step))
            loss = loss + settings.perception.aux_weight * aux
        return loss, note

    final_loss = fit(model, loss_at, settings.optimiser, name="train", checkpoint=work / f"{name}.pt")
    model.eval()
    contract = {
        "task": params.task,
        "task_digest": task.digest,
        "policy_digest": policy_digest(policy),
        "labels_sha256": tree_sha256(labels),
        "seed": params.seed,
        "train": settings.model_dump(mode="json"),
    }
    checkpoint_digest = model.save(out, policy, contract)
    accuracy = float(np.mean(accuracies[-20:]))
    report = {
        "solutions": len(examples),
        "labels": sum(len(e.targets) for e in examples),
        "steps": settings.optimiser.num_steps,
        "final_loss": round(final_loss, 6),
        "perception_accuracy": round(accuracy, 6) if math.isfinite(accuracy) else None,
        "digest": checkpoint_digest,
    }
    write_json(work / f"{name}-report.json", report)


@dataclass(frozen=True)
class Example:
    """A solution to learn from."""

    problem_id: str
    prompt: Encoded
    rendered: Rendered
    """Its markers are those of the labelled steps."""
    targets: list[tuple[float, int, int, float]]
    """(label, k, n, weight) of each labelled step."""


def trees_of(model: RewardModel, examples: Sequence[Example]) -> tuple[list[Tree], list[Example]]:
    """The examples as trees, one prompt a tree, and the examples in the order of the trees' places."""
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.problem_id, []).append(example)
    trees: list[Tree] = []
    for group in groups.values():
        trees += model.trees(group[0].prompt, [e.rendered for e in group])
    return trees, [e for group in groups.values() for e in group]


def targets_of(examples: Sequence[Example], device: str) -> Targets:
    """The targets of examples, step by step, as tensors."""
    import torch

    from components.formulations import Targets

    columns = torch.tensor([t for e in examples for t in e.targets], device=device).reshape(-1, 4).T
    return Targets(*columns)


def _examples(model: RewardModel, task: Task, seeds: Path, rollouts: Path, labels: Path) -> list[Example]:
    """A row a solution with a labelled step that fits into the model; what does not fit is counted and said."""
    from components.render import Rendered

    problems = {row["problem_id"]: row for row in read_table(seeds / "seeds.parquet", PROBLEM)}
    of_solution: dict[str, dict[int, tuple[float, int, int, float]]] = defaultdict(dict)
    columns = ["solution_id", "step", "label", "num_right", "num_verdicts", "weight"]
    for row in read_table(labels / "labels.parquet", LABEL, columns):
        of_solution[row["solution_id"]][row["step"]] = tuple(row[name] for name in columns[2:])  # type: ignore[assignment]
    examples = []
    num_cut = 0
    for row in read_table(rollouts / "solutions.parquet", SOLUTION, ["solution_id", "problem_id", "steps"]):
        known = of_solution.get(row["solution_id"])
        if not known:
            continue
        if row["problem_id"] not in problems or max(known) >= len(row["steps"]):
            what = f"the labels of solution {row['solution_id']} do not fit its problem or its steps"
            raise DataError(str(labels), what, "seeds, rollouts and labels are not of one run: run label again")
        problem = problems[row["problem_id"]]
        prompt = model.renderer.prompt(task.question(problem["question"]), row_images(problem))
        rendered = model.renderer.solution(row["steps"]).within(model.max_tokens - len(prompt.ids))
        steps = [step for step in sorted(known) if step < len(rendered.markers)]
        num_cut += len(known) - len(steps)
        if steps:
            markers = [rendered.markers[step] for step in steps]
            shown = Rendered(rendered.ids[: markers[-1] + 1], markers)
            examples.append(Example(row["problem_id"], prompt, shown, [known[step] for step in steps]))
    if num_cut:
        say("train", f"{num_cut:,} labelled steps lie behind {model.max_tokens:,} tokens (train.max_tokens): not learnt")
    return examples
