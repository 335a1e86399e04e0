"""Declared sweeps against params.yaml, intervals against closed forms and brute force, and what tables and pages show."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from components.ablations.declared import Shown, chosen, load_sweeps, overridden
from components.ablations.estimates import check_problems, over_problems, over_seeds, sweep_rows, t_quantile
from components.ablations.page import markdown_lines, page, text_lines, write_sweep
from components.ablations.readings import read_run
from components.errors import DataError, SettingsError
from components.records import SELECTION, write_json, write_table
from flows.stages import Stage
from flows.workspaces import seeded_stages

ROOT = Path(__file__).parents[2]
HOW = {"num_resamples": 400, "confidence": 0.95}


@pytest.fixture
def declared(tmp_path):
    """Writes a file of sweeps and reads it."""

    def load(**changes):
        sweep = {
            "question": "Which?",
            "source": "a paper",
            "variants": {"soft": {"label.formulation": "soft"}, "value": {"label.formulation": "value"}},
            "shown": ["test: prm"],
        }
        sweep = {key: value for key, value in (sweep | changes).items() if value is not None}
        path = tmp_path / "ablations.yaml"
        path.write_text(yaml.safe_dump({"labels": sweep}))
        return load_sweeps(path, ROOT / "params.yaml")["labels"]

    return load


# What is declared


def test_a_sweep_has_the_variants_in_their_order_and_values_in_words_or_with_an_end(declared):
    sweep = declared(shown=["test: prm - random", {"value": "evaluate.calibration.ece", "better": "lower"}])
    assert list(sweep.runs.items()) == [("soft", {"label.formulation": "soft"}), ("value", {"label.formulation": "value"})]
    assert [one.selectors for one in sweep.shown] == [("test", "prm", "random"), None]
    assert [one.better for one in sweep.shown] == ["higher", "lower"]
    assert sweep.seeded == "train"
    assert declared(variants=None, reads="curves").runs == {"as it is": {}}


@pytest.mark.parametrize(
    ("changes", "what", "hint"),
    [
        ({"variants": {"a": {"label.formulaton": "soft"}}}, "unknown key 'label.formulaton'", "did you mean 'formulation'?"),
        ({"variants": {"a": {"labels.threshold": 1}}}, "unknown key 'labels'", "did you mean 'label'?"),
        ({"variants": {"a": {"label.formulation": "hard"}}}, "label.formulation = 'hard'", "correct the value"),
        ({"variants": {"a": {"seed.label": 1}}}, "'seed.label': seed holds no keys, but 0", "dotted keys"),
        ({"variants": {"a": {"sft.optimiser.num_steps": 1}}}, "the phases add up to 600", "make the two equal"),
        ({"variant": {}}, "unknown key 'variant'", "did you mean 'variants'?"),
        ({"question": None}, "missing key 'question'", "docs/ablations.md"),
        ({"reads": "curves"}, "give either variants or reads", "docs/ablations.md"),
        ({"variants": None, "reads": "curves", "shown": ["a.b"]}, "a sweep that reads curves shows 'split: sel", "docs/"),
        ({"shown": ["prm of test"]}, "'prm of test' is neither", "docs/ablations.md"),
    ],
)
def test_a_mistake_in_the_file_names_the_variant_and_a_near_word(declared, changes, what, hint):
    with pytest.raises(SettingsError) as caught:
        declared(**changes)
    assert "ablations.yaml: labels" in caught.value.place
    assert what in caught.value.what
    assert hint in caught.value.hint


def test_two_variants_of_equal_settings_are_refused(declared):
    """Their difference would be 0, with an interval of no width."""
    base = yaml.safe_load((ROOT / "params.yaml").read_text())["train"]["optimiser"]["learning_rate"]
    with pytest.raises(SettingsError, match="has the settings of 'as it is'") as caught:
        declared(variants={"as it is": {}, "named": {"train.optimiser.learning_rate": base}})
    assert caught.value.place.endswith("ablations.yaml: labels/named")


@pytest.mark.parametrize("again", ["a: {label.formulation: value}", "question: Again?"])
def test_a_key_that_is_there_twice_is_refused_and_not_lost(tmp_path, again):
    lines = ["labels:", "  question: Which?", "  source: a paper", "  shown: ['test: prm']", "  variants:", "    a: {}"]
    lines.append(("    " if again.startswith("a") else "  ") + again)
    (tmp_path / "ablations.yaml").write_text("\n".join(lines))
    with pytest.raises(SettingsError, match=f"'{again.partition(':')[0]}' is there twice"):
        load_sweeps(tmp_path / "ablations.yaml", ROOT / "params.yaml")


def test_a_variant_in_a_message_is_named_with_its_sweep(declared):
    with pytest.raises(SettingsError) as caught:
        declared(variants={"right": {}, "bad": {"train.optimizer.num_steps": 1}})
    assert caught.value.place.endswith("ablations.yaml: labels/bad")


def test_an_unknown_sweep_is_answered_with_those_there_are():
    with pytest.raises(SettingsError, match="no sweep 'learning'") as caught:
        chosen({"learning_rate": None, "labels": None}, ["learning"], "a.yaml")
    assert caught.value.hint == "did you mean 'learning_rate'? there are: learning_rate, labels"
    assert list(chosen({"a": None, "b": None}, [], "a.yaml")) == ["a", "b"]
    assert list(chosen({"a": None, "b": None}, ["b"], "a.yaml")) == ["b"]


def test_settings_are_laid_over_without_touching_those_below():
    base = {"seed": 0, "rollout": {"search": {"type": "joint", "price": 1}, "max_steps": 12}, "curate": {"difficulty": None}}
    kept = json.dumps(base)
    out = overridden(
        base,
        {
            "rollout.search": {"type": "monte_carlo"},
            "curate.difficulty.num_solutions": 4,
            "label.balance.negative_weight": 2,
        },
        place="x",
    )
    assert out["rollout"] == {"search": {"type": "monte_carlo"}, "max_steps": 12}  # replaced whole: another kind of search
    assert out["curate"] == {"difficulty": {"num_solutions": 4}}
    assert out["label"] == {"balance": {"negative_weight": 2}}
    assert json.dumps(base) == kept


@pytest.mark.parametrize(
    ("first", "reached"),
    [
        ("train", "train evaluate"),
        ("label", "label train evaluate"),
        ("rollout", "rollout label train evaluate"),
        ("sft", "sft rollout label train sample evaluate"),
        ("evaluate", "evaluate"),
    ],
)
def test_a_seed_reaches_a_stage_and_whatever_reads_what_it_wrote(first, reached):
    declared = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    pipeline = [Stage(name, tuple(stage["deps"]), tuple(stage["outs"])) for name, stage in declared.items()]
    assert seeded_stages(pipeline, first) == set(reached.split())


# Intervals


def test_t_quantiles_are_those_of_the_tables():
    table = {1: 12.7062047, 2: 4.3026527, 3: 3.1824463, 4: 2.7764451, 5: 2.5705818, 9: 2.2621572, 30: 2.0422725}
    for num_freedom, wanted in table.items():
        assert t_quantile(0.95, num_freedom) == pytest.approx(wanted, abs=1e-6)
    assert t_quantile(0.9, 1) == pytest.approx(math.tan(math.pi / 2 * 0.9), rel=1e-9)  # Cauchy
    assert t_quantile(0.9, 2) == pytest.approx(math.sqrt(2 * 0.9**2 / (1 - 0.9**2)), rel=1e-9)


def test_scipy_says_the_same_of_every_degree_of_freedom():
    stats = pytest.importorskip("scipy.stats")
    for num_freedom in range(1, 40):
        for confidence in (0.5, 0.9, 0.99):
            assert t_quantile(confidence, num_freedom) == pytest.approx(
                stats.t.ppf((1 + confidence) / 2, num_freedom), rel=1e-8
            )


def test_over_seeds_is_students_interval_and_says_nothing_of_one_seed():
    values = [0.30, 0.34, 0.29]
    half = 4.3026527 * float(np.std(values, ddof=1)) / math.sqrt(3)
    found = over_seeds(values, 0.95)
    assert found == pytest.approx({"mean": 0.31, "low": 0.31 - half, "high": 0.31 + half}, abs=1e-6)
    assert over_seeds([0.3], 0.95) is None
    assert over_seeds([0.2, 0.2], 0.95) == {"mean": 0.2, "low": 0.2, "high": 0.2}


def test_students_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    drawn = rng.normal(0.3, 0.02, (4000, 3))
    inside = [found["low"] <= 0.3 <= found["high"] for row in drawn if (found := over_seeds(list(row), 0.95))]
    assert 0.94 < np.mean(inside) < 0.96


def test_problems_keep_their_seeds_when_they_are_drawn():
    """Seeds that agree on every problem are one seed: the interval must not shrink with their number."""
    rng = np.random.default_rng(1)
    problems = {f"p{i}": float(v) for i, v in enumerate(rng.integers(0, 2, 80))}
    alone = over_problems([problems], **HOW)
    assert over_problems([problems] * 5, **HOW) == alone
    p = float(np.mean(list(problems.values())))
    assert alone["high"] - alone["low"] == pytest.approx(2 * 1.99 * math.sqrt(p * (1 - p) / 79), rel=0.15)
    with pytest.raises(DataError, match="other problems"):
        over_problems([problems, {"q": 1.0}], **HOW)


SHOWN = [Shown.model_validate("test: prm"), Shown.model_validate({"value": "evaluate.ece", "better": "lower"})]


def rows_of(measured, variants=("a", "b"), seeds=(0, 1, 2), shown=SHOWN):
    rows = sweep_rows(measured, variants, seeds, shown, **HOW)
    return {row["variant"]: row["values"] for row in rows}


def test_differences_are_paired_by_seed_so_that_what_a_seed_does_to_both_cancels():
    level = {0: 0.1, 1: 0.5, 2: 0.9}
    gain = {0: 0.02, 1: 0.03, 2: 0.04}
    measured = {("a", s): {"test: prm": level[s], "evaluate.ece": 0.1} for s in level}
    measured |= {("b", s): {"test: prm": level[s] + gain[s], "evaluate.ece": 0.2} for s in level}
    rows = rows_of(measured)
    apart = rows["b"]["test: prm"]["difference"]
    half = 4.3026527 * 0.01 / math.sqrt(3)
    assert apart["over_seeds"] == pytest.approx({"mean": 0.03, "low": 0.03 - half, "high": 0.03 + half}, abs=2e-6)
    own = rows["b"]["test: prm"]["over_seeds"]
    assert own["high"] - own["low"] > 1  # unpaired, nothing could be said
    assert apart["over_problems"] is None  # numbers know no problems
    assert rows["a"]["test: prm"]["difference"] is None
    assert [rows[v]["test: prm"]["is_best"] for v in "ab"] == [False, True]
    assert [rows[v]["evaluate.ece"]["is_best"] for v in "ab"] == [True, False]  # lower is better


@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=4, max_size=4))
@settings(max_examples=30, deadline=None)
def test_means_are_those_over_all_seeds_and_problems(values):
    a, b = np.array(values[:2], float), np.array(values[2:], float)
    measured = {
        (name, seed): {"test: prm": {f"p{i}": float(v) for i, v in enumerate(of[seed])}}
        for name, of in (("a", a), ("b", b))
        for seed in (0, 1)
    }
    rows = rows_of(measured, seeds=(0, 1), shown=SHOWN[:1])
    found = rows["b"]["test: prm"]
    assert found["mean"] == pytest.approx(b.mean(), abs=1e-6)
    assert found["difference"]["mean"] == pytest.approx((b - a).mean(), abs=1e-6)
    assert found["over_problems"]["low"] <= b.mean() + 1e-6
    assert found["difference"]["over_problems"]["high"] >= (b - a).mean() - 1e-6


def test_a_variant_with_fewer_seeds_is_never_best_and_is_compared_where_both_are():
    measured = {("a", s): {"test: prm": v} for s, v in {0: 0.1, 1: 0.2}.items()} | {("b", 0): {"test: prm": 0.9}}
    rows = rows_of(measured, variants=("a", "b", "c"), seeds=(0, 1))
    assert [rows[v]["test: prm"] and rows[v]["test: prm"]["is_best"] for v in "abc"] == [True, False, None]
    assert rows["b"]["test: prm"]["difference"]["seeds"] == {"0": 0.8}


def test_intervals_over_problems_that_were_read_are_averaged():
    measured = {("a", s): {"test: prm": {"mean": m, "low": m - 0.1, "high": m + 0.2}} for s, m in {0: 0.4, 1: 0.6}.items()}
    found = rows_of(measured, variants=("a",), seeds=(0, 1), shown=SHOWN[:1])["a"]["test: prm"]
    assert found["over_problems"] == {"mean": 0.5, "low": 0.4, "high": 0.7}
    assert found["over_seeds"]["mean"] == 0.5


def test_a_run_about_other_problems_is_told_apart():
    before = {("a", 0): {"test: prm": {"p0": 1.0, "p1": 0.0}, "evaluate.ece": 0.1}}
    same = {"test: prm": {"p1": 1.0, "p0": 0.0}, "evaluate.ece": 0.2}
    check_problems(before, {"b": same})
    check_problems({}, {"b": {"test: prm": {"q": 1.0}}})
    check_problems(before, {"b": {"test: prm": {"mean": 0.5, "low": 0.4, "high": 0.6}}})  # knows no problems
    with pytest.raises(DataError, match="measured other problems"):
        check_problems(before, {"b": same | {"test: prm": {"p0": 1.0}}})


# What a run says


@pytest.fixture
def outs(tmp_path):
    """A run's outputs, as small as they may be."""
    values = {"prm": [1.0, 0.0, 1.0], "random": [0.5, 0.25, 0.0]}
    rows = [
        {"split": split, "problem_id": f"p{i}", "selector": name, "value": value}
        for split in ("dev", "test")
        for name, column in values.items()
        for i, value in enumerate(column)
    ]
    write_table(tmp_path / "evaluation/selections.parquet", rows, SELECTION)
    ends = {"mean": 0.5, "low": 0.4, "high": 0.6}
    split = {
        "aggregations": {"last": ends, "min": ends},
        "curves": {"prm": [{"n": 1, **ends, "tokens": 3}, {"n": 2, **ends}]},
    }
    write_json(tmp_path / "evaluation/metrics.json", {"splits": {"test": split}, "calibration": {"ece": 0.25, "bins": []}})
    write_json(tmp_path / "rollouts/summary.json", {"tokens": 1000})
    return {"evaluate": tmp_path / "evaluation", "rollout": tmp_path / "rollouts"}


