"""Stage `sft`: demonstrations -> the policy (MM-Policy).

Owns the supervised curriculum; does not know what the policy will be asked. Switched off, it names an
existing model instead: by its folder, by hub id and commit, or by its name on a server.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.errors import DataError, SettingsError
from components.lineage import SUMMARY, work_folder
from components.progress import say
from components.records import digest, read_rows, row_images, seed_for, tree_sha256, write_json
from components.settings import CheckpointBase, Optimiser, Params, Runtime, ServedBase, Sft, TinyBase
from components.tasks import Task, load_task

if TYPE_CHECKING:  # torch is imported where it is needed
    from components.processes import Crew


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
        "sft-3", params.seed, task.digest, settings.model_dump(mode="json"), tree_sha256(demonstrations), runtime.num_threads
    )
    with work_folder(runtime, f"sft-{work_digest}") as work:
        final_loss, licence = _train(settings, task, params.seed, runtime, rows, work, out)
        if runtime.rank > 0:
            return {}
        shutil.rmtree(work, ignore_errors=True)
    policy_digest = files_digest(out)
    write_json(out / POLICY, {"path_or_id": None, "revision": None, "digest": policy_digest, "license": licence})
    num_steps = settings.optimiser.num_steps
    write_json(
        out / SUMMARY,
        {"demonstrations": len(rows), "steps": num_steps, "final_loss": final_loss, "policy_digest": policy_digest},
    )
    return {}


def _train(
    settings: Sft, task: Task, seed: int, runtime: Runtime, rows: list[dict[str, Any]], work: Path, out: Path
) -> tuple[float, str]:
    """The final loss, and the licence of what was started from."""
    import torch

    from components.adaptation import adapt, merge_lora
    from components.checkpoints import copy_processor_files, load_model, load_processor
    from components.licences import licence_of
    from components.optim import batch_rows, fit
    from components.processes import Crew
    from components.render import Renderer

    torch.set_num_threads(runtime.num_threads)
    crew = Crew(runtime)
    base = work / "base"
    if crew.is_first:
        _write_base(base, settings, task, seed, rows)
    crew.join()
    model = load_model(base, runtime.device)
    renderer = Renderer(load_processor(base))
    encoded = [renderer.prompt(task.question(row["question"]), row_images(row)) for row in rows]
    if crew.is_first:
        say("sft", f"{len(rows):,} demonstrations, {sum(p.numel() for p in model.parameters()):,} parameters")
    kind = "pt" if crew.config is None else f"zero{crew.stage}-{crew.size}"
    if settings.align is not None:
        shown = [row[settings.align_column] for row in rows]
        unfinished = work / f"align.{kind}"
        accuracy = _align(model, renderer, encoded, shown, settings.align, seed_for(seed, "align"), unfinished, crew)
        if crew.is_first:
            say("sft", f"image tokens name what they show: {accuracy:.3f} of the last batches")
    adapt(model, settings.freeze, settings.lora)
    if runtime.checkpoint_activations:
        model.activation_checkpointing_enable({"use_reentrant": False})
    model.train()
    phases = [(phase.num_steps, [_target(renderer, task, row[phase.column]) for row in rows]) for phase in settings.phases]

    def parts_at(step: int) -> list[Demonstrations]:
        before, targets = 0, phases[0][1]
        for num_steps, phase_targets in phases:
            if step < before + num_steps:
                targets = phase_targets
                break
            before += num_steps
        picked = batch_rows(len(rows), settings.optimiser.batch_size, step - before, seed_for(seed, "sft", before))
        return _parts([encoded[i] for i in picked], [targets[i] for i in picked], crew, runtime.tokens_at_once)

    def loss_of(part: Demonstrations) -> Any:
        return _solution_loss(model, part.prompts, part.targets) * (part.num_targets / part.total_targets)

    fitted = fit(model, loss_of, parts_at, settings.optimiser, name="sft", checkpoint=work / f"sft.{kind}", crew=crew)
    model.eval()
    if crew.is_first:
        merge_lora(model)
        model.save_pretrained(out)
        copy_processor_files(base, out)
    licence = "apache-2.0" if isinstance(settings.base, TinyBase) else licence_of(base)  # born here, of nobody's weights
    return round(fitted.final_loss, 6), licence


@dataclass(frozen=True)
class Demonstrations:
    """A part of a step: prompts, and the token ids to be said after them."""

    prompts: Sequence[Any]
    targets: Sequence[list[int]]
    total_targets: float
    """Target tokens of the whole step, over parts and processes; infinite: to be computed, and not learnt."""

    @property
    def num_targets(self) -> int:
        """Target tokens of this part."""
        return sum(map(len, self.targets))


def _parts(prompts: Sequence[Any], targets: Sequence[list[int]], crew: Crew, tokens_at_once: int) -> list[Demonstrations]:
    """This process's parts of a step: rows of like length, as many parts on every process."""
    sizes = [len(p.ids) + len(t) for p, t in zip(prompts, targets, strict=True)]
    mine = crew.share(sizes)
    total = float(sum(map(len, targets))) if mine else float("inf")
    groups: list[list[int]] = []
    if sum(sizes) <= tokens_at_once:
        groups = [mine or [0]]  # in the order drawn
    else:
        for i in sorted(mine or [0], key=lambda i: -sizes[i]):
            if not groups or (len(groups[-1]) + 1) * sizes[groups[-1][0]] > tokens_at_once:
                groups.append([])
            groups[-1].append(i)
    parts = [Demonstrations([prompts[i] for i in group], [targets[i] for i in group], total) for group in groups]
    idle = replace(parts[-1], total_targets=float("inf"))
    return [*parts, *[idle] * (crew.most(len(parts)) - len(parts))]


