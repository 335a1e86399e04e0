"""Stage `sft`: demonstrations -> the policy (MM-Policy).

Owns the supervised curriculum; does not know what the policy will be asked. Switched off, it names an
existing model instead, by its folder or by hub id and commit.
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
from components.settings import CheckpointBase, Optimiser, Params, Runtime, Sft


def run(params: Params, runtime: Runtime, *, demonstrations: Path | None, out: Path) -> dict[str, Any]:
    """Write the policy's checkpoint and `policy.json` into `out`; returns what this run cost.

    Raises:
        SettingsError: the settings do not fit together.
        DataError: the demonstrations lack a column or a row.
        EngineError: the base model cannot be loaded.
    """
    from components.checkpoints import POLICY, describe, files_digest, write_pointer

    settings = params.sft
    if not settings.enabled:
        if not isinstance(settings.base, CheckpointBase):
            raise SettingsError(
                "params.yaml",
                "sft.enabled is false but sft.base is no checkpoint",
                "name the policy: {type: checkpoint, ...}",
            )
        described = describe(settings.base.path_or_id, settings.base.revision)
        write_pointer(out, described)
        write_json(
            out / SUMMARY, {"demonstrations": 0, "steps": 0, "final_loss": None, "policy_digest": described["digest"]}
        )
        return {}
    if demonstrations is None:
        raise SettingsError(
            "command line", "sft.enabled is true but there are no demonstrations", "add --demonstrations FILE"
        )

    columns = {phase.column for phase in settings.phases} | ({"statements"} if settings.align else set())
    rows = read_rows(demonstrations, ["question", *sorted(columns)])
    work_digest = digest(
        "sft-1", params.seed, settings.model_dump(mode="json"), tree_sha256(demonstrations), runtime.num_threads
    )
    with exclusive(runtime.home, f"sft-{work_digest}") as work:
        final_loss = _train(settings, params.seed, runtime, rows, work, out)
        shutil.rmtree(work, ignore_errors=True)
    policy_digest = files_digest(out)
    write_json(out / POLICY, {"path_or_id": None, "revision": None, "digest": policy_digest})
    num_steps = settings.optimiser.num_steps
    write_json(
        out / SUMMARY,
        {"demonstrations": len(rows), "steps": num_steps, "final_loss": final_loss, "policy_digest": policy_digest},
    )
    return {}


def _train(settings: Sft, seed: int, runtime: Runtime, rows: list[dict[str, Any]], work: Path, out: Path) -> float:
    import torch

    from components.checkpoints import copy_processor_files, load_model, load_processor
    from components.optim import batch_rows, fit, freeze_vision
    from components.render import Renderer

    torch.set_num_threads(runtime.num_threads)
    base = _base_folder(settings, seed, work)
    model = load_model(base, runtime.device)
    renderer = Renderer(load_processor(base))
    encoded = [renderer.prompt(row["question"], row_images(row)) for row in rows]
    say("sft", f"{len(rows):,} demonstrations, {sum(p.numel() for p in model.parameters()):,} parameters")
    if settings.align is not None:
        accuracy = _align(model, renderer, encoded, rows, settings.align, seed_for(seed, "align"), work / "align.pt")
        say("sft", f"image tokens name what they show: {accuracy:.3f} of the last batches")
    if settings.freeze_vision:
        freeze_vision(model)
    model.train()
    phases = [
        (phase.num_steps, [_target(renderer, encoded[i], row[phase.column]) for i, row in enumerate(rows)])
        for phase in settings.phases
    ]

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


def _base_folder(settings: Sft, seed: int, work: Path) -> Path:
    from components.checkpoints import describe, write_pointer

    base = work / "base"
    if isinstance(settings.base, CheckpointBase):
        base.mkdir(exist_ok=True)
        write_pointer(base, describe(settings.base.path_or_id, settings.base.revision))
    else:
        from components.tiny import write_base

        write_base(base, settings.base, seed=seed_for(seed, "base") % 2**31)
    return base


def _target(renderer: Any, prompt: Any, steps: Sequence[str]) -> list[int]:
    """Token ids of a demonstration: its steps as paragraphs, then the end of the turn."""
    from components.render import STEP_SEPARATOR

    ids: list[int] = renderer.text_ids(STEP_SEPARATOR.join(steps))
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
    rows: list[dict[str, Any]],
    settings: Optimiser,
    seed: int,
    checkpoint: Path,
) -> float:
    """Teach each image token to name the first and the last word of its statement, before any text is learnt.

    The scores are inner products with the language model's own word embeddings, so that what the picture says
    arrives in the language that the model thinks in. Statement i belongs to image token i.
    """
    import numpy as np
    import torch

    from components.optim import batch_rows, fit
    from components.render import join_tensors

    named = [[(s.split()[0], s.split()[-1]) for s in row["statements"]] for row in rows]
    losses: list[tuple[list[str], list[list[int]]]] = []
    for place in (0, 1):
        vocabulary = sorted({pair[place] for pairs in named for pair in pairs})
        index = {word: i for i, word in enumerate(vocabulary)}
        losses.append((vocabulary, [[index[pair[place]] for pair in pairs] for pairs in named]))
    embeddings = model.get_input_embeddings()
    parts = torch.nn.ModuleList([model.model.vision_tower, model.model.multi_modal_projector, embeddings])
    word_ids = [torch.tensor([renderer.text_ids(word)[0] for word in vocabulary]) for vocabulary, _ in losses]
    accuracies: list[float] = []

    def loss_at(step: int) -> tuple[Any, str]:
        picked = batch_rows(len(rows), settings.batch_size, step, seed)
        tensors = join_tensors([encoded[i] for i in picked], 0, str(model.device), model.dtype)
        features = model.get_image_features(**tensors).pooler_output.flatten(0, 1)
        total: Any = 0.0
        right = []
        for ids, (_, indices) in zip(word_ids, losses, strict=True):
            target = torch.tensor([i for row in picked for i in indices[row]])
            if len(target) != len(features):
                raise DataError(
                    "demonstrations",
                    f"{len(target)} statements for {len(features)} image tokens",
                    "align needs one statement an image token",
                )
            logits = features @ embeddings.weight[ids].T
            total = total + torch.nn.functional.cross_entropy(logits, target)
            right.append((logits.argmax(-1) == target).float().mean().item())
        accuracies.append(float(np.mean(right)))
        return total, f"named {accuracies[-1]:.3f}"

    fit(parts, loss_at, settings, name="align", checkpoint=checkpoint)
    return float(np.mean(accuracies[-20:])) if accuracies else 1.0
