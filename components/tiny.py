"""A tiny vision-language model of a real architecture (InternVL) with random weights, for the known-truth world.

Owns its sizes, its word-level tokenizer and the start values that let it learn to look in seconds on a CPU.
It is saved as an ordinary checkpoint and loaded by the code that loads the large ones.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from components import world
from components.settings import TinyBase

_SPECIAL = ("<pad>", "<unk>", "<|user|>", "<|assistant|>", "<|end|>", "<img>", "</img>", "<image>", "<video>")
_CHAT_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for c in m.content %}{% if c.type == 'image' %}<image>{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}"
    "{% if m.role == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def write_base(folder: Path, base: TinyBase, *, seed: int, texts: Iterable[str] | None = None) -> None:
    """Save the model, its tokenizer and its processor files into `folder`.

    Args:
        texts: every word, tag and line break of theirs becomes a token; None: the words of the maths world.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(texts)
    num_image_tokens = (base.image_size // base.patch_size // 2) ** 2
    tokenizer.save_pretrained(folder)
    # The processor files are written, not saved: saving from a process without torchvision loses the video part.
    image = {
        "image_processor_type": "GotOcr2ImageProcessor",
        "size": {"height": base.image_size, "width": base.image_size},
        "crop_to_patches": False,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    video = {**image, "video_processor_type": "InternVLVideoProcessor"}
    del video["image_processor_type"]
    (folder / "preprocessor_config.json").write_text(json.dumps(image, indent=1) + "\n")
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video, indent=1) + "\n")
    processor = {"processor_class": "InternVLProcessor", "image_seq_length": num_image_tokens}
    (folder / "processor_config.json").write_text(json.dumps(processor, indent=1) + "\n")
    (folder / "chat_template.jinja").write_text(_CHAT_TEMPLATE)
    _model(base, tokenizer, seed).save_pretrained(folder)


_STRUCTURE = re.compile(r"\n+|</?\w+>")
_MAX_NUMBER = world.MAX_NUMBER  # whole numbers up to it are words, whatever the texts hold


def _vocabulary(texts: Iterable[str] | None) -> tuple[list[str], list[str]]:
    """(words, then numbers; line breaks and tags) of texts."""
    if texts is None:
        return world.words(), ["\n\n"]
    structure, words = {"\n\n"}, set()
    for text in texts:
        structure.update(_STRUCTURE.findall(text))
        words.update(_STRUCTURE.sub(" ", text).split())
    numbers = [str(n) for n in range(_MAX_NUMBER + 1)]
    return sorted(words - set(numbers)) + numbers, sorted(structure)


def _tokenizer(texts: Iterable[str] | None = None) -> Any:
    """One token a word; line breaks and tags are tokens too, so that steps can be told apart."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words, structure = _vocabulary(texts)
    vocabulary = {word: i for i, word in enumerate([*_SPECIAL, *(f"▁{word}" for word in words)])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    spaced = decoders.Metaspace(prepend_scheme="always")
    opening = [tag for tag in structure if tag.startswith("<") and not tag.startswith("</")]
    # A word brings its space with it: what follows an opening tag has none.
    unspaced = [decoders.Replace(f"{tag} ", tag) for tag in opening]
    core.decoder = decoders.Sequence([spaced, decoders.Fuse(), *unspaced]) if opening else spaced
    core.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in _SPECIAL])
    core.add_tokens([AddedToken(text, normalized=False, special=False) for text in structure])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<|end|>",
        extra_special_tokens={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<image>",
            "video_token": "<video>",
        },
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def _model(base: TinyBase, tokenizer: Any, seed: int) -> Any:
    import torch
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    torch.manual_seed(seed)
    ids = {name: tokenizer.convert_tokens_to_ids(name) for name in _SPECIAL}
    config = InternVLConfig(
        vision_config={
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 128,
            "image_size": base.image_size,
            "patch_size": base.patch_size,
            "attention_bias": True,
            "layer_scale_init_value": 1.0,
            "use_mean_pooling": True,
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": len(tokenizer),
            "hidden_size": base.hidden_size,
            "intermediate_size": 2 * base.hidden_size,
            "num_hidden_layers": base.num_layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "tie_word_embeddings": True,
            "initializer_range": 0.05,
            "bos_token_id": None,
            "eos_token_id": ids["<|end|>"],
            "pad_token_id": ids["<pad>"],
        },
        image_token_id=ids["<image>"],
        image_seq_length=(base.image_size // base.patch_size // 2) ** 2,
        downsample_ratio=0.5,
        tie_word_embeddings=True,
        eos_token_id=ids["<|end|>"],
        pad_token_id=ids["<pad>"],
    )
    model = InternVLForConditionalGeneration(config)
    # With the usual small start values the language model learns to do without the picture before the
    # vision tower says anything useful; larger ones make position and content audible from the first step.
    with torch.no_grad():
        for name, weight in model.model.vision_tower.named_parameters():
            if "position_embeddings" in name:
                weight.normal_(0, 0.3)
            elif weight.ndim == 2 and "embeddings" not in name:
                weight.mul_(5.0)
            elif weight.ndim == 4:
                weight.mul_(2.0)
        for weight in model.model.multi_modal_projector.parameters():
            if weight.ndim == 2:
                weight.mul_(2.0)
    return model
