"""The server engine against an imitation of a server whose faults can be switched on."""

import io
import json
import math
import threading
import time
from email.utils import formatdate

import pytest
from PIL import Image

from components.engines import Prompt, wire
from components.engines.server import ServerEngine, _completions
from components.errors import EngineError, TryAgainError
from components.settings import Sampling
from tests.conftest import picture
from tests.contract.engine_fixture import (
    GREEDY,
    PREFILL,
    QUESTIONS,
    SAMPLING,
    SCRIPT,
    SERVED,
    ImitatedServer,
    flat,
    texts,
    write_served,
)

PROMPT = Prompt(QUESTIONS[0], (picture(1),), PREFILL, (1, 2, 3))


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(wire, "FIRST_WAIT_SECONDS", 0.001)


@pytest.fixture
def server():
    with ImitatedServer() as imitation:
        yield imitation


@pytest.fixture
def connect(server, tmp_path):
    engines = []

    def call(**options):
        policy = options.pop("policy", None) or write_served(tmp_path / "served")
        engines.append(ServerEngine(policy, **{"url": server.url, **options}))
        return engines[-1]

    yield call
    for engine in engines:
        engine.close()


def answer(message="x", logprobs=None, **more):
    choice = {"index": 0, "message": {"content": message}, "finish_reason": "stop", "logprobs": logprobs}
    return {"choices": [choice], "usage": {"completion_tokens": 3}} | more


@pytest.mark.parametrize(
    "said",
    [
        answer(choices=["x"]),
        answer(choices={"a": 1}),
        answer(choices=[{"message": "x"}]),
        answer(logprobs=[1]),
        answer(logprobs={"content": [{"logprob": "low"}]}),
        answer(usage={"completion_tokens": "3"}),
    ],
)
def test_an_answer_that_is_none_is_an_error_with_the_address(said):
    with pytest.raises(EngineError, match="answers what is no chat completion") as caught:
        _completions(said, 1, "http://there")
    assert caught.value.place == "http://there"


def test_what_a_server_leaves_out_of_an_answer_is_not_known():
    (one,) = _completions(answer(logprobs={"content": [{"logprob": -1.0}, {"logprob": None}, {}]}), 1, "u")
    assert (one.num_tokens, math.isnan(one.logprob)) == (3, True)
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert [_completions(answer(text), 1, "u")[0].text for text in (parts, None, "\ud800")] == ["ab", "", "?"]
    twice = [{"index": None, "message": {"content": text}, "finish_reason": "stop"} for text in "ab"]
    assert [c.text for c in _completions(answer(choices=twice), 2, "u")] == ["a", "b"]


def test_a_request_says_all_that_decides_the_text(server, connect):
    (row,) = connect().generate([PROMPT], Sampling(temperature=0.7, top_k=20, top_p=0.9, max_tokens=30))
    (body,) = server.asked
    assert body["model"] == SERVED
    assert (body["temperature"], body["top_k"], body["top_p"], body["max_tokens"], body["n"]) == (0.7, 20, 0.9, 30, 3)
    assert (body["repetition_penalty"], body["min_p"]) == (1.0, 0.0)  # whatever generation_config.json says there
    assert 0 <= body["seed"] < 2**30
    user, assistant = body["messages"]
    assert [part["type"] for part in user["content"]] == ["image_url", "text"]  # the picture comes first
    assert user["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert user["content"][1]["text"] == QUESTIONS[0]
    assert assistant == {"role": "assistant", "content": PREFILL}
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)
    assert all(PREFILL + completion.text in SCRIPT[QUESTIONS[0]] for completion in row)
    assert all(completion.logprob == -0.5 * completion.num_tokens for completion in row)


def test_a_question_without_picture_and_prefill_is_a_plain_message(server, connect):
    connect().generate([Prompt(QUESTIONS[0], (), "", (1,))], Sampling(top_k=0, max_tokens=4))
    (body,) = server.asked
    assert body["messages"] == [{"role": "user", "content": QUESTIONS[0]}]
    assert "continue_final_message" not in body
    assert body["top_k"] == -1  # all of them, where the server's default may be fewer


