"""Shared by unit and contract tests: random-weight checkpoints of real architectures, and pictures to show them."""

import io
import json
import os
import signal

import hypothesis
import numpy as np
import pytest

from components.settings import TinyBase, limit_threads

os.environ["HF_HUB_OFFLINE"] = "1"  # a test that looks for a model elsewhere fails at once
hypothesis.settings.register_profile("stepforge", deadline=None, derandomize=True)  # a failure is a change, not chance
hypothesis.settings.load_profile("stepforge")
limit_threads(1)  # before anything imports torch: two threads on busy cores cost more than they give

TINY = TinyBase(type="tiny", hidden_size=32, num_layers=2)
QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}{% if c.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for jobs in the background; tests send it


def picture(shade: int) -> bytes:
    """A 32 x 32 PNG whose pixels depend on `shade`."""
    from PIL import Image

    pixels = np.random.default_rng(shade).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def name_policy(folder) -> None:
    """Make a checkpoint folder a policy, as `sft` does."""
    from components.records import tree_sha256, write_json

    write_json(folder / "policy.json", {"path_or_id": None, "revision": None, "digest": tree_sha256(folder)[:32]})


def byte_tokenizer():
    """A Qwen2 tokenizer whose words are single bytes, and the blank line."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    newline = "Ċ"
    vocabulary = {char: i for i, char in enumerate([*sorted(ByteLevel.alphabet()), 2 * newline])}
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary, merges=[(newline, newline)], unk_token=None, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [*QWEN_SPECIAL, "<|video_pad|>"]})
    tokenizer.chat_template = CHATML
    return tokenizer


def text_sizes(tokenizer) -> dict:
    """The language model's part of a tiny configuration."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.3,  # loud enough that a picture is heard at the end of the text
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
    }


def write_internvl(folder) -> None:
    from components.tiny import write_base

    write_base(folder, TINY, seed=1)


def write_qwen2(folder) -> None:
    """A language model that sees no pictures."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(1)
    Qwen2ForCausalLM(Qwen2Config(**text_sizes(tokenizer))).save_pretrained(folder)


def write_llava(folder) -> None:
    import torch
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    from components import tiny

    tokenizer = tiny._tokenizer()
    tokenizer.save_pretrained(folder)
    square = {"height": 32, "width": 32}
    image = {"image_processor_type": "CLIPImageProcessor", "size": square, "do_center_crop": False}
    (folder / "preprocessor_config.json").write_text(json.dumps(image))
    processor = {"processor_class": "LlavaProcessor", "patch_size": 16, "vision_feature_select_strategy": "default"}
    processor |= {"image_token": "<image>", "num_additional_image_tokens": 1}
    (folder / "processor_config.json").write_text(json.dumps(processor))
    (folder / "chat_template.jinja").write_text(tiny._CHAT_TEMPLATE)
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision |= {"model_type": "clip_vision_model", "image_size": 32, "patch_size": 16, "projection_dim": 32}
    config = LlavaConfig(
        vision_config=vision,
        text_config={"model_type": "llama", **text_sizes(tokenizer)},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(1)
    LlavaForConditionalGeneration(config).save_pretrained(folder)


def write_qwen2_5_vl(folder) -> None:
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(folder)
    image = {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 8, "temporal_patch_size": 2, "merge_size": 2}
    image |= {"min_pixels": 1024, "max_pixels": 1024, "size": {"shortest_edge": 1024, "longest_edge": 1024}}
    (folder / "preprocessor_config.json").write_text(json.dumps(image))
    (folder / "processor_config.json").write_text(json.dumps({"processor_class": "Qwen2_5_VLProcessor"}))
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "out_hidden_size": 32}
    vision |= {"patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 32}
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    ids = tokenizer.convert_tokens_to_ids
    config = Qwen2_5_VLConfig(
        vision_config={**vision, "fullatt_block_indexes": [1]},
        text_config={**text_sizes(tokenizer), "rope_parameters": rope},
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(1)
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)


WRITERS = {"internvl": write_internvl, "qwen2": write_qwen2, "llava": write_llava, "qwen2_5_vl": write_qwen2_5_vl}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """architecture -> a policy folder with random weights; written once, to be read only."""
    folders = {}

    def call(architecture: str):
        if architecture not in folders:
            folder = tmp_path_factory.mktemp(architecture)
            WRITERS[architecture](folder)
            name_policy(folder)
            folders[architecture] = folder
        return folders[architecture]

    return call


@pytest.fixture(scope="session")
def tiny_policy(checkpoint):
    """The known-truth world's own architecture, random and small."""
    return checkpoint("internvl")
