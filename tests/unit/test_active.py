"""What is labelled next: the choice against simulated solutions with known errors, its limits, and the verb end to end."""

import math
import random

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components import active
from components.active import CHOSEN, CONVINCING, UNCERTAIN, Choice, Option, choose, label_variance, tail_tokens, variances
from components.cli import main
from components.errors import SettingsError
from components.records import LABEL, PROBLEM, SOLUTION, read_json, read_table, write_table
from tests.conftest import picture


def option(name, *, problem=None, verdict="wrong", score=0.9, variance=0.1, tokens=100.0):
    return Option(name, problem or name, verdict, score, variance, tokens)


def ids(choices, reason=None):
    return [c.option.solution_id for c in choices if reason in (None, c.reason)]


def simulated(seed, num=2000):
    """Solutions of known value, a reward model that errs by a known amount, equal costs; 4 a problem."""
    rng = random.Random(seed)
    options, error = [], {}
    for i in range(num):
        value = rng.betavariate(0.5, 0.5)
        score = min(1.0, max(0.0, value + rng.gauss(0, 0.25)))
        verdict = "right" if rng.random() < value else "wrong"
        options.append(Option(f"s{i}", f"p{i // 4}", verdict, score, score * (1 - score), 100.0))
        error[f"s{i}"] = abs(score - value)
    return options, error


def hypergeometric_tail(found, *, drawn, marked, total):
    """The chance that `drawn` at random without replacement hold at least `found` of the marked ones, exactly."""
    ways = sum(math.comb(marked, k) * math.comb(total - marked, drawn - k) for k in range(found, min(marked, drawn) + 1))
    return ways / math.comb(total, drawn)


@pytest.mark.parametrize("seed", range(3))
def test_at_equal_tokens_more_convincing_wrong_solutions_are_chosen_than_chance_would(seed):
    options, error = simulated(seed)
    choices, _ = choose(options, budget_tokens=100 * 200, max_per_problem=4)
    assert len(choices) == 200  # the whole budget: a random choice of equal cost has as many
    marked = {o.solution_id for o in options if o.verdict == "wrong" and o.score >= 0.8}
    found = len(marked & set(ids(choices)))
    assert hypergeometric_tail(found, drawn=200, marked=len(marked), total=len(options)) < 1e-12
    # And they are where the reward model errs.
    mean = sum(error.values()) / len(error)
    spread = math.sqrt(sum((e - mean) ** 2 for e in error.values()) / len(error))
    chosen_mean = sum(error[key] for key in ids(choices, CONVINCING)) / len(ids(choices, CONVINCING))
    assert chosen_mean > mean + 4 * spread / math.sqrt(len(ids(choices, CONVINCING)))


def test_the_uncertain_share_holds_more_variance_than_chance_would():
    options, _ = simulated(7)
    choices, _ = choose(options, budget_tokens=100 * 200, convincing_frac=0.0, max_per_problem=4)
    assert {c.reason for c in choices} == {UNCERTAIN}
    best = sorted((o.variance for o in options), reverse=True)[:200]
    assert sum(c.option.variance for c in choices) == pytest.approx(sum(best))


def test_a_choice_worked_out_by_hand():
    options = [
        option("a", score=0.9, tokens=300, variance=0.1),
        option("b", score=0.8, tokens=300, variance=0.1),
        option("c", score=0.7, tokens=100, variance=0.4),
        option("d", score=0.4, tokens=100, variance=0.2),  # wrong, but convinces nobody
        option("e", verdict="right", score=0.5, tokens=100, variance=0.3),
        option("f", verdict="unknown", score=0.95, tokens=100, variance=0.01),
    ]
    # The only right one has .5: a, b and c convince.
    # 600 of 1000 for convincing ones: a and b fill it. Of the other 400, by variance a token: c .004, e .003, d .002.
    choices, left = choose(options, budget_tokens=1000, convincing_frac=0.6)
    assert choices == [Choice(o, CONVINCING) for o in options[:2]] + [Choice(options[i], UNCERTAIN) for i in (2, 4, 3, 5)]
    # Half of 800: a, and c because b does not fit any more. The other 400: e, d, f; b does not fit.
    choices, left = choose(options, budget_tokens=800, convincing_frac=0.5)
    assert (ids(choices, CONVINCING), ids(choices, UNCERTAIN)) == (["a", "c"], ["e", "d", "f"])
    assert left == {"per_problem": 0, "budget": 1}
    # Only convincing ones: the right, the unknown and the unconvincing one stay.
    choices, left = choose(options, budget_tokens=10_000, convincing_frac=1.0)
    assert (ids(choices), left) == (["a", "b", "c"], {"per_problem": 0, "budget": 3})


