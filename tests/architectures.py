"""Tiny checkpoints with random weights of the architectures that a process reward model is built on.

Each is a real configuration, a tokenizer made here and its family's own processor and chat template; nothing is fetched.
"""

import io
import json
from functools import cache, partial
from pathlib import Path

import numpy as np

from tests.conftest import name_policy

_IM = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_VISION = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
_SYSTEM = "You are a helpful assistant."
_QWEN_CHAT = (
    "{% for m in messages %}"
    "{% if loop.first and m.role != 'system' and SYSTEM %}<|im_start|>system\nSYSTEM_TEXT<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
    "{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN_CHAT = _QWEN_CHAT.replace("SYSTEM_TEXT", _SYSTEM).replace(" and SYSTEM ", " ")
QWEN3_CHAT = _QWEN_CHAT.replace("SYSTEM_TEXT", "").replace(" and SYSTEM ", " and false ")
INTERNVL_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for c in m.content %}{% if c.type == 'image' %}<IMG_CONTEXT>\n{% else %}{{ c.text }}{% endif %}{% endfor %}"
    "{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAVA_CHAT = (
    "{% for m in messages %}{% if m.role != 'system' %}{{ m.role.upper() + ': ' }}{% endif %}"
    "{% for c in m.content | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{% for c in m.content | selectattr('type', 'equalto', 'text') %}{{ c.text + ' ' }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
ONEVISION_CHAT = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + ' ' }}"
    "{% for c in m.content | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% for c in m.content | selectattr('type', 'equalto', 'text') %}{{ '\n' + c.text }}{% endfor %}{{ '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
IDEFICS_CHAT = (
    "BOS{% for m in messages %}{{ m.role | capitalize }}{% if m.content[0].type == 'image' %}{{ ':' }}{% else %}{{ ': ' }}"
    "{% endif %}{% for c in m.content %}{% if c.type == 'text' %}{{ c.text }}{% elif c.type == 'image' %}{{ '<image>' }}"
    "{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
LLAMA3_CHAT = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}"
    "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA_CHAT = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{% for c in m.content %}{% if c.type == 'image' %}<start_of_image>{% else %}{{ c.text | trim }}{% endif %}{% endfor %}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def picture(shade: int, width: int = 32, height: int = 32) -> bytes:
    """A PNG whose pixels depend on `shade`."""
    from PIL import Image

    pixels = np.random.default_rng(shade).integers(0, 256, (height, width, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def _alphabet() -> dict[str, int]:
    from tokenizers.pre_tokenizers import ByteLevel

    return {char: i for i, char in enumerate([*sorted(ByteLevel.alphabet()), "ĊĊ"])}


def _qwen_tokenizer(special: tuple[str, ...], chat: str, **named):
    """Qwen2's tokenizer whose words are single bytes, and the blank line."""
    from tokenizers import AddedToken
    from transformers import Qwen2Tokenizer

    ends = {"unk_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    tokenizer = Qwen2Tokenizer(vocab=_alphabet(), merges=[("Ċ", "Ċ")], **ends, **named)
    tokenizer.add_tokens([AddedToken(text, special=True, normalized=False) for text in (*_IM, *special)])
    tokenizer.chat_template = chat
    return tokenizer


def _bytes_tokenizer(special: tuple[str, ...], chat: str, *, bos: str, eos: str, adds_bos: bool = True, **named):
    """The tokenizer of Llama 3 and its kin, of single bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE(_alphabet(), [("Ċ", "Ċ")]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([bos, eos, *special])
    if adds_bos:
        core.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, core.token_to_id(bos))]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token=bos, eos_token=eos, pad_token=eos, **named)
    tokenizer.chat_template = chat
    return tokenizer


def _llama_tokenizer(special: tuple[str, ...], chat: str):
    """Llama 2's tokenizer: a word brings its space with it, what is not in the vocabulary is spelt in bytes."""
    from transformers import LlamaTokenizer

    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *map(chr, range(33, 127))]
    merges = [("▁", "+"), ("▁", "-"), ("▁", "=")]
    vocabulary = {piece: i for i, piece in enumerate([*pieces, *map("".join, merges)])}
    tokenizer = LlamaTokenizer(vocab=vocabulary, merges=merges, pad_token="<unk>", add_bos_token=True)
    tokenizer.add_special_tokens({"additional_special_tokens": list(special)})
    tokenizer.chat_template = chat
    return tokenizer


def _text(tokenizer, **more) -> dict:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "initializer_range": 0.3,  # loud enough that a picture is heard at the end of the text
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **more,
    }


def _write(folder: Path, tokenizer, config, kind, *, image: dict | None = None, processor: dict | None = None) -> None:
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    chat, tokenizer.chat_template = tokenizer.chat_template, None
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(chat)
    if image is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(image))
        (folder / "processor_config.json").write_text(json.dumps(processor))
    torch.manual_seed(1)
    model = kind(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "language" not in name and "text_model.layers" not in name and parameter.ndim > 1:
                parameter.copy_(parameter * 3.0 if parameter.any() else torch.randn_like(parameter))  # a picture is seen
    model.save_pretrained(folder)
    name_policy(folder)


def _qwen_vl(folder: Path, family: str) -> None:
    import transformers as tf

    tokenizer = _qwen_tokenizer(_VISION, QWEN3_CHAT if family == "Qwen3VL" else QWEN_CHAT)
    patch = {"patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2}
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    if family == "Qwen3VL":
        vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "out_hidden_size": 32}
        vision |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
        rope |= {"mrope_interleaved": True}
    elif family == "Qwen2_5_VL":
        vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "out_hidden_size": 32}
        vision |= {"window_size": 32, "fullatt_block_indexes": [1]}
    else:
        vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2, "num_heads": 4}
    text = _text(tokenizer, rope_parameters=rope) | ({"head_dim": 8} if family == "Qwen3VL" else {})
    ids = tokenizer.convert_tokens_to_ids
    config = getattr(tf, f"{family}Config")(
        vision_config=vision | patch,
        text_config=text,
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        eos_token_id=tokenizer.eos_token_id,
    )
    image = {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 8, "temporal_patch_size": 2, "merge_size": 2}
    image |= {"size": {"shortest_edge": 256, "longest_edge": 4096}, "min_pixels": 256, "max_pixels": 4096}
    kind = getattr(tf, f"{family}ForConditionalGeneration")
    _write(folder, tokenizer, config, kind, image=image, processor={"processor_class": f"{family}Processor"})


