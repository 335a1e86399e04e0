"""The transformers engine: K completions share one prefill of picture and prefix; finished rows leave the batch.

Knows nothing of steps or stages. Works with any model of the Auto classes that keeps a key-value cache.

Shapes: P prompts, K completions each, B = P * K rows in flight, V vocabulary.
"""

from __future__ import annotations

import inspect
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from components.checkpoints import load_model, load_processor, policy_digest, resolve_device
from components.engines import Completion, Prompt
from components.errors import EngineError
from components.render import Encoded, Renderer, join_tensors
from components.settings import Sampling

MAX_ROWS = 2048  # rows decoded at a time
PREFILL_TOKENS = 2**15  # read in one pass
_CPU_BYTES = 4 * 2**30  # for keys, values and logits; a constant, so that batches are the same on every machine
_GPU_FRAC = 0.6  # of what the weights leave of the device's memory
_ATTENTION = "stepforge"
_BY_HAND = ("cpu",)  # devices on which the attention below is faster than the fused kernel
_COMPACT_FRAC = 0.2  # finished rows leave the batch when they are this share of it


class HfEngine:
    """Samples from one policy on one device."""

    seeding: Literal["row", "request"] = "row"

    def __init__(self, policy: Path, *, device: str = "auto") -> None:
        self.policy_digest = policy_digest(policy)
        self.device = resolve_device(device)
        self.model = load_model(policy, device)
        self.renderer = Renderer(load_processor(policy))
        self.tokenizer = self.renderer.tokenizer
        ends = self.model.generation_config.eos_token_id
        self.end_ids = [ends] if isinstance(ends, int) else list(ends or [])
        if not self.end_ids:
            raise EngineError(
                str(policy), "its generation config names no end token", "add eos_token_id to generation_config.json"
            )
        # An undertrained policy may sample a picture token, which would break the next forward pass.
        banned = [i for i in self.renderer.special_ids() if i not in self.end_ids]
        self.banned_ids = torch.tensor(banned, dtype=torch.long, device=self.device)
        self.merges_lengths = _merges_lengths(self.model)
        self._token_bytes = _token_bytes(self.model)
        self._logits_bytes = 6 * 4 * int(self.model.get_output_embeddings().weight.shape[0])  # as float32, sorted, summed...
        self._room_bytes = _room_bytes(self.model)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        """Completions of every prompt: `[P][K]`."""
        encoded = [self._encode(prompt) for prompt in prompts]
        out: list[list[Completion]] = [[] for _ in prompts]
        for pieces in self._pieces(encoded, [prompt.seeds for prompt in prompts], sampling.max_tokens):
            rows = self._decode([encoded[i] for i, _ in pieces], [seeds for _, seeds in pieces], sampling)
            for (i, _), completions in zip(pieces, rows, strict=True):
                out[i] += completions
        return out

    def close(self) -> None:
        """Drop the model."""
        self.model = None

    def _encode(self, prompt: Prompt) -> Encoded:
        head = self.renderer.prompt(prompt.question, prompt.images)
        if not prompt.prefill:
            return head
        return Encoded(head.ids + self.renderer.text_ids(prompt.prefill), head.tensors, head.token_types)

    def _pieces(
        self, encoded: Sequence[Encoded], seeds: Sequence[tuple[int, ...]], max_tokens: int
    ) -> Iterator[list[tuple[int, tuple[int, ...]]]]:
        """What is decoded together: (prompt, some of its seeds), prompts of like lengths side by side.

        The same on every machine of a kind: sums are rounded by what is in a batch.
        """
        batch: list[tuple[int, tuple[int, ...]]] = []
        room, width = 0, -1
        for i in sorted(range(len(encoded)), key=lambda i: -len(encoded[i].ids)):
            left = seeds[i]
            if len(encoded[i].ids) != width and not self.merges_lengths:
                room = 0
            while left:
                if room == 0:
                    if batch:
                        yield batch
                    batch, width = [], len(encoded[i].ids)  # the longest comes first: no row takes more
                    row_bytes = (width + max_tokens) * self._token_bytes + self._logits_bytes
                    room = max(1, min(MAX_ROWS, self._room_bytes // row_bytes))
                if room < len(left) and batch and len(left) <= MAX_ROWS:
                    room = 0  # a prompt's rows share its prefill: they are parted only if no batch has room for them
                    continue
                batch.append((i, left[:room]))
                left, room = left[room:], max(0, room - len(left))
        if batch:
            yield batch

    @torch.inference_mode()
    def _decode(self, encoded: list[Encoded], seeds: list[tuple[int, ...]], sampling: Sampling) -> list[list[Completion]]:
        counts = [len(s) for s in seeds]
        num_rows = sum(counts)
        prompt_of_row = torch.repeat_interleave(torch.tensor(counts)).to(self.device)
        cache, logits_PV, positions_P, hidden_P = self._prefill(encoded, prompt_of_row, sampling.max_tokens)
        logits_BV, positions_B = logits_PV[prompt_of_row], positions_P[prompt_of_row]

        seeds_B = np.array([seed for s in seeds for seed in s], dtype=np.uint64)
        tokens = torch.full((num_rows, sampling.max_tokens), -1, dtype=torch.long, device=self.device)
        logprobs = torch.zeros(num_rows, dtype=torch.float64, device=self.device)
        alive = torch.arange(num_rows, device=self.device)  # the row each line of the batch belongs to
        ends = torch.tensor(self.end_ids, device=self.device)
        going = torch.ones(num_rows, dtype=torch.bool, device=self.device)
        with _decoding(hidden_P[prompt_of_row], logits_BV.dtype) as padding:
            for step in range(sampling.max_tokens):
                uniforms = torch.from_numpy(_uniforms(seeds_B[alive.cpu().numpy()], step)).to(self.device)
                next_ids, next_logprobs = self._pick(logits_BV, uniforms, sampling)
                tokens[alive, step] = torch.where(going, next_ids, -1)
                logprobs[alive] += torch.where(going, next_logprobs.double(), 0.0)
                going = going & ~torch.isin(next_ids, ends)
                if step + 1 == sampling.max_tokens or not bool(going.any()):
                    break
                if float(going.float().mean()) < 1.0 - _COMPACT_FRAC:
                    keep = going.nonzero()[:, 0]
                    self._select(cache, keep)
                    padding.select(keep)
                    alive, next_ids, going = alive[keep], next_ids[keep], going[keep]
                where = {"position_ids": (positions_B[alive] + step)[:, None]} if self.merges_lengths else {}
                output = self.model(
                    input_ids=next_ids[:, None], past_key_values=cache, use_cache=True, logits_to_keep=1, **where
                )
                logits_BV = output.logits[:, -1]
        return self._completions(tokens.cpu().numpy(), logprobs.tolist(), counts)

    def _prefill(
        self, encoded: list[Encoded], prompt_of_row: torch.Tensor, max_tokens: int
    ) -> tuple[Any, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Read every prompt once.

        Prompts of one length are read together and need no padding: no mask, and the same arithmetic for every
        architecture. The rows' keys and values are then laid side by side, aligned where they end.

        Returns: the cache with a line a row; logits `[P, V]` of the first token; its positions `[P]`; and how many
        columns of the cache lie before each prompt's first token `[P]`.
        """
        by_length: dict[int, list[int]] = defaultdict(list)
        for i, e in enumerate(encoded):
            by_length[len(e.ids)].append(i)
        width = max(by_length)
        logits: list[Any] = [None] * len(encoded)
        positions = torch.tensor([len(e.ids) for e in encoded], device=self.device)
        parts: list[tuple[torch.Tensor, torch.Tensor, Any]] = []
        whole = self._empty_cache()
        for length, members in by_length.items():
            at_once = max(1, PREFILL_TOKENS // length) if self.merges_lengths else len(members)
            for start in range(0, len(members), at_once):
                some = members[start : start + at_once]
                cache = self._empty_cache()
                inner: Any = getattr(self.model, "model", None)
                if getattr(inner, "rope_deltas", None) is not None:
                    inner.rope_deltas = None  # of the batch before
                ids = torch.tensor([encoded[i].ids for i in some], device=self.device)
                tensors = join_tensors([encoded[i] for i in some], length, self.device, self.model.dtype)
                output = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1, **tensors)
                for i, line in zip(some, output.logits[:, -1], strict=True):
                    logits[i] = line
                if getattr(inner, "rope_deltas", None) is not None:  # a picture takes fewer positions than tokens
                    positions[some] += inner.rope_deltas.reshape(-1).to(positions)
                line_of = {i: line for line, i in enumerate(some)}
                pairs = [(row, line_of[i]) for row, i in enumerate(prompt_of_row.tolist()) if i in line_of]
                rows, lines = torch.tensor(pairs, device=self.device).T
                parts.append((rows, lines, cache))
        if self.merges_lengths:
            for i, layer in enumerate(whole.layers):
                layer.lay([(rows, lines, cache.layers[i]) for rows, lines, cache in parts], width, width + max_tokens)
        else:
            _, first_lines, whole = parts[0]
            self._select(whole, first_lines)
        hidden = torch.tensor([width - len(e.ids) for e in encoded], device=self.device)
        return whole, torch.stack(logits), positions, hidden

    def _empty_cache(self) -> Any:
        cache = DynamicCache(config=self.model.config)
        cache.layers = [_RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
        return cache

    def _pick(
        self, logits_BV: torch.Tensor, uniforms_B: torch.Tensor, sampling: Sampling
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One token a row by inverse transform sampling, and its log-probability at temperature 1."""
        logits_BV = logits_BV.float().index_fill(1, self.banned_ids, float("-inf"))
        logprobs_BV = logits_BV.log_softmax(-1)
        if sampling.temperature == 0:
            picked = logits_BV.argmax(-1)
        else:
            scaled = logits_BV / sampling.temperature
            order = None
            if 0 < sampling.top_k < scaled.shape[-1] or sampling.top_p < 1:
                scaled, order = scaled.topk(min(sampling.top_k or scaled.shape[-1], scaled.shape[-1]), dim=-1)
            probs = scaled.softmax(-1)
            if sampling.top_p < 1:
                before = probs.cumsum(-1) - probs
                probs = probs.masked_fill(before >= sampling.top_p, 0.0)
            mass = probs.double().cumsum(-1)
            column = (mass <= uniforms_B[:, None] * mass[:, -1:]).sum(-1).clamp(max=mass.shape[-1] - 1)
            picked = column if order is None else order.gather(1, column[:, None])[:, 0]
        return picked, logprobs_BV.gather(1, picked[:, None])[:, 0]

    def _completions(self, tokens: np.ndarray, logprobs: list[float], counts: list[int]) -> list[list[Completion]]:
        rows = []
        for line, logprob in zip(tokens, logprobs, strict=True):
            ids = line[line >= 0].tolist()
            stopped = bool(ids) and ids[-1] in self.end_ids
            text = self.tokenizer.decode(ids[:-1] if stopped else ids)
            rows.append(Completion(text, "stop" if stopped else "length", len(ids), round(logprob, 6)))
        ends = list(itertools.accumulate(counts))
        return [rows[end - count : end] for end, count in zip(ends, counts, strict=True)]

    def _select(self, cache: Any, rows: torch.Tensor) -> None:
        """Let line i of the batch continue what line `rows[i]` was."""
        cache.batch_select_indices(rows)
        inner: Any = getattr(self.model, "model", None)
        if not self.merges_lengths and getattr(inner, "rope_deltas", None) is not None:
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


@contextmanager
def _decoding(hidden_B: torch.Tensor, dtype: torch.dtype) -> Iterator[_Padding]:
    _Padding.now = _Padding(hidden_B, dtype)
    try:
        yield _Padding.now
    finally:
        _Padding.now = None


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


def _room_bytes(model: Any) -> int:
    if model.device.type != "cuda":
        return _CPU_BYTES
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return int(_GPU_FRAC * (torch.cuda.get_device_properties(model.device).total_memory - weights))


def _uniforms(seeds: np.ndarray, step: int) -> np.ndarray:
    """One number in [0, 1) for each seed at this step: SplitMix64, so that no row depends on another's draws.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    with np.errstate(over="ignore"):
        z = seeds + np.uint64(step + 1) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53
