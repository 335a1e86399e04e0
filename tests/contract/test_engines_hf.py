"""What only a model can break: the engine `hf` against one pass of transformers over the whole text."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from scipy import stats

from components.checkpoints import files_digest, load_model
from components.engines import Prompt, decoding, hf
from components.engines.hf import HfEngine, _uniforms
from components.errors import EngineError
from components.records import write_json
from components.settings import Sampling
from tests import bench_engine
from tests.conftest import WRITERS, byte_tokenizer, name_policy, picture, text_sizes
from tests.contract.engine_fixture import GREEDY, PREFILL, QUESTIONS, SAMPLING, prompts_for, sees, texts


class Watched(HfEngine):
    """Remembers the token ids that were sampled."""

    def _completions(self, tokens, logprobs, counts):
        self.lines = [line[line >= 0].tolist() for line in tokens]
        return super()._completions(tokens, logprobs, counts)


def teacher_forced(engine, prompt, ids):
    """Log-probabilities `[len(ids), V]` at temperature 1 from one pass over the whole text, as transformers makes it."""
    encoded = engine.renderer.prompt(prompt.question, prompt.images)
    whole = torch.tensor([encoded.ids + engine.renderer.text_ids(prompt.prefill) + ids])
    tensors = {name: value for name, value in encoded.tensors.items() if name != "mm_token_type_ids"}
    if "image_grid_thw" in tensors:
        tensors["mm_token_type_ids"] = (whole == engine.model.config.image_token_id).int()
    with torch.no_grad():
        logits = engine.model(input_ids=whole, **tensors).logits[0, -len(ids) - 1 : -1].float()
    return logits.index_fill(1, engine.banned_ids, -math.inf).log_softmax(-1)


@pytest.mark.parametrize("architecture", WRITERS)
@pytest.mark.parametrize("compact_frac", [0.01, 1.0], ids=["finished rows leave", "finished rows stay"])
def test_the_logprob_is_that_of_one_pass_over_the_whole_text(checkpoint, monkeypatch, architecture, compact_frac):
    monkeypatch.setattr(hf, "_COMPACT_FRAC", compact_frac)
    engine = Watched(checkpoint(architecture), device="cpu")
    engine.kind = architecture
    loud = Sampling(temperature=2.0, top_k=0, top_p=0.9, max_tokens=30)
    asked = [(prompt, loud) for prompt in prompts_for(engine, seeds=range(25))]
    asked += [(prompt, SAMPLING) for prompt in prompts_for(engine, seeds=range(3), prefill=PREFILL)]
    asked += [(prompt, GREEDY) for prompt in prompts_for(engine, seeds=range(2))]
    lengths = set()
    for prompt, sampling in asked:
        (row,) = engine.generate([prompt], sampling)
        for completion, ids in zip(row, engine.lines, strict=True):
            assert completion.num_tokens == len(ids)
            logprobs = teacher_forced(engine, prompt, ids)
            expected = logprobs.gather(1, torch.tensor(ids)[:, None]).sum().item()
            assert completion.logprob == pytest.approx(expected, abs=1e-3)
            if sampling.temperature == 0:
                assert logprobs.argmax(-1).tolist() == ids
            lengths.add(len(ids))
    assert len(lengths) > 3  # some ended while others went on


@pytest.mark.parametrize("architecture", WRITERS)
def test_neither_batches_nor_leaving_rows_change_a_text(opened, monkeypatch, architecture):
    engine = opened(f"hf {architecture}")
    engine.kind = architecture
    sampling = SAMPLING.model_copy(update={"max_tokens": 60})
    shown = (picture(0),) if sees(engine) else ()
    prompts = [Prompt(QUESTIONS[i % 3], shown, "", tuple(range(7 * i, 7 * i + 7))) for i in range(6)]
    expected = engine.generate(prompts, sampling)
    assert len({completion.num_tokens for row in expected for completion in row}) > 2  # some end early
    for rows, frac in ((10, 0.2), (2048, 0.0), (2048, 1.0), (1, 0.01)):
        monkeypatch.setattr(hf, "MAX_ROWS", rows)
        monkeypatch.setattr(hf, "_COMPACT_FRAC", frac)
        assert texts(engine.generate(prompts, sampling)) == texts(expected)


@pytest.mark.parametrize("architecture", ["internvl", "llava", "qwen2_5_vl"])
def test_prompts_with_and_without_a_picture_of_equal_length_are_decoded_side_by_side(opened, architecture):
    engine = opened(f"hf {architecture}")
    longer, filler = QUESTIONS[0], "r" if architecture.startswith("qwen") else " red"
    length = len(engine.renderer.prompt(QUESTIONS[0], (picture(0),)).ids)
    while len(engine.renderer.prompt(longer, ()).ids) < length:
        longer += filler
    bare, shown = Prompt(longer, (), "", (1, 2)), Prompt(QUESTIONS[0], (picture(0),), "", (1, 2, 3))
    assert len(engine.renderer.prompt(longer, ()).ids) == length
    alone = [engine.generate([prompt], SAMPLING)[0] for prompt in (bare, shown)]
    assert texts(engine.generate([bare, shown], SAMPLING)) == texts(alone)
    assert texts(engine.generate([shown, bare], SAMPLING)) == texts(alone[::-1])


@pytest.mark.parametrize("architecture", ["internvl", "llava", "qwen2_5_vl"])
def test_the_picture_is_looked_at(opened, architecture):
    engine = opened(f"hf {architecture}")
    rows = engine.generate([Prompt(QUESTIONS[0], (picture(i),), "", tuple(range(8))) for i in (1, 2)], SAMPLING)
    assert texts(rows)[0] != texts(rows)[1]


def test_greedy_decoding_of_a_model_does_not_look_at_the_seed(opened):
    (row,) = opened("hf internvl").generate([Prompt(QUESTIONS[0], (picture(0),), "", (1, 2**62, 3))], GREEDY)
    assert len({completion.text for completion in row}) == 1


def test_the_numbers_behind_the_sampling_are_splitmix64():
    first, second = 0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4  # the reference implementation's, from seed 0
    assert _uniforms(np.zeros(1, np.uint64), 0)[0] == (first >> 11) / 2**53
    assert _uniforms(np.zeros(1, np.uint64), 1)[0] == (second >> 11) / 2**53
    many = _uniforms(np.arange(20_000, dtype=np.uint64), 3)
    assert 0 <= many.min() < many.max() < 1
    assert stats.kstest(many, "uniform").pvalue > 1e-3


def truncated(probs, sampling):
    """The distribution that the sampling asks for, by the definitions of its three settings."""
    probs = probs ** (1 / sampling.temperature)
    order = np.argsort(-probs)
    kept = order[: sampling.top_k] if sampling.top_k else order
    mass = probs[kept] / probs[kept].sum()
    num = int(np.searchsorted(np.cumsum(mass), sampling.top_p - 1e-12)) + 1
    out = np.zeros_like(probs)
    out[kept[:num]] = mass[:num] / mass[:num].sum()
    return out


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.5, 7, 1.0), (1.5, 0, 0.6), (1.0, 30, 0.8), (1.0, 100_000, 0.9)]
)
def test_first_tokens_are_as_frequent_as_the_model_says(checkpoint, temperature, top_k, top_p):
    engine = Watched(checkpoint("internvl"), device="cpu")
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, max_tokens=1)
    num = 8000
    prompt = Prompt(QUESTIONS[0], (picture(0),), "", tuple(range(num)))
    engine.generate([prompt], sampling)
    probs = teacher_forced(engine, prompt, [0])[0].exp().double().numpy()
    expected = num * truncated(probs, sampling)
    counts = np.bincount([line[0] for line in engine.lines], minlength=len(probs))
    assert not counts[expected == 0].any()
    often = expected >= 5
    pooled = [*expected[often], expected[~often].sum()], [*counts[often], counts[~often].sum()]
    if not pooled[0][-1]:
        pooled = pooled[0][:-1], pooled[1][:-1]
    expected_bins, count_bins = np.array(pooled[0]), np.array(pooled[1])
    assert len(expected_bins) > 4
    assert stats.chisquare(count_bins, expected_bins * count_bins.sum() / expected_bins.sum()).pvalue > 1e-3


def test_a_model_without_an_end_is_refused(checkpoint, tmp_path):
    folder = tmp_path / "endless"
    shutil.copytree(checkpoint("internvl"), folder)
    path = folder / "generation_config.json"
    content = json.loads(path.read_text())
    content.pop("eos_token_id")
    path.write_text(json.dumps(content))
    write_json(folder / "policy.json", {"digest": files_digest(folder)})
    config = json.loads((folder / "config.json").read_text())
    assert load_model(folder, "cpu").generation_config.eos_token_id is None, config
    with pytest.raises(EngineError, match="names no end token"):
        HfEngine(folder, device="cpu")


def sizes_of_batches(engine, monkeypatch):
    """Filled, as the engine decodes, with (rows, longest prompt) of every batch."""
    sizes, decode = [], engine._decode

    def watched(encoded, seeds, sampling):
        sizes.append((sum(map(len, seeds)), max(len(e.ids) for e in encoded)))
        return decode(encoded, seeds, sampling)

    monkeypatch.setattr(engine, "_decode", watched)
    return sizes


@pytest.mark.parametrize("architecture", WRITERS)
def test_prompts_of_all_lengths_are_decoded_side_by_side(opened, monkeypatch, architecture):
    engine = opened(f"hf {architecture}")
    engine.kind = architecture
    shown = (picture(0),) if sees(engine) else ()
    prompts = [Prompt(QUESTIONS[i % 3], shown if i % 2 else (), PREFILL * i, tuple(range(i, i + 4))) for i in range(7)]
    assert len({len(engine._encode(prompt).ids) for prompt in prompts}) > 4
    alone = [texts(engine.generate([prompt], SAMPLING))[0] for prompt in prompts]
    sizes = sizes_of_batches(engine, monkeypatch)
    assert texts(engine.generate(prompts, SAMPLING)) == alone
    assert len(sizes) == 1
    assert sizes[0][0] == 28


@pytest.mark.parametrize("architecture", WRITERS)
def test_the_fused_attention_of_a_gpu_sees_the_same_columns(opened, monkeypatch, architecture):
    engine = opened(f"hf {architecture}")
    engine.kind = architecture
    shown = (picture(0),) if sees(engine) else ()
    prompts = [Prompt(QUESTIONS[i % 3], shown, PREFILL * i, tuple(range(i, i + 4))) for i in range(5)]
    by_hand = engine.generate(prompts, SAMPLING)
    monkeypatch.setattr(decoding, "_BY_HAND", ())
    fused = engine.generate(prompts, SAMPLING)
    assert texts(fused) == texts(by_hand)
    for row, other in zip(fused, by_hand, strict=True):
        assert [c.logprob for c in row] == pytest.approx([c.logprob for c in other], abs=1e-3)


@pytest.mark.parametrize("share", [1.0, 0.4, 0.01])
def test_no_batch_takes_more_memory_than_there_is(opened, monkeypatch, share):
    engine = opened("hf internvl")
    prompts = [Prompt(QUESTIONS[i % 3], (picture(0),), PREFILL * i, tuple(range(i, i + 4))) for i in range(7)]
    expected = texts(engine.generate(prompts, SAMPLING))
    longest = max(len(engine._encode(prompt).ids) for prompt in prompts) + SAMPLING.max_tokens
    row_bytes = longest * engine.decoder.token_bytes + engine._logits_bytes
    assert engine.decoder.token_bytes == 2 * 2 * 2 * 8 * 4  # keys and values, layers, heads, numbers a head, bytes
    engine._room_bytes = int(28 * row_bytes * share)
    sizes = sizes_of_batches(engine, monkeypatch)
    assert texts(engine.generate(prompts, SAMPLING)) == expected
    assert sum(rows for rows, _ in sizes) == 28
    for rows, width in sizes:
        size = rows * ((width + SAMPLING.max_tokens) * engine.decoder.token_bytes + engine._logits_bytes)
        assert size <= engine._room_bytes or rows == 1
    assert (len(sizes) == 1) == (share == 1.0)


def test_long_prompts_are_read_a_few_at_a_time(opened, monkeypatch):
    engine = opened("hf internvl")
    prompts = [Prompt(QUESTIONS[0], (picture(i),), "", (1, 2)) for i in range(7)]
    expected = texts(engine.generate(prompts, SAMPLING))
    monkeypatch.setattr(decoding, "PREFILL_TOKENS", 3 * len(engine._encode(prompts[0]).ids))
    assert texts(engine.generate(prompts, SAMPLING)) == expected


def test_a_model_with_a_sliding_window_is_decoded_length_by_length(tmp_path, monkeypatch):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    torch.manual_seed(1)
    sliding = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}
    Qwen2ForCausalLM(Qwen2Config(**text_sizes(tokenizer) | sliding)).save_pretrained(tmp_path)
    name_policy(tmp_path)
    engine = Watched(tmp_path, device="cpu")
    assert not engine.decoder.merges_lengths
    prompts = [Prompt(QUESTIONS[i % 3], (), PREFILL * (i % 2), (i, i + 1)) for i in range(6)]
    sizes = sizes_of_batches(engine, monkeypatch)
    together = texts(engine.generate(prompts, SAMPLING))
    assert len(sizes) > 3
    for prompt, told in zip(prompts, together, strict=True):
        (row,) = engine.generate([prompt], SAMPLING)
        assert [completion.text for completion in row] == told
        for completion, ids in zip(row, engine.lines, strict=True):
            expected = teacher_forced(engine, prompt, ids).gather(1, torch.tensor(ids)[:, None]).sum().item()
            assert completion.logprob == pytest.approx(expected, abs=1e-3)


def test_the_engine_says_what_generate_says_and_sooner(tmp_path):
    policy = bench_engine.random_policy(tmp_path)
    for mix in ("solutions", "continuations"):
        assert bench_engine.greedy_agreement(policy, mix) == 1.0
        told = bench_engine.disagreement(policy, mix, repetitions=1)
        assert min(told.values()) > 1e-3, told
    assert (
        bench_engine.contest(policy, "continuations", repetitions=3).speedup > 1
    )  # how much: make bench-engine, on a calm machine
