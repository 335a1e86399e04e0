"""The transformers engine: what is decoded together, which token is drawn, and what the tokens say.

Knows nothing of steps or stages, nor of caches. Works with any model of the Auto classes that keeps a key-value cache.

Shapes: P prompts, K completions each, B = P * K rows in flight, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from components.checkpoints import load_model, load_processor, policy_digest, resolve_device
from components.engines import Completion, Prompt
from components.engines.decoding import Decoder
from components.errors import EngineError
from components.render import Encoded, Renderer
from components.settings import Sampling

MAX_ROWS = 2048  # rows decoded at a time
_CPU_BYTES = 4 * 2**30  # for keys, values and logits; a constant, so that batches are the same on every machine
_GPU_FRAC = 0.6  # of what the weights leave of the device's memory
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
        self.decoder: Any = Decoder(self.model, self.device)
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
        self.model = self.decoder = None

    def _encode(self, prompt: Prompt) -> Encoded:
        head = self.renderer.prompt(prompt.question, prompt.images)
        if not prompt.prefill:
            return head
        return replace(head, ids=head.ids + self.renderer.text_ids(prompt.prefill))

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
            if len(encoded[i].ids) != width and not self.decoder.merges_lengths:
                room = 0
            while left:
                if room == 0:
                    if batch:
                        yield batch
                    batch, width = [], len(encoded[i].ids)  # the longest comes first: no row takes more
                    row_bytes = (width + max_tokens) * self.decoder.token_bytes + self._logits_bytes
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
        seeds_B = np.array([seed for s in seeds for seed in s], dtype=np.uint64)
        tokens = torch.full((num_rows, sampling.max_tokens), -1, dtype=torch.long, device=self.device)
        logprobs = torch.zeros(num_rows, dtype=torch.float64, device=self.device)
        alive = torch.arange(num_rows, device=self.device)  # the row each line of the batch belongs to
        ends = torch.tensor(self.end_ids, device=self.device)
        going = torch.ones(num_rows, dtype=torch.bool, device=self.device)
        with self.decoder.rows(encoded, counts, sampling.max_tokens) as rows:
            for step in range(sampling.max_tokens):
                uniforms = torch.from_numpy(_uniforms(seeds_B[alive.cpu().numpy()], step)).to(self.device)
                next_ids, next_logprobs = self._pick(rows.logits_BV, uniforms, sampling)
                tokens[alive, step] = torch.where(going, next_ids, -1)
                logprobs[alive] += torch.where(going, next_logprobs.double(), 0.0)
                going = going & ~torch.isin(next_ids, ends)
                if step + 1 == sampling.max_tokens or not bool(going.any()):
                    break
                if float(going.float().mean()) < 1.0 - _COMPACT_FRAC:
                    keep = going.nonzero()[:, 0]
                    rows.keep(keep)
                    alive, next_ids, going = alive[keep], next_ids[keep], going[keep]
                rows.advance(next_ids)
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
