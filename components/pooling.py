"""A trained reward model as vLLM serves it: a classifier of tokens, read at every step.

Owns the exported checkpoint (weights as they are, the head as `score`, the temperature folded into it) and how it is asked
in process. Does not know how vLLM is installed: `export` does not need it.
"""

from __future__ import annotations

import base64
import io
import json
import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from components.checkpoints import load_processor
from components.contract import CONTRACT, agree, read_contract
from components.errors import EngineError
from components.formulations import FORMULATIONS
from components.prm import Reading, RewardModel
from components.records import read_json, write_json
from components.render import Renderer

MANIFEST = "pooling.json"
_INDEX = "model.safetensors.index.json"
_WEIGHTS, _SCORE = "model-weights.safetensors", "model-score.safetensors"  # readers stop at a model.safetensors
_NOT_COPIED = (CONTRACT, MANIFEST, "config.json", "head.safetensors", "generation_config.json", _INDEX)
TASK = "token_classify"


def export(folder: Path, out: Path) -> str:
    """Write a checkpoint that vLLM serves; returns the command that does, with `{folder}` for where it lies.

    With it goes a probe: solutions and the scores that our scorer gives them, which vLLM's must equal.

    Raises:
        EngineError: `folder` is no reward model, was changed, or is a blind control: vLLM cannot blank pictures.
    """
    contract = read_contract(folder)
    if contract["view"] != "picture":
        what = f"its view is {contract['view']!r}: pictures are blanked, which vLLM cannot do"
        raise EngineError(str(folder), what, "export the reward model that sees")
    probe = _probe(RewardModel.load(folder, device="cpu"))
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name not in _NOT_COPIED:
            shutil.copyfile(path, out / (_WEIGHTS if path.name == "model.safetensors" else path.name))
    head_CH = load_file(folder / "head.safetensors")["weight"].float() / contract["temperature"]
    config = read_json(folder / "config.json")
    # vLLM makes a classifier of the language model inside a vision-language model, not of the whole.
    score = {f"{'language_model.' if 'vision_config' in config else ''}score.weight": head_CH.contiguous()}
    if architecture := _as_token_classifier(config):
        config["architectures"] = [architecture]
        score["score.bias"] = head_CH.new_zeros(len(head_CH))
    names = {str(i): f"{i}: {weight:g}" for i, weight in enumerate(contract["weights"])}
    labels = {"id2label": names, "label2id": {name: int(i) for i, name in names.items()}}
    config |= labels
    if "text_config" in config:
        config["text_config"] |= labels
    write_json(out / "config.json", config)
    save_file(score, out / _SCORE)
    where: dict[str, str] = {}
    for path in sorted(out.glob("*.safetensors")):
        with safe_open(path, framework="pt") as tensors:
            where |= dict.fromkeys(tensors.keys(), path.name)
    size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    write_json(out / _INDEX, {"metadata": {"total_size": size}, "weight_map": where})
    pooler = _pooler(contract)
    kept: tuple[str, ...] = (
        "template",
        "marker",
        "marker_id",
        "label_tokens",
        "renderer_digest",
        "formulation",
        "weights",
        "aggregation",
    )
    kept += ("threshold", "max_tokens", "task", "task_digest", "digest")
    told = {name: contract[name] for name in kept if name in contract}
    write_json(out / MANIFEST, {**told, "pooler_config": pooler, "probe": probe})
    options = ["--runner", "pooling", "--convert", "classify", "--pooler-config", json.dumps(pooler)]
    return "vllm serve {folder} " + " ".join(map(shlex.quote, options)).replace("{", "{{").replace("}", "}}")


def _probe(model: RewardModel) -> list[dict[str, Any]]:
    """Solutions, without a picture and with one, and the scores of their steps in float32."""
    pictures = [(), (_picture(),)] if hasattr(model.renderer.processor, "image_processor") else [()]
    asked = [Reading("3 + 20 ?", images, ("3", "20", "3 + 20 = 23")) for images in pictures]
    rows = zip(asked, model.score(asked), strict=True)
    return [
        {
            "question": one.question,
            "images_base64": [base64.b64encode(content).decode() for content in one.images],
            "steps": list(one.steps),
            "scores": [round(score, 7) for score in scores],
        }
        for one, scores in rows
    ]


def _picture() -> bytes:
    """A picture whose every corner differs, so that no mix-up of places or axes goes unnoticed."""
    from PIL import Image

    picture = Image.new("RGB", (64, 64))
    picture.putdata([(4 * x, 4 * y, 255 if x > y else 0) for y in range(64) for x in range(64)])
    out = io.BytesIO()
    picture.save(out, format="PNG")
    return out.getvalue()


def _as_token_classifier(config: dict[str, Any]) -> str | None:
    """The token classifier of a text model's family, so that transformers loads it as one; None: there is none."""
    import transformers

    (name, *_) = config.get("architectures") or [""]
    classifier = name.removesuffix("ForCausalLM") + "ForTokenClassification"
    return classifier if name.endswith("ForCausalLM") and hasattr(transformers, classifier) else None