def _write_base(base: Path, settings: Sft, task: Task, seed: int, rows: list[dict[str, Any]]) -> None:
    from components.checkpoints import describe, write_pointer

    if isinstance(settings.base, CheckpointBase):
        base.mkdir(exist_ok=True)
        write_pointer(base, describe(settings.base.path_or_id, settings.base.revision))
    elif isinstance(settings.base, TinyBase):
        from components.tiny import write_base

        lists = [column for column in rows[0] if isinstance(rows[0][column], list) and column != "images"]
        texts = [task.question(row["question"]) for row in rows]
        texts += [task.text(row[column]) for row in rows for column in lists]
        write_base(base, settings.base, seed=seed_for(seed, "base") % 2**31, texts=texts)


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
    crew: Crew,
) -> float:
    """Teach each image token to name each word of what it shows, before any text is learnt.

    The scores are inner products with the language model's own word embeddings, so that what the picture says
    arrives in the language that the model thinks in. Text i belongs to image token i.
    """
    import torch

    from components.adaptation import parts_of
    from components.optim import batch_rows, fit
    from components.render import join_pictures

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
    before = [p.requires_grad for p in model.parameters()]
    model.requires_grad_(False)
    parts = parts_of(model)
    for parameter in (*parts.get("vision", ()), *parts.get("projector", ()), embeddings.weight):
        parameter.requires_grad_(True)
    device = str(model.device)
    word_ids = [torch.tensor([renderer.text_ids(word)[0] for word in vocabulary], device=device) for vocabulary, _ in losses]

    def loss_of(part: tuple[list[int], int]) -> Any:
        picked, num_all = part
        tensors = join_pictures([encoded[i] for i in picked], device, model.dtype)
        found = model.get_image_features(**tensors)
        pooled = getattr(found, "pooler_output", found)
        features = torch.cat([one.flatten(0, -2) for one in ([pooled] if torch.is_tensor(pooled) else pooled)])
        total, right = features.new_zeros(()), []
        for ids, (_, indices) in zip(word_ids, losses, strict=True):
            target = torch.tensor([i for row in picked for i in indices[row]], device=device)
            if len(target) != len(features):
                raise DataError(
                    "demonstrations",
                    f"{len(target)} texts for {len(features)} image tokens",
                    "sft.align needs one text of sft.align_column an image token",
                )
            logits = features @ embeddings.weight[ids].T
            total = total + torch.nn.functional.cross_entropy(logits.float(), target)
            right.append((logits.argmax(-1) == target).float().mean())
        share = len(features) / num_all if num_all else 0.0
        return torch.stack([total * share, torch.stack(right).mean() * share])

    def parts_at(step: int) -> list[tuple[list[int], int]]:
        picked = batch_rows(len(shown), settings.batch_size, step, seed)
        mine = [picked[i] for i in crew.share([1] * len(picked))]
        num_all = sum(len(losses[0][1][i]) for i in picked)
        return [(mine, num_all) if mine else (picked[:1], 0)]

    fitted = fit(
        model,
        loss_of,
        parts_at,
        settings,
        name="align",
        checkpoint=checkpoint,
        crew=crew,
        note=lambda numbers: f"named {numbers[1]:.3f}",
        outside=[embeddings.weight],
    )
    for parameter, trained in zip(model.parameters(), before, strict=True):
        parameter.requires_grad_(trained)
    return fitted.final(1)
