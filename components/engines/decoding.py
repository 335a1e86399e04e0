"""Rows in flight: K completions share one prefill of picture and prefix, and finished rows leave the batch.

Owns the cache and the attention of one new token a row; knows nothing of text, seeds or how a token is picked.

Shapes: P prompts, B rows in flight, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from components.render import Encoded, join_tensors

PREFILL_TOKENS = 2**15  # read in one pass
_ATTENTION = "stepforge"
_BY_HAND = ("cpu",)  # devices on which the attention below is faster than the fused kernel


class Decoder:
    """Decodes the rows of several prompts side by side with one model."""

    def __init__(self, model: Any, device: str) -> None:
        self.model, self.device = model, device
        self.merges_lengths = _merges_lengths(model)
        """Whether prompts of several lengths may be decoded together."""
        self.token_bytes = _token_bytes(model)
        """Keys and values of one token in all layers."""

    @contextmanager
    def rows(self, encoded: Sequence[Encoded], counts: Sequence[int], max_tokens: int) -> Iterator[Rows]:
        """`counts[p]` rows of each prompt, which was read once; inside the block a model decodes nothing else.

        Args:
            max_tokens: that will be decoded behind each prompt, at most.
        """
        rows = Rows(self, encoded, counts, max_tokens)
        _Padding.now = rows._padding
        try:
            yield rows
        finally:
            _Padding.now = None


class Rows:
    """A batch of rows, each with its cache; `logits_BV` are those of the token that comes next."""

    logits_BV: torch.Tensor

    def __init__(self, decoder: Decoder, encoded: Sequence[Encoded], counts: Sequence[int], max_tokens: int) -> None:
        self._model, self._device, self._merges_lengths = decoder.model, decoder.device, decoder.merges_lengths
        self._step = 0
        prompt_of_row = torch.repeat_interleave(torch.tensor(counts)).to(self._device)
        logits_PV, positions_P, hidden_P = self._prefill(encoded, prompt_of_row, max_tokens)
        self.logits_BV, self._positions_B = logits_PV[prompt_of_row], positions_P[prompt_of_row]
        self._padding = _Padding(hidden_P[prompt_of_row], self.logits_BV.dtype)

    def keep(self, rows: torch.Tensor) -> None:
        """Let line i of the batch continue what line `rows[i]` was; the others leave."""
        self._select(rows)
        self._padding.select(rows)
        self._positions_B = self._positions_B[rows]

    def advance(self, ids_B: torch.Tensor) -> None:
        """Append one token to every row."""
        where = {"position_ids": (self._positions_B + self._step)[:, None]} if self._merges_lengths else {}
        output = self._model(
            input_ids=ids_B[:, None], past_key_values=self._cache, use_cache=True, logits_to_keep=1, **where
        )
        self.logits_BV = output.logits[:, -1]
        self._step += 1

    def _prefill(
        self, encoded: Sequence[Encoded], prompt_of_row: torch.Tensor, max_tokens: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Read every prompt once.

        Prompts of one length are read together and need no padding: no mask, and the same arithmetic for every
        architecture. The rows' keys and values are then laid side by side, aligned where they end.

        Returns: logits `[P, V]` of the first token; its positions `[P]`; and how many columns of the cache lie before
        each prompt's first token `[P]`.
        """
        by_length: dict[int, list[int]] = defaultdict(list)
        for i, e in enumerate(encoded):
            by_length[len(e.ids)].append(i)
        width = max(by_length)
        logits: list[Any] = [None] * len(encoded)
        positions = torch.tensor([len(e.ids) for e in encoded], device=self._device)
        parts: list[tuple[torch.Tensor, torch.Tensor, Any]] = []
        for length, members in by_length.items():
            at_once = max(1, PREFILL_TOKENS // length) if self._merges_lengths else len(members)
            for start in range(0, len(members), at_once):
                some = members[start : start + at_once]
                cache = self._empty_cache()
                inner: Any = getattr(self._model, "model", None)
                if getattr(inner, "rope_deltas", None) is not None:
                    inner.rope_deltas = None  # of the batch before
                ids = torch.tensor([encoded[i].ids for i in some], device=self._device)
                tensors = join_tensors([encoded[i] for i in some], length, self._device, self._model.dtype)
                output = self._model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1, **tensors)
                for i, line in zip(some, output.logits[:, -1], strict=True):
                    logits[i] = line
                if getattr(inner, "rope_deltas", None) is not None:  # a picture takes fewer positions than tokens
                    positions[some] += inner.rope_deltas.reshape(-1).to(positions)
                line_of = {i: line for line, i in enumerate(some)}
                pairs = [(row, line_of[i]) for row, i in enumerate(prompt_of_row.tolist()) if i in line_of]
                rows, lines = torch.tensor(pairs, device=self._device).T
                parts.append((rows, lines, cache))
        if self._merges_lengths:
            self._cache = self._empty_cache()
            for i, layer in enumerate(self._cache.layers):
                layer.lay([(rows, lines, cache.layers[i]) for rows, lines, cache in parts], width, width + max_tokens)
        else:
            _, first_lines, self._cache = parts[0]
            self._select(first_lines)
        hidden = torch.tensor([width - len(e.ids) for e in encoded], device=self._device)
        return torch.stack(logits), positions, hidden

    def _empty_cache(self) -> Any:
        cache = DynamicCache(config=self._model.config)
        cache.layers = [_RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
        return cache

    def _select(self, rows: torch.Tensor) -> None:
        self._cache.batch_select_indices(rows)
        inner: Any = getattr(self._model, "model", None)
        if not self._merges_lengths and getattr(inner, "rope_deltas", None) is not None:
            inner.rope_deltas = inner.rope_deltas[rows]  # a position offset kept beside the cache: it follows its row


def _merges_lengths(model: Any) -> bool:
    """Whether prompts of several lengths can be decoded side by side: every layer keeps all keys, positions can be told.

    As a side effect, the model's attention is then the one below.
    """
    if any(type(layer) is not DynamicLayer for layer in DynamicCache(config=model.config).layers):
        return False
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return False
    if getattr(model.config.get_text_config(), "_attn_implementation", None) != "sdpa":
        return False
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(_ATTENTION, _attend)
    AttentionMaskInterface.register(_ATTENTION, sdpa_mask)
    try:
        model.set_attn_implementation(_ATTENTION)
    except ValueError:  # an architecture with an attention of its own
        return False
    return True


class _Padding:
    """Which columns of the cache each row must not see, while one token a row is decoded."""

    now: _Padding | None = None

    def __init__(self, hidden_B: torch.Tensor, dtype: torch.dtype) -> None:
        self.bias: torch.Tensor | None = None
        width = int(hidden_B.max()) if len(hidden_B) else 0
        if width:
            column = torch.arange(width, device=hidden_B.device)
            bias = torch.zeros((len(hidden_B), 1, 1, width), dtype=dtype, device=hidden_B.device)
            self.bias = bias.masked_fill_((column < hidden_B[:, None])[:, None, None], float("-inf"))

    def select(self, rows: torch.Tensor) -> None:
        """Keep these rows."""
        if self.bias is not None:
            self.bias = self.bias[rows]


def _attend(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any) -> tuple[Any, None]:
    """Attention `[B, 1, H, D]` of one new token a row, by two batched products; everything else as transformers does it.

    On a CPU that is 1.6 times as fast as the fused kernel, which treats every row and head by itself.
    """
    padding = _Padding.now
    if padding is None or attention_mask is not None or query.shape[2] != 1:
        return _fused(module, query, key, value, attention_mask, **kwargs)
    bias = padding.bias
    if query.device.type not in _BY_HAND or any(
        kwargs.get(name) is not None for name in ("softcap", "position_bias", "s_aux")
    ):
        if bias is not None:
            bias = torch.nn.functional.pad(bias, (0, key.shape[2] - bias.shape[-1])).to(query.dtype)
        return _fused(module, query, key, value, bias, **kwargs)
    num_rows, num_heads, _, _ = query.shape
    scaling = kwargs.get("scaling")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    grouped = (query * scaling).view(num_rows, key.shape[1], num_heads // key.shape[1], query.shape[-1])
    scores = grouped @ key.transpose(2, 3)
    if bias is not None:
        scores[..., : bias.shape[-1]] += bias
    return (scores.softmax(-1) @ value).view(num_rows, 1, num_heads, value.shape[-1]), None


def _fused(*args: Any, **kwargs: Any) -> tuple[Any, None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    attended: tuple[Any, None] = sdpa_attention_forward(*args, **kwargs)
    return attended


class _RoomyLayer(DynamicLayer):
    """A cache layer that grows by halves instead of copying itself at every token."""

    _keys: Any
    _values: Any
    _length: int
    _most: int = 2**31  # columns that it will ever hold
    keys: Any
    values: Any

    def lay(self, parts: Sequence[tuple[torch.Tensor, torch.Tensor, Any]], width: int, most: int) -> None:
        """Fill the layer with lines of others: (rows here, lines there, layer), all ending at column `width`."""
        num_rows = sum(len(rows) for rows, _, _ in parts)
        source = parts[0][2]
        self.lazy_initialization(source.keys, source.values)
        self._length, self._most = width, most
        filled = []
        for name in ("keys", "values"):
            like = getattr(source, name)
            new = like.new_zeros((num_rows, like.shape[1], self._with_room(width), like.shape[3]))
            for rows, lines, layer in parts:
                old = getattr(layer, name)
                new[rows, :, width - old.shape[2] : width] = old[lines]
            filled.append(new)
        self._keys, self._values = filled
        self._show()

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Append; returns views of what is filled."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._length = 0
        length = self._length + key_states.shape[-2]
        if self._length == 0 or length > self._keys.shape[-2]:
            old = (self.keys, self.values)
            self._keys, self._values = (
                self._grown(o, new, length) for o, new in zip(old, (key_states, value_states), strict=True)
            )
        self._keys[..., self._length : length, :] = key_states
        self._values[..., self._length : length, :] = value_states
        self._length = length
        self._show()
        return self.keys, self.values

    def batch_select_indices(self, indices: Any) -> None:
        """Keep these lines, with their room."""
        if self.is_initialized and self._length:
            self._keys, self._values = self._keys[indices], self._values[indices]
            self._show()

    def _show(self) -> None:
        self.keys, self.values = self._keys[..., : self._length, :], self._values[..., : self._length, :]

    def _with_room(self, length: int) -> int:
        return max(length, min(self._most, length + max(16, length // 2)))

    def _grown(self, old: Any, new: Any, length: int) -> Any:
        room = new.new_empty((*new.shape[:-2], self._with_room(length), new.shape[-1]))
        if old.numel():
            room[..., : old.shape[-2], :] = old
        return room


def _token_bytes(model: Any) -> int:
    """Keys and values of one token in all layers."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * width * model.dtype.itemsize)
