"""Prompts -> completions. One small interface; batching, caching and devices hide behind it.

Owns what a prompt and a completion are; knows nothing of steps, labels or stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from components.errors import SettingsError
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
    """stop: the model ended its turn. length: it was cut at `max_tokens`, or where the model's context ends."""
    num_tokens: int
    logprob: float
    """Natural logarithm of the text's probability under the policy at temperature 1; NaN if a server does not say."""


class Engine(Protocol):
    """What every engine offers.

    A completion depends on its prompt, the sampling, its seed and the policy: not on what else is in the
    batch, as far as floating-point arithmetic allows (see docs/architecture.md).
    """

    policy_digest: str
    seeding: Literal["row", "request"]
    """row: each completion has its own seed. request: the seeds of a prompt count as one; they stand and fall together."""

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        """Completions of every prompt: `[P][K]`, in the order of prompts and seeds.

        Raises:
            EngineError: the engine cannot do what is asked.
            TryAgainError: it cannot do it now.
        """

    def close(self) -> None:
        """Free what the engine holds; a second call does nothing."""


def open_engine(policy: Path, runtime: Runtime, *, continues: bool = True) -> Engine:
    """The engine that the runtime asks for, with the policy in a folder written by `sft`.

    Args:
        continues: whether prompts will have a prefill; False: a server need not be able to continue the assistant's turn.

    Raises:
        EngineError: the policy cannot be loaded or is not what the server has.
        SettingsError: the runtime names an engine that does not exist, or no server.
        TryAgainError: the server does not answer.
    """
    if runtime.engine == "scripted":
        from components.engines.scripted import ScriptedEngine

        return ScriptedEngine(policy)
    if runtime.engine == "server":
        from components.engines.server import ServerEngine

        if runtime.server_url is None:
            raise SettingsError("environment", "STEPFORGE_SERVER_URL is not set", "for example http://localhost:8000/v1")
        url, key, concurrency = runtime.server_url, runtime.server_key, runtime.server_concurrency
        return ServerEngine(policy, url=url, key=key, concurrency=concurrency, continues=continues)
    if runtime.engine == "vllm":
        from components.engines.vllm import VllmEngine

        return VllmEngine(policy, device=runtime.device)
    from components.engines.hf import HfEngine

    return HfEngine(policy, device=runtime.device)
