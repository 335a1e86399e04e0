"""Write an InternVL checkpoint of the older format (InternVLChatModel: VisualPRM, MM-PRM) as transformers' own InternVL.

Reads safetensors alone and runs no code of the checkpoint's repository. Config, tokenizer and processor files come from
a checkpoint of the same base model that is in transformers' format already.

    python infra/convert_internvl.py VisualPRM-8B InternVL2_5-8B-MPO-hf artifacts/visualprm
    python infra/convert_internvl.py MM-PRM InternVL2_5-8B-MPO-hf artifacts/mm-prm --add-token "<prm>"
"""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path
from typing import Any

NAMES = (
    (r"^vision_model\.", "model.vision_tower."),
    (r"\.encoder\.layers\.", ".encoder.layer."),
    (r"\.class_embedding$", ".cls_token"),
    (r"\.position_embedding$", ".position_embeddings"),
    (r"\.patch_embedding\.", ".patch_embeddings.projection."),
    (r"\.ls(\d)$", r".lambda_\1"),
    (r"\.attn\.proj\.", ".attention.projection_layer."),
    (r"\.attn\.", ".attention."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"^mlp1\.0\.", "model.multi_modal_projector.layer_norm."),
    (r"^mlp1\.1\.", "model.multi_modal_projector.linear_1."),
    (r"^mlp1\.3\.", "model.multi_modal_projector.linear_2."),
    (r"^language_model\.(output|lm_head)\.", "lm_head."),
    (r"^language_model\.model\.", "model.language_model."),
    (r"\.tok_embeddings\.", ".embed_tokens."),
    (r"\.attention\.wo\.", ".self_attn.o_proj."),
    (r"\.attention\.wqkv\.", ".self_attn.wqkv."),
    (r"\.feed_forward\.w1\.", ".mlp.gate_proj."),
    (r"\.feed_forward\.w2\.", ".mlp.down_proj."),
    (r"\.feed_forward\.w3\.", ".mlp.up_proj."),
    (r"\.attention_norm\.", ".input_layernorm."),
    (r"\.ffn_norm\.", ".post_attention_layernorm."),
)
"""(pattern, replacement), applied in this order; those of InternLM2 meet nothing in a Qwen2 language model."""


def converted(name: str, value: Any, config: Any) -> dict[str, Any]:
    """A tensor of the older format as those of the new one: joined queries, keys and values are taken apart."""
    for pattern, replacement in NAMES:
        name = re.sub(pattern, replacement, name)
    if ".attention.qkv." in name:
        parts = value.chunk(3)
        return {name.replace(".qkv.", f".{kind}_proj."): part for kind, part in zip("qkv", parts, strict=True)}
    if ".self_attn.wqkv." in name:
        text = config.text_config
        heads, groups = text.num_attention_heads, text.num_key_value_heads
        size = getattr(text, "head_dim", None) or text.hidden_size // heads
        rows = value.reshape(groups, heads // groups + 2, size, -1)  # of each group: its queries, a key, a value
        apart = {"q": rows[:, :-2], "k": rows[:, -2], "v": rows[:, -1]}
        return {name.replace(".wqkv.", f".{kind}_proj."): part.reshape(-1, value.shape[-1]) for kind, part in apart.items()}
    return {name: value}


def convert(source: Path, like: Path, out: Path, *, tokens: list[str]) -> None:
    """Write `source` into `out`, described as `like` is.

    Args:
        tokens: special tokens that `source` has gained behind those of `like`, in their order.
    """
    import torch
    from safetensors.torch import load_file
    from tokenizers import AddedToken
    from transformers import AutoConfig, AutoTokenizer, InternVLForConditionalGeneration

    config = AutoConfig.from_pretrained(like, trust_remote_code=False)
    weights: dict[str, Any] = {}
    for shard in sorted(source.glob("*.safetensors")):
        for name, value in load_file(shard).items():
            weights.update(converted(name, value, config))
    if not weights:
        raise SystemExit(f"error: {source}: no *.safetensors\nhint: download the checkpoint: docs/checkpoints.md")
    rows = weights["model.language_model.embed_tokens.weight"].shape[0]
    tokenizer = AutoTokenizer.from_pretrained(like, trust_remote_code=False)
    before = len(tokenizer)
    tokenizer.add_tokens([AddedToken(text, special=True, normalized=False) for text in tokens], special_tokens=True)
    if len(tokenizer) > rows or (tokens and len(tokenizer) != rows):
        what = f"its weights have {rows} tokens, the tokenizer of {like} has {before} and {len(tokens)} more are added"
        raise SystemExit(
            f"error: {source}: {what}\nhint: name the tokens that it has gained: --add-token TEXT, in their order"
        )
    config.text_config.vocab_size = rows
    with torch.device("meta"):
        model = InternVLForConditionalGeneration(config)
    if config.text_config.tie_word_embeddings or config.tie_word_embeddings:
        weights["lm_head.weight"] = weights["model.language_model.embed_tokens.weight"]
    lacking, others = model.load_state_dict(weights, strict=False, assign=True)
    if lacking or others:
        what = (
            f"{len(lacking)} tensors are lacking ({', '.join(lacking[:2])}), {len(others)} unknown ({', '.join(others[:2])})"
        )
        raise SystemExit(f"error: {source}: {what}\nhint: {like} is not of the same base model")
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    for path in sorted(like.iterdir()):
        is_weight = path.suffix in (".safetensors", ".bin") or path.name in ("model.safetensors.index.json", "config.json")
        if path.is_file() and not is_weight and path.name != "policy.json":
            shutil.copyfile(path, out / path.name)
    if tokens:
        tokenizer.save_pretrained(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path, help="the downloaded checkpoint in the older format")
    parser.add_argument("like", type=Path, help="a checkpoint of the same base model in transformers' format")
    parser.add_argument("out", type=Path, help="where the converted checkpoint is written")
    parser.add_argument("--add-token", action="append", default=[], help="a special token that the checkpoint has gained")
    given = parser.parse_args()
    convert(given.source, given.like, given.out, tokens=given.add_token)