def test_values_are_read_problem_by_problem_or_by_their_path(declared, outs):
    sweep = declared(shown=["test: prm", "test: prm - random", "evaluate.calibration.ece", "rollout.tokens"])
    assert read_run(sweep, outs) == {
        "as it is": {
            "test: prm": {"p0": 1.0, "p1": 0.0, "p2": 1.0},
            "test: prm - random": {"p0": 0.5, "p1": -0.25, "p2": 1.0},
            "evaluate.calibration.ece": 0.25,
            "rollout.tokens": 1000.0,
        }
    }


def test_a_number_that_the_run_says_there_is_none_of_loses_no_other(declared, outs):
    write_json(outs["rollout"] / "summary.json", {"auroc": None, "tokens": 7})
    found = read_run(declared(shown=["rollout.auroc", "rollout.tokens"]), outs)["as it is"]
    assert found == {"rollout.auroc": None, "rollout.tokens": 7.0}
    shown = [Shown.model_validate(name) for name in found]
    (row,) = sweep_rows({("a", 0): found}, ["a"], [0], shown, **HOW)
    assert (row["values"]["rollout.auroc"], row["values"]["rollout.tokens"]["mean"]) == (None, 7.0)


def test_a_sweep_that_reads_finds_its_variants_in_the_metrics(declared, outs):
    ends = {"mean": 0.5, "low": 0.4, "high": 0.6}
    found = read_run(declared(variants=None, reads="aggregations"), outs)
    assert found == {"min": {"test: prm": ends}, "last": {"test: prm": ends}}
    assert list(found) == ["min", "last"]  # in the papers' order
    found = read_run(declared(variants=None, reads="curves"), outs)
    assert found == {"N = 1": {"test: prm": ends}, "N = 2": {"test: prm": ends}}


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("test: orm", "prm, random"),
        ("ood: prm", "no such split"),
        ("evaluate.calibration.brier", "bins, ece"),
        ("label.rows", "evaluate, rollout"),
        ("evaluate.calibration.bins", "name a number below it"),
    ],
)
def test_what_was_not_measured_is_answered_with_what_was(declared, outs, name, known):
    with pytest.raises(SettingsError) as caught:
        read_run(declared(shown=[name]), outs)
    assert name in caught.value.place
    assert known in caught.value.hint