def internvl(folder: Path, *, text: str = "qwen2") -> None:
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    named = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    tokenizer = _qwen_tokenizer((), INTERNVL_CHAT, extra_special_tokens={**named, "video_token": "<video>"})
    vision = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    vision |= {"image_size": 32, "patch_size": 8, "attention_bias": True, "layer_scale_init_value": 1.0}
    config = InternVLConfig(
        vision_config=vision,
        text_config={"model_type": text, **_text(tokenizer)},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        eos_token_id=tokenizer.eos_token_id,
    )
    image = {"image_processor_type": "GotOcr2ImageProcessor", "size": {"height": 32, "width": 32}}
    image |= {"crop_to_patches": True, "min_patches": 1, "max_patches": 3}
    processor = {"processor_class": "InternVLProcessor", "image_seq_length": 4}
    _write(folder, tokenizer, config, InternVLForConditionalGeneration, image=image, processor=processor)


def _llava(folder: Path) -> None:
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    tokenizer = _llama_tokenizer(("<image>",), LLAVA_CHAT)
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    vision |= {"model_type": "clip_vision_model", "image_size": 32, "patch_size": 16, "projection_dim": 32}
    config = LlavaConfig(
        vision_config=vision,
        text_config={"model_type": "llama", **_text(tokenizer)},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        eos_token_id=tokenizer.eos_token_id,
    )
    image = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32}}
    image |= {"crop_size": {"height": 32, "width": 32}, "do_center_crop": True}
    processor = {"processor_class": "LlavaProcessor", "patch_size": 16, "vision_feature_select_strategy": "default"}
    processor |= {"image_token": "<image>", "num_additional_image_tokens": 1}
    _write(folder, tokenizer, config, LlavaForConditionalGeneration, image=image, processor=processor)


def _onevision(folder: Path) -> None:
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration

    tokenizer = _qwen_tokenizer(("<image>", "<video>"), ONEVISION_CHAT)
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    vision |= {"model_type": "siglip_vision_model", "image_size": 32, "patch_size": 8, "vision_use_head": False}
    pinpoints = [[32, 32], [32, 64], [64, 32], [64, 64]]
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config={"model_type": "qwen2", **_text(tokenizer)},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        image_grid_pinpoints=pinpoints,
        vision_feature_layer=-1,
        eos_token_id=tokenizer.eos_token_id,
    )
    image = {"image_processor_type": "LlavaOnevisionImageProcessor", "size": {"height": 32, "width": 32}}
    image |= {"image_grid_pinpoints": pinpoints}
    processor = {"processor_class": "LlavaOnevisionProcessor", "num_image_tokens": 16}
    processor |= {"vision_feature_select_strategy": "full", "vision_aspect_ratio": "anyres_max_9"}
    _write(folder, tokenizer, config, LlavaOnevisionForConditionalGeneration, image=image, processor=processor)


