"""The transformers engine: K completions share one prefill of picture and prefix; finished rows leave the batch.

Knows nothing of steps or stages. Works with any model of the Auto classes that keeps a key-value cache.

Shapes: P prompts, K completions each, B = P * K rows in flight, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from components.checkpoints import load_model, load_processor, policy_digest, resolve_device
from components.engines import Completion, Prompt
from components.errors import EngineError
from components.render import Encoded, Renderer, join_tensors
from components.settings import Sampling

MAX_ROWS = 2048  # rows decoded at a time
_COMPACT_FRAC = 0.2  # finished rows leave the batch when they are this share of it


class HfEngine:
    """Samples from one policy on one device."""

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
        banned = [i for i in self.tokenizer.all_special_ids if i not in self.end_ids]
        self.banned_ids = torch.tensor(sorted(set(banned)), device=self.device)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        """Completions of every prompt: `[P][K]`."""
        by_length: dict[int, list[int]] = defaultdict(list)
        encoded = [self._encode(prompt) for prompt in prompts]
        for i, e in enumerate(encoded):
            by_length[len(e.ids)].append(i)
        out: list[list[Completion]] = [[] for _ in prompts]
        # Prompts of one length need no padding: no mask, and the same arithmetic for every architecture.
        for _, members in sorted(by_length.items()):
            for chunk in _chunks(members, [len(prompts[i].seeds) for i in members]):
                rows = self._decode([encoded[i] for i in chunk], [prompts[i].seeds for i in chunk], sampling)
                for i, completions in zip(chunk, rows, strict=True):
                    out[i] = completions
        return out

    def close(self) -> None:
        """Drop the model."""
        self.model = None

    def _encode(self, prompt: Prompt) -> Encoded:
        head = self.renderer.prompt(prompt.question, prompt.images)
        if not prompt.prefill:
            return head
        return Encoded(head.ids + self.renderer.text_ids(prompt.prefill), head.tensors, head.token_types)

    @torch.inference_mode()
    def _decode(self, encoded: list[Encoded], seeds: list[tuple[int, ...]], sampling: Sampling) -> list[list[Completion]]:
        counts = [len(s) for s in seeds]
        num_rows = sum(counts)
        ids = torch.tensor([e.ids for e in encoded], device=self.device)
        cache = DynamicCache(config=self.model.config)
        cache.layers = [_RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
        tensors = join_tensors(encoded, ids.shape[1], self.device, self.model.dtype)
        inner: Any = getattr(self.model, "model", None)
        if getattr(inner, "rope_deltas", None) is not None:
            inner.rope_deltas = None  # of the batch before
        output = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1, **tensors)
        prompt_of_row = torch.repeat_interleave(torch.tensor(counts)).to(self.device)
        self._select(cache, prompt_of_row)
        logits_BV = output.logits[prompt_of_row, -1]

        seeds_B = np.array([seed for s in seeds for seed in s], dtype=np.uint64)
        tokens = torch.full((num_rows, sampling.max_tokens), -1, dtype=torch.long, device=self.device)
        logprobs = torch.zeros(num_rows, dtype=torch.float64, device=self.device)
        alive = torch.arange(num_rows, device=self.device)  # the row each line of the batch belongs to
        ends = torch.tensor(self.end_ids, device=self.device)
        going = torch.ones(num_rows, dtype=torch.bool, device=self.device)
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
                alive, next_ids, going = alive[keep], next_ids[keep], going[keep]
            output = self.model(input_ids=next_ids[:, None], past_key_values=cache, use_cache=True, logits_to_keep=1)
            logits_BV = output.logits[:, -1]
        return self._completions(tokens.cpu().numpy(), logprobs.tolist(), counts)

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
        if getattr(inner, "rope_deltas", None) is not None:  # a position offset kept beside the cache: it follows its row
            inner.rope_deltas = inner.rope_deltas[rows]


def _chunks(members: list[int], counts: list[int]) -> list[list[int]]:
    """Members in their order, cut so that no chunk decodes more than MAX_ROWS rows (but one prompt at least)."""
    chunks: list[list[int]] = []
    room = 0
    for member, count in zip(members, counts, strict=True):
        if count > room or not chunks:
            chunks.append([])
            room = MAX_ROWS
        chunks[-1].append(member)
        room -= count
    return chunks


class _RoomyLayer(DynamicLayer):
    """A cache layer that grows by halves instead of copying itself at every token."""

    _keys: Any
    _values: Any
    _length: int
    keys: Any
    values: Any

    def update(self, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Append; returns views of what is filled."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._length = 0
        length = self._length + key_states.shape[-2]
        if self.keys.numel() == 0 or length > self._keys.shape[-2] or self._keys.shape[0] != key_states.shape[0]:
            self._keys, self._values = (
                self._grown(old, new, length) for old, new in ((self.keys, key_states), (self.values, value_states))
            )
        self._keys[..., self._length : length, :] = key_states
        self._values[..., self._length : length, :] = value_states
        self._length = length
        self.keys, self.values = self._keys[..., :length, :], self._values[..., :length, :]
        return self.keys, self.values

    @staticmethod
    def _grown(old: Any, new: Any, length: int) -> Any:
        room = new.new_empty((*new.shape[:-2], length + max(16, length // 2), new.shape[-1]))
        if old.numel():
            room[..., : old.shape[-2], :] = old
        return room


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