def test_what_the_uncertain_ones_cannot_spend_goes_to_the_convincing_ones():
    options = [option(f"s{i}", problem="p" if i < 9 else "q", variance=0.0) for i in range(10)]
    choices, left = choose(options, budget_tokens=10_000, convincing_frac=0.1, max_per_problem=3)
    assert len(choices) == 4
    assert left == {"per_problem": 6, "budget": 0}


@given(
    st.lists(
        st.tuples(
            st.integers(0, 4),
            st.sampled_from(["right", "wrong", "unknown"]),
            st.floats(0, 1),
            st.floats(0, 3),
            st.floats(0, 500),
        ),
        max_size=30,
    ),
    st.floats(1, 3000),
    st.floats(0, 1),
    st.integers(1, 4),
    st.randoms(use_true_random=False),
)
def test_the_limits_hold_and_the_order_of_the_options_decides_nothing(rows, budget, frac, cap, rng):
    options = [
        option(f"s{i}", problem=f"p{p}", verdict=v, score=s, variance=w, tokens=t) for i, (p, v, s, w, t) in enumerate(rows)
    ]
    limits = {"budget_tokens": budget, "convincing_frac": frac, "max_per_problem": cap}
    choices, left = choose(options, **limits)
    assert len(set(ids(choices))) == len(choices)
    assert sum(c.option.expected_tokens for c in choices) <= budget * (1 + 1e-12)
    problems = [c.option.problem_id for c in choices]
    assert all(problems.count(p) <= cap for p in problems)
    right = sorted(o.score for o in options if o.verdict == "right")
    bar = (right[(len(right) - 1) // 2] + right[len(right) // 2]) / 2 if right else 0.0
    assert all(c.option.verdict == "wrong" and c.option.score >= bar for c in choices if c.reason == CONVINCING)
    assert len(choices) + sum(left.values()) == len(options)
    shuffled = rng.sample(options, len(options))
    assert choose(shuffled, **limits) == (choices, left)


@pytest.mark.parametrize("wrong", [{"budget_tokens": 0}, {"convincing_frac": 1.1}, {"max_per_problem": 0}])
def test_limits_that_make_no_sense_are_refused(wrong):
    with pytest.raises(SettingsError, match="choose: budget"):
        choose([], **({"budget_tokens": 1} | wrong))


def test_the_variance_of_a_label_is_its_posteriors_or_that_of_its_counts():
    assert label_variance(3, 4, 0.2) == pytest.approx(0.04)
    assert label_variance(1, 1, None) == pytest.approx(0.75 / (4 * 3))  # Beta(1.5, .5)
    assert label_variance(0, 0, None) is None
    assert label_variance(0, 16, None) > 0  # 0 of 16 is not certain


def test_an_unmeasured_prefix_has_the_largest_variance_that_its_score_allows():
    assert variances([0.9, 0.9, 0.5, 0.1, 0.9], {0: 0.04, 1: 0.0625}) == pytest.approx([0.04, 0.0625, 0.25, 0.09])
    assert variances([0.9], {}) == []  # the last step is no prefix


def test_the_tail_of_a_step_is_its_share_of_the_characters_behind_it():
    assert tail_tokens(["aaaa", "bb", "cc"], 80) == [40.0, 20.0]
    assert tail_tokens(["only"], 7) == []


# The verb, with a reward model of random weights.

STEPS = ["red: 3", "blue: 5", "3 + 5 = 8", "answer: 8"]


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_policy):
    from components.prm import RewardModel

    folder = tmp_path_factory.mktemp("choose")
    model = RewardModel.from_policy(tiny_policy, marker="<prm>", label_tokens=("+", "-"), device="cpu", sees=True).eval()
    model.save(folder / "prm/prm", tiny_policy, {"task": "maths"})
    problems = [
        {"problem_id": f"p{i}", "question": "bars : total of red and blue ?", "images": [{"bytes": picture(i)}]}
        | {"source_id": str(i), "source": "world", "answer": "8", "answer_type": "integer", "options": None}
        for i in range(3)
    ]
    write_table(folder / "seeds/seeds.parquet", problems, PROBLEM)
    solutions = [
        {
            "solution_id": f"p{p}-{i}",
            "problem_id": f"p{p}",
            "index": i,
            "steps": STEPS[i:],
            "verdict": ("wrong", "right")[i % 2],
        }
        | {"finish_reason": "length" if p == 2 and i == 0 else "stop", "num_tokens": 40 - 10 * i}
        for p in range(3)
        for i in range(4)  # of 4, 3, 2 and 1 steps: the last has no unfinished prefix
    ]
    write_table(folder / "rollouts/solutions.parquet", solutions, SOLUTION)
    labels = [
        {"solution_id": "p0-0", "step": step, "num_right": 8, "num_verdicts": 16, "sd": sd}
        for step, sd in enumerate((0.05, 0.1, 0.02))
    ] + [{"solution_id": "p0-1", "step": 0, "num_right": 8, "num_verdicts": 16, "sd": 0.05}]
    write_table(folder / "labels/labels.parquet", labels, LABEL)
    return folder


def chosen(place, capsys, monkeypatch, *more):
    monkeypatch.setenv("STEPFORGE_HOME", str(place / "home"))
    monkeypatch.setenv("STEPFORGE_DEVICE", "cpu")
    words = [w for name in ("seeds", "rollouts", "prm") for w in (f"--{name}", str(place / name))]
    code = main(["choose", *words, "--out", str(place / "out"), *more])
    return code, capsys.readouterr()


def test_the_verb_writes_what_to_label_and_the_seeds_to_roll_out(place, capsys, monkeypatch):
    labels = ("--labels", str(place / "labels"))
    code, said = chosen(place, capsys, monkeypatch, *labels, "--budget-tokens", "100000", "--convincing-frac", "0")
    assert code == 0, said.err
    rows = read_table(place / "out/chosen.parquet", CHOSEN)
    # p0-0 is labelled to .1 everywhere, p2-0 was cut off, *-3 has a single step; p0-1 lacks a label at its second step.
    assert {row["solution_id"] for row in rows} == {"p0-1", "p0-2", "p2-1", "p2-2"} | {
        row["solution_id"] for row in rows if row["problem_id"] == "p1"
    }
    assert sum(row["problem_id"] == "p1" for row in rows) == 2
    by_id = {row["solution_id"]: row for row in rows}
    # p0-1: blue: 5 | 3 + 5 = 8 | answer: 8 has 7, 9 and 9 characters and 30 tokens: 16 * 30 * (18 + 9) / 25.
    assert by_id["p0-1"]["expected_tokens"] == pytest.approx(16 * 30 * 27 / 25)
    score = 1 - by_id["p0-1"]["score"]
    assert 0 < score < 1 and by_id["p0-1"]["variance"] >= 0.05**2
    assert read_json(place / "out/summary.json")["left_out"] == {"unusable": 4, "labelled": 1, "per_problem": 1, "budget": 0}
    assert [line.split()[0] for line in said.out.splitlines()] == [
        "solutions",
        CONVINCING,
        UNCERTAIN,
        "chosen",
        "all",
        "left",
    ]
    seeds = read_table(place / "out/seeds.parquet", PROBLEM)
    assert [row["problem_id"] for row in seeds] == ["p0", "p1", "p2"]
    assert seeds[1]["images"][0]["bytes"] == picture(1)
    first = {path.name: path.read_bytes() for path in (place / "out").iterdir()}
    assert chosen(place, capsys, monkeypatch, *labels, "--budget-tokens", "100000", "--convincing-frac", "0")[0] == 0
    assert {path.name: path.read_bytes() for path in (place / "out").iterdir()} == first


def test_a_small_budget_restricts_the_seeds(place, capsys, monkeypatch):
    code, _ = chosen(place, capsys, monkeypatch, "--budget-tokens", "200", "--convincing-frac", "0")
    assert code == 0
    rows = read_table(place / "out/chosen.parquet", CHOSEN)
    assert sum(row["expected_tokens"] for row in rows) <= 200
    assert {r["problem_id"] for r in rows} == {r["problem_id"] for r in read_table(place / "out/seeds.parquet", PROBLEM)}
    assert 0 < pq.read_metadata(place / "out/seeds.parquet").num_rows < 3


def test_wrong_folders_and_numbers_are_two_lines(place, capsys, monkeypatch, tmp_path):
    code, said = chosen(place, capsys, monkeypatch, "--budget-tokens", "0")
    assert (code, said.err.splitlines()[-2].startswith("error: choose: budget 0")) == (2, True)
    code, said = chosen(place, capsys, monkeypatch, "--budget-tokens", "9", "--prm", str(tmp_path))
    assert (code, "no folder prm" in said.err) == (3, True)
    rows = read_table(place / "seeds/seeds.parquet", PROBLEM)[:1]
    write_table(tmp_path / "seeds/seeds.parquet", rows, PROBLEM)
    code, said = chosen(place, capsys, monkeypatch, "--budget-tokens", "9", "--seeds", str(tmp_path / "seeds"))
    assert (code, "which is not among the seeds" in said.err) == (3, True)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--budget-tokens", "-5"), "choose: budget -5"),
        (("--budget-tokens", "9", "--max-sd", "nan"), "an sd of nan"),
        (("--budget-tokens", "9", "--max-sd", "-1"), "an sd of -1.0"),
        (("--budget-tokens", "9", "--num-continuations", "-3"), "-3 continuations"),
    ],
)
def test_numbers_that_make_no_sense_are_refused_before_anything_is_read(more, said, place, capsys, monkeypatch, tmp_path):
    code, printed = chosen(place, capsys, monkeypatch, *more, "--seeds", str(tmp_path / "none"))
    assert (code, said in printed.err, len(printed.err.splitlines())) == (2, True, 2)


