"""Vision-language checkpoints: found, loaded and saved through transformers' Auto classes.

Owns where weights and processors come from; knows nothing of what they are used for. Safetensors only,
never remote code. A processor is never re-saved: its files are copied byte for byte from the base model.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from components.errors import EngineError
from components.records import digest, file_sha256, read_json, tree_sha256, write_json

POLICY = "policy.json"
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.pt", "*.pth", "config.json", "generation_config.json")
_OWN = (POLICY, "prm.json", "summary.json", "gate.json", "head.safetensors", "README.md")


def describe(path_or_id: str, revision: str | None) -> dict[str, Any]:
    """What names a checkpoint: a folder by its bytes, a hub repository by its id and commit.

    Raises:
        EngineError: the folder holds no config.json, or the hub id has no revision.
    """
    folder = Path(path_or_id)
    if folder.exists():
        if not (folder / "config.json").exists():
            raise EngineError(path_or_id, "no config.json: not a checkpoint", "name a folder saved by save_pretrained")
        return {"path_or_id": path_or_id, "revision": None, "digest": tree_sha256(folder)[:32]}
    if path_or_id.startswith((".", "/", "~")) or not re.fullmatch(r"[\w.-]+/[\w.-]+", path_or_id):
        raise EngineError(path_or_id, "no such folder", "name a folder, or a hub id such as organisation/model")
    if not revision or not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise EngineError(
            path_or_id,
            f"revision {revision!r} is no commit",
            "a branch moves: give the 40-digit commit of the hub repository",
        )
    return {"path_or_id": path_or_id, "revision": revision, "digest": digest("hub", path_or_id, revision)}


def describe_served(model: str, revision: str) -> dict[str, Any]:
    """What names a policy that only a server has: all that is known of it is what it is called.

    Raises:
        EngineError: a name is empty.
    """
    if not model.strip() or not revision.strip():
        raise EngineError(f"{model!r}, {revision!r}", "a served model has a name and a revision", "see sft.base")
    return {"path_or_id": None, "revision": revision, "served": model, "digest": digest("served", model, revision)}


def served_names(folder: Path) -> list[str]:
    """The names under which a server may list the policy of `folder`, the surest first."""
    described = _described(folder)
    if described.get("served"):
        return [described["served"]]
    where = described.get("path_or_id") or str(folder)
    return list(dict.fromkeys([str(described["digest"]), where, str(Path(where).resolve())]))


def write_pointer(folder: Path, described: dict[str, Any]) -> None:
    """Make `folder` stand for a checkpoint that lies elsewhere, without copying it."""
    write_json(folder / POLICY, described)


def policy_digest(folder: Path) -> str:
    """The digest of the policy in a folder written by `sft`, recomputed from its bytes where they are here.

    Raises:
        EngineError: the bytes are not those that policy.json names: whatever is keyed by the digest would lie.
    """
    described = _described(folder)
    claimed = seen = str(described.get("digest"))
    if (folder / "config.json").exists():
        seen = files_digest(folder)
    elif described.get("path_or_id") and Path(described["path_or_id"]).exists():
        seen = describe(described["path_or_id"], None)["digest"]
    if seen != claimed:
        what = f"its files are {seen}, but {POLICY} says {claimed}"
        raise EngineError(str(folder), what, "the policy was changed: run sft again, or dvc checkout")
    return claimed


def files_digest(folder: Path) -> str:
    """The digest of a policy's files, without the two that tell about it."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in (POLICY, "summary.json"))
    listing = "".join(f"{file_sha256(p)}  {p.relative_to(folder).as_posix()}\n" for p in files)
    return hashlib.sha256(listing.encode()).hexdigest()[:32]


def _described(folder: Path) -> dict[str, Any]:
    content = read_json(folder / POLICY)
    if not isinstance(content, dict):
        raise EngineError(str(folder / POLICY), f"is {content!r}, not what sft writes", "run sft again, or dvc checkout")
    return content


def location(folder: Path) -> tuple[str, str | None]:
    """(path or hub id, revision) to load for a folder that is a checkpoint or points to one."""
    if (folder / "config.json").exists():
        return str(folder), None
    described = _described(folder)
    if described.get("served"):
        what = f"{described['served']!r} is a model on a server: its weights are not here"
        raise EngineError(str(folder), what, "set STEPFORGE_ENGINE=server and STEPFORGE_SERVER_URL, or name a checkpoint")
    if not described.get("path_or_id"):
        raise EngineError(str(folder), "no config.json: its checkpoint is incomplete", "run sft again, or dvc checkout")
    return described["path_or_id"], described.get("revision")


