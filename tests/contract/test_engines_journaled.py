"""What only a journal can break: nothing is paid for twice, nothing is taken for what it is not."""

import math
import sqlite3
from itertools import count

import pytest

from components.engines import Completion, Prompt, journaled
from components.engines.journaled import JournaledEngine
from components.engines.scripted import ScriptedEngine
from components.errors import EngineError
from components.store import Journal
from tests.conftest import picture
from tests.contract.engine_fixture import PREFILL, QUESTIONS, SAMPLING, prompts_for, write_script


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
    monkeypatch.setattr(journaled, "BATCH_ROWS", 4)
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


class Counting:
    """An engine whose every completion is another one, as a server's may be; says what it was asked."""

    policy_digest = "counting"

    def __init__(self, seeding, logprob=-1.0):
        self.seeding, self.logprob, self.asked, self._count = seeding, logprob, [], count()

    def generate(self, prompts, sampling):
        self.asked.append([prompt.seeds for prompt in prompts])
        return [[Completion(f"text {next(self._count)}", "stop", 2, self.logprob) for _ in p.seeds] for p in prompts]

    def close(self):
        pass


def test_seeds_that_count_as_one_stand_and_fall_together(journal):
    inner = Counting("request")
    engine = JournaledEngine(inner, journal, name="x")
    assert engine.seeding == "request"
    first = engine.generate([Prompt("q", (), "", (1, 2, 3))], SAMPLING)
    assert engine.generate([Prompt("q", (), "", (1, 2, 3))], SAMPLING) == first
    for other in ((1, 2), (2, 1, 3), (1,), (1, 2, 3, 4)):
        assert not set(engine.generate([Prompt("q", (), "", other)], SAMPLING)[0]) & set(first[0])
    assert inner.asked == [[(1, 2, 3)], [(1, 2)], [(2, 1, 3)], [(1,)], [(1, 2, 3, 4)]]


def test_a_request_of_which_the_journal_lost_a_part_is_asked_whole(journal, tmp_path):
    inner = Counting("request")
    engine = JournaledEngine(inner, journal, name="x")
    engine.generate([Prompt("q", (), "", (1, 2, 3))], SAMPLING)
    with sqlite3.connect(tmp_path / "journal.sqlite") as database:
        database.execute("DELETE FROM completion WHERE text = 'text 1'")
    again = JournaledEngine(inner, journal, name="x")
    (row,) = again.generate([Prompt("q", (), "", (1, 2, 3))], SAMPLING)
    assert inner.asked == [[(1, 2, 3)]] * 2
    assert again.cost() == {"sampled_tokens": 6, "journal_tokens": 0}
    assert (row,) == tuple(again.generate([Prompt("q", (), "", (1, 2, 3))], SAMPLING))


@pytest.mark.parametrize("seeding", ["row", "request"])
def test_two_that_sample_the_same_at_once_go_on_with_the_same(journal, tmp_path, seeding):
    prompts = [Prompt(f"q{i}", (), "", (1, 2)) for i in range(5)]
    second = Journal(tmp_path / "journal.sqlite")

    class Slow(Counting):
        def generate(self, asked, sampling):
            rows = super().generate(asked, sampling)
            faster.append(JournaledEngine(Counting(seeding), second, name="y").generate(prompts, sampling))
            return [[Completion("slow " + c.text, *list(vars(c).values())[1:]) for c in row] for row in rows]

    faster = []
    slow = JournaledEngine(Slow(seeding), journal, name="x").generate(prompts, SAMPLING)
    assert slow == faster[0]
    second.close()


def test_a_batch_is_bounded_by_completions_and_never_parts_a_prompt(journal, monkeypatch):
    monkeypatch.setattr(journaled, "BATCH_ROWS", 6)
    inner = Counting("row")
    prompts = [Prompt(f"q{i}", (), "", tuple(range(size))) for i, size in enumerate((4, 2, 1, 9, 3, 3, 0, 1))]
    rows = JournaledEngine(inner, journal, name="x").generate(prompts, SAMPLING)
    assert [len(row) for row in rows] == [4, 2, 1, 9, 3, 3, 0, 1]
    assert [sum(map(len, batch)) for batch in inner.asked] == [6, 1, 9, 6, 1]


@pytest.mark.parametrize("seeding", ["row", "request"])
def test_a_logprob_that_is_not_known_comes_back_unknown(journal, seeding):
    engine = JournaledEngine(Counting(seeding, logprob=math.nan), journal, name="x")
    for _ in range(2):
        ((completion,),) = engine.generate([Prompt("q", (), "", (1,))], SAMPLING)
        assert math.isnan(completion.logprob)
    assert engine.cost() == {"sampled_tokens": 2, "journal_tokens": 2}
