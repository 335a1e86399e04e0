"""The vLLM engine, in process: our renderer's token ids go in, token ids come out; vLLM batches and shares prefixes.

Knows nothing of steps or stages. Runs in vLLM's own environment (`make setup-vllm`), where the stages run as well.

Each completion is a request with its own seed. vLLM keeps the keys and values of a prompt once for all that share it,
as it does for n = K, so this costs no more and a completion depends on its own seed alone.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from components.checkpoints import load_processor, location, policy_digest
from components.engines import Completion, Prompt
from components.errors import EngineError, TryAgainError, one_line
from components.records import bytes_digest
from components.render import Renderer
from components.settings import Sampling

_BANNED_LOGIT = -1e9
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the model in this process: nothing is left running when it is killed
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "CRITICAL",  # what it raises is told by us, in one line instead of thousands
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # as many threads as STEPFORGE_THREADS says, not one a core
    "VLLM_CPU_KVCACHE_SPACE": "4",  # GiB; without it, half of the machine's memory
}


class VllmEngine:
    """Samples from one policy on the machine's accelerator, or its processors where vLLM is built for them.

    The log-probability is that of the model as it stands; the engine `hf` tells it without the special tokens that
    neither of the two ever samples. For a trained policy that is the same.
    """

    seeding: Literal["row", "request"] = "row"

    def __init__(self, policy: Path, *, device: str = "auto") -> None:
        self.policy_digest = policy_digest(policy)
        name, revision = location(policy)
        self.renderer = Renderer(load_processor(policy))
        self.tokenizer = self.renderer.tokenizer
        self.end_ids = _end_ids(name, revision)
        self.llm: Any = _load(name, revision, device)
        self.max_context_tokens: int = self.llm.model_config.max_model_len
        num_words = self.llm.model_config.get_vocab_size()
        banned = [i for i in self.renderer.special_ids() if i not in self.end_ids and i < num_words]
        self.banned = dict.fromkeys(banned, _BANNED_LOGIT)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        """Completions of every prompt: `[P][K]`. A prompt that leaves no room for an answer is cut off at once.

        Raises:
            EngineError: vLLM refuses the prompts or the sampling.
            TryAgainError: vLLM broke down while it sampled.
        """
        from vllm.exceptions import VLLMValidationError

        asked = [(prompt, self._request(prompt)) for prompt in prompts]
        try:
            return self._generate(asked, sampling)
        except VLLMValidationError as error:
            fits = [self._num_tokens(prompt) < self.max_context_tokens for prompt in prompts]
            if all(fits):
                raise EngineError("vllm", str(error), "see sampling in params.yaml, and the model's own limits") from error
        rows = iter(self._generate([a for a, fit in zip(asked, fits, strict=True) if fit], sampling))
        cut = Completion("", "length", 0, 0.0)
        return [next(rows) if fit else [cut] * len(prompt.seeds) for prompt, fit in zip(prompts, fits, strict=True)]

    def close(self) -> None:
        """Drop the model."""
        if self.llm is not None:
            self.llm.llm_engine.engine_core.shutdown()
        self.llm = None

    def _generate(self, asked: Sequence[tuple[Prompt, dict[str, Any]]], sampling: Sampling) -> list[list[Completion]]:
        seeds = [prompt.seeds if sampling.temperature else (0,) for prompt, _ in asked]  # greedy: one speaks for all
        requests = [request for (_, request), some in zip(asked, seeds, strict=True) for _ in some]
        if not requests:
            return [[] for _ in asked]
        settings = [self._settings(sampling, seed) for some in seeds for seed in some]
        answers = iter(self._answers(requests, settings))
        rows = [[self._completion(next(answers).outputs[0]) for _ in some] for some in seeds]
        return [row if sampling.temperature else row * len(p.seeds) for row, (p, _) in zip(rows, asked, strict=True)]

    def _answers(self, requests: list[dict[str, Any]], settings: list[Any]) -> Any:
        from vllm.exceptions import VLLMValidationError

        try:
            return self.llm.generate(requests, settings, use_tqdm=False)
        except VLLMValidationError:
            raise
        except Exception as error:  # of any kind; what runs inside is not to be used again, so another process must try
            what = f"broke down while it sampled: {type(error).__name__}: {one_line(str(error), 200)}"
            hint = "the same command goes on where the journal ends; if it breaks again, STEPFORGE_ENGINE=hf"
            raise TryAgainError("vllm", what, hint) from error

    def _settings(self, sampling: Sampling, seed: int) -> Any:
        from vllm import SamplingParams
        from vllm.exceptions import VLLMValidationError

        try:
            return SamplingParams(
                temperature=sampling.temperature,
                top_k=sampling.top_k or -1,
                top_p=sampling.top_p,
                max_tokens=min(sampling.max_tokens, self.max_context_tokens),
                seed=seed % 2**63,
                logprobs=0,
                logit_bias=self.banned or None,
                stop_token_ids=self.end_ids,
                detokenize=False,
            )
        except (ValueError, VLLMValidationError) as error:
            raise EngineError("vllm", str(error), "correct the settings of sampling in params.yaml") from error

    def _request(self, prompt: Prompt) -> dict[str, Any]:
        ids = self.renderer.unexpanded_ids(prompt.question, len(prompt.images))
        ids = ids + self.renderer.text_ids(prompt.prefill) if prompt.prefill else ids
        if not prompt.images:
            return {"prompt_token_ids": ids}
        return {
            "prompt_token_ids": ids,
            "multi_modal_data": {"image": [_decoded(image) for image in prompt.images]},
            "multi_modal_uuids": {"image": [bytes_digest(image) for image in prompt.images]},
        }

    def _num_tokens(self, prompt: Prompt) -> int:
        head = self.renderer.prompt(prompt.question, prompt.images).ids
        return len(head) + (len(self.renderer.text_ids(prompt.prefill)) if prompt.prefill else 0)

    def _completion(self, output: Any) -> Completion:
        ids = list(output.token_ids)
        stopped = bool(ids) and ids[-1] in self.end_ids
        text = self.tokenizer.decode(ids[:-1] if stopped else ids)
        return Completion(text, "stop" if stopped else "length", len(ids), round(output.cumulative_logprob, 6))


def _load(name: str, revision: str | None, device: str) -> Any:
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    if device.startswith("cuda:"):
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", device.removeprefix("cuda:"))
    try:
        from vllm import LLM
        from vllm.platforms import current_platform
    except ImportError as error:
        hint = "make setup-vllm, then run the stage by .venv-vllm/bin/python -m components; or STEPFORGE_ENGINE=hf"
        raise EngineError("vllm", f"is not installed here: {error}", hint) from error
    on_cpu = bool(current_platform.is_cpu())
    if device != "auto" and on_cpu != (device == "cpu"):
        built = "processors" if on_cpu else "accelerators"
        what = f"STEPFORGE_DEVICE={device}, but this vLLM is built for {built}"
        raise EngineError("vllm", what, "leave STEPFORGE_DEVICE out, or install the other build")
    try:
        return LLM(
            name,
            revision=revision,
            tokenizer_revision=revision,
            dtype="float32" if on_cpu else "bfloat16",  # as the engine hf loads it
            load_format="safetensors",
            trust_remote_code=False,
            enforce_eager=on_cpu,  # compiling takes minutes on processors
            enable_chunked_prefill=not on_cpu,  # a prompt read in two parts turns its seed's stream back: not on processors
            enable_prefix_caching=True,
            use_tqdm_on_load=False,
            disable_log_stats=True,
            seed=0,
        )
    except Exception as error:  # vLLM raises many kinds, its own and those of what it stands on
        hint = "see vLLM's list of supported architectures, and its memory settings; or STEPFORGE_ENGINE=hf"
        raise EngineError(name, f"vLLM cannot load it: {error}", hint) from error


def _end_ids(name: str, revision: str | None) -> list[int]:
    from transformers import AutoConfig, GenerationConfig

    options: dict[str, Any] = {"revision": revision} if revision else {}
    try:
        ends = GenerationConfig.from_pretrained(name, **options).eos_token_id
    except OSError:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, **options)
        ends = GenerationConfig.from_model_config(config).eos_token_id
    end_ids = [ends] if isinstance(ends, int) else list(ends or [])
    if not end_ids:
        raise EngineError(name, "its generation config names no end token", "add eos_token_id to generation_config.json")
    return end_ids


def _decoded(content: bytes) -> Any:
    from PIL import Image

    return Image.open(io.BytesIO(content)).convert("RGB")