# What is shown


@pytest.fixture
def content():
    measured = {("a", s): {"test: prm": v, "evaluate.ece": 0.1} for s, v in {0: 0.5, 1: 0.6}.items()}
    measured |= {("<b>", s): {"test: prm": v, "evaluate.ece": 0.3} for s, v in {0: 0.6, 1: 0.7}.items()}
    rows = sweep_rows(measured, ["a", "<b>", "c"], [0, 1], SHOWN, **HOW)
    for row in rows:
        row["overrides"] = {"label.formulation": row["variant"]}
    return {
        "name": "labels",
        "question": "Which <label>?",
        "source": "a paper",
        "seeds": [0, 1],
        "seeded": "train",
        "reads": None,
        **HOW,
        "shown": [one.model_dump() for one in SHOWN],
        "rows": rows,
        "missing": [{"variant": "c", "seed": 0, "error": "labels: bad"}],
    }


def test_the_table_marks_the_best_and_names_what_is_missing(content):
    told = text_lines(content)
    line = next(line for line in told if line.startswith("  <b>"))
    assert line.split()[:3] == ["<b>", "2", "0.650"]
    assert line.endswith("best")
    assert "+0.100" in line
    assert "  missing: c, seed 0: labels: bad" in told
    assert next(line for line in told if line.startswith("  c ")).split() == ["c", "0", "–", "–"]
    assert "| a | 2 | 0.550 |" in "\n".join(markdown_lines(content))