def test_a_budget_that_pays_for_nothing_is_said_with_what_the_cheapest_costs(place, capsys, monkeypatch):
    code, said = chosen(place, capsys, monkeypatch, "--budget-tokens", "1")
    # of two steps, 3 + 5 = 8 | answer: 8: both of 9 characters, 20 tokens
    assert (code, "the cheapest needs 160" in said.err) == (2, True)


def test_a_huge_budget_buys_all_that_the_other_limits_leave(place, capsys, monkeypatch):
    code, _ = chosen(place, capsys, monkeypatch, "--budget-tokens", str(10**30), "--max-per-problem", "9")
    assert (code, len(read_table(place / "out/chosen.parquet", CHOSEN))) == (0, 8)


def test_labels_of_another_run_tokens_unknown_and_pictures_without_bytes_are_said(place, capsys, monkeypatch, tmp_path):
    def refused(name, file, schema, change):
        rows = [row | change for row in read_table(place / name / file, schema)]
        write_table(tmp_path / name / file, rows, schema)
        code, said = chosen(place, capsys, monkeypatch, "--budget-tokens", "900", f"--{name}", str(tmp_path / name))
        assert (code, len(said.err.splitlines())) == (3, 2)
        return said.err

    assert "labels of solution other, which the rollouts lack" in refused(
        "labels", "labels.parquet", LABEL, {"solution_id": "other"}
    )
    assert "has no num_tokens" in refused("rollouts", "solutions.parquet", SOLUTION, {"num_tokens": None})
    gone = {"images": [{"bytes": None, "path": "gone.png"}]}
    assert "a picture of problem p0 has no bytes" in refused("seeds", "seeds.parquet", PROBLEM, gone)


def test_a_summary_reads_as_a_table():
    nothing = {"solutions": 0, "expected_tokens": 0}
    summary = {"chosen": {CONVINCING: {"solutions": 3, "expected_tokens": 1234}, UNCERTAIN: nothing}, "problems": 2}
    summary |= {"of_these_problems": {"solutions": 8, "expected_tokens": 4000}, "left_out": {"labelled": 0, "budget": 12}}
    assert active.table(summary)[1:] == [
        "convincing                       3         1,234",
        "uncertain                        0             0",
        "chosen                           3         1,234",
        "all of 2 problems                8         4,000",
        "left out: 12 beyond the budget",
    ]
