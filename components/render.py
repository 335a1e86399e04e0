"""The one renderer: a problem and its steps -> token ids, marker positions and picture tensors.

Trainer, scorer and generator all read text through here, so that none of them sees another text than the
others. Text from outside is tokenised apart from the template's own, with special tokens switched off: no
question or step can forge a marker or a picture's place.
"""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from components.errors import DataError
from components.records import bytes_digest, digest

_CACHE_BYTES = 512 * 2**20
_QUESTION = "\ue000question\ue000"  # stands for the question while the template is filled in


@dataclass(frozen=True)
class Encoded:
    """A prompt as the model takes it."""

    ids: list[int]
    """Token ids, picture places expanded; ends where the assistant's text begins."""
    tensors: dict[str, Any]
    """The picture tensors of the architecture (`pixel_values`, `image_grid_thw`...), to be joined along dim 0."""
    token_types: list[int] | None = None
    """Which of the first ids stand for pictures, for architectures that ask (`mm_token_type_ids`); text is 0."""


@dataclass(frozen=True)
class Rendered:
    """A solution as the process reward model takes it."""

    ids: list[int]
    """The assistant's token ids: each step followed by the marker."""
    markers: list[int]
    """Positions of the markers in `ids`, one a step."""


class Renderer:
    """Turns problems and steps into token ids with one processor.

    `digest` names everything that decides the ids; it is kept in a checkpoint's contract and checked at load.
    """

    def __init__(self, processor: Any, *, marker: str | None = None) -> None:
        self.processor = processor
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.marker = marker
        self.marker_id = self._marker_id(marker) if marker is not None else None
        self._cache: OrderedDict[tuple[str, tuple[bytes, ...]], Encoded] = OrderedDict()
        self._cached_bytes = 0
        template = getattr(processor, "chat_template", None) or getattr(self.tokenizer, "chat_template", None)
        if not template:
            raise DataError("renderer", "the model has no chat template", "add chat_template.jinja to its folder")
        vocabulary = bytes_digest(self.tokenizer.backend_tokenizer.to_str().encode())
        self.digest = digest("render-1", template, vocabulary, marker)

    def _marker_id(self, marker: str) -> int:
        ids = self.tokenizer.convert_tokens_to_ids([marker])
        if ids[0] is None or ids[0] == self.tokenizer.unk_token_id:
            raise DataError(
                "renderer",
                f"the marker {marker!r} is no token of this model",
                "train adds it; score with the trained checkpoint",
            )
        return int(ids[0])

    def prompt(self, question: str, images: Sequence[bytes]) -> Encoded:
        """A question with its pictures (shown before it), up to the start of the assistant's turn.

        Raises:
            DataError: a picture cannot be decoded.
        """
        key = (question, tuple(images))
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        head, tail = self._around_question(len(images))
        tensors: dict[str, Any] = {}
        token_types = None
        if images:
            pictures = [_decoded(content) for content in images]
            batch = self.processor(text=[head], images=pictures, return_tensors="pt", add_special_tokens=False)
            ids = batch.pop("input_ids")[0].tolist()
            batch.pop("attention_mask", None)
            types = batch.pop("mm_token_type_ids", None)
            token_types = types[0].tolist() if types is not None else None
            tensors = {name: value for name, value in batch.items() if hasattr(value, "shape")}
        else:
            ids = self.tokenizer(head, add_special_tokens=False)["input_ids"]
        ids = ids + self.text_ids(question) + self.tokenizer(tail, add_special_tokens=False)["input_ids"]
        encoded = Encoded(ids, tensors, token_types)
        self._remember(key, encoded)
        return encoded

    def unexpanded_ids(self, question: str, num_images: int) -> list[int]:
        """The ids of `prompt` while each picture's place is still one token, for an engine that expands it itself."""
        around = self._around_question(num_images)
        head, tail = (self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in around)
        ids: list[int] = head + self.text_ids(question) + tail
        return ids

    def _around_question(self, num_images: int) -> tuple[str, str]:
        """What the chat template puts before and after the question."""
        content: list[dict[str, str]] = [{"type": "image"} for _ in range(num_images)]
        content.append({"type": "text", "text": _QUESTION})
        filled = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        head, _, tail = filled.partition(_QUESTION)
        return head, tail

    def special_ids(self) -> list[int]:
        """Ids that belong to the template: no text from outside has them, and of a model's own words only the end is."""
        added = self.tokenizer.added_tokens_decoder.items()
        return sorted({*self.tokenizer.all_special_ids, *(i for i, token in added if token.special)})

    def text_ids(self, text: str) -> list[int]:
        """Token ids of text from outside: what looks like a special token is spelt out as plain text."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return ids

    def solution(self, steps: Sequence[str]) -> Rendered:
        """Token ids of steps as the reward model reads them: each followed by the marker.

        Source: MM-PRM (arXiv 2505.13427), `<prm>` after every step.
        Differs: the same text in training and scoring.
        """
        assert self.marker_id is not None, "a renderer without marker renders no solution"
        ids: list[int] = []
        markers: list[int] = []
        for step in steps:
            ids += self.text_ids(step)
            markers.append(len(ids))
            ids.append(self.marker_id)
        return Rendered(ids, markers)

    def _remember(self, key: tuple[str, tuple[bytes, ...]], encoded: Encoded) -> None:
        self._cache[key] = encoded
        self._cached_bytes += _num_bytes(encoded)
        while self._cached_bytes > _CACHE_BYTES:
            _, dropped = self._cache.popitem(last=False)
            self._cached_bytes -= _num_bytes(dropped)


def padded(rows: Sequence[Sequence[int]], device: str, pad_id: int = 0) -> Any:
    """Token ids as one `[B, T]` tensor, padded on the right."""
    import torch

    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *([pad_id] * (width - len(row)))] for row in rows], device=device)


def join_tensors(encoded: Sequence[Encoded], num_tokens: int, device: str, dtype: Any) -> dict[str, Any]:
    """The picture tensors of several prompts as one batch, joined along dim 0.

    Args:
        num_tokens: T, the width of the batch of token ids.
    """
    import torch

    names = {name for e in encoded for name in e.tensors}
    joined = {}
    for name in sorted(names):
        parts = [e.tensors[name] for e in encoded if name in e.tensors]
        value = torch.cat(parts).to(device)
        joined[name] = value.to(dtype) if value.is_floating_point() else value
    if any(e.token_types for e in encoded):
        types = [e.token_types or [] for e in encoded]
        joined["mm_token_type_ids"] = torch.tensor([[*t, *([0] * (num_tokens - len(t)))] for t in types], device=device)
    return joined


def _decoded(content: bytes) -> Any:
    from PIL import Image

    try:
        return Image.open(io.BytesIO(content)).convert("RGB")
    except Exception as error:  # PIL raises many kinds for broken files
        raise DataError("picture", f"cannot be decoded: {error}", "run curate: it sets broken pictures aside") from error


def _num_bytes(encoded: Encoded) -> int:
    return 8 * len(encoded.ids) + sum(int(value.numel() * value.element_size()) for value in encoded.tensors.values())
