"""The process reward model: one score a step, all steps of a solution in one forward pass.

Owns the head, the losses, the checkpoint with its contract, scoring and aggregation. Knows nothing of how
labels came about. Imports torch and transformers, and nothing of the orchestration.

Shapes: B rows, T tokens, H hidden size, S steps (all rows of a batch, one after the other), 2 = (right, wrong).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from components.checkpoints import copy_processor_files, hidden_states, load_model, load_processor
from components.errors import DataError, EngineError
from components.records import read_json, tree_sha256, write_json
from components.render import Encoded, Rendered, Renderer, join_tensors, padded

CONTRACT = "prm.json"
_HEAD = "head.safetensors"
_PROBE = "a step: 3 + 20 = 23\n\nanswer: 23"  # must be split alike before and after a tokenizer is saved
_BATCH_TOKENS = 16_384  # tokens a scoring batch, padding included


@dataclass(frozen=True)
class Reading:
    """A solution to be read by the reward model."""

    question: str
    images: tuple[bytes, ...]
    steps: tuple[str, ...]


class RewardModel(torch.nn.Module):
    """A vision-language model without its vocabulary, and a head of two rows read at the markers."""

    def __init__(self, model: Any, renderer: Renderer, head_weight_2H: Tensor, *, sees: bool = True) -> None:
        super().__init__()
        self.model = model
        self.renderer = renderer
        self.head = torch.nn.Parameter(head_weight_2H)
        self.sees = sees
        """False: pictures are blanked, in training and scoring alike (the blind control)."""

    @classmethod
    def from_policy(
        cls, folder: Path, *, marker: str, label_tokens: tuple[str, str], device: str, sees: bool
    ) -> RewardModel:
        """Start from a policy: the marker sounds like a step's end, the head like the label tokens.

        Raises:
            EngineError: the policy cannot be loaded.
        """
        model = load_model(folder, device)
        processor = load_processor(folder)
        tokenizer = getattr(processor, "tokenizer", processor)
        if tokenizer.convert_tokens_to_ids([marker])[0] in (None, tokenizer.unk_token_id):
            from tokenizers import AddedToken

            tokenizer.add_tokens([AddedToken(marker, special=True, normalized=False)], special_tokens=True)
            if len(tokenizer) > model.get_input_embeddings().num_embeddings:
                model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        renderer = Renderer(processor, marker=marker)
        with torch.no_grad():
            embeddings = model.get_input_embeddings().weight
            embeddings[renderer.marker_id] = embeddings[renderer.text_ids("\n\n")].mean(0)
            rows = [renderer.text_ids(word)[0] for word in label_tokens]
            if rows[0] == rows[1]:
                what = f"label tokens {label_tokens[0]!r} and {label_tokens[1]!r} begin with the same token"
                raise EngineError(str(folder), what, "choose two words that the tokenizer tells apart: train.label_tokens")
            head = model.get_output_embeddings().weight[rows].detach().float().clone()
        return cls(model, renderer, head, sees=sees)

    @classmethod
    def load(cls, folder: Path, *, device: str) -> RewardModel:
        """A trained checkpoint, checked against its contract.

        Raises:
            EngineError: a file is missing, or the text would be rendered differently from training.
        """
        contract = read_contract(folder)
        renderer = Renderer(load_processor(folder), marker=contract["marker"])
        if renderer.digest != contract["renderer_digest"]:
            what = f"renders text as {renderer.digest}, but was trained with {contract['renderer_digest']}"
            raise EngineError(str(folder), what, "score with the version of StepForge and of the tokenizer that trained it")
        seen = weights_digest(folder)
        if seen != contract["digest"]:
            raise EngineError(
                str(folder),
                f"its weights are {seen}, but the contract says {contract['digest']}",
                "the checkpoint was changed: take it from DVC again",
            )
        model = load_model(folder, device)
        head = load_file(folder / _HEAD)["weight"].to(model.device)
        return cls(model, renderer, head, sees=contract["view"] == "picture")

    def save(self, folder: Path, policy: Path, contract: Mapping[str, Any]) -> str:
        """Write weights, tokenizer, processor files and contract; returns the checkpoint's digest."""
        folder.mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(folder)
        save_file({"weight": self.head.detach().float().cpu().contiguous()}, folder / _HEAD)
        copy_processor_files(policy, folder)
        self.renderer.tokenizer.save_pretrained(folder)  # it has gained the marker
        renderer = Renderer(load_processor(folder), marker=self.renderer.marker)
        if renderer.text_ids(_PROBE) != self.renderer.text_ids(_PROBE):
            raise EngineError(
                str(folder),
                "its tokenizer splits text differently once saved",
                "use a tokenizer that its class reloads as it is",
            )
        content = {
            "format": 1,
            "marker": self.renderer.marker,
            "renderer_digest": renderer.digest,
            "view": "picture" if self.sees else "blind",
            **contract,
        }
        write_json(folder / CONTRACT, content)
        content["digest"] = weights_digest(folder)
        write_json(folder / CONTRACT, content)
        return str(content["digest"])

    def logits(self, encoded: Sequence[Encoded], rendered: Sequence[Rendered]) -> Tensor:
        """Logits `[S, 2]` of (right, wrong) read at every marker, row by row.

        Hidden states are gathered at the markers first: the vocabulary's logits never exist.
        """
        hidden_BTH = self.hidden([p.ids + r.ids for p, r in zip(encoded, rendered, strict=True)], encoded)
        rows = torch.tensor([b for b, r in enumerate(rendered) for _ in r.markers], device=hidden_BTH.device)
        columns = [len(p.ids) + m for p, r in zip(encoded, rendered, strict=True) for m in r.markers]
        at_markers_SH = hidden_BTH[rows, torch.tensor(columns, device=hidden_BTH.device)]
        return at_markers_SH.float() @ self.head.T

    def hidden(self, ids: Sequence[Sequence[int]], encoded: Sequence[Encoded]) -> Tensor:
        """Last hidden states `[B, T, H]`; pictures are blanked for a model that does not see."""
        device = str(self.head.device)
        ids_BT = padded(ids, device)
        tensors = join_tensors(encoded, ids_BT.shape[1], device, self.model.dtype)
        if not self.sees:
            tensors = {name: torch.zeros_like(t) if t.is_floating_point() else t for name, t in tensors.items()}
        states: Tensor = hidden_states(self.model, ids_BT, tensors)
        return states

    @torch.inference_mode()
    def score(self, readings: Sequence[Reading], progress: Callable[[int], None] | None = None) -> list[list[float]]:
        """The probability in [0, 1] that each step is right, for every solution: `[solutions][steps]`.

        Solutions of like length are read together; the scores do not depend on their company beyond
        floating-point rounding.
        """
        encoded = [self.renderer.prompt(r.question, r.images) for r in readings]
        rendered = [self.renderer.solution(r.steps) for r in readings]
        lengths = [len(p.ids) + len(r.ids) for p, r in zip(encoded, rendered, strict=True)]
        order = sorted((i for i in range(len(readings)) if readings[i].steps), key=lambda i: (-lengths[i], i))
        out: list[list[float]] = [[] for _ in readings]
        while order:
            size = max(1, _BATCH_TOKENS // lengths[order[0]])
            batch, order = order[:size], order[size:]
            scores = self.logits([encoded[i] for i in batch], [rendered[i] for i in batch]).softmax(-1)[:, 0].tolist()
            for i in batch:
                count = len(readings[i].steps)
                out[i], scores = scores[:count], scores[count:]
            if progress is not None:
                progress(len(batch))
        return out


def soft_label_loss(logits_S2: Tensor, labels_S: Tensor, weights_S: Tensor | None = None) -> Tensor:
    """Cross-entropy, in nats a step, between the verdict at each marker and its Monte-Carlo value.

    Args:
        logits_S2: `[S, 2]` logits of (right, wrong) read AT the marker; summed in float32.
        labels_S: `[S]` probability in [0, 1] that the step is right; 0 and 1 give hard labels.
        weights_S: `[S]` how much each step counts; None: all alike.
    Raises:
        DataError: a label lies outside [0, 1].
    Source: MM-PRM (arXiv 2505.13427), soft labels.
    Differs: the reference leaves the range unchecked.
    """
    if labels_S.numel() and not bool(((labels_S >= 0) & (labels_S <= 1)).all()):
        raise DataError(
            "labels", f"a label lies outside [0, 1]: {float(labels_S.min())} .. {float(labels_S.max())}", "run label again"
        )
    targets_S2 = torch.stack([labels_S, 1 - labels_S], dim=-1).float()
    losses_S = torch.nn.functional.cross_entropy(logits_S2.float(), targets_S2, reduction="none")
    if weights_S is None:
        return losses_S.mean()
    return (losses_S * weights_S).sum() / weights_S.sum().clamp(min=1e-9)


def read_contract(folder: Path) -> dict[str, Any]:
    """The contract of a checkpoint.

    Raises:
        EngineError: there is none.
    """
    if not (folder / CONTRACT).exists():
        raise EngineError(
            str(folder),
            "no prm.json: not a process reward model",
            "name a folder written by train, such as artifacts/prm/prm",
        )
    contract = read_json(folder / CONTRACT)
    missing = [key for key in ("marker", "renderer_digest", "view", "digest") if key not in contract]
    if not isinstance(contract, dict) or missing:
        raise EngineError(str(folder / CONTRACT), f"lacks {', '.join(missing)}", "the checkpoint was changed: dvc checkout")
    return contract


def weights_digest(folder: Path) -> str:
    """The digest of everything in a checkpoint, its contract included, but the digest that stands there."""
    from components.records import digest

    files = sorted(p for p in folder.iterdir() if p.is_file() and p.name != CONTRACT)
    contract = {key: value for key, value in read_json(folder / CONTRACT).items() if key != "digest"}
    return digest("prm", [[p.name, tree_sha256(p)] for p in files], contract)
