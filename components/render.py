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
_QUESTION, _STEP, _SLOT = (f"\ue000{name}\ue000" for name in ("question", "step", "slot"))  # while templates are filled
_BEFORE_STEPS = "\n\n### Solution Process:\n"  # between question and first step in the chat template (VisualPRM)
TEMPLATES = ("marker", "chat")


@dataclass(frozen=True)
class Encoded:
    """A prompt as the model takes it."""

    ids: list[int]
    """Token ids, picture places expanded; ends where the assistant's text begins."""
    tensors: dict[str, Any]
    """The picture tensors of the architecture (`pixel_values`, `image_grid_thw`...), to be joined along dim 0."""
    token_types: list[int] | None = None
    """Which of the first ids stand for pictures, for architectures that ask; text is 0."""
    types_name: str = "mm_token_type_ids"
    """What the architecture calls them."""


@dataclass(frozen=True)
class Rendered:
    """A solution as the process reward model takes it."""

    ids: list[int]
    """The token ids that follow the prompt's."""
    markers: list[int]
    """Where in `ids` the model is read, one place a step; that of a step is the same whatever steps follow."""

    def within(self, num_tokens: int) -> Rendered:
        """The whole steps that fit into so many tokens; a step is never cut."""
        markers = [place for place in self.markers if place < num_tokens]
        return (
            self if len(markers) == len(self.markers) else Rendered(self.ids[: markers[-1] + 1 if markers else 0], markers)
        )