def test_the_seed_of_a_request_is_that_of_all_its_seeds(server, connect):
    engine = connect()
    for seeds in ((1, 2), (1, 2), (2, 1), (1,), (1, 2, 3)):
        engine.generate([Prompt(QUESTIONS[0], (), "", seeds)], SAMPLING)
    asked = [body["seed"] for body in server.asked]
    assert asked[0] == asked[1]
    assert len(set(asked)) == 4
    assert all(body["seed"] == 0 for body in server.requests if body not in server.asked)


def test_greedy_decoding_asks_once(server, connect):
    (row,) = connect().generate([PROMPT], GREEDY)
    assert [(body["n"], body["temperature"]) for body in server.asked] == [(1, 0.0)]
    assert len(row) == 3


@pytest.mark.parametrize("how", ["one choice", "refusal"])
def test_a_server_that_does_not_take_n_is_asked_k_times(server, connect, how, capsys):
    if how == "one choice":
        server.takes_n = False
    else:
        server.refused = ("n",)
    (row,) = connect().generate([PROMPT], SAMPLING)
    assert len(row) == len(server.asked) == 3
    assert len({body["seed"] for body in server.asked}) == 3
    assert capsys.readouterr().err.count("asks K times") == 1


def test_what_a_server_does_not_take_is_left_out_once_and_said_once(server, connect, capsys):
    server.refused = ("min_p", "repetition_penalty", "logprobs", "top_logprobs", "seed", "top_k")
    engine = connect()
    every = Sampling(top_k=0, max_tokens=12)
    rows = engine.generate([PROMPT] * 3, every)
    assert all(name not in body for body in server.asked for name in server.refused)
    assert len(server.asked) == 3
    said = capsys.readouterr().err
    assert all(said.count(name) == 1 for name in ("min_p", "repetition_penalty", "seed"))
    assert all(math.isnan(completion.logprob) for completion in flat(rows))
    assert all(c.num_tokens >= 1 for c in flat(rows))
    for row in rows:  # counted by usage, and shared out
        assert sum(c.num_tokens for c in row) == pytest.approx(sum(len(c.text.split(" ")) for c in row), abs=2)
    with pytest.raises(EngineError, match="does not take top_k = 50") as caught:
        engine.generate([PROMPT], SAMPLING)  # leaving that out would be another distribution
    assert caught.value.hint == "set sampling.top_k to 0"


@pytest.mark.parametrize(
    ("fault", "said"),
    [("ignores", "ignores the assistant's turn"), ("closes", "closes the assistant's turn"), ("repeats", "repeats")],
)
def test_a_server_that_does_not_continue_the_assistants_turn_is_refused_at_the_start(server, connect, fault, said):
    server.continues = fault
    with pytest.raises(EngineError, match=said) as caught:
        connect()
    assert "continue_final_message" in caught.value.hint


def test_a_server_that_knows_no_continuing_or_does_not_count_is_refused(server, connect):
    server.refused = ("continue_final_message",)
    with pytest.raises(EngineError, match="cannot continue the assistant's turn"):
        connect()
    server.refused, server.counts = (), False
    with pytest.raises(EngineError, match="counts no prompt_tokens"):
        connect()


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 529, "drop"])
def test_what_passes_is_tried_again(server, connect, status):
    engine = connect()
    expected = engine.generate([PROMPT], SAMPLING)
    server.failures = [status] * 3
    assert engine.generate([PROMPT], SAMPLING) == expected
    assert server.failures == []


def test_a_server_that_stays_away_is_to_be_tried_later(server, connect):
    engine = connect()
    server.failures = [503] * 100
    with pytest.raises(TryAgainError, match=r"answers 503: too busy \(7 tries\)") as caught:
        engine.generate([PROMPT], SAMPLING)
    assert caught.value.exit_code == 75
    assert len(server.asked) == wire.NUM_TRIES


