"""The scripted engine: completions read from a file, for tests and for trying a pipeline without a model.

Knows nothing of models. `script.json` in the policy's folder maps a question to texts; a completion is picked
by its seed, at temperature 0 it is the first, and one that does not start with the prefill is skipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from components.checkpoints import policy_digest
from components.engines import Completion, Prompt
from components.errors import EngineError
from components.records import read_json
from components.settings import Sampling


class ScriptedEngine:
    """Plays back texts."""

    seeding: Literal["row", "request"] = "row"

    def __init__(self, policy: Path) -> None:
        self.policy_digest = policy_digest(policy)
        self.script: dict[str, list[str]] = read_json(policy / "script.json")

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        """Completions of every prompt: `[P][K]`.

        Raises:
            EngineError: the script has no text for a prompt.
        """
        out = []
        for prompt in prompts:
            texts = [t[len(prompt.prefill) :] for t in self.script.get(prompt.question, []) if t.startswith(prompt.prefill)]
            if not texts:
                raise EngineError("script.json", f"no text for {prompt.question!r} after {prompt.prefill!r}", "add one")
            seeds = prompt.seeds if sampling.temperature else (0,) * len(prompt.seeds)
            out.append([self._completion(texts[seed % len(texts)], sampling) for seed in seeds])
        return out

    def close(self) -> None:
        """Nothing is held."""

    @staticmethod
    def _completion(text: str, sampling: Sampling) -> Completion:
        words = text.split(" ")
        cut = len(words) > sampling.max_tokens
        kept = " ".join(words[: sampling.max_tokens])
        return Completion(kept, "length" if cut else "stop", min(len(words), sampling.max_tokens), -1.0 * len(words))