class Renderer:
    """Turns problems and steps into token ids with one processor.

    Args:
        template: how a solution is laid out for a reward model. `marker`: in the assistant's turn, each step followed by
            the special token `marker`, at which the model is read (MM-PRM). `chat`: one step a user turn, and in each
            assistant turn a label, before which the model is read (VisualPRM).
        slot: of `chat`: the word in the assistant's turns of the steps that went before.

    `digest` names everything that decides the ids; it is kept in a checkpoint's contract and checked at load.
    """

    def __init__(
        self, processor: Any, *, template: str = "marker", marker: str | None = None, slot: str | None = None
    ) -> None:
        self.processor = processor
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.template, self.marker, self.slot = template, marker, slot
        self.marker_id = self._marker_id(marker) if marker is not None else None
        self._cache: OrderedDict[tuple[str, tuple[bytes, ...]], Encoded] = OrderedDict()
        self._cached_bytes = 0
        filled = getattr(processor, "chat_template", None) or getattr(self.tokenizer, "chat_template", None)
        if not filled:
            raise DataError("renderer", "the model has no chat template", "add chat_template.jinja to its folder")
        vocabulary = bytes_digest(self.tokenizer.backend_tokenizer.to_str().encode())
        self.digest = digest("render-2", filled, vocabulary, template, marker, slot)
        self._turns = self._turn_ids() if template == "chat" else None

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
            DataError: a picture cannot be decoded, or the model takes none.
        """
        if images and not hasattr(self.processor, "image_processor"):
            raise DataError("picture", "this model takes no pictures", "take a vision-language model, or leave them out")
        key = (question, tuple(images))
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        head, tail = self._around_question(len(images))
        tensors: dict[str, Any] = {}
        token_types, types_name = None, "mm_token_type_ids"
        if images:
            pictures = [_decoded(content) for content in images]
            # One list a prompt: some architectures lay out several pictures of one prompt unlike one each of several.
            batch = self.processor(text=[head], images=[pictures], return_tensors="pt", add_special_tokens=False)
            ids = batch.pop("input_ids")[0].tolist()
            batch.pop("attention_mask", None)
            for types_name in (name for name in ("mm_token_type_ids", "token_type_ids") if name in batch):
                token_types = batch.pop(types_name)[0].tolist()
                break
            tensors = {name: value for name, value in batch.items() if hasattr(value, "shape")}
        else:
            ids = self.tokenizer(head, add_special_tokens=False)["input_ids"]
        opening = self._opening_ids(ids)
        token_types = [0] * len(opening) + token_types if token_types else None
        ids = opening + ids + self.text_ids(question) + self.tokenizer(tail, add_special_tokens=False)["input_ids"]
        encoded = Encoded(ids, tensors, token_types, types_name)
        self._remember(key, encoded)
        return encoded

    def unexpanded_ids(self, question: str, num_images: int) -> list[int]:
        """The ids of `prompt` while each picture's place is still one token, for an engine that expands it itself."""
        around = self._around_question(num_images)
        head, tail = (self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in around)
        ids: list[int] = self._opening_ids(head) + head + self.text_ids(question) + tail
        return ids

    def _opening_ids(self, head: Sequence[int]) -> list[int]:
        """The token that opens every text of a processor's model, where neither template nor processor has put it."""
        first = self.tokenizer.bos_token_id
        if self.processor is self.tokenizer or first is None or list(head[:1]) == [first]:
            return []
        return [first] if self.tokenizer("")["input_ids"][:1] == [first] else []

    def _around_question(self, num_images: int) -> tuple[str, str]:
        """What the template puts before and after the question, up to the solution's first token."""
        if self.template == "chat":
            head, _, _ = self._filled(num_images, [_QUESTION + _BEFORE_STEPS + _STEP]).partition(_QUESTION)
            return head, _BEFORE_STEPS
        head, _, tail = self._filled(num_images, [_QUESTION]).partition(_QUESTION)
        return head, tail

    def _filled(self, num_images: int, turns: Sequence[str]) -> str:
        """The chat template with these turns, the user's first; the first shows the pictures."""
        roles = ["user" if i % 2 == 0 else "assistant" for i in range(len(turns))]
        pictures = [{"type": "image"}] * num_images
        parts = [[*(pictures if i == 0 else []), {"type": "text", "text": text}] for i, text in enumerate(turns)]
        for contents in (parts, turns):  # templates of some text models take plain text only
            messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
            try:
                filled = str(self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False))
            except TypeError:
                continue
            if all(filled.count(text) == turns.count(text) for text in turns) and "'type'" not in filled:
                return filled
        raise DataError("renderer", "its chat template does not show what it is given", "mend chat_template.jinja")

    def _turn_ids(self) -> tuple[list[int], list[int]]:
        """Token ids between a step and the label after it, and from that label to the next step."""
        filled = self._filled(0, [_STEP, _SLOT, _STEP, _SLOT, _STEP])
        opens, closes = [], []
        for part in filled.split(_STEP)[1:-1]:
            before, _, after = part.partition(_SLOT)
            opens.append(before)
            closes.append(after)
        if self.slot is None or len(opens) != 2 or len(set(opens)) > 1 or len(set(closes)) > 1:
            what = "its chat template writes later turns differently from earlier ones"
            raise DataError("renderer", what, "use train.template: marker with this model")
        slot = self.text_ids(self.slot)
        opened, closed = (self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (opens[0], closes[0]))
        return opened, [*slot, *closed]

    def special_ids(self) -> list[int]:
        """Ids that belong to the template: no text from outside has them, and of a model's own words only the end is."""
        added = self.tokenizer.added_tokens_decoder.items()
        return sorted({*self.tokenizer.all_special_ids, *(i for i, token in added if token.special)})

    def text_ids(self, text: str) -> list[int]:
        """Token ids of text from outside: what looks like a special token is spelt out as plain text."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return ids

    def solution(self, steps: Sequence[str]) -> Rendered:
        """Token ids of steps as the reward model reads them, the same text in training and in scoring.

        Source: MM-PRM (arXiv 2505.13427), `<prm>` after every step; VisualPRM (arXiv 2503.10291), a turn a step.
        Differs: VisualPRM shows the true labels of earlier steps in training and `+` in scoring; here every earlier label
        is the one word `slot` in both, so that a score never depends on labels that scoring does not have.
        """
        ids: list[int] = []
        markers: list[int] = []
        for step in steps:
            if self._turns is not None:
                opened, closed = self._turns
                ids += [*(closed if markers else []), *self.text_ids(step), *opened]
                markers.append(len(ids) - 1)
                continue
            assert self.marker_id is not None, "a renderer without marker renders no solution"
            ids += [*self.text_ids(step), self.marker_id]
            markers.append(len(ids) - 1)
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
    """The picture tensors of several prompts as one batch, a prompt a row of `num_tokens` tokens."""
    import torch

    joined = join_pictures(encoded, device, dtype)
    if any(e.token_types for e in encoded):
        types = [e.token_types or [] for e in encoded]
        name = next(e.types_name for e in encoded if e.token_types)
        joined[name] = torch.tensor([[*t, *([0] * (num_tokens - len(t)))] for t in types], device=device)
    return joined


def join_pictures(encoded: Sequence[Encoded], device: str, dtype: Any) -> dict[str, Any]:
    """The picture tensors of several prompts, joined along dim 0 in the order of the prompts.

    Where prompts differ in a later dimension (pictures a prompt, tiles a picture, resolution), the smaller ones are
    filled with zeros, as processors fill a batch.
    """
    import torch

    names = {name for e in encoded for name in e.tensors}
    joined = {}
    for name in sorted(names):
        parts = [e.tensors[name] for e in encoded if name in e.tensors]
        shape = [max(part.shape[dim] for part in parts) for dim in range(1, parts[0].ndim)]
        value = torch.cat([_filled(part, shape) for part in parts]).to(device)
        joined[name] = value.to(dtype) if value.is_floating_point() else value
    return joined


def _filled(part: Any, shape: Sequence[int]) -> Any:
    """The tensor with every dimension but the first filled up with zeros to `shape`."""
    import torch

    if list(part.shape[1:]) == list(shape):
        return part
    widths = [w for size, wanted in zip(reversed(part.shape[1:]), reversed(shape), strict=True) for w in (0, wanted - size)]
    return torch.nn.functional.pad(part, widths)


def _decoded(content: bytes) -> Any:
    from PIL import Image

    try:
        return Image.open(io.BytesIO(content)).convert("RGB")
    except Exception as error:  # PIL raises many kinds for broken files
        raise DataError("picture", f"cannot be decoded: {error}", "run curate: it sets broken pictures aside") from error


def _num_bytes(encoded: Encoded) -> int:
    return 8 * len(encoded.ids) + sum(int(value.numel() * value.element_size()) for value in encoded.tensors.values())