def test_nobody_at_the_address_is_to_be_tried_later(tmp_path):
    with ImitatedServer() as gone:
        pass
    with pytest.raises(TryAgainError, match="does not answer"):
        ServerEngine(write_served(tmp_path / "served"), url=gone.url)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_what_another_try_will_not_change_is_not_tried_again(server, connect, status):
    engine = connect()
    server.failures = [status]
    with pytest.raises(EngineError, match=f"answers {status}: too busy") as caught:
        engine.generate([PROMPT], SAMPLING)
    assert len(server.asked) == 1
    assert ("STEPFORGE_SERVER_KEY" in caught.value.hint) == (status in (401, 403))


def test_the_wait_that_a_server_asks_for_is_kept(server, connect):
    engine = connect()
    server.failures, server.retry_after = [429], "0.3"
    started = time.monotonic()
    engine.generate([PROMPT], SAMPLING)
    assert time.monotonic() - started >= 0.3


def test_waits_grow_and_differ_and_dates_are_read():
    waits = [[wire._pause(attempt, None) for _ in range(50)] for attempt in range(12)]
    for attempt, some in enumerate(waits):
        full = min(wire.MAX_WAIT_SECONDS, wire.FIRST_WAIT_SECONDS * 2**attempt)
        assert full / 2 <= min(some) < max(some) <= full
    asked = [wire._seconds_asked_for({"Retry-After": text}) for text in ("2", "0", "-3", "soon", "")]
    assert asked == [2.0, 0.0, 0.0, None, None]
    assert wire._seconds_asked_for({"Retry-After": formatdate(0, usegmt=True)}) == 0.0  # long past
    assert 50 < wire._seconds_asked_for({"Retry-After": formatdate(time.time() + 60, usegmt=True)}) <= 60
    assert wire._pause(0, 1e9) < 5 * wire.MAX_WAIT_SECONDS  # nobody waits for days


def test_an_answer_that_was_broken_off_is_asked_for_again(server, connect):
    engine = connect()
    server.finish_reasons = ["abort"]
    assert engine.generate([PROMPT], SAMPLING)[0][0].finish_reason in ("stop", "length")
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("told", "means"),
    [("stop", "stop"), ("length", "length"), ("eos", "stop"), ("content_filter", "length"), ("tool_calls", "length")],
)
def test_only_a_text_that_ended_by_itself_counts_as_ended(server, connect, told, means):
    engine = connect()
    server.finish_reasons = [told]
    assert engine.generate([Prompt(QUESTIONS[0], (), "", (1,))], SAMPLING)[0][0].finish_reason == means


def test_no_more_requests_are_in_flight_than_allowed_and_connections_are_kept(server, connect):
    engine = connect(concurrency=3)
    server.delay_seconds = 0.01
    rows = engine.generate([Prompt(QUESTIONS[i % 3], (), "", (i,)) for i in range(30)], SAMPLING)
    assert len(rows) == 30
    assert 2 <= server.most_together <= 3
    assert server.num_connections <= 1 + 3  # one examined the server


def test_rows_keep_their_order_whatever_comes_back_first(server, connect):
    engine = connect(concurrency=8)
    prompts = [Prompt(QUESTIONS[i % 3], (), "", (i, i + 1)) for i in range(40)]
    one_by_one = [engine.generate([prompt], SAMPLING)[0] for prompt in prompts]
    assert engine.generate(prompts, SAMPLING) == one_by_one


def test_one_failure_ends_the_rest(server, connect):
    engine = connect(concurrency=2)
    server.failures = [400]
    server.delay_seconds = 0.005
    with pytest.raises(EngineError, match="answers 400"):
        engine.generate([Prompt(QUESTIONS[0], (), "", (i,)) for i in range(500)], SAMPLING)
    assert len(server.asked) < 20


def test_closing_ends_what_waits(server, connect):
    engine = connect()
    server.delay_seconds = 20.0
    threading.Timer(0.2, engine.close).start()
    started = time.monotonic()
    with pytest.raises((EngineError, TryAgainError)):
        engine.generate([PROMPT], SAMPLING)
    assert time.monotonic() - started < 5
    server.delay_seconds = 0.0


