"""Stage `sft`: demonstrations -> the policy (MM-Policy).

Owns the supervised curriculum; does not know what the policy will be asked. Switched off, it names an
existing model instead: by its folder, by hub id and commit, or by its name on a server.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from components.errors import DataError, SettingsError
from components.lineage import SUMMARY, exclusive
from components.progress import say
from components.records import digest, read_rows, row_images, seed_for, tree_sha256, write_json
from components.settings import CheckpointBase, Optimiser, Params, Runtime, ServedBase, Sft, TinyBase
from components.tasks import Task, load_task


def run(params: Params, runtime: Runtime, *, demonstrations: Path | None, out: Path) -> dict[str, Any]:
    """Write the policy's checkpoint and `policy.json` into `out`; returns what this run cost.

    Raises:
        SettingsError: the settings do not fit together.
        DataError: the demonstrations lack a column or a row.
        EngineError: the base model cannot be loaded.
    """
    from components.checkpoints import POLICY, describe, describe_served, files_digest, write_pointer

    settings = params.sft
    if not settings.enabled:
        if isinstance(settings.base, ServedBase):
            described = describe_served(settings.base.model, settings.base.revision)
        elif isinstance(settings.base, CheckpointBase):
            described = describe(settings.base.path_or_id, settings.base.revision)
        else:
            raise SettingsError(
                "params.yaml",
                "sft.enabled is false but sft.base is no finished model",
                "name the policy: {type: checkpoint, ...} or {type: served, ...}",
            )
        write_pointer(out, described)
        write_json(
            out / SUMMARY, {"demonstrations": 0, "steps": 0, "final_loss": None, "policy_digest": described["digest"]}
        )
        return {}
    if isinstance(settings.base, ServedBase):
        what = f"sft.enabled is true but sft.base is {settings.base.model!r} on a server, which cannot be trained here"
        raise SettingsError("params.yaml", what, "set sft.enabled to false, or name a checkpoint")
    if demonstrations is None:
        raise SettingsError(
            "command line", "sft.enabled is true but there are no demonstrations", "add --demonstrations FILE"
        )

    columns = {phase.column for phase in settings.phases} | ({settings.align_column} if settings.align else set())
    rows = read_rows(demonstrations, ["question", *sorted(columns)])
    task = load_task(params.task)
    work_digest = digest(
        "sft-2", params.seed, task.digest, settings.model_dump(mode="json"), tree_sha256(demonstrations), runtime.num_threads
    )
    with exclusive(runtime.home, f"sft-{work_digest}") as work:
        final_loss = _train(settings, task, params.seed, runtime, rows, work, out)
        shutil.rmtree(work, ignore_errors=True)
    policy_digest = files_digest(out)
    write_json(out / POLICY, {"path_or_id": None, "revision": None, "digest": policy_digest})
    num_steps = settings.optimiser.num_steps
    write_json(
        out / SUMMARY,
        {"demonstrations": len(rows), "steps": num_steps, "final_loss": final_loss, "policy_digest": policy_digest},
    )
    return {}


def _train(
    settings: Sft, task: Task, seed: int, runtime: Runtime, rows: list[dict[str, Any]], work: Path, out: Path
) -> float:
    import torch

    from components.checkpoints import copy_processor_files, load_model, load_processor
    from components.optim import batch_rows, fit, freeze_vision
    from components.render import Renderer

    torch.set_num_threads(runtime.num_threads)
    base = _base_folder(settings, task, seed, rows, work)
    model = load_model(base, runtime.device)
    renderer = Renderer(load_processor(base))
    encoded = [renderer.prompt(task.question(row["question"]), row_images(row)) for row in rows]
    say("sft", f"{len(rows):,} demonstrations, {sum(p.numel() for p in model.parameters()):,} parameters")
    if settings.align is not None:
        shown = [row[settings.align_column] for row in rows]
        accuracy = _align(model, renderer, encoded, shown, settings.align, seed_for(seed, "align"), work / "align.pt")
        say("sft", f"image tokens name what they show: {accuracy:.3f} of the last batches")
    if settings.freeze_vision:
        freeze_vision(model)
    model.train()
    phases = [(phase.num_steps, [_target(renderer, task, row[phase.column]) for row in rows]) for phase in settings.phases]

    def loss_at(step: int) -> tuple[Any, str]:
        before, targets = 0, phases[0][1]
        for num_steps, phase_targets in phases:
            if step < before + num_steps:
                targets = phase_targets
                break
            before += num_steps
        picked = batch_rows(len(rows), settings.optimiser.batch_size, step - before, seed_for(seed, "sft", before))
        return _solution_loss(model, [encoded[i] for i in picked], [targets[i] for i in picked]), ""

    final_loss = fit(model, loss_at, settings.optimiser, name="sft", checkpoint=work / "sft.pt")
    model.eval()
    model.save_pretrained(out)
    copy_processor_files(base, out)
    return round(final_loss, 6)


def _base_folder(settings: Sft, task: Task, seed: int, rows: list[dict[str, Any]], work: Path) -> Path:
    from components.checkpoints import describe, write_pointer

    base = work / "base"
    if isinstance(settings.base, CheckpointBase):
        base.mkdir(exist_ok=True)
        write_pointer(base, describe(settings.base.path_or_id, settings.base.revision))
    elif isinstance(settings.base, TinyBase):
        from components.tiny import write_base

        lists = [column for column in rows[0] if isinstance(rows[0][column], list) and column != "images"]
        texts = [task.question(row["question"]) for row in rows]
        texts += [task.text(row[column]) for row in rows for column in lists]
        write_base(base, settings.base, seed=seed_for(seed, "base") % 2**31, texts=texts)
    return base


def _target(renderer: Any, task: Task, steps: Sequence[str]) -> list[int]:
    """Token ids of a demonstration: its steps as the task writes them, then the end of the turn."""
    ids: list[int] = renderer.text_ids(task.text(steps))
    return [*ids, renderer.tokenizer.eos_token_id]


def _solution_loss(model: Any, prompts: Sequence[Any], targets: Sequence[list[int]]) -> Any:
    """Mean cross-entropy, in nats a token, of the solutions' tokens; prompts are not learnt."""
    import torch

    from components.checkpoints import hidden_states
    from components.render import join_tensors, padded

    device = str(model.device)
    ids_BT = padded([p.ids + t for p, t in zip(prompts, targets, strict=True)], device)
    hidden_BTH = hidden_states(model, ids_BT, join_tensors(prompts, ids_BT.shape[1], device, model.dtype))
    row = torch.tensor([b for b, t in enumerate(targets) for _ in t], device=device)
    column = torch.tensor(
        [len(p.ids) + j for p, t in zip(prompts, targets, strict=True) for j in range(len(t))], device=device
    )
    logits = model.get_output_embeddings()(hidden_BTH[row, column - 1])  # the vocabulary only where something is learnt
    return torch.nn.functional.cross_entropy(logits.float(), ids_BT[row, column])


