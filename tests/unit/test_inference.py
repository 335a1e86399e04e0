"""Search at inference through the scripted engine: golden runs, the price of a second one, and what is written."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from components.cli import main
from components.inference import Oracle, continuation, drive, lines_of, measured, page, standings
from components.metrics import Bootstrap
from components.prm import RewardModel
from components.records import SELECTION, read_json, read_table, seed_for, tree_sha256
from components.sampling import Ask, Sampler
from components.settings import Sampling, load_params, load_runtime
from components.strategies import STRATEGIES, Judged, Options, Outcome, beam, best_of_n
from components.tasks import load_task
from tests.contract.engine_fixture import ImitatedServer, write_script, write_served

NUM = 16
QUESTIONS = [f"{i} + 1 ?" for i in range(6)]
# Four steps, each good or bad: one text in 16 is right.
PATHS = list(itertools.product(("good", "bad"), repeat=4))


def text(question, path):
    i = QUESTIONS.index(question)
    answer = i + 1 if path == ("good",) * 4 else i + 2 + PATHS.index(path)
    return "\n\n".join((f"{path[0]} one", f"{path[1]} two words", f"{path[2]} three", f"{path[3]} so \\boxed{{{answer}}}"))


SCRIPT = {question: [text(question, path) for path in PATHS] for question in QUESTIONS}
PROBLEMS = [
    {
        "problem_id": f"{i:032x}",
        "source_id": str(i),
        "source": "made",
        "question": question,
        "images": [],
        "answer": str(i + 1),
    }
    | {"answer_type": "integer", "options": None}
    for i, question in enumerate(QUESTIONS)
]


def knows(asked):
    """A reward model that is right about every step, and about nothing else."""
    return [Judged(tuple(0.9 if step.startswith("good") else 0.1 for step in steps)) for _, steps in asked]


def knows_nothing(asked):
    return [Judged((0.5,) * len(steps)) for _, steps in asked]


@pytest.fixture
def opened(tmp_path):
    """A reader -> an Oracle on the scripted engine; all share a journal. `costs` says what each sampled."""
    write_script(tmp_path / "policy", SCRIPT)
    params = load_params()
    runtime = load_runtime({"STEPFORGE_HOME": str(tmp_path / "home"), "STEPFORGE_ENGINE": "scripted"})
    samplers = []

    def call(read):
        samplers.append(Sampler(params, runtime, tmp_path / "policy", name="search"))
        return Oracle(params.seed, samplers[-1], Sampling(max_tokens=60), read)

    call.samplers = samplers
    yield call
    for sampler in samplers:
        sampler.__exit__()


def accuracy(outcomes):
    return float(np.mean([outcome.value for outcome in outcomes]))


def test_a_beam_of_one_is_the_first_sample_to_the_token(opened):
    seen = opened(knows)
    beams = drive([(p, beam(1, "min", width=1, max_tokens=60)) for p in PROBLEMS], seen)
    samples = drive([(p, best_of_n((0,), "min")) for p in PROBLEMS], seen)
    assert beams == samples
    for problem, outcome in zip(PROBLEMS, samples, strict=True):
        written = SCRIPT[problem["question"]][seed_for(load_params().seed, problem["problem_id"], "sample", 0) % len(PATHS)]
        assert outcome == Outcome(float(written.endswith(f"{{{problem['answer']}}}")), len(written.split(" ")))


def test_an_oracle_makes_the_beam_reach_what_best_of_n_has_no_chance_of(opened):
    options = Options("min", 60, width=2)
    found = measured(PROBLEMS, ["best_of_n", "beam"], NUM, options, opened(knows))
    assert accuracy(found["beam", NUM]) == 1.0
    assert accuracy(found["best_of_n", NUM]) < 0.9
    spent = {name: np.mean([o.num_tokens for o in found[name, NUM]]) for name in ("beam", "best_of_n")}
    assert spent["beam"] < spent["best_of_n"] * 1.2


def test_a_reward_model_that_knows_nothing_makes_every_strategy_a_random_pick(opened):
    found = measured(PROBLEMS, ["best_of_n"], NUM, Options("min", 60), opened(knows_nothing))
    once = accuracy(found["best_of_n", 1])
    assert [accuracy(found["best_of_n", n]) for n in (2, 4, 8, 16)] == pytest.approx([once] * 4)


def test_a_second_run_samples_nothing_and_says_the_same(opened):
    options = Options("min", 60)
    first = measured(PROBLEMS, list(STRATEGIES), NUM, options, opened(knows))
    second = measured(PROBLEMS, list(STRATEGIES), NUM, options, opened(knows))
    assert first == second
    before, after = (sampler.cost() for sampler in opened.samplers)
    assert before["sampled_tokens"] > 0
    assert after["sampled_tokens"] == 0


def test_a_strategy_run_alone_is_what_it_is_among_others(opened):
    options = Options("min", 60)
    together = measured(PROBLEMS, list(STRATEGIES), NUM, options, opened(knows))
    for name in STRATEGIES:
        alone = measured(PROBLEMS, [name], NUM, options, opened(knows))
        assert alone == {place: outcomes for place, outcomes in together.items() if place[0] == name}


def test_on_a_server_too_a_strategy_alone_draws_what_sample_and_all_others_draw(tmp_path):
    params = load_params()
    with ImitatedServer() as server:
        server.script = SCRIPT
        environment = {"STEPFORGE_ENGINE": "server", "STEPFORGE_SERVER_URL": server.url}
        policy, options = write_served(tmp_path / "policy"), Options("min", 60)

        def alone(*names, home):
            runtime = load_runtime(environment | {"STEPFORGE_HOME": str(tmp_path / home)})
            with Sampler(params, runtime, policy, name="search") as sampler:
                found = measured(PROBLEMS, names, NUM, options, Oracle(params.seed, sampler, Sampling(max_tokens=60), knows))
                return found, sampler.cost()["sampled_tokens"]

        together, _ = alone(*STRATEGIES, home="together")
        for name in ("beam", "early_stop"):
            found, _ = alone(name, home=name)
            assert found == {place: outcomes for place, outcomes in together.items() if place[0] == name}
        with Sampler(
            params, load_runtime(environment | {"STEPFORGE_HOME": str(tmp_path / "pool")}), policy, name="x"
        ) as sampler:
            blocks = [range(8), range(8, NUM)]  # as sample asks
            asks = [
                Ask(p, tuple(seed_for(params.seed, p["problem_id"], "sample", i) for i in some))
                for p in PROBLEMS
                for some in blocks
            ]
            sampler.rows(asks, Sampling(max_tokens=60))
        assert alone("best_of_n", home="pool")[1] == 0


def test_equal_solutions_are_read_once(opened):
    asked = []

    def counting(some):
        asked.extend((p["problem_id"], steps) for p, steps in some)
        return knows(some)

    measured(PROBLEMS, list(STRATEGIES), NUM, Options("min", 60), opened(counting))
    assert len(asked) == len(set(asked))


def test_the_tokens_of_a_row_are_shared_out_and_none_is_lost():
    task = load_task("maths")
    row = {"text": "aaaa\n\nbb\n\ncccccccccc", "num_tokens": 11, "verdict": "right", "answer": "5"}
    found = continuation(row, task)
    assert found.units == ("aaaa", "bb", "cccccccccc")
    assert found.tokens == (3, 2, 6)  # of lengths 6, 4 and 12
    assert continuation(row | {"text": "", "num_tokens": 1}, task).tokens == (1,)
    for num in range(40):
        assert sum(continuation(row | {"num_tokens": num}, task).tokens) == num


def test_rows_have_means_intervals_and_paired_differences():
    table = {
        ("best_of_n", 2): [Outcome(1.0, 10), Outcome(0.0, 20)],
        ("beam", 2): [Outcome(1.0, 8), Outcome(1.0, 9)],
    }
    found = standings(table, Bootstrap(2, num_resamples=200, confidence=0.9, seed=0))
    by_name = {row["strategy"]: row for row in found["rows"]}
    assert by_name["beam"] | {"low": 0, "high": 0} == {
        "strategy": "beam", "budget": 2, "mean": 1.0, "low": 0, "high": 0, "tokens": 8.5, "num_problems": 2,
    }  # fmt: skip
    assert by_name["best_of_n"]["mean"] == 0.5
    (difference,) = found["differences"]
    assert (difference["a"], difference["b"], difference["budget"], difference["mean"]) == ("beam", "best_of_n", 2, 0.5)
    assert difference["low"] <= 0.5 <= difference["high"]


# --- the verb -------------------------------------------------------------------------------------------------------


@pytest.fixture
def work(tmp_path, monkeypatch, tiny_policy):
    """A folder with problems, a scripted policy and a reward model of each kind that matters."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setenv("STEPFORGE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("STEPFORGE_ENGINE", "scripted")
    monkeypatch.setenv("STEPFORGE_DEVICE", "cpu")
    monkeypatch.chdir(tmp_path)
    write_script(tmp_path / "policy", SCRIPT)
    rows = [{"id": p["source_id"], "question": p["question"], "answer": p["answer"]} for p in PROBLEMS]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "test.parquet")

    def train(formulation):
        tokens = ("+", "=", "-") if formulation == "advantage" else ("+", "-")
        torch.manual_seed(0)
        model = RewardModel.from_policy(tiny_policy, formulation=formulation, label_tokens=tokens, device="cpu")
        digests = {"task": "maths", "task_digest": load_task("maths").digest, "policy_digest": "policy"}
        model.save(tmp_path / formulation / "prm", tiny_policy, digests)
        return formulation

    return train


