"""Stage `train`: labels -> the process reward model, and the blind control trained with the same settings.

Owns what is put together for training, and what is measured at its end for the contract; the model and its losses are
`prm`'s. Alone, the models train side by side, one process each, so that none of them can disturb another; under a
launcher all processes train one model after the other.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import DataError, SettingsError, StepForgeError
from components.lineage import SUMMARY, work_folder
from components.progress import say
from components.records import (
    digest,
    file_sha256,
    read_json,
    replacing,
    seed_for,
    tree_sha256,
    write_json,
)
from components.settings import Params, Runtime, limit_threads
from components.tasks import load_task

if TYPE_CHECKING:  # torch is imported where it is needed
    from components.examples import Example
    from components.processes import Crew

HISTORY = "history.jsonl"


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
    _of_formulation(labels, params.label.formulation)
    names = ["prm", *params.train.controls]
    inputs = [seeds, rollouts, labels, policy] + ([statements] if statements else [])
    together = runtime.world_size > 1 or runtime.deepspeed is not None
    threads = runtime.num_threads if together else max(1, runtime.num_threads // len(names))
    learnt = [params.seed, params.task, params.label.formulation, params.train.model_dump(mode="json")]
    work_digest = digest("train-4", learnt, [tree_sha256(p) for p in inputs], threads)
    with work_folder(runtime, f"train-{work_digest}") as work:
        jobs = [
            (params, runtime, threads, name, seeds, rollouts, labels, policy, statements, work, out / name) for name in names
        ]
        if together:
            for job in jobs:
                _train(*job)
        else:
            _side_by_side(jobs, runtime.num_workers)
        if runtime.rank > 0:
            return {}
        reports = {name: read_json(work / f"{name}-report.json") for name in names}
        shutil.rmtree(work, ignore_errors=True)
    prm_digest = _write_controls(out, reports)
    summary = {**reports["prm"], "controls": params.train.controls, "prm_digest": prm_digest}
    summary |= {f"{name}_final_loss": reports[name]["final_loss"] for name in params.train.controls}
    for name in ("digest", "held_out"):
        summary.pop(name)
    write_json(out / SUMMARY, summary)
    return {}


def _write_controls(out: Path, reports: dict[str, dict[str, Any]]) -> str:
    """Put into the contract of `prm` what it and its controls are worth on the problems kept aside; returns its digest."""
    from components.contract import CONTRACT, write_contract

    held_out = reports["prm"]["held_out"]
    contract = read_json(out / "prm" / CONTRACT)
    if held_out is not None:
        controls = {name: report["held_out"]["prm"] for name, report in reports.items() if name != "prm"}
        contract["controls"] = held_out | controls
    return str(write_contract(out / "prm", contract)["digest"])


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


def _end_with_parent() -> None:
    """End this process when the one that started it is gone: killed, it cannot end its children, who would train on
    beside the run that takes up its work."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _job(job: tuple[Any, ...], errors: Any) -> None:
    _end_with_parent()
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
    import torch

    from components.adaptation import adapt
    from components.checkpoints import policy_digest
    from components.examples import by_problem, read_examples, with_other_pictures
    from components.learner import Learner, watched_of
    from components.licences import licence_of
    from components.optim import Watch, batch_groups, fit
    from components.perception import Perception
    from components.prm import RewardModel
    from components.processes import Crew
    from components.statements import read_pictures

    torch.set_num_threads(threads)
    settings = params.train
    crew = Crew(runtime)
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
    marker_id = model.renderer.marker_id
    adapt(model.model, settings.freeze, settings.lora, [] if marker_id is None else [marker_id])
    if runtime.checkpoint_activations:
        model.model.activation_checkpointing_enable({"use_reentrant": False})
    examples = read_examples(model, task, seeds, rollouts, labels, settings.dev_frac)
    kept_aside = [e for e in examples if e.is_dev]
    groups = by_problem([e for e in examples if not e.is_dev])
    if not groups and kept_aside:
        what = f"all {len(by_problem(kept_aside)):,} problems with labels are kept aside"
        raise DataError(str(labels), what, f"lower train.dev_frac: it is {settings.dev_frac}")
    if not any(target[3] > 0 for group in groups for e in group for target in e.targets):
        raise DataError(
            str(labels), "no labelled step that counts", "lower label.min_verdicts, or sample more continuations"
        )
    _uniform(crew, examples)
    num_solutions, num_labels = sum(map(len, groups)), sum(len(e.targets) for group in groups for e in group)
    if crew.is_first:
        dev = f", {len(by_problem(kept_aside)):,} kept aside" if kept_aside else ""
        say("train", f"{name}: {num_solutions:,} solutions of {len(groups):,} problems, {num_labels:,} labelled steps{dev}")

    perception, perceived = None, float("nan")
    if settings.perception is not None and statements is not None:
        perception = Perception(
            read_pictures(statements, task.question),
            model,
            corrupted_frac=settings.perception.corrupted_frac,
            corruptions=settings.perception.corruptions,
            max_statements=settings.perception.max_statements,
        )
    elif not _is_tied(model.model):
        model.model.get_output_embeddings().requires_grad_(False)  # words are not learnt: the head is
    seen = model.shares  # tried before wrappers take the weights apart
    learner = Learner(model, perception, runtime.tokens_at_once)
    model.train()

    def unfinished(leg: str) -> Path:
        kind = "pt" if crew.config is None else f"zero{crew.stage}-{crew.size}"
        return work / f"{name}{leg}.{kind}"

    options: dict[str, Any] = {"name": "train", "crew": crew, "outside": [model.head]}
    if settings.perception is not None and perception is not None:
        warmup = settings.perception.warmup
        fitted = fit(
            model,
            learner.loss_of,
            lambda step: learner.statements(warmup.batch_size, seed_for(params.seed, "perception", step), crew),
            warmup,
            checkpoint=unfinished("-warmup"),
            note=lambda numbers: f"{name} sees {numbers[2]:.3f}",
            **options,
        )
        perceived = fitted.final(2)

    optimiser = settings.optimiser
    batches = batch_groups(
        [len(g) for g in groups], optimiser.batch_size, optimiser.num_steps, seed_for(params.seed, "train")
    )

    def parts_at(step: int) -> list[Any]:
        parts: list[Any] = learner.parts([e for i in batches[step] for e in groups[i]], crew)
        auxiliary = settings.perception
        if perception is not None and auxiliary is not None and auxiliary.aux_weight > 0:
            seed = seed_for(params.seed, "auxiliary", step)
            parts += learner.statements(auxiliary.aux_batch_size, seed, crew, auxiliary.aux_weight)
        return parts

    held_out = watched_of(kept_aside, model) if kept_aside else None
    watch = None
    if held_out is not None:
        watched = held_out

        def look(module: Any) -> dict[str, Any]:
            figures = watched.figures(learner.read(kept_aside, crew, module))
            if crew.is_first:
                shown = "  ".join(f"{key} {value:.3f}" for key, value in figures.items() if value is not None)
                say("train", f"{name} on problems kept aside: {shown}")
            return figures

        watch = Watch(settings.eval_steps, look, settings.patience, number=1)
    fitted = fit(
        model,
        learner.loss_of,
        parts_at,
        optimiser,
        checkpoint=unfinished(""),
        watch=watch,
        note=lambda numbers: f"{name} loss {numbers[1]:.3f}",
        **options,
    )
    if perception is not None and settings.perception is not None and settings.perception.aux_weight > 0:
        perceived = perceived if math.isnan(fitted.final(2)) else fitted.final(2)
    model.eval()

    found: dict[str, Any] = {}
    values: dict[str, Any] | None = None
    if held_out is not None:
        logits = learner.read(kept_aside, crew, learner.loss_of)
        seed = seed_for(params.seed, "held out")
        values = {"prm": held_out.intervals(logits, seed=seed)}
        swapped = with_other_pictures(kept_aside)
        if name == "prm" and swapped:
            values["shuffled"] = held_out.intervals(learner.read(swapped, crew, learner.loss_of), seed=seed)
        model.temperature = held_out.temperature(logits)
        found["threshold"] = held_out.threshold(logits, model.temperature)
        found["aggregation"], accuracy = held_out.aggregation(logits, model.temperature)
        found["held_out"] = {
            "problems": len(by_problem(kept_aside)),
            "solutions": len(kept_aside),
            "labels": sum(len(e.targets) for e in kept_aside),
            "as_learnt": held_out.figures(logits),
            "calibrated": held_out.figures(logits, model.temperature),
            "best_of_n": accuracy,
        }
    if not crew.is_first:
        return
    out.mkdir(parents=True, exist_ok=True)
    with replacing(out / HISTORY) as part:
        part.write_text("".join(json.dumps(look, sort_keys=True) + "\n" for look in fitted.history))
    learnt = None
    if perception is not None and statements is not None:
        learnt = {"sha256": file_sha256(statements), **perception.report()}
    contract = {
        "task": params.task,
        "task_digest": task.digest,
        "policy_digest": policy_digest(policy),
        "policy_licence": licence_of(policy),
        "labels_sha256": tree_sha256(labels),
        "history_sha256": file_sha256(out / HISTORY),
        "seed": params.seed,
        "train": settings.model_dump(mode="json"),
        "statements": learnt,
        "shares_trees": seen,
        "steps": len(fitted.numbers),
        "best_step": fitted.best_step,
        **found,
    }
    checkpoint_digest = model.save(out, policy, contract)
    report = {
        "solutions": num_solutions,
        "labels": num_labels,
        "steps": len(fitted.numbers),
        "final_loss": round(fitted.final_loss, 6),
        "perception_accuracy": round(perceived, 6) if math.isfinite(perceived) else None,
        "statements": learnt,
        "dev": found["held_out"]["calibrated"] if found else None,
        "held_out": values,
        "digest": checkpoint_digest,
    }
    write_json(work / f"{name}-report.json", report)


def _is_tied(model: Any) -> bool:
    """Whether the output words are the input words."""
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


def _uniform(crew: Crew, examples: Sequence[Example]) -> None:
    """Refuse what would make the processes of ZeRO-3 wait for each other for ever."""
    if crew.stage == 3 and crew.size > 1 and len({bool(e.images) for e in examples}) == 2:
        what = "some problems have pictures and others do not: under ZeRO-3 every process must use the same weights"
        raise SettingsError("STEPFORGE_DEEPSPEED", what, "infra/deepspeed/zero2.json trains them")


def _of_formulation(labels: Path, formulation: str) -> None:
    """Refuse labels that say they were made for another formulation; labels from elsewhere say nothing."""
    made = read_json(labels / SUMMARY).get("formulation") if (labels / SUMMARY).exists() else None
    if made not in (None, formulation):
        what = f"label.formulation is {formulation!r}, but {labels} holds labels of formulation {made!r}"
        raise SettingsError("params.yaml", what, "run label again with these params, or name the labels that fit")