def test_the_page_is_whole_in_itself_and_escapes_every_word(content, tmp_path):
    path = write_sweep(tmp_path / "new", content)
    text = path.read_text()
    assert text == page(content)
    assert "Which &lt;label&gt;?" in text
    assert "<b>" not in text
    assert "<script" not in text
    assert "http" not in text.replace("http-equiv", "")
    assert text.count('class="span prm"') == 4  # two variants, two values
    assert json.loads((tmp_path / "new/labels.json").read_text()) == content
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError):
        write_sweep(tmp_path / "file", content)


def test_a_sweep_over_n_is_drawn_as_curves(content):
    rows = sweep_rows(
        {
            (f"N = {n}", s): {"test: prm": {"mean": 0.4 + n / 100, "low": 0.3, "high": 0.6}}
            for n in (1, 2, 4)
            for s in (0, 1)
        },
        ["N = 1", "N = 2", "N = 4"],
        [0, 1],
        SHOWN[:1],
        **HOW,
    )
    rows = [row | {"overrides": {}} for row in rows]
    text = page(content | {"reads": "curves", "rows": rows, "shown": content["shown"][:1], "missing": []})
    assert '<polyline points="' in text
    assert "candidates" in text
    bare = page(content | {"reads": "curves", "rows": []})  # every run failed
    assert "no run measured it" in bare
    assert "Missing: c, seed 0: labels: bad" in bare