def test_the_key_is_sent_and_never_shown(server, connect, capsys):
    server.key = "sk-secret"
    with pytest.raises(EngineError, match="answers 401: no such key") as caught:
        connect(key="sk-wrong")
    assert "STEPFORGE_SERVER_KEY" in caught.value.hint
    connect(key="sk-secret").generate([PROMPT], SAMPLING)
    assert {headers["Authorization"] for headers in server.headers} == {"Bearer sk-secret"}
    shown = capsys.readouterr()
    assert "secret" not in shown.out + shown.err + str(caught.value) + caught.value.lines()


def test_an_address_is_good_with_and_without_v1(server, connect):
    for url in (server.root, server.root + "/", server.url, server.url + "/"):
        assert len(connect(url=url).generate([PROMPT], SAMPLING)[0]) == 3
    with pytest.raises(EngineError, match="answers 404") as caught:
        connect(url=server.root + "/v2")
    assert "STEPFORGE_SERVER_URL" in caught.value.hint


def test_something_that_is_no_such_server_is_said(server, connect):
    server.failures = ["nonsense"]
    with pytest.raises(EngineError, match="no JSON object"):
        connect()


def test_the_server_must_have_the_policy(server, connect, tiny_policy):
    with pytest.raises(EngineError, match=f"serves {SERVED}, not the policy") as caught:
        connect(policy=tiny_policy)
    digest = json.loads((tiny_policy / "policy.json").read_text())["digest"]
    assert caught.value.hint.endswith(f"vllm serve {tiny_policy} --served-model-name {digest}")
    for listed in ({"id": digest}, {"id": str(tiny_policy)}, {"id": "any", "root": str(tiny_policy)}):
        server.models = [{"id": "other"}, listed]
        assert connect(policy=tiny_policy).model == listed["id"]
    server.models = []
    with pytest.raises(EngineError, match="serves no model"):
        connect(policy=tiny_policy)


def test_a_prompt_without_room_is_cut_off_and_a_text_ends_where_the_context_ends(server, connect):
    engine = connect()
    server.max_context = 60
    long = Prompt(QUESTIONS[0], (), PREFILL * 50, (1, 2))
    rows = engine.generate([long, PROMPT], SAMPLING)
    assert [(c.text, c.finish_reason, c.num_tokens, c.logprob) for c in rows[0]] == [("", "length", 0, 0.0)] * 2
    assert rows[1] == engine.generate([PROMPT], SAMPLING)[0]
    server.max_context = 20
    (row,) = engine.generate([PROMPT], SAMPLING.model_copy(update={"max_tokens": 900}))
    assert all(c.finish_reason == "length" and 0 < c.num_tokens < 20 for c in row)


def test_reasoning_that_is_taken_out_of_the_text_is_refused(server, connect, monkeypatch):
    engine = connect()
    plain = ImitatedServer.answer

    def reasoning(self, body):
        status, answer = plain(self, body)
        answer["choices"][0]["message"]["reasoning"] = "hm"
        return status, answer

    monkeypatch.setattr(ImitatedServer, "answer", reasoning)
    with pytest.raises(EngineError, match="takes the reasoning out") as caught:
        engine.generate([PROMPT], SAMPLING)
    assert "--reasoning-parser" in caught.value.hint


def test_kinds_of_pictures_are_told_apart(server, connect):
    shown = []
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP"):
        out = io.BytesIO()
        Image.new("RGB", (4, 4)).save(out, kind)
        shown.append(out.getvalue())
    connect().generate([Prompt(QUESTIONS[0], tuple(shown), "", (1,))], SAMPLING)
    urls = [part["image_url"]["url"] for part in server.asked[0]["messages"][0]["content"][:-1]]
    assert [url.split(";")[0] for url in urls] == [f"data:image/{k}" for k in ("png", "jpeg", "gif", "webp", "bmp")]


def test_texts_are_the_same_from_run_to_run(server, connect):
    prompts = [Prompt(question, (picture(0),), PREFILL, (1, 2, 3, 4)) for question in QUESTIONS]
    assert texts(connect().generate(prompts, SAMPLING)) == texts(connect().generate(prompts, SAMPLING))