def _idefics(folder: Path, family: str) -> None:
    import transformers as tf

    tiles = tuple(f"<row_{i + 1}_col_{j + 1}>" for i in range(6) for j in range(6))
    special = ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *tiles)
    if family == "Idefics3":
        tokenizer = _bytes_tokenizer(special, IDEFICS_CHAT, bos="<|begin_of_text|>", eos="<|end_of_text|>")
    else:
        tokenizer = _bytes_tokenizer(special, IDEFICS_CHAT, bos="<|im_start|>", eos="<|im_end|>", adds_bos=False)
    tokenizer.chat_template = IDEFICS_CHAT.replace("BOS", tokenizer.bos_token)
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = getattr(tf, f"{family}Config")(
        vision_config=vision | {"image_size": 32, "patch_size": 8},
        text_config={"model_type": "llama", **_text(tokenizer)},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    image = {"image_processor_type": f"{family}ImageProcessor", "size": {"longest_edge": 64}}
    image |= {"max_image_size": {"longest_edge": 32}, "do_image_splitting": True}
    processor = {"processor_class": f"{family}Processor", "image_seq_len": 4}
    kind = getattr(tf, f"{family}ForConditionalGeneration")
    _write(folder, tokenizer, config, kind, image=image, processor=processor)
    if family == "SmolVLM":
        video = {"video_processor_type": "SmolVLMVideoProcessor", "size": {"longest_edge": 64}}
        video |= {"max_image_size": {"longest_edge": 32}, "fps": 1, "num_frames": 64}
        video |= {"video_sampling": {"fps": 1, "max_frames": 64, "video_size": {"longest_edge": 32}}}
        (folder / "video_preprocessor_config.json").write_text(json.dumps(video))


def _qwen2(folder: Path, *, sliding: bool = False) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = _qwen_tokenizer((), QWEN_CHAT)
    window = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0} if sliding else {}
    _write(folder, tokenizer, Qwen2Config(**_text(tokenizer, **window)), Qwen2ForCausalLM)


def _llama(folder: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    special = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    tokenizer = _bytes_tokenizer(special, LLAMA3_CHAT, bos="<|begin_of_text|>", eos="<|end_of_text|>")
    _write(folder, tokenizer, LlamaConfig(**_text(tokenizer)), LlamaForCausalLM)


def _mamba(folder: Path) -> None:
    from transformers import MambaConfig, MambaForCausalLM

    tokenizer = _qwen_tokenizer((), QWEN_CHAT)
    text = _text(tokenizer)
    for name in ("num_attention_heads", "num_key_value_heads", "max_position_embeddings", "intermediate_size"):
        del text[name]
    _write(folder, tokenizer, MambaConfig(**text, state_size=8), MambaForCausalLM)


def _gemma3(folder: Path) -> None:
    """Attention looks both ways within a picture, and every other layer looks back a few tokens only."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    special = ("<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<image_soft_token>")
    named = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tokenizer = _bytes_tokenizer(special, GEMMA_CHAT, bos="<bos>", eos="<eos>", extra_special_tokens=named)
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = tokenizer.convert_tokens_to_ids
    config = Gemma3Config(
        vision_config={**vision, "model_type": "siglip_vision_model", "image_size": 32, "patch_size": 8},
        text_config=_text(tokenizer, head_dim=8, sliding_window=16, layer_types=["sliding_attention", "full_attention"]),
        mm_tokens_per_image=4,
        boi_token_index=ids("<start_of_image>"),
        eoi_token_index=ids("<end_of_image>"),
        image_token_index=ids("<image_soft_token>"),
        eos_token_id=tokenizer.eos_token_id,
    )
    image = {"image_processor_type": "Gemma3ImageProcessor", "size": {"height": 32, "width": 32}}
    processor = {"processor_class": "Gemma3Processor", "image_seq_length": 4}
    _write(folder, tokenizer, config, Gemma3ForConditionalGeneration, image=image, processor=processor)


SEEING = {
    "qwen2_vl": partial(_qwen_vl, family="Qwen2VL"),
    "qwen2_5_vl": partial(_qwen_vl, family="Qwen2_5_VL"),
    "qwen3_vl": partial(_qwen_vl, family="Qwen3VL"),
    "internvl": internvl,
    "llava": _llava,
    "llava_onevision": _onevision,
    "idefics3": partial(_idefics, family="Idefics3"),
    "smolvlm": partial(_idefics, family="SmolVLM"),
}
READING = {"qwen2": _qwen2, "llama": _llama}
ROWS_ONLY = {"gemma3": _gemma3, "mamba": _mamba, "qwen2_sliding": partial(_qwen2, sliding=True)}
EVERY = {**SEEING, **READING, **ROWS_ONLY}


def written_once(tmp_path_factory):
    """architecture -> a policy of it with random weights, to be read only; for a session's fixture."""

    @cache
    def call(architecture):
        folder = tmp_path_factory.mktemp(architecture)
        EVERY[architecture](folder)
        return folder

    return call