def _align(
    model: Any,
    renderer: Any,
    encoded: list[Any],
    shown: list[list[str]],
    settings: Optimiser,
    seed: int,
    checkpoint: Path,
) -> float:
    """Teach each image token to name each word of what it shows, before any text is learnt.

    The scores are inner products with the language model's own word embeddings, so that what the picture says
    arrives in the language that the model thinks in. Text i belongs to image token i.
    """
    import numpy as np
    import torch

    from components.optim import batch_rows, fit
    from components.render import join_tensors

    named = [[text.split() for text in texts] for texts in shown]
    num_words = {len(words) for row in named for words in row}
    if len(num_words) != 1:
        what = f"what the image tokens show is {min(num_words)} to {max(num_words)} words long"
        raise DataError("demonstrations", what, "sft.align needs as many words in every text of sft.align_column")
    losses: list[tuple[list[str], list[list[int]]]] = []
    for place in range(num_words.pop()):
        vocabulary = sorted({words[place] for row in named for words in row})
        index = {word: i for i, word in enumerate(vocabulary)}
        losses.append((vocabulary, [[index[words[place]] for words in row] for row in named]))
    embeddings = model.get_input_embeddings()
    parts = torch.nn.ModuleList([model.model.vision_tower, model.model.multi_modal_projector, embeddings])
    word_ids = [torch.tensor([renderer.text_ids(word)[0] for word in vocabulary]) for vocabulary, _ in losses]
    accuracies: list[float] = []

    def loss_at(step: int) -> tuple[Any, str]:
        picked = batch_rows(len(shown), settings.batch_size, step, seed)
        tensors = join_tensors([encoded[i] for i in picked], 0, str(model.device), model.dtype)
        features = model.get_image_features(**tensors).pooler_output.flatten(0, 1)
        total: Any = 0.0
        right = []
        for ids, (_, indices) in zip(word_ids, losses, strict=True):
            target = torch.tensor([i for row in picked for i in indices[row]])
            if len(target) != len(features):
                raise DataError(
                    "demonstrations",
                    f"{len(target)} texts for {len(features)} image tokens",
                    "sft.align needs one text of sft.align_column an image token",
                )
            logits = features @ embeddings.weight[ids].T
            total = total + torch.nn.functional.cross_entropy(logits, target)
            right.append((logits.argmax(-1) == target).float().mean().item())
        accuracies.append(float(np.mean(right)))
        return total, f"named {accuracies[-1]:.3f}"

    fit(parts, loss_at, settings, name="align", checkpoint=checkpoint)
    return float(np.mean(accuracies[-20:])) if accuracies else 1.0