def load_model(folder: Path, device: str) -> Any:
    """The vision-language model of `folder` in evaluation mode on `device`: float32 on a CPU, bfloat16 elsewhere.

    Raises:
        EngineError: it cannot be loaded, or its weights are not those of the architecture that its config names.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    name, revision = location(folder)
    where = resolve_device(device)
    dtype = torch.float32 if where == "cpu" else torch.bfloat16
    options: dict[str, Any] = {"revision": revision} if revision else {}
    config = _load_config(name, options)
    auto = AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM
    try:
        model, seen = auto.from_pretrained(
            name,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            **options,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise EngineError(
            name, f"cannot be loaded: {error}", "safetensors checkpoints of architectures known to transformers only"
        ) from error
    hint = "config.json and *.safetensors are not of one model: take both from one place"
    if seen["missing_keys"]:  # transformers would make them up
        missing, others = sorted(seen["missing_keys"]), sorted(seen["unexpected_keys"])
        what = f"{type(model).__name__} of its config needs {len(missing)} tensors that its weights lack ({missing[0]}...)"
        if others:
            what += f"; they hold {len(others)} of something else ({others[0]}...)"
        raise EngineError(name, what, hint)
    if seen["mismatched_keys"]:
        key, held, needed = sorted(seen["mismatched_keys"])[0]
        what = f"{type(model).__name__} of its config needs {key} as {list(needed)}, its weights hold {list(held)}"
        raise EngineError(name, what, hint)
    return model.to(where).eval()


def check_pair(folder: Path, model: Any, processor: Any) -> None:
    """See that a processor's tokens are those the model was made for, as far as both say.

    Raises:
        EngineError: the tokenizer has more tokens than the model, or they do not mean the same token by a picture.
    """
    hint = "weights and tokenizer files are not of one model: take both from one place"
    tokenizer = getattr(processor, "tokenizer", processor)
    known = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > known:
        raise EngineError(str(folder), f"its tokenizer has {len(tokenizer)} tokens, its model {known}", hint)
    said = [getattr(model.config, name, None) for name in ("image_token_id", "image_token_index")]
    place = next((i for i in said if i is not None), None)
    used: set[Any] = {getattr(owner, "image_token_id", None) for owner in (processor, tokenizer)} - {None}
    used |= set(getattr(processor, "image_token_ids", []))
    if place is not None and used and place not in used:
        what = f"a picture's place is token {min(used)} in its processor, but {place} in its model"
        raise EngineError(str(folder), what, hint)
    if place is None and hasattr(processor, "image_processor"):
        what = f"its processor reads pictures, but its model, {type(model).__name__}, does not"
        raise EngineError(str(folder), what, hint)


def _load_config(name: str, options: dict[str, Any]) -> Any:
    from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

    try:
        content, _ = PretrainedConfig.get_config_dict(name, **options)
        if content.get("auto_map") and content.get("model_type") not in CONFIG_MAPPING:
            kind = f"{content.get('model_type')!r} ({', '.join(content.get('architectures') or ['?'])})"
            what = f"its architecture {kind} is not in transformers: it needs code from its repository, which is never run"
            raise EngineError(name, what, "take or make the checkpoint in transformers' own format: docs/checkpoints.md")
        return AutoConfig.from_pretrained(name, trust_remote_code=False, **options)
    except (OSError, ValueError) as error:
        raise EngineError(name, f"has no usable config: {error}", "check the path, or the hub id and its commit") from error


def load_processor(folder: Path) -> Any:
    """The processor (or bare tokenizer) of `folder`.

    Raises:
        EngineError: it cannot be loaded.
    """
    from transformers import AutoProcessor
    from transformers.utils import is_torchvision_available

    if not is_torchvision_available():
        _do_without_video()
    name, revision = location(folder)
    options: dict[str, Any] = {"revision": revision} if revision else {}
    try:
        return AutoProcessor.from_pretrained(name, trust_remote_code=False, **options)
    except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
        raise EngineError(
            name, f"its processor cannot be loaded: {error}", "copy the base model's processor files beside the weights"
        ) from error


def _do_without_video() -> None:
    """Let processors load where torchvision is absent: their video part needs it, their image part does not."""
    from transformers.processing_utils import ProcessorMixin

    if hasattr(ProcessorMixin, "_stepforge_all_attributes"):
        return
    every = ProcessorMixin.get_attributes.__func__
    ProcessorMixin._stepforge_all_attributes = every

    def without_video(cls: Any) -> list[str]:
        names = every(cls)
        if "video_processor" in names:
            _make_video_optional(cls)
        return [name for name in names if name != "video_processor"]

    ProcessorMixin.get_attributes = classmethod(without_video)


def _make_video_optional(cls: Any) -> None:
    """Let a processor class that insists on a video processor, and on what videos need (SmolVLM), start without."""
    parameter = inspect.signature(cls.__init__).parameters.get("video_processor")
    if parameter is None or parameter.default is not parameter.empty:
        return
    cls.__init__.__defaults__ = (None, *(cls.__init__.__defaults__ or ()))  # the parameters behind it have theirs
    cls.video_processor = SimpleNamespace(num_frames=None, fps=None)
    module = sys.modules[cls.__module__]
    if getattr(module, "num2words", True) is None:
        module.num2words = _no_video  # type: ignore[attr-defined]


def _no_video(*_: Any, **__: Any) -> Any:
    raise EngineError("processor", "videos are not read", "give pictures")


def copy_processor_files(source: Path, target: Path) -> None:
    """Copy every file that is neither weights nor ours; re-saving would change or lose some of them."""
    name, revision = location(source)
    if revision:
        from huggingface_hub import snapshot_download

        name = snapshot_download(name, revision=revision, ignore_patterns=list(_WEIGHTS))
    for path in sorted(Path(name).iterdir()):
        if path.is_file() and path.name not in _OWN and not any(path.match(pattern) for pattern in _WEIGHTS):
            shutil.copyfile(path, target / path.name)


def hidden_states(model: Any, ids_BT: Any, tensors: dict[str, Any]) -> Any:
    """The last hidden states `[B, T, H]` of right-padded rows; the vocabulary's logits are never made.

    No attention mask is needed: attention is causal and the padding comes last.
    """
    return model.base_model(input_ids=ids_BT, use_cache=False, **tensors).last_hidden_state


def resolve_device(device: str) -> str:
    """`auto` -> cuda if there is one, else cpu."""
    import torch

    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"