def search(prm, out="out", *more):
    arguments = ["--split", "test=test.parquet", "--policy", "policy", "--prm", prm, "--num", "4", "--out", out]
    return main(["search", *arguments, "--params", str(PARAMS), *more])


PARAMS = Path(__file__).parents[2] / "params.yaml"


def test_the_verb_writes_rows_a_page_and_the_values_of_every_problem(work, capsys):
    assert search(work("count")) == 0
    found = read_json(Path("out/search.json"))
    assert {row["strategy"] for row in found["rows"]} == set(STRATEGIES)
    assert {row["budget"] for row in found["rows"]} == {1, 2, 4}
    assert (found["split"], found["num_problems"], found["formulation"]) == ("test", len(PROBLEMS), "count")
    assert capsys.readouterr().out.splitlines() == lines_of(found)
    values = read_table(Path("out/selections.parquet"), SELECTION)
    for row in found["rows"]:
        mine = [v["value"] for v in values if v["selector"] == f"{row['strategy']}@{row['budget']}"]
        assert len(mine) == len(PROBLEMS)
        assert row["mean"] == pytest.approx(np.mean(mine), abs=1e-6)
    html = Path("out/search.html").read_text()
    assert html == page(found)
    assert "<svg" in html
    assert "http" not in html.replace("http-equiv", "")

    assert search("count", "again") == 0
    assert tree_sha256(Path("again")) == tree_sha256(Path("out"))
    receipts = {path: read_json(path) for path in Path("home/receipts/search").iterdir()}
    assert [receipt["sampled_tokens"] for receipt in receipts.values()] == [0]  # equal outputs: the last run's