def _pooler(contract: dict[str, Any]) -> dict[str, Any]:
    """Logits at the markers; in the chat template at every token, as no token of its own marks where a step is read."""
    if contract["template"] == "marker":
        return {"task": TASK, "tok_pooling_type": "STEP", "step_tag_id": contract["marker_id"], "use_activation": False}
    return {"task": TASK, "tok_pooling_type": "ALL", "use_activation": False}


class PooledRewardModel:
    """An exported reward model in vLLM, in this process. Runs where vLLM is installed.

    Raises:
        EngineError: vLLM is not installed here or cannot load it, text would be rendered differently from training, or
            vLLM's scores of the probe are not ours.
    """

    def __init__(self, folder: Path) -> None:
        told = read_json(folder / MANIFEST)
        slot = told["label_tokens"][0] if told["template"] == "chat" else None
        marker = told["marker"] if slot is None else None
        self.renderer = Renderer(load_processor(folder), template=told["template"], marker=marker, slot=slot)
        hint = "export it again with this version of StepForge and of the tokenizer"
        agree(folder, "the renderer", here=self.renderer.digest, contract=told["renderer_digest"], hint=hint)
        self.formulation = FORMULATIONS[told["formulation"]]
        self.steps_only = told["pooler_config"]["tok_pooling_type"] == "STEP"
        self.llm: Any = _load(folder, told["pooler_config"])
        try:
            self.max_difference = self._probed(folder, told["probe"])
        except BaseException:
            self.close()
            raise

    def _probed(self, folder: Path, probe: Sequence[Mapping[str, Any]]) -> float:
        """How far vLLM's scores of the probe are from ours, at most."""
        asked = [
            Reading(row["question"], tuple(map(base64.b64decode, row["images_base64"])), tuple(row["steps"]))
            for row in probe
        ]
        found = self.score(asked)
        off = [max(abs(a - b) for a, b in zip(row["scores"], found[i], strict=True)) for i, row in enumerate(probe)]
        if max(off) > (tolerance := _tolerance(self.llm)):
            shown = ["without a picture", "with a picture"]
            what = "; ".join(f"{name} by {one:.2g}" for name, one in zip(shown, off, strict=False))
            hint = "this version of vLLM computes this architecture otherwise: score with stepforge score"
            raise EngineError(str(folder), f"vLLM's scores of the probe differ ({what}; {tolerance:g} is allowed)", hint)
        return float(max(off))

    def read(self, readings: Sequence[Reading]) -> list[Tensor]:
        """Logits `[steps, C]` of every solution, temperature applied, as `RewardModel.read` gives them."""
        solutions = [self.renderer.solution(reading.steps) for reading in readings]
        requests = [self._request(reading, one.ids) for reading, one in zip(readings, solutions, strict=True)]
        answers = self.llm.encode(requests, pooling_task=TASK, use_tqdm=False)
        out = []
        for answer, solution in zip(answers, solutions, strict=True):
            rows_TC = answer.outputs.data.float().cpu()
            start = len(answer.prompt_token_ids) - len(solution.ids)
            out.append(rows_TC if self.steps_only else rows_TC[[start + place for place in solution.markers]])
        return out

    def score(self, readings: Sequence[Reading]) -> list[list[float]]:
        """The score of each step of every solution, as `RewardModel.score` gives it."""
        return [self.formulation.scores(rows).tolist() for rows in self.read(readings)]

    def close(self) -> None:
        """Drop the model."""
        if self.llm is not None:
            self.llm.llm_engine.engine_core.shutdown()
        self.llm = None

    def _request(self, reading: Reading, solution: list[int]) -> dict[str, Any]:
        from PIL import Image

        ids = self.renderer.unexpanded_ids(reading.question, len(reading.images)) + solution
        if not reading.images:
            return {"prompt_token_ids": ids}
        pictures = [Image.open(io.BytesIO(content)).convert("RGB") for content in reading.images]
        return {"prompt_token_ids": ids, "multi_modal_data": {"image": pictures}}


def _tolerance(llm: Any) -> float:
    """Of a score: of one element rounding in float32, of many in the types of accelerators."""
    is_exact = str(llm.model_config.dtype) == "torch.float32"
    return 1e-4 if is_exact else 0.05


def _load(folder: Path, pooler: dict[str, Any]) -> Any:
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # nothing is left running when this process is killed
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    try:
        from vllm import LLM
        from vllm.config import PoolerConfig
        from vllm.platforms import current_platform
    except ImportError as error:
        raise EngineError(
            "vllm", f"is not installed here: {error}", "make setup-vllm, then .venv-vllm/bin/python"
        ) from error
    on_cpu = bool(current_platform.is_cpu())
    try:
        return LLM(
            str(folder),
            runner="pooling",
            convert="classify",
            pooler_config=PoolerConfig(**pooler),
            dtype="float32" if on_cpu else "bfloat16",
            trust_remote_code=False,
            enforce_eager=on_cpu,
            disable_log_stats=True,
            seed=0,
        )
    except Exception as error:  # vLLM raises many kinds, its own and those of what it stands on
        raise EngineError(str(folder), f"vLLM cannot load it: {error}", "see docs/scoring.md for what it serves") from error
