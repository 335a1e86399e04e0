"""Prompts -> completions. One small interface; batching, caching and devices hide behind it.

Owns what a prompt and a completion are; knows nothing of steps, labels or stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from components.settings import Runtime, Sampling


@dataclass(frozen=True)
class Prompt:
    """One request: everything before the text to be generated, and one seed for each completion wanted."""

    question: str
    images: tuple[bytes, ...]
    """Encoded pictures (PNG, JPEG...), shown before the question."""
    prefill: str = ""
    """The start of the assistant's turn, to be continued."""
    seeds: tuple[int, ...] = (0,)
    """K = len(seeds): K completions of one prompt are one request."""


@dataclass(frozen=True)
class Completion:
    """One generated text."""

    text: str
    finish_reason: str
    """stop: the model ended its turn. length: it was cut at `max_tokens`."""
    num_tokens: int
    logprob: float
    """Natural logarithm of the text's probability under the policy at temperature 1."""


class Engine(Protocol):
    """What every engine offers.

    A completion depends on its prompt, the sampling, its own seed and the policy: not on what else is in the
    batch, as far as floating-point arithmetic allows (see docs/architecture.md).
    """

    policy_digest: str

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        """Completions of every prompt: `[P][K]`, in the order of prompts and seeds."""

    def close(self) -> None:
        """Free what the engine holds."""


def open_engine(policy: Path, runtime: Runtime) -> Engine:
    """The engine that the runtime asks for, with the policy in a folder written by `sft`.

    Raises:
        EngineError: the policy cannot be loaded.
    """
    if runtime.engine == "scripted":
        from components.engines.scripted import ScriptedEngine

        return ScriptedEngine(policy)
    from components.engines.hf import HfEngine

    return HfEngine(policy, device=runtime.device)
