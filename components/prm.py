"""The process reward model: one score a step, all steps of all candidates of a problem in one forward pass.

Owns the model with its head, the checkpoint and scoring. Knows nothing of how labels came about; what a score
means is `formulations`'. Imports torch and transformers, and nothing of the orchestration.

Shapes: R places that are read (all steps of all solutions, one after the other), C rows of the head, H hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from components.adaptation import merge_lora
from components.checkpoints import check_pair, copy_processor_files, load_model, load_processor
from components.contract import agree, checkpoint_digest, read_contract, write_contract
from components.errors import DataError, EngineError
from components.formulations import FORMULATIONS, Formulation
from components.packing import Batch, Tree, batches, tree
from components.render import Encoded, Rendered, Renderer, join_tensors, padded

HEAD = "head.safetensors"
BATCH_TOKENS = 16_384  # tokens a scoring batch, padding included
_USUAL_TOKENS = 32_768  # of a row, for a model without positions
WINDOW = 256  # solutions that are rendered at a time
_PROBE = "a step: 3 + 20 = 23\n\nanswer: 23"  # must be split alike before and after a tokenizer is saved
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}  # of a state's size, tree against row


@dataclass(frozen=True)
class Reading:
    """A solution to be read by the reward model."""

    question: str
    images: tuple[bytes, ...]
    steps: tuple[str, ...]


class RewardModel(torch.nn.Module):
    """A vision-language model without its vocabulary, and a head of one row a class."""

    def __init__(
        self,
        model: Any,
        renderer: Renderer,
        head_weight_CH: Tensor,
        formulation: Formulation,
        *,
        label_tokens: Sequence[str],
        sees: bool = True,
        temperature: float = 1.0,
        max_tokens: int | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.renderer = renderer
        self.head = torch.nn.Parameter(head_weight_CH)
        self.formulation = formulation
        self.label_tokens = tuple(label_tokens)
        self.sees = sees
        """False: pictures are blanked, in training and scoring alike (the blind control)."""
        self.temperature = temperature
        """Logits are divided by it before they become scores; fitted on dev."""
        positions = _most_tokens(model)
        if positions is not None and max_tokens is not None and max_tokens > positions:
            what = f"max_tokens is {max_tokens:,}, but the model has positions for {positions:,}"
            raise EngineError("reward model", what, "lower train.max_tokens, or leave it null: the model's own")
        self.max_tokens = max_tokens or positions or _USUAL_TOKENS
        """Prompt and solution together; see `score` and `train` for what becomes of longer ones."""

    @classmethod
    def from_policy(
        cls,
        folder: Path,
        *,
        formulation: str = "soft",
        template: str = "marker",
        marker: str = "<prm>",
        label_tokens: Sequence[str] = ("+", "-"),
        separator: str = "\n\n",
        device: str,
        sees: bool = True,
        max_tokens: int | None = None,
    ) -> RewardModel:
        """Start from a policy: the marker sounds like the end of a step, the head like the label tokens.

        Args:
            label_tokens: a word a class of the formulation, best first.
            separator: what stands between the steps of the task.
        Raises:
            EngineError: the policy cannot be loaded, or its tokenizer does not tell the label tokens apart.
        """
        said = FORMULATIONS[formulation]
        if len(label_tokens) != len(said.weights):
            what = f"{len(label_tokens)} label tokens for the {len(said.weights)} classes of {formulation!r}"
            raise EngineError(str(folder), what, "train.label_tokens: right, (unchanged,) wrong")
        model = load_model(folder, device)
        processor = load_processor(folder)
        check_pair(folder, model, processor)
        tokenizer = getattr(processor, "tokenizer", processor)
        is_new = template == "marker" and tokenizer.convert_tokens_to_ids([marker])[0] in (None, tokenizer.unk_token_id)
        if is_new:
            from tokenizers import AddedToken

            tokenizer.add_tokens([AddedToken(marker, special=True, normalized=False)], special_tokens=True)
            if len(tokenizer) > model.get_input_embeddings().num_embeddings:
                model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        renderer = _renderer(processor, template, marker, label_tokens)
        ids = _label_ids(folder, renderer, label_tokens)
        with torch.no_grad():
            if is_new:  # a marker that the policy knows means something to it
                sound = renderer.text_ids(separator) or renderer.text_ids(".")
                for matrix in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
                    matrix[renderer.marker_id] = matrix[sound].mean(0)
            head = model.get_output_embeddings().weight[ids].detach().float().clone()
        return cls(model, renderer, head, said, label_tokens=label_tokens, sees=sees, max_tokens=max_tokens)

    @classmethod
    def load(cls, folder: Path, *, device: str) -> RewardModel:
        """A trained checkpoint, checked against its contract.

        Raises:
            EngineError: a file is missing or changed, or text would be rendered differently from training.
        """
        contract = read_contract(folder)
        if contract["formulation"] not in FORMULATIONS:
            hint = f"known: {', '.join(FORMULATIONS)}"
            raise EngineError(str(folder), f"its formulation {contract['formulation']!r} is unknown", hint)
        said = FORMULATIONS[contract["formulation"]]
        changed = "the checkpoint was changed: take it from DVC again"
        agree(folder, "the weights of its classes", here=list(said.weights), contract=contract["weights"], hint=changed)
        tokens = contract["label_tokens"]
        hint = "score with the version of StepForge and of the tokenizer that trained it"
        try:
            renderer = _renderer(load_processor(folder), contract["template"], contract.get("marker"), tokens)
        except DataError as error:
            raise EngineError(str(folder), f"its tokenizer is not the one of its contract: {error.what}", hint) from error
        agree(folder, "the renderer", here=renderer.digest, contract=contract["renderer_digest"], hint=hint)
        ids = _label_ids(folder, renderer, tokens)
        agree(folder, "the ids of the label tokens", here=ids, contract=contract["label_token_ids"], hint=hint)
        agree(folder, "the id of the marker", here=renderer.marker_id, contract=contract.get("marker_id"), hint=hint)
        seen = checkpoint_digest(folder)
        agree(folder, "the digest of its files", here=seen, contract=contract["digest"], hint=changed)
        model = load_model(folder, device)
        try:
            head = load_file(folder / HEAD)["weight"].to(model.device)
        except (SafetensorError, KeyError) as error:
            raise EngineError(str(folder / HEAD), f"is no head: {error}", changed) from error
        wanted = [len(said.weights), model.get_input_embeddings().embedding_dim]
        agree(folder, "the shape of its head", here=list(head.shape), contract=wanted, hint=changed)
        return cls(
            model,
            renderer,
            head,
            said,
            label_tokens=tokens,
            sees=contract["view"] == "picture",
            temperature=contract["temperature"],
            max_tokens=contract["max_tokens"],
        )

    def save(self, folder: Path, policy: Path, contract: Mapping[str, Any]) -> str:
        """Write weights (adapters merged for good), tokenizer, processor files and contract; returns its digest."""
        merge_lora(self.model)
        folder.mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(folder)
        save_file({"weight": self.head.detach().float().cpu().contiguous()}, folder / HEAD)
        copy_processor_files(policy, folder)
        self.renderer.tokenizer.save_pretrained(folder)  # it has gained the marker
        renderer = _renderer(load_processor(folder), self.renderer.template, self.renderer.marker, self.label_tokens)
        if renderer.text_ids(_PROBE) != self.renderer.text_ids(_PROBE):
            hint = "use a tokenizer that its class reloads as it is"
            raise EngineError(str(folder), "its tokenizer splits text differently once saved", hint)
        content = {
            "architecture": self.model.config.architectures[0] if self.model.config.architectures else "",
            "template": renderer.template,
            "marker": renderer.marker,
            "marker_id": renderer.marker_id,
            "renderer_digest": renderer.digest,
            "formulation": self.formulation.name,
            "label_tokens": list(self.label_tokens),
            "label_token_ids": _label_ids(folder, renderer, self.label_tokens),
            "weights": list(self.formulation.weights),
            "aggregation": self.formulation.default_aggregation,
            "threshold": sum(self.formulation.weights) / len(self.formulation.weights),
            "temperature": float(self.temperature),
            "max_tokens": self.max_tokens,
            "view": "picture" if self.sees else "blind",
            **contract,
        }
        return str(write_contract(folder, content)["digest"])

    # --- reading -----------------------------------------------------------------------------------------------

    def forward(self, batch: Batch) -> Tensor:
        """Logits `[R, C]` at every place that is read, in the batch's order.

        Hidden states are gathered at those places first: the vocabulary's logits never exist.
        """
        logits: Tensor = self.states(batch).float() @ self.head.float().T
        return logits

    def states(self, batch: Batch) -> Tensor:
        """Last hidden states `[R, H]` at every place that is read, in the batch's order."""
        tensors = self._shown(batch.tensors)
        states_BTH = self.model.base_model(
            input_ids=batch.ids_BT,
            attention_mask=batch.mask(self.model.dtype),
            position_ids=batch.positions,
            use_cache=False,
            **tensors,
        ).last_hidden_state
        states: Tensor = states_BTH[batch.reads[:, 0], batch.reads[:, 1]]
        return states

    def trees(self, prompt: Encoded, solutions: Sequence[Rendered], max_tokens: int = BATCH_TOKENS) -> list[Tree]:
        """The solutions of a prompt as the model can take them, in their order: trees of bounded size, else rows."""
        groups: list[list[Rendered]] = []
        room = 0
        for solution in solutions:
            if not groups or not self.shares or len(solution.ids) > room:
                groups.append([])
                room = max_tokens - len(prompt.ids)
            groups[-1].append(solution)
            room -= len(solution.ids)
        return [tree(prompt, group) for group in groups]

    def batches(self, trees: Sequence[Tree], max_tokens: int = BATCH_TOKENS) -> list[Batch]:
        """Trees as batches for `forward`."""
        return batches(trees, self.model, max_tokens=max_tokens, device=str(self.head.device), share_rows=self.shares)

    def logits(self, trees: Sequence[Tree], max_tokens: int = BATCH_TOKENS) -> Tensor:
        """Logits `[R, C]` at every place that is read, in the order of the trees and of their solutions."""
        parts: list[Tensor] = [self.head.new_zeros(0, len(self.head))] * len(trees)
        for batch in self.batches(trees, max_tokens):
            sizes = [sum(map(len, trees[i].places)) for i in batch.trees]
            for i, part in zip(batch.trees, self(batch).split(sizes), strict=True):
                parts[i] = part
        return torch.cat(parts) if parts else self.head.new_zeros(0, len(self.head))

    @cached_property
    def shares(self) -> bool:
        """Whether the architecture computes a tree as it computes its rows: tried, not assumed.

        Attention that looks both ways within a picture, or that carries a state from token to token, does not; nor does
        attention that looks back over a window shorter than a row.
        """
        if _window(self.model) < self.max_tokens:
            return False
        pictures = [_blank_picture()] if hasattr(self.renderer.processor, "image_processor") else []
        try:
            prompt = self.renderer.prompt("3 + 20", pictures)
            rows = [self.renderer.solution(steps) for steps in (["3", "20"], ["3", "23"], ["4"])]
            trained = self.model.training
            self.model.eval()
            self.__dict__["shares"] = True
            with torch.no_grad():
                joined = self.logits([tree(prompt, rows)])
                self.__dict__["shares"] = False
                apart = self.logits([tree(prompt, [row]) for row in rows])
            self.model.train(trained)
        except (RuntimeError, ValueError, TypeError, IndexError):
            return False
        finally:
            self.__dict__.pop("shares", None)
        size = float(apart.abs().max())
        return bool((joined - apart).abs().max() <= _TOLERANCE[self.model.dtype] * max(size, 1.0))

    def _shown(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.sees:
            return tensors
        blank = {name: torch.zeros_like(t) if t.is_floating_point() else t for name, t in tensors.items()}
        if "pixel_attention_mask" in blank:  # where it is, pictures of zeros alone are taken for padding
            blank["pixel_values"] += 1e-3 * blank["pixel_attention_mask"][:, :, None]
        return blank

    def hidden(self, ids: Sequence[Sequence[int]], encoded: Sequence[Encoded]) -> Tensor:
        """Last hidden states `[B, T, H]` of plain rows; pictures are blanked for a model that does not see."""
        ids_BT = padded(ids, str(self.head.device))
        tensors = self._shown(join_tensors(encoded, ids_BT.shape[1], str(self.head.device), self.model.dtype))
        states: Tensor = self.model.base_model(input_ids=ids_BT, use_cache=False, **tensors).last_hidden_state
        return states

    # --- scoring -----------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def read(self, readings: Sequence[Reading], progress: Callable[[int], None] | None = None) -> list[Tensor]:
        """Logits `[steps, C]` of every solution, on the CPU, temperature applied.

        Solutions of one problem share its picture and question, and what they have in common. A solution that does not
        fit into `max_tokens` with its prompt is not read: it gets no row.
        """
        none = torch.zeros(0, len(self.head))
        out = [none] * len(readings)
        for part in self._windows(readings):
            trees: list[Tree] = []
            owners: list[int] = []
            for group in part:
                prompt = self.renderer.prompt(readings[group[0]].question, readings[group[0]].images)
                rendered = {i: self.renderer.solution(readings[i].steps) for i in group}
                fit = [i for i in group if 0 < len(rendered[i].ids) <= self.max_tokens - len(prompt.ids)]
                trees += self.trees(prompt, [rendered[i] for i in fit])
                owners += fit
            sizes = [len(readings[i].steps) for i in owners]
            logits = self.logits(trees).float().cpu() / self.temperature
            for i, rows in zip(owners, logits.split(sizes), strict=True):
                out[i] = rows
            if progress is not None:
                progress(sum(len(group) for group in part))
        return out

    def score(self, readings: Sequence[Reading], progress: Callable[[int], None] | None = None) -> list[list[float]]:
        """The score of each step of every solution: `[solutions][steps]`; see `Formulation.scores`.

        Scores do not depend on the company in which a solution is read, beyond floating-point rounding (1e-4 in
        float32). A solution that does not fit into `max_tokens` has none.
        """
        return [self.formulation.scores(rows).tolist() for rows in self.read(readings, progress)]

    def _windows(self, readings: Sequence[Reading]) -> Iterator[list[list[int]]]:
        """Indices of readings by problem, some problems at a time: enough for full batches, few enough for the memory."""
        groups: dict[tuple[str, tuple[bytes, ...]], list[int]] = {}
        for i, reading in enumerate(readings):
            groups.setdefault((reading.question, reading.images), []).append(i)
        window: list[list[int]] = []
        size = 0
        for group in groups.values():
            window.append(group)
            size += len(group)
            if size >= WINDOW:
                yield window
                window, size = [], 0
        if window:
            yield window


def _renderer(processor: Any, template: str, marker: str | None, label_tokens: Sequence[str]) -> Renderer:
    if template == "chat":
        return Renderer(processor, template="chat", slot=label_tokens[0])
    return Renderer(processor, marker=marker)


def _label_ids(folder: Path, renderer: Renderer, label_tokens: Sequence[str]) -> list[int]:
    spelt = [renderer.text_ids(word) for word in label_tokens]
    if not all(spelt):
        what = f"a label token is empty: {', '.join(map(repr, label_tokens))}"
        raise EngineError(str(folder), what, "train.label_tokens: a word a class")
    ids = [word[0] for word in spelt]
    if len(set(ids)) < len(ids):
        what = f"label tokens {', '.join(map(repr, label_tokens))} begin with the same token"
        raise EngineError(str(folder), what, "choose words that the tokenizer tells apart: train.label_tokens")
    return ids


def _most_tokens(model: Any) -> int | None:
    """The longest row that the language model has positions for; None: it counts none."""
    text = getattr(model.config, "text_config", model.config)
    positions = getattr(text, "max_position_embeddings", None)
    return None if positions is None else int(positions)


def _window(model: Any) -> float:
    """Over how many tokens every layer looks back; infinite where all attention is full."""
    text = model.config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ["unsaid"])
    windows = [getattr(text, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return math.inf if kinds == {"full_attention"} else min((w for w in windows if w), default=math.inf)


def _blank_picture() -> bytes:
    import io

    from PIL import Image

    content = io.BytesIO()
    Image.new("RGB", (64, 64), (90, 90, 90)).save(content, format="PNG")
    return content.getvalue()
