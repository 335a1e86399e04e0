"""What every engine promises, whatever is behind it: one suite for all, then what only a model or a journal can break."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from scipy import stats

from components.checkpoints import files_digest, load_model, load_processor
from components.engines import Completion, Prompt, hf, journaled, open_engine
from components.engines.hf import HfEngine, _uniforms
from components.engines.journaled import JournaledEngine
from components.engines.scripted import ScriptedEngine
from components.errors import EngineError
from components.records import write_json
from components.render import Renderer
from components.settings import Sampling, load_runtime
from components.store import Journal
from tests.conftest import WRITERS, picture

QUESTIONS = ("bars : most minus least ?", "cards : total of red and blue ?", "labels : red plus blue times green ?")
PREFILL = "red: 3\n\n"
SCRIPT = {
    question: [f"{PREFILL}blue: 5\n\n{i} + 5 = {i + 5}\n\nanswer: {i + 5}" for i in range(5)] for question in QUESTIONS
}
SAMPLING = Sampling(temperature=1.0, top_k=50, max_tokens=12)
GREEDY = Sampling(temperature=0.0, top_k=0, max_tokens=12)
MODELS = [f"hf {architecture}" for architecture in WRITERS]
WORDS = ("hf internvl", "hf llava", "scripted", "journaled hf internvl", "journaled scripted")  # one token, one word


def write_script(folder, script=SCRIPT, digest="scripted-policy"):
    folder.mkdir(exist_ok=True)
    write_json(folder / "script.json", script)
    write_json(folder / "policy.json", {"digest": digest})
    return folder


@pytest.fixture
def opened(checkpoint, tmp_path):
    """name of an engine -> an engine of its own."""
    engines = []

    def call(name):
        if name.startswith("journaled "):
            engine = JournaledEngine(call(name.removeprefix("journaled ")), Journal(tmp_path / "journal"), name="test")
        elif name == "scripted":
            engine = ScriptedEngine(write_script(tmp_path / "script"))
        else:
            engine = HfEngine(checkpoint(name.removeprefix("hf ")), device="cpu")
        engines.append(engine)
        return engine

    yield call
    for engine in reversed(engines):
        engine.close()


@pytest.fixture(params=[*MODELS, "scripted", "journaled hf internvl", "journaled scripted"])
def engine(request, opened):
    found = opened(request.param)
    found.kind = request.param
    return found


def sees(engine):
    return not engine.kind.endswith("qwen2")


def prompts_for(engine, *, seeds=(1, 2, 3), prefill=""):
    """Prompts of several lengths, each with a picture of its own where the engine takes any."""
    shown = [(picture(i),) if sees(engine) else () for i in range(len(QUESTIONS))]
    return [Prompt(q, images, prefill, tuple(seeds)) for q, images in zip(QUESTIONS, shown, strict=True)]


def flat(rows):
    return [completion for row in rows for completion in row]


def texts(rows):
    return [[completion.text for completion in row] for row in rows]


def test_there_are_as_many_completions_as_seeds_for_every_prompt_in_order(engine):
    prompts = [
        Prompt(prompt.question, prompt.images, "", tuple(range(count)))
        for prompt, count in zip(prompts_for(engine), (1, 4, 2), strict=True)
    ]
    together = engine.generate(prompts, SAMPLING)
    assert [len(row) for row in together] == [1, 4, 2]
    assert all(isinstance(completion, Completion) for row in together for completion in row)
    backwards = engine.generate(prompts[::-1], SAMPLING)
    assert texts(backwards[::-1]) == texts(together)
    assert engine.generate([], SAMPLING) == []


def test_equal_seeds_give_equal_texts_and_other_seeds_other_ones(engine):
    first, again = (engine.generate(prompts_for(engine, seeds=(5, 6, 5)), SAMPLING) for _ in range(2))
    assert first == again
    for row in first:
        assert row[0].text == row[2].text
    assert any(row[0].text != row[1].text for row in first)


def test_a_text_does_not_depend_on_the_company(engine):
    together = engine.generate(prompts_for(engine, seeds=range(6)), SAMPLING)
    for i, prompt in enumerate(prompts_for(engine, seeds=range(6))):
        for seed in range(6):
            alone = engine.generate([Prompt(prompt.question, prompt.images, "", (seed,))], SAMPLING)
            assert alone[0][0].text == together[i][seed].text


def test_a_text_does_not_depend_on_what_was_asked_before(engine, opened):
    bare = [Prompt(question, (), "", (1, 2)) for question in QUESTIONS]
    expected = texts(engine.generate(bare, SAMPLING))
    fresh = opened(engine.kind)
    fresh.kind = engine.kind
    fresh.generate(prompts_for(fresh, seeds=range(7)), SAMPLING)
    assert texts(fresh.generate(bare, SAMPLING)) == expected


def test_a_prefill_is_continued_and_not_repeated(engine):
    bare, begun = (
        engine.generate(prompts_for(engine, seeds=range(5), prefill=prefill), SAMPLING) for prefill in ("", PREFILL)
    )
    assert texts(begun) != texts(bare)
    assert not any(completion.text.lstrip().startswith(PREFILL.strip()) for row in begun for completion in row)
    if engine.kind.endswith("scripted"):  # of a model it is the log-probabilities below that tell
        for question, row in zip(QUESTIONS, begun, strict=True):
            assert {PREFILL + completion.text for completion in row} == set(SCRIPT[question])


def test_a_text_that_reaches_the_limit_is_said_to(engine):
    short, long = (
        engine.generate(prompts_for(engine, seeds=range(20)), SAMPLING.model_copy(update={"max_tokens": limit}))
        for limit in (3, 40)
    )
    assert any(completion.finish_reason == "length" for completion in flat(short))
    for limit, rows in ((3, short), (40, long)):
        for completion in flat(rows):
            assert completion.finish_reason in ("stop", "length")
            assert 1 <= completion.num_tokens <= limit
            assert completion.finish_reason == "stop" or completion.num_tokens == limit
            assert -math.inf < completion.logprob < 0
    if engine.kind in WORDS:  # a longer limit continues the same text
        for before, after in zip(flat(short), flat(long), strict=True):
            assert after.text.startswith(before.text)


def test_a_text_that_ends_by_itself_is_said_to(engine):
    rows = engine.generate(prompts_for(engine, seeds=range(60)), SAMPLING.model_copy(update={"max_tokens": 80}))
    assert any(completion.finish_reason == "stop" for completion in flat(rows))


def test_greedy_decoding_says_the_same_every_time(engine):
    first, again = (engine.generate(prompts_for(engine, seeds=(3, 3)), GREEDY) for _ in range(2))
    assert first == again
    assert all(row[0] == row[1] for row in first)


def test_no_special_token_is_ever_in_a_text(engine, checkpoint):
    loud = Sampling(temperature=5.0, top_k=0, max_tokens=40)
    architecture = engine.kind.split()[-1]
    special = ["<image>", "<|end|>"]
    if architecture in WRITERS:
        special = Renderer(load_processor(checkpoint(architecture))).tokenizer.all_special_tokens
        assert len(special) > 5
    for completion in flat(engine.generate(prompts_for(engine, seeds=range(50)), loud)):
        assert not [token for token in special if token in completion.text]


def test_the_policy_has_a_name(engine):
    assert isinstance(engine.policy_digest, str)
    assert engine.policy_digest


def test_the_engine_that_the_runtime_asks_for_is_opened(checkpoint, tmp_path):
    folder = write_script(tmp_path / "script")
    scripted = open_engine(folder, load_runtime({"STEPFORGE_ENGINE": "scripted"}))
    assert isinstance(scripted, ScriptedEngine)
    engine = open_engine(checkpoint("internvl"), load_runtime({"STEPFORGE_DEVICE": "cpu"}))
    assert isinstance(engine, HfEngine)
    assert engine.policy_digest == json.loads((checkpoint("internvl") / "policy.json").read_text())["digest"]


def test_a_folder_that_holds_no_whole_model_is_refused_by_its_name(checkpoint, tmp_path):
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        folder = tmp_path / f"without {name}"
        shutil.copytree(checkpoint("internvl"), folder)
        (folder / name).unlink()
        with pytest.raises(EngineError, match=folder.name):
            HfEngine(folder, device="cpu")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_model_whose_file_was_cut_short_is_refused(checkpoint, tmp_path, name):
    folder = tmp_path / "cut"
    shutil.copytree(checkpoint("internvl"), folder)
    (folder / name).write_bytes((folder / name).read_bytes()[:100])
    with pytest.raises(EngineError, match="cut"):
        HfEngine(folder, device="cpu")


# What only a model can break.


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


# What only a journal can break.


@pytest.fixture
def journal(tmp_path):
    opened = Journal(tmp_path / "journal.sqlite")
    yield opened
    opened.close()


@pytest.mark.parametrize("kind", ["hf internvl", "scripted"])
def test_what_the_journal_knows_is_not_sampled_again(opened, journal, kind):
    inner = opened(kind)
    inner.kind = kind
    first = JournaledEngine(inner, journal, name="first")
    rows = first.generate(prompts_for(inner, seeds=range(4)), SAMPLING)
    tokens = sum(completion.num_tokens for row in rows for completion in row)
    assert first.cost() == {"sampled_tokens": tokens, "journal_tokens": 0}
    assert rows == inner.generate(prompts_for(inner, seeds=range(4)), SAMPLING)

    second = JournaledEngine(inner, journal, name="second")
    assert second.generate(prompts_for(inner, seeds=range(4)), SAMPLING) == rows
    assert second.cost() == {"sampled_tokens": 0, "journal_tokens": tokens}

    more = second.generate(prompts_for(inner, seeds=range(2, 6)), SAMPLING)  # two known, two new for each
    assert [row[:2] for row in more] == [row[2:] for row in rows]
    new = sum(completion.num_tokens for row in more for completion in row[2:])
    assert second.cost()["sampled_tokens"] == new


def test_nothing_is_taken_for_what_it_is_not(journal, tmp_path):
    prompt = Prompt(QUESTIONS[0], (picture(0),), PREFILL, (1,))
    policies = {digest: ScriptedEngine(write_script(tmp_path / digest, digest=digest)) for digest in ("one", "two")}

    def cost(policy, asked, sampling):
        engine = JournaledEngine(policies[policy], journal, name="x")
        engine.generate([asked], sampling)
        spent = engine.cost()
        assert (spent["sampled_tokens"] == 0) != (spent["journal_tokens"] == 0)
        return spent["sampled_tokens"] > 0

    asked = {
        "first": ("one", prompt, SAMPLING),
        "policy": ("two", prompt, SAMPLING),
        "question": ("one", Prompt(QUESTIONS[1], prompt.images, PREFILL, (1,)), SAMPLING),
        "picture": ("one", Prompt(prompt.question, (picture(1),), PREFILL, (1,)), SAMPLING),
        "no picture": ("one", Prompt(prompt.question, (), PREFILL, (1,)), SAMPLING),
        "two pictures": ("one", Prompt(prompt.question, (picture(0), picture(0)), PREFILL, (1,)), SAMPLING),
        "prefill": ("one", Prompt(prompt.question, prompt.images, "", (1,)), SAMPLING),
        "seed": ("one", Prompt(prompt.question, prompt.images, PREFILL, (2,)), SAMPLING),
        "temperature": ("one", prompt, SAMPLING.model_copy(update={"temperature": 0.9})),
        "top_k": ("one", prompt, SAMPLING.model_copy(update={"top_k": 49})),
        "top_p": ("one", prompt, SAMPLING.model_copy(update={"top_p": 0.9})),
        "max_tokens": ("one", prompt, SAMPLING.model_copy(update={"max_tokens": 13})),
    }
    assert [name for name, request in asked.items() if not cost(*request)] == []  # each is paid for
    assert [name for name, request in asked.items() if cost(*request)] == []  # and only once


def test_a_run_that_breaks_off_keeps_every_batch_before(journal, tmp_path, monkeypatch):
    monkeypatch.setattr(journaled, "BATCH_PROMPTS", 2)
    questions = [f"question {i}" for i in range(7)]
    prompts = [Prompt(question, (), "", (0, 1)) for question in questions]
    script = {question: ["a b c", "d e"] for question in questions}
    folder = write_script(tmp_path / "script", {q: t for q, t in script.items() if q != "question 5"})
    broken = JournaledEngine(ScriptedEngine(folder), journal, name="broken")
    with pytest.raises(EngineError, match="no text for 'question 5'"):
        broken.generate(prompts, SAMPLING)
    assert broken.cost()["sampled_tokens"] == 4 * (3 + 2)  # two whole batches; the third was in flight

    write_script(folder, script)
    resumed = JournaledEngine(ScriptedEngine(folder), journal, name="resumed")
    rows = resumed.generate(prompts, SAMPLING)
    assert resumed.cost() == {"sampled_tokens": 3 * 5, "journal_tokens": 4 * 5}
    assert rows == ScriptedEngine(folder).generate(prompts, SAMPLING)


def test_a_picture_is_known_by_its_bytes_and_not_by_its_place_in_memory(journal, tmp_path):
    engine = JournaledEngine(ScriptedEngine(write_script(tmp_path / "script")), journal, name="x")
    for shade in range(30):  # short-lived pictures, whose places are used again
        engine.generate([Prompt(QUESTIONS[0], (picture(shade),), "", (0,))], SAMPLING)
    assert engine.cost()["journal_tokens"] == 0
    before = engine.cost()["sampled_tokens"]
    engine.generate([Prompt(QUESTIONS[0], (bytes(bytearray(picture(3))),), "", (0,))], SAMPLING)
    assert engine.cost()["sampled_tokens"] == before
