"""What every engine promises, whatever is behind it: one suite for all."""

import json
import math
import shutil

import pytest

from components.checkpoints import load_processor
from components.engines import Completion, Prompt, open_engine
from components.engines.hf import HfEngine
from components.engines.scripted import ScriptedEngine
from components.engines.server import ServerEngine
from components.errors import EngineError
from components.render import Renderer
from components.settings import Sampling, load_runtime
from tests.conftest import WRITERS, picture
from tests.contract.conftest import HAS_VLLM
from tests.contract.engine_fixture import (
    GREEDY,
    PREFILL,
    QUESTIONS,
    SAMPLING,
    SCRIPT,
    flat,
    prompts_for,
    sees,
    texts,
    write_script,
    write_served,
)

MODELS = [f"hf {architecture}" for architecture in WRITERS]
VLLM = ["vllm", "server vllm", "journaled vllm"] if HAS_VLLM else []
SCRIPTED = ("scripted", "journaled scripted", "server", "journaled server")
WORDS = ("hf internvl", "hf llava", "scripted", "journaled hf internvl", "journaled scripted")  # one token, one word


@pytest.fixture(
    params=[*MODELS, "scripted", "server", "journaled hf internvl", "journaled scripted", "journaled server", *VLLM]
)
def engine(request, opened):
    found = opened(request.param)
    found.kind = request.param
    return found


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
    if engine.seeding == "row":
        assert all(row[0].text == row[2].text for row in first)
    assert any(row[0].text != row[1].text for row in first)
    assert texts(engine.generate(prompts_for(engine, seeds=(7, 8, 9)), SAMPLING)) != texts(first)


def test_a_text_does_not_depend_on_the_company(engine):
    together = engine.generate(prompts_for(engine, seeds=range(6)), SAMPLING)
    for i, prompt in enumerate(prompts_for(engine, seeds=range(6))):
        if engine.seeding == "request":
            assert texts(engine.generate([prompt], SAMPLING)) == [texts(together)[i]]
            continue
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
    if engine.kind in SCRIPTED:  # of a model it is the log-probabilities below that tell
        for question, row in zip(QUESTIONS, begun, strict=True):
            assert {PREFILL + completion.text for completion in row} <= set(SCRIPT[question])


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


def test_greedy_decoding_says_the_same_every_time_whatever_the_seed(engine):
    first, again = (engine.generate(prompts_for(engine, seeds=seeds), GREEDY) for seeds in ((3, 4), (2**62, 1)))
    assert first == again
    assert all(row[0] == row[1] for row in first)


def test_no_special_token_is_ever_in_a_text(engine, checkpoint):
    loud = Sampling(temperature=2.0, top_k=0, max_tokens=40)
    architecture = engine.kind.split()[-1]
    special = ["<image>", "<|end|>", "<|assistant|>", "<|user|>"]
    if architecture in WRITERS:
        renderer = Renderer(load_processor(checkpoint(architecture)))
        special = renderer.tokenizer.convert_ids_to_tokens(renderer.special_ids())
        assert len(special) > 5
    for completion in flat(engine.generate(prompts_for(engine, seeds=range(100)), loud)):
        assert not [token for token in special if token in completion.text]


def test_the_policy_has_a_name(engine):
    assert isinstance(engine.policy_digest, str)
    assert engine.policy_digest


def test_pictures_are_looked_at(engine):
    if not sees(engine) or engine.kind.endswith("scripted"):  # a script has no eyes
        pytest.skip("sees nothing")
    asked = [Prompt(QUESTIONS[0], (picture(i),), "", tuple(range(8))) for i in (1, 2)]
    one, other = texts(engine.generate(asked, SAMPLING))
    assert one != other
    both = Prompt(QUESTIONS[0], (picture(1), picture(2)), "", tuple(range(8)))
    assert texts(engine.generate([both], SAMPLING))[0] not in (one, other)


def test_any_text_can_be_asked_and_continued(engine):
    odd = "Größe von △ABC — 面积？ 😀 <image> <|im_end|> \u202e\x00 {{ 1 }} {% raw %}"
    shown = (picture(0),) if sees(engine) else ()
    if engine.kind.endswith("scripted"):
        with pytest.raises(EngineError, match="no text for"):
            engine.generate([Prompt(odd, shown, "", (1, 2))], SAMPLING)
        return
    for prefill in ("", odd + "\n\n"):
        (row,) = engine.generate([Prompt(odd, shown, prefill, (1, 2))], SAMPLING)
        assert len(row) == 2
        assert all(completion.text.isprintable() or completion.num_tokens for completion in row)


def test_a_prompt_without_seeds_gets_nothing(engine):
    empty, full = prompts_for(engine, seeds=())[0], prompts_for(engine, seeds=(1, 2))[1]
    assert [len(row) for row in engine.generate([empty, full, empty], SAMPLING)] == [0, 2, 0]


def test_closing_twice_is_closing(opened, request):
    for name in ("hf internvl", "scripted", "server", "journaled scripted"):
        engine = opened(name)
        engine.close()
        engine.close()


def test_the_engine_that_the_runtime_asks_for_is_opened(checkpoint, tmp_path, imitation):
    folder = write_script(tmp_path / "script")
    scripted = open_engine(folder, load_runtime({"STEPFORGE_ENGINE": "scripted"}))
    assert isinstance(scripted, ScriptedEngine)
    where = {"STEPFORGE_ENGINE": "server", "STEPFORGE_SERVER_URL": imitation.url}
    served = open_engine(write_served(tmp_path / "served"), load_runtime(where))
    assert isinstance(served, ServerEngine)
    served.close()
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