def test_a_subset_is_drawn_by_the_seed_and_strategies_can_be_named(work):
    assert search(work("soft"), "out", "--how", "majority,beam", "--problems", "3", "--width", "2") == 0
    found = read_json(Path("out/search.json"))
    assert (found["num_problems"], found["width"]) == (3, 2)
    assert {row["strategy"] for row in found["rows"]} == {"majority", "beam"}
    assert found["differences"] == []


def test_early_stopping_on_advantages_is_left_out_or_refused(work, capsys):
    prm = work("advantage")
    assert search(prm) == 0
    assert "early_stop" not in {row["strategy"] for row in read_json(Path("out/search.json"))["rows"]}
    assert "left out: early_stop" in capsys.readouterr().err
    assert search(prm, "other", "--how", "early_stop,beam") == 2
    assert "no probabilities" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--how", "best_of_n,magic"], "--how 'magic' is no strategy"),
        (["--how", ""], "is no strategy"),
        (["--num", "0"], "--num 0 is no positive number"),
        (["--width", "-1"], "--width -1 is no positive number"),
        (["--confidence", "1"], "--confidence 1 is no probability"),
        (["--aggregation", "median"], "--aggregation 'median' does not fit"),
        (["--problems", "0"], "--problems 0 is no positive number"),
    ],
)
def test_a_mistake_is_two_lines(work, capsys, more, said):
    assert search(work("soft"), "out", *more) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("error", "hint"))]
    assert [line.partition(":")[0] for line in lines] == ["error", "hint"]
    assert said in lines[0]
    assert not Path("out").exists()


def test_a_reward_model_of_another_task_is_refused(work, capsys):
    prm = work("soft")
    other = yaml.safe_load(PARAMS.read_text()) | {"task": "scene"}
    Path("scene.yaml").write_text(yaml.safe_dump(other))
    assert search(prm, "out", "--params", "scene.yaml") == 4
    assert "trained on task 'maths', asked to score task 'scene'" in capsys.readouterr().err
