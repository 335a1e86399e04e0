"""What only vLLM can break: that it reads our token ids, and says what transformers says. Run by `make test-vllm`."""

import math

import pytest
import torch

from components.engines import Prompt
from components.engines.hf import HfEngine
from components.errors import EngineError, TryAgainError
from components.settings import Sampling
from tests.conftest import picture
from tests.contract.conftest import HAS_VLLM
from tests.contract.engine_fixture import GREEDY, PREFILL, QUESTIONS, SAMPLING, flat, texts

pytestmark = pytest.mark.skipif(not HAS_VLLM, reason="vLLM has an environment of its own: make test-vllm")
PROMPTS = [
    Prompt(QUESTIONS[0], (picture(0),), "", (1, 2)),
    Prompt(QUESTIONS[1], (picture(1), picture(2)), PREFILL, (1, 2)),
    Prompt(QUESTIONS[2], (), PREFILL * 3, (1, 2)),
    Prompt("<image> <|user|> red <|end|>", (picture(3),), "<|assistant|> 3\n\n", (1, 2)),
]


@pytest.fixture(scope="module")
def hf_engine(wide):
    return HfEngine(wide, device="cpu")


def whole_ids(engine, prompt):
    return engine.renderer.prompt(prompt.question, prompt.images).ids + engine.renderer.text_ids(prompt.prefill)


def test_vllm_reads_the_ids_that_transformers_reads(vllm_engine, hf_engine):
    requests = [vllm_engine._request(prompt) for prompt in PROMPTS]
    settings = [vllm_engine._settings(GREEDY, 0) for _ in requests]
    for prompt, answer in zip(PROMPTS, vllm_engine.llm.generate(requests, settings, use_tqdm=False), strict=True):
        assert answer.prompt_token_ids == whole_ids(hf_engine, prompt)
        assert len(answer.outputs) == 1


def test_a_server_reads_as_many(opened, hf_engine):
    server = opened("server vllm")
    for prompt in PROMPTS[:3]:  # a server's own tokenizer takes a forged marker for a real one
        from components.engines.server import _messages

        body = server._body(_messages(prompt), GREEDY, 1, 0)
        usage = server._wire.post("/chat/completions", body)["usage"]
        assert usage["prompt_tokens"] == len(whole_ids(hf_engine, prompt))


def test_greedy_decoding_says_what_transformers_says(vllm_engine, hf_engine):
    told = texts(hf_engine.generate(PROMPTS, GREEDY))
    assert texts(vllm_engine.generate(PROMPTS, GREEDY)) == told


@torch.no_grad()
def test_the_logprob_is_that_of_one_pass_over_the_whole_text(vllm_engine, hf_engine):
    requests = [vllm_engine._request(prompt) for prompt in PROMPTS]
    settings = [vllm_engine._settings(SAMPLING, 5) for _ in requests]
    for prompt, answer in zip(PROMPTS, vllm_engine.llm.generate(requests, settings, use_tqdm=False), strict=True):
        ids = list(answer.outputs[0].token_ids)
        encoded = hf_engine.renderer.prompt(prompt.question, prompt.images)
        whole = torch.tensor([whole_ids(hf_engine, prompt) + ids])
        logits = hf_engine.model(input_ids=whole, **encoded.tensors).logits[0, -len(ids) - 1 : -1]
        expected = logits.float().log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).sum().item()
        told = vllm_engine._completion(answer.outputs[0])
        assert told.num_tokens == len(ids)
        assert told.logprob == pytest.approx(expected, abs=2e-3)


def test_the_server_tells_tokens_and_logprobs_of_each_completion(opened):
    rows = opened("server vllm").generate(PROMPTS, SAMPLING.model_copy(update={"max_tokens": 60}))
    for completion in flat(rows):
        assert -math.inf < completion.logprob < 0
        assert completion.finish_reason == "stop" or completion.num_tokens == 60


@pytest.mark.parametrize("name", ["vllm", "server vllm"])
def test_a_prompt_that_leaves_no_room_is_cut_off_and_the_others_are_answered(opened, name):
    long = Prompt(QUESTIONS[0], (picture(0),), PREFILL * 200, (1, 2))
    rows = opened(name).generate([PROMPTS[0], long, PROMPTS[2]], SAMPLING)
    assert [(c.text, c.finish_reason, c.num_tokens) for c in rows[1]] == [("", "length", 0)] * 2
    assert texts(rows)[::2] == texts(opened(name).generate(PROMPTS[:3:2], SAMPLING))


@pytest.mark.parametrize("name", ["vllm", "server vllm"])
def test_a_text_is_cut_where_the_context_ends(opened, name):
    endless = Sampling(temperature=2.0, top_k=0, max_tokens=4000)
    (row,) = opened(name).generate([Prompt(QUESTIONS[0], (picture(0),), "", tuple(range(6)))], endless)
    assert {c.finish_reason for c in row} == {"stop", "length"}
    assert max(c.num_tokens for c in row) < 256  # the tiny model's whole context


@pytest.mark.parametrize("name", ["vllm", "server vllm"])
def test_what_vllm_refuses_is_an_error_with_a_hint(opened, name):
    with pytest.raises(EngineError, match=r"temperature must be in \[0, 2\]") as caught:
        opened(name).generate(PROMPTS[:1], Sampling(temperature=5.0, max_tokens=4))
    assert caught.value.hint


@pytest.mark.parametrize("name", ["vllm", "server vllm"])
def test_more_prompts_than_are_read_at_once_are_answered(opened, name):
    prompts = [Prompt(QUESTIONS[i % 3], (picture(i),), PREFILL * (i % 7), (i, i + 1, i + 2)) for i in range(120)]
    read = sum(3 * (20 + 5 * (i % 7)) for i in range(120))
    assert read > 2 * 4096  # what vLLM reads in one step on processors
    rows = opened(name).generate(prompts, GREEDY.model_copy(update={"temperature": 1.0, "max_tokens": 3}))
    assert [len(row) for row in rows] == [3] * 120


def test_what_breaks_inside_is_to_be_tried_again_in_one_line(vllm_engine, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("CPU Generator\n does not use offset")

    monkeypatch.setattr(vllm_engine.llm, "generate", broken)
    with pytest.raises(TryAgainError, match="broke down while it sampled: RuntimeError: CPU Generator does not") as caught:
        vllm_engine.generate(PROMPTS[:1], SAMPLING)
    assert caught.value.exit_code == 75
    assert "journal" in caught.value.hint


def test_another_model_than_the_servers_is_refused(vllm_server, tiny_policy):
    from components.engines.server import ServerEngine

    with pytest.raises(EngineError, match="not the policy"):
        ServerEngine(tiny_policy, url=vllm_server)
