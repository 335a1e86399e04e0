"""The audit by people: draws whose chances are known, kappas worked out by hand, estimates that cover, files that lie."""

import itertools
import json
import random
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.annotate import answers, drawing, freezing, label_studio, page
from components.annotate.agreement import agreement
from components.annotate.answers import Reply, Settled, read_answers, read_replies, settled
from components.annotate.drawing import AUDIT, draw_audit, read_audit, set_digest
from components.annotate.estimates import weighted_ratio
from components.annotate.freezing import freeze, own, so_far
from components.annotate.sampling import DISAGREEMENT, NEAR, REST, allocation, draw, is_near, kind_of, strata
from components.cli import main
from components.errors import DataError, SettingsError
from components.records import LABEL, PROBLEM, SOLUTION, read_json, read_table, write_json, write_table
from components.step_benchmarks import read_cases, step_benchmark
from tests.conftest import picture

HOSTILE = '</script><script>window.owned=1</script><img src=x onerror="window.owned=1">{{script}}\u202e&amp;'


# --- the draw ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "others", "kind"),
    [
        ([0.9, 0.8], [[0.9, 0.7]], REST),
        ([0.9, 0.8], [[0.9, 0.2]], DISAGREEMENT),
        ([0.9, 0.5], [[0.9, 0.5]], DISAGREEMENT),  # at the scores' threshold is wrong, 0.5 > 0.03 is right
        ([None, 0.9], [[0.1, 0.9]], REST),  # one judge alone does not disagree
        ([None, 0.9], [[0.1, 0.9], [0.0, 1.0]], REST),
        ([None, 0.9], [[0.1, 0.9], [1.0, 1.0]], DISAGREEMENT),  # the other two do
        ([0.9, 0.8], [None], REST),
    ],
)
def test_who_contradicts_whom_is_looked_at_first(values, others, kind):
    limits = [0.5] * len(others)
    options = {"threshold": 0.03, "other_thresholds": limits}
    assert kind_of(values, others, any_near=False, **options) == kind
    assert kind_of(values, others, any_near=True, **options) == (NEAR if kind == REST else kind)


@pytest.mark.parametrize(
    ("value", "low", "high", "near"),
    [
        (0.05, 0.01, 0.2, True),
        (0.05, 0.04, 0.06, False),  # close, and known to be above
        (0.4, 0.02, 0.9, True),
        (0.12, None, None, True),
        (0.14, None, None, False),
        (0.0, None, None, False),  # a sign, no estimate
        (0.0, 0.0, 0.1, True),  # none of a few
    ],
)
def test_a_label_is_near_the_threshold_if_its_interval_says_so(value, low, high, near):
    assert is_near(value, low, high, threshold=0.03, margin=0.1) == near


def test_shares_are_kept_and_what_a_stratum_cannot_fill_goes_to_the_others():
    assert allocation({DISAGREEMENT: 500, NEAR: 500, "rest/a": 300, "rest/b": 100}, 80) == {
        DISAGREEMENT: 40,
        NEAR: 20,
        "rest/a": 15,
        "rest/b": 5,
    }
    assert allocation({DISAGREEMENT: 10, NEAR: 500, REST: 500}, 80) == {DISAGREEMENT: 10, NEAR: 35, REST: 35}
    assert allocation({NEAR: 3, REST: 4}, 100) == {NEAR: 3, REST: 4}
    with pytest.raises(SettingsError, match="3 solutions for 2 strata"):
        allocation({NEAR: 30, REST: 40}, 3)


@given(
    st.dictionaries(st.sampled_from([DISAGREEMENT, NEAR, "rest/a", "rest/b", "rest/c"]), st.integers(1, 60), min_size=1),
    st.integers(10, 200),
)
def test_an_allocation_is_whole_and_leaves_no_stratum_out(sizes, num):
    found = allocation(sizes, num)
    assert sum(found.values()) == min(num, sum(sizes.values()))
    assert all(min(2, sizes[name]) <= count <= sizes[name] for name, count in found.items())


def test_small_sources_share_a_stratum():
    kinds = {f"s{i}": REST for i in range(100)} | {"d": DISAGREEMENT}
    sources = {f"s{i}": "big" if i < 90 else f"small{i}" for i in range(100)} | {"d": "big"}
    found = strata(kinds, sources, 40)
    assert {name: len(keys) for name, keys in found.items()} == {DISAGREEMENT: 1, "rest/big": 90, "rest: others": 10}
    assert list(strata(kinds, dict.fromkeys(kinds, "x") | sources, 8)) == [DISAGREEMENT, REST]


def test_a_draw_does_not_depend_on_the_order_and_every_chance_is_what_it_says():
    members = {DISAGREEMENT: [f"d{i}" for i in range(8)], REST: [f"r{i}" for i in range(12)]}
    once = draw(members, 10, seed=3)
    assert once == draw({name: keys[::-1] for name, keys in members.items()}, 10, seed=3)
    drawn = {key: 0 for keys in members.values() for key in keys}
    for seed in range(2000):
        for one in draw(members, 10, seed=seed):
            drawn[one.solution_id] += 1
    chance = {one.stratum: one.probability for one in once}
    for name, keys in members.items():
        for key in keys:  # 4 standard deviations
            spread = (chance[name] * (1 - chance[name]) / 2000) ** 0.5
            assert abs(drawn[key] / 2000 - chance[name]) < 4 * spread + 1e-9


# --- agreement -----------------------------------------------------------------------------------------------------


def people(**said):
    return {who: {"s": list(marks)} for who, marks in said.items()}


def test_cohens_kappa_is_the_one_of_the_table_worked_out_by_hand():
    # 20 x ++, 5 x +-, 10 x -+, 15 x --: observed 35/50, by chance (25*30 + 25*20) / 2500 = 0.5
    ann, bob = "+" * 25 + "-" * 25, "+" * 20 + "-" * 5 + "+" * 10 + "-" * 15
    found = agreement(people(ann=ann, bob=bob))
    assert found["kappa"]["ann, bob"]["mean"] == pytest.approx(0.4)
    assert found["share"]["mean"] == pytest.approx(0.7)
    assert (found["num_steps"], found["num_differing"]) == (50, 15)
    # Krippendorff: coincidences ++ 40, -- 30, +- 15 each way; 1 - 99 * 30 / (100^2 - 55^2 - 45^2)
    assert found["alpha"]["mean"] == pytest.approx(1 - 99 * 30 / (10_000 - 55**2 - 45**2), abs=1e-6)
    assert found["fleiss"] is None


def test_krippendorffs_alpha_allows_for_gaps():
    # Units (+ +), (+ -), (- - -), (0 alone, which is no pair): coincidences ++ 2, +- 1, -+ 1, -- 3; n = 7, n+ = 3, n- = 4
    found = agreement(
        {
            "a": {"s": ["+", "+", "-", "0"]},
            "b": {"s": ["+", "-", "-", None]},
            "c": {"s": [None, None, "-", None]},
        }
    )
    assert found["alpha"]["mean"] == pytest.approx(1 - 6 * 2 / (49 - 9 - 16), abs=1e-6)
    assert found["num_steps"] == 3


def test_fleiss_kappa_is_the_one_of_the_table_worked_out_by_hand():
    # Of three people: +++, ++-, +--, ---. Agreeing pairs 1, 1/3, 1/3, 1; shares of + 6/12: (2/3 - 1/2) / (1 - 1/2)
    found = agreement(people(a="+++-", b="++--", c="+---"))
    assert found["fleiss"]["mean"] == pytest.approx(1 / 3, abs=1e-6)
    assert set(found["kappa"]) == {"a, b", "a, c", "b, c"}


def test_where_nothing_can_be_said_of_agreement_nothing_is():
    assert agreement(people(a="++", b="++"))["kappa"]["a, b"] is None  # one mark alone: chance explains all
    assert agreement(people(a="++", b="++"))["share"]["mean"] == 1
    alone = agreement({"a": {"s": ["+"]}, "b": {"t": ["+"]}})
    assert (alone["num_steps"], alone["alpha"], alone["kappa"]) == (0, None, {"a, b": None})
    assert agreement({"a": {"s": ["+"]}})["kappa"] == {}


def test_the_interval_of_kappa_is_over_solutions():
    rng = random.Random(0)
    truth = {f"s{i}": [rng.choice("+-")] * 5 for i in range(60)}  # the steps of a solution are alike
    other = {key: [m if i % 4 else "+" for m in marks] for i, (key, marks) in enumerate(truth.items())}
    found = agreement({"a": truth, "b": other})["kappa"]["a, b"]
    steps = {f"{key}/{i}": [m] for key, marks in truth.items() for i, m in enumerate(marks)}
    more = {f"{key}/{i}": [m] for key, marks in other.items() for i, m in enumerate(marks)}
    naive = agreement({"a": steps, "b": more})["kappa"]["a, b"]
    assert found["mean"] == naive["mean"]
    assert found["high"] - found["low"] > 1.8 * (naive["high"] - naive["low"])  # sqrt(5) in expectation


def test_where_nobody_differed_or_one_solution_was_read_agreement_is_not_taken_for_certain():
    alike = {f"s{i}": list("++-") for i in range(10)}
    found = agreement({"a": alike, "b": alike})
    low = 1 / (1 + 2.262157**2 / 10)  # Wilson's limit of 10 of 10 solutions, with Student's t of 9 degrees of freedom
    assert found["share"] == {"mean": 1, "low": pytest.approx(low, abs=2e-3), "high": 1}
    by_chance = 1 - (2 / 3) ** 2 - (1 / 3) ** 2
    for one in (found["kappa"]["a, b"], found["alpha"]):
        assert (one["mean"], one["high"]) == (1, 1)
        assert one["low"] == pytest.approx(1 - (1 - found["share"]["low"]) / by_chance, abs=1e-5)
    alone = agreement(people(a="++--", b="++-+"))
    for one in (alone["kappa"]["a, b"], alone["alpha"]):
        assert one["low"] < 0
        assert one["high"] > 0.9


# --- weighting back ------------------------------------------------------------------------------------------------


def test_numerator_and_denominator_are_unbiased_over_all_samples_there_are():
    under = {"a": [3, 1, 2, 4], "b": [5, 5, 1]}
    over = {"a": [1, 1, 0, 4], "b": [5, 0, 1]}
    totals = []
    for a, b in itertools.product(itertools.combinations(range(4), 2), itertools.combinations(range(3), 2)):
        estimate = [sum(x["a"][i] for i in a) * 4 / 2 + sum(x["b"][i] for i in b) * 3 / 2 for x in (over, under)]
        found = weighted_ratio(
            np.array([over["a"][i] for i in a] + [over["b"][i] for i in b]),
            np.array([under["a"][i] for i in a] + [under["b"][i] for i in b]),
            ["a", "a", "b", "b"],
            {"a": 4, "b": 3},
        )
        assert found["mean"] == pytest.approx(estimate[0] / estimate[1], abs=1e-6)
        totals.append(estimate)
    assert np.mean(totals, axis=0) == pytest.approx([12, 21])


def test_a_whole_population_has_no_interval_and_an_empty_one_no_share():
    found = weighted_ratio(np.array([1, 2]), np.array([2, 2]), ["a", "b"], {"a": 1, "b": 1})
    assert found == {"mean": 0.75, "low": 0.75, "high": 0.75}
    assert weighted_ratio(np.array([0, 0]), np.array([0, 0]), ["a", "a"], {"a": 9}) is None


def test_where_no_error_was_seen_the_interval_still_allows_for_some():
    found = weighted_ratio(np.full(20, 4), np.full(20, 4), ["a"] * 20, {"a": 1000})
    assert found["mean"] == found["high"] == 1
    z2 = 2.093**2  # Student's t with 19 degrees of freedom; Wilson's limit at 1 on 20 solutions, not on 80 steps
    assert found["low"] == pytest.approx(1 / (1 + z2 / 20 * (1 - 20 / 1000)), abs=1e-3)


@pytest.mark.parametrize(("rates", "num"), [((0.6, 0.8, 0.97), 100), ((0.4, 0.5, 0.75), 100), ((0.7, 0.9, 0.995), 200)])
def test_the_interval_covers_in_93_to_97_of_100_draws(rates, num):
    rng = np.random.default_rng(0)
    sizes = {DISAGREEMENT: 1500, NEAR: 1000, REST: 3500}
    strata_P = np.repeat(list(sizes), list(sizes.values()))
    under = rng.binomial(rng.integers(3, 8, len(strata_P)), 0.6)
    rate = np.concatenate([rng.beta(3 * p, 3 * (1 - p), size) for p, size in zip(rates, sizes.values(), strict=True)])
    over = rng.binomial(under, rate)
    true = over.sum() / under.sum()
    numbers, places = allocation(sizes, num), {name: np.flatnonzero(strata_P == name) for name in sizes}
    means, covered, draws = [], 0, 1200
    for _ in range(draws):
        picked = np.concatenate([rng.choice(places[name], numbers[name], replace=False) for name in sizes])
        found = weighted_ratio(over[picked], under[picked], strata_P[picked].tolist(), sizes)
        means.append(found["mean"])
        covered += found["low"] <= true <= found["high"]
    assert abs(np.mean(means) - true) < 4 * np.std(means) / draws**0.5 + 0.002  # a ratio of unbiased sums: almost
    assert 0.93 <= covered / draws <= 0.97
    flat = over[picked].sum() / under[picked].sum()
    assert abs(flat - true) > 5 * abs(np.mean(means) - true)  # unweighted, the hard ones would count too much


def test_a_few_solutions_of_very_many_steps_do_not_make_the_interval_too_narrow():
    """One in twenty has 200 steps, and worse ones than the others: they hold two thirds of all steps."""
    rng = np.random.default_rng(0)
    sizes = {DISAGREEMENT: 1500, NEAR: 1000, REST: 3500}
    numbers = allocation(sizes, 100)
    strata_P = [name for name, count in numbers.items() for _ in range(count)]
    under = {name: np.where(rng.random(size) < 0.05, 200, rng.integers(1, 6, size)) for name, size in sizes.items()}
    over = {name: rng.binomial(steps, np.where(steps == 200, 0.6, 0.95)) for name, steps in under.items()}
    true = sum(one.sum() for one in over.values()) / sum(one.sum() for one in under.values())
    covered = 0
    for _ in range(600):
        picked = {name: rng.choice(size, numbers[name], replace=False) for name, size in sizes.items()}
        sums = [np.concatenate([of[name][picked[name]] for name in sizes]) for of in (over, under)]
        found = weighted_ratio(*sums, strata_P, sizes)
        covered += found["low"] <= true <= found["high"]
    assert covered / 600 >= 0.92  # with a degree of freedom a solution: 0.78


# --- what people settle --------------------------------------------------------------------------------------------


def reply(who, marks, *, round_=1, key="s"):
    return Reply(who, round_, key, tuple(None if mark == "." else mark for mark in marks))


def marks_of(replies, num, **options):
    return [one.mark for one in settled([{"solution_id": "s", "steps": ["x"] * num}], replies, **options)["s"]]


def test_a_majority_settles_a_tie_does_not_and_the_last_word_counts():
    first = [reply("a", "+++."), reply("b", "+--.")]
    assert marks_of(first, 4) == ["+", None, None, None]
    assert marks_of([*first, reply("b", ".+..", round_=2)], 4) == ["+", "+", None, None]
    assert marks_of([*first, reply("c", "--0.")], 4) == ["+", "-", None, None]  # of three: two, or nothing
    assert marks_of([*first, reply("c", "-.-.")], 4, adjudicator="c") == ["-", None, "-", None]
    assert settled([{"solution_id": "s", "steps": ["x"]}], [])["s"] == [Settled(None, ())]


def test_right_so_far_ends_at_the_first_minus_and_what_is_open_stays_open():
    assert so_far(["+", "0", "+", "-", "+", "0", None]) == [True, None, True, False, False, None, False]
    assert so_far(["+", None, "+", "-", "+"]) == [True, None, None, False, False]
    assert own(["+", "-", "0", None]) == [True, False, None, None]


# --- folders -------------------------------------------------------------------------------------------------------


def written_run(folder, num=60, *, evil=""):
    """Solutions of three sources whose label is 0.9 on right steps and 0 on wrong ones, but for every tenth solution."""
    rng = random.Random(1)
    problems, solutions, labels, truth, scores = [], [], [], {}, []
    for p in range(num):
        problems.append(
            {"problem_id": f"p{p:03}", "question": f"question {p} {evil}", "images": [{"bytes": picture(p % 3)}]}
            | {"source_id": str(p), "source": ("cards", "bars", "odd")[p % 3], "answer": "8", "answer_type": "integer"}
        )
        key, steps = f"s{p:03}", [f"step {i} {evil}" for i in range(2 + p % 3)]
        wrong_at = rng.choice([*range(len(steps)), None, None])
        right = [wrong_at is None or i < wrong_at for i in range(len(steps))]
        said = [not one for one in right] if p % 10 == 0 else right
        truth[key] = ["-" if i == wrong_at else "+" for i in range(len(steps))]
        solutions.append({"solution_id": key, "problem_id": f"p{p:03}", "steps": steps, "finish_reason": "stop"})
        labels += [{"solution_id": key, "step": i, "mean": 0.9 if one else 0.0} for i, one in enumerate(said)]
        scores.append({"id": key, "scores": [0.8 if one else 0.1 for one in right]})
    write_table(folder / "seeds/seeds.parquet", problems, PROBLEM)
    write_table(folder / "rollouts/solutions.parquet", solutions, SOLUTION)
    write_table(folder / "labels/labels.parquet", labels, LABEL)
    (folder / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scores))
    return truth


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, written_run(folder)


@pytest.fixture(scope="module")
def audit(run_folder, tmp_path_factory):
    folder, truth = run_folder
    out = tmp_path_factory.mktemp("audit")
    names = {name: folder / name for name in ("seeds", "rollouts", "labels")}
    draw_audit(**names, scores=folder / "scores.jsonl", num=30, out=out)
    return out, truth


def page_file(place, audit_folder, marks, *, who="ann", round_=1, **changed):
    """A file as the page saves it."""
    rows, summary = read_audit(audit_folder)
    said = [{"solution": key, "marks": list(row), "comment": ""} for key, row in marks.items()]
    content = {"format": page.FORMAT, "set": summary["set"], "round": round_, "annotator": who, "answers": said}
    place.write_text(json.dumps(content | changed))
    assert {row["solution_id"] for row in rows} >= set(marks) or changed
    return place


def drawn_truth(audit_folder, truth):
    return {row["solution_id"]: truth[row["solution_id"]] for row in read_audit(audit_folder)[0]}


def test_a_draw_writes_what_it_drew_with_its_chances_and_says_no_score_to_anybody(audit):
    folder, _ = audit
    rows, summary = read_audit(folder)
    assert len(rows) == 30 == sum(one["drawn"] for one in summary["strata"].values())
    assert sum(one["of"] for one in summary["strata"].values()) == 60
    assert summary["strata"][DISAGREEMENT] == {"drawn": 6, "of": 6}  # every tenth: all there are
    assert all(row["probability"] == pytest.approx(row["num_drawn"] / row["num_in_stratum"]) for row in rows)
    assert sum(1 / row["probability"] for row in rows) == pytest.approx(60)
    assert summary["thresholds"] == {"values": 0.03, "scores": 0.5}
    asked = page_data(folder)
    assert {one["id"] for one in asked["solutions"]} == {row["solution_id"] for row in rows}
    assert all(set(one) == {"id", "question", "answer", "pictures", "steps", "asked", "said"} for one in asked["solutions"])
    assert all(one["pictures"][0].startswith("data:image/png;base64,") for one in asked["solutions"])


def page_data(folder):
    return json.loads(re.search(r'id="data">(.*?)</script>', (folder / page.FILE).read_text(), re.DOTALL)[1])


def test_scores_that_some_solutions_lack_are_said_aloud(run_folder, tmp_path, capsys):
    folder, _ = run_folder
    lines = (folder / "scores.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "some.jsonl").write_text("".join(lines[:25]))
    names = {name: folder / name for name in ("seeds", "rollouts", "labels")}
    summary = draw_audit(**names, scores=tmp_path / "some.jsonl", num=10, out=tmp_path / "audit")
    assert "scores: 35 of 60 labelled solutions have none" in capsys.readouterr().err
    assert summary["strata"][DISAGREEMENT]["of"] == 3  # every tenth of those that have


def test_equal_inputs_give_equal_files_and_another_seed_others(run_folder, tmp_path):
    names = {name: run_folder[0] / name for name in ("seeds", "rollouts", "labels")}
    sets = [draw_audit(**names, num=20, seed=seed, out=tmp_path / str(i))["set"] for i, seed in enumerate((0, 0, 1))]
    assert sets[0] == sets[1] != sets[2]
    for name in (page.FILE, drawing.FILE, label_studio.TASKS, "summary.json"):
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "1" / name).read_bytes()


def test_no_text_of_the_data_becomes_markup(tmp_path):
    written_run(tmp_path, evil=HOSTILE)
    names = {name: tmp_path / name for name in ("seeds", "rollouts", "labels")}
    draw_audit(**names, num=10, out=tmp_path / "audit")
    text = (tmp_path / "audit" / page.FILE).read_text()
    assert text.count("</script>") == text.count("<script") == 2
    assert "<img" not in text
    assert HOSTILE in page_data(tmp_path / "audit")["solutions"][0]["question"]


def test_the_label_studio_files_name_each_others_fields(audit):
    tree = ElementTree.parse(audit[0] / label_studio.CONFIG)  # our own file
    tasks = read_json(audit[0] / label_studio.TASKS)
    fields = {match for one in tree.iter() for match in re.findall(r"^\$(\w+)", one.get("value") or one.get("on") or "")}
    assert fields <= set(tasks[0]["data"])
    names = {one.get("name") for one in tree.iter() if one.get("name")}
    assert {one.get("toName") for one in tree.iter() if one.get("toName")} <= names
    assert [one.get("value") for one in tree.iter("Choice")] == ["+", "-", "0"]
    rows = {row["solution_id"]: row for row in read_audit(audit[0])[0]}
    for task in tasks:
        steps = rows[task["data"]["solution_id"]]["steps"]
        assert [one["text"] for one in task["data"]["asked"]] == [f"{i + 1}. {text}" for i, text in enumerate(steps)]


def exported(audit_folder, said):
    """Label Studio's JSON export: annotator -> solution -> marks."""
    tasks = read_json(audit_folder / label_studio.TASKS)
    for number, task in enumerate(tasks):
        task |= {"id": number, "annotations": []}
        for who, marks in said.items():
            row = marks.get(task["data"]["solution_id"])
            if row is None:
                continue
            fields = [
                {"from_name": f"mark_{i}", "to_name": f"step_{i}", "type": "choices", "value": {"choices": [mark]}}
                for i, mark in enumerate(row)
                if mark is not None
            ]
            note = {"from_name": "comment", "to_name": "question", "type": "textarea", "value": {"text": ["hm"]}}
            task["annotations"].append({"completed_by": who, "was_cancelled": False, "result": [*fields, note]})
        task["annotations"].append({"completed_by": 9, "was_cancelled": True, "result": []})
    return tasks


def test_label_studios_export_says_what_the_page_says(audit, tmp_path):
    folder, truth = audit
    marks = drawn_truth(folder, truth)
    rows, summary = read_audit(folder)
    mine = page_file(tmp_path / "a.json", folder, marks, who="annotator 1")
    write_json(tmp_path / "ls.json", exported(folder, {1: marks, 2: marks}))
    from_page = {one.solution_id: one.marks for one in read_replies([mine], rows, summary["set"])}
    both = read_replies([tmp_path / "ls.json"], rows, summary["set"])
    for who in ("annotator 1", "annotator 2"):
        assert {one.solution_id: one.marks for one in both if one.annotator == who} == from_page
    assert both[0].comment == "hm"
    assert {one.annotator for one in both} == {"annotator 1", "annotator 2"}


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("no json at all {", "not JSON"),
        ("[1, 2]", "neither answers of the page nor"),
        ('{"format": "other"}', "neither answers of the page nor"),
        ('[{"data": {}, "annotations": [{"completed_by": 1}]}]', "has lost its fields"),
        ('[{"data": {}, "annotations": []}]', "no task has an annotation"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_file_that_is_no_answer_is_said_in_one_line_with_a_hint(audit, tmp_path, content, what):
    rows, summary = read_audit(audit[0])
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(DataError, match=re.escape(what)) as caught:
        read_replies([tmp_path / "x.json"], rows, summary["set"])
    assert caught.value.lines().count("\n") == 1


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"set": "0" * 32}, "answers set '0000"),
        ({"annotator": "  "}, "the annotator's name is '  '"),
        ({"annotator": 7}, "the annotator's name is 7"),
        ({"annotator": "a\x1b[2J"}, "the annotator's name is"),
        ({"round": 0}, "round 0"),
        ({"round": 2**31}, "round 2147483648"),
        ({"round": True}, "round True"),
        ({"answers": [{"solution": "nobody", "marks": []}]}, "answers solution 'nobody'"),
        ({"answers": ["?"]}, "answers solution None"),
        ({"answers": {}}, "or its answers are unusable"),
    ],
)
def test_answers_that_do_not_belong_here_are_refused(audit, tmp_path, changed, what):
    rows, summary = read_audit(audit[0])
    path = page_file(tmp_path / "x.json", audit[0], {}, **changed)
    with pytest.raises(DataError, match=re.escape(what)):
        read_replies([path], rows, summary["set"])


def test_marks_of_another_length_or_kind_are_refused(audit, tmp_path):
    rows, summary = read_audit(audit[0])
    key = rows[0]["solution_id"]
    for marks, what in ((["+"] * 9, "its marks are"), (["?"] * len(rows[0]["steps"]), "is '?'")):
        path = page_file(tmp_path / "x.json", audit[0], {key: marks})
        with pytest.raises(DataError, match=re.escape(what)):
            read_replies([path], rows, summary["set"])


def test_a_person_named_twice_counts_once_unless_the_two_contradict(audit, tmp_path, capsys):
    rows, summary = read_audit(audit[0])
    row = next(one for one in rows if len(one["steps"]) == 3)
    halves = [{row["solution_id"]: ["+", None, None]}, {row["solution_id"]: [None, "-", None]}]
    paths = [page_file(tmp_path / f"{i}.json", audit[0], half, who=" Ann  Lee") for i, half in enumerate(halves)]
    (found,) = read_replies([*paths, paths[0]], rows, summary["set"])
    assert (found.annotator, found.marks) == ("Ann Lee", ("+", "-", None))
    assert "Ann Lee: 2 solutions answered twice" in capsys.readouterr().err
    other = page_file(tmp_path / "o.json", audit[0], {row["solution_id"]: ["-", None, None]}, who="Ann Lee")
    with pytest.raises(DataError, match=r"Ann Lee says - of step 1 .*, and \+ in"):
        read_replies([*paths, other], rows, summary["set"])


def test_a_name_spelt_in_two_ways_is_no_second_opinion(audit, tmp_path):
    folder, truth = audit
    marks = drawn_truth(folder, truth)
    first = page_file(tmp_path / "a.json", folder, marks, who="Ann")
    read_answers(folder, [first], out=tmp_path / "one")
    again = page_file(tmp_path / "b.json", folder, marks, who="ann", round_=2)
    with pytest.raises(DataError, match="answers of 'Ann' and of 'ann'"):
        read_answers(tmp_path / "one", [again], out=tmp_path / "two")


def test_half_a_character_in_a_comment_does_not_lose_the_file(audit, tmp_path):
    folder, truth = audit
    key = read_audit(folder)[0][0]["solution_id"]
    answer = {"solution": key, "marks": truth[key], "comment": "so \ud83d"}
    path = page_file(tmp_path / "a.json", folder, {}, answers=[answer])
    read_answers(folder, [path], out=tmp_path / "one")
    assert answers.read_earlier(tmp_path / "one")[0].comment == "so ?"


def test_rounds_that_nobody_answered_are_not_reported(audit, tmp_path):
    folder, truth = audit
    path = page_file(tmp_path / "a.json", folder, drawn_truth(folder, truth), round_=3)
    assert list(read_answers(folder, [path], out=tmp_path / "one")["agreement"]) == ["3"]


def test_an_audit_whose_questions_were_changed_is_refused(audit, tmp_path):
    rows, summary = read_audit(audit[0])
    rows[0]["question"] = "another"
    write_table(tmp_path / drawing.FILE, rows, AUDIT)
    write_json(tmp_path / "summary.json", summary)
    with pytest.raises(DataError, match="its summary speaks of"):
        read_audit(tmp_path)
    with pytest.raises(DataError, match=r"holds no audit\.parquet"):
        read_audit(tmp_path / "nowhere")
    assert set_digest(reversed(read_audit(audit[0])[0])) == summary["set"]


def test_people_are_asked_again_only_where_they_differ_and_the_set_freezes_as_a_benchmark(
    audit, tmp_path, capsys, monkeypatch
):
    folder, truth = audit
    monkeypatch.setenv("STEPFORGE_HOME", str(tmp_path / "home"))
    marks = drawn_truth(folder, truth)
    slips = {key: list(row) for key, row in marks.items()}
    wrong = sorted(marks)[:4]
    for key in wrong:
        slips[key][0] = "-" if slips[key][0] == "+" else "+"
    slips[sorted(marks)[5]][1] = "0"
    files = [
        str(page_file(tmp_path / "a.json", folder, marks)),
        str(page_file(tmp_path / "b.json", folder, slips, who="bob")),
    ]
    assert main(["annotate", "read", str(folder), *files, "--out", str(tmp_path / "one")]) == 0
    assert "asks again about 5 steps" in capsys.readouterr().out
    again = page_data(tmp_path / "one")
    assert again["round"] == 2
    assert {one["id"]: one["asked"] for one in again["solutions"]} == {key: [0] for key in wrong} | {sorted(marks)[5]: [1]}
    assert set(again["solutions"][0]["said"].values()) <= {"1 × +, 1 × -", "1 × +, 1 × 0", "1 × -, 1 × 0"}
    differing = [json.loads(line) for line in (tmp_path / "one" / answers.DIFFERING).read_text().splitlines()]
    assert [one["solution_id"] for one in differing].count(wrong[0]) == 1
    assert set(differing[0]["votes"]) == {"ann", "bob"}

    second = {key: [marks[key][0], *[None] * (len(marks[key]) - 1)] for key in wrong}
    path = page_file(tmp_path / "c.json", folder, second, who="bob", round_=2)
    assert main(["annotate", "read", str(tmp_path / "one"), str(path), "--out", str(tmp_path / "two")]) == 0
    assert "asks again about 1 steps" in capsys.readouterr().out
    eve = {sorted(marks)[5]: [None, marks[sorted(marks)[5]][1], *[None] * (len(marks[sorted(marks)[5]]) - 2)]}
    path = page_file(tmp_path / "d.json", folder, eve, who="eve", round_=3)
    command = [
        "annotate",
        "read",
        str(tmp_path / "two"),
        str(path),
        "--adjudicator",
        "eve",
        "--out",
        str(tmp_path / "three"),
    ]
    assert main(command) == 0
    assert "nothing to ask again" in capsys.readouterr().out
    assert not (tmp_path / "three" / page.FILE).exists()
    assert read_json(tmp_path / "three/summary.json")["agreement"]["1"]["num_differing"] == 5

    assert main(["annotate", "freeze", str(tmp_path / "three"), "--out", str(tmp_path / "frozen.parquet")]) == 0
    assert "30 solutions" in capsys.readouterr().out
    cases = read_cases(step_benchmark("audit"), tmp_path / "frozen.parquet")
    assert {case.id: ["+" if label else "-" for label in case.labels] for case in cases} == marks
    chain = {case.id: case.labels for case in read_cases(step_benchmark("audit-so-far"), tmp_path / "frozen.parquet")}
    assert chain == {key: tuple(so_far(row)) for key, row in marks.items()}
    scores = str(audit_scores(folder, tmp_path))
    assert main(["benchmark", "audit-so-far", str(tmp_path / "frozen.parquet"), "--scores", scores]) == 0
    assert "1.000 [1.000, 1.000]" in capsys.readouterr().out

    report = read_json(tmp_path / "frozen.json")
    measured = report["measures"]["labels"]["so_far"]
    exact = exact_measures(truth)
    for name, value in exact.items():
        assert measured[name]["low"] - 1e-6 <= value <= measured[name]["high"] + 1e-6, name
    assert report["measures"]["scores"]["so_far"]["accuracy"]["mean"] == 1.0
    assert report["strata"][DISAGREEMENT] == {"of": 6, "drawn": 6, "complete": 6}
    again = freeze(tmp_path / "three", out=tmp_path / "again.parquet")
    assert again["digest"] == report["digest"] != freeze(tmp_path / "one", out=tmp_path / "other.parquet")["digest"]


def audit_scores(folder, place):
    rows = read_audit(folder)[0]
    path = place / "scores.jsonl"
    path.write_text("".join(json.dumps({"id": row["solution_id"], "scores": row["scores"]}) + "\n" for row in rows))
    return path


def exact_measures(truth):
    """Of all 60 solutions of `written_run`, from how it was made."""
    over, under = np.zeros(5), np.zeros(5)
    for p, (_, marks) in enumerate(sorted(truth.items())):
        right = so_far(marks)
        said = [not one for one in right] if p % 10 == 0 else right
        counts = freezing._counts(said, right)
        over, under = over + counts[0], under + counts[1]
    return dict(zip(freezing.NUMBERS, over / under, strict=True))


def test_half_answers_stand_for_their_strata_and_what_nobody_judged_is_said(audit, tmp_path, capsys):
    folder, truth = audit
    rows = [row for row in read_audit(folder)[0] if row["stratum"] != DISAGREEMENT][:12]
    marks = {row["solution_id"]: truth[row["solution_id"]] for row in rows}
    marks[rows[0]["solution_id"]] = [*marks[rows[0]["solution_id"]][:-1], None]  # stopped here
    path = page_file(tmp_path / "a.json", folder, marks)
    summary = read_answers(folder, [path], out=tmp_path / "one")
    assert summary["num_tied"] == summary["num_asked_again"] == 0
    assert summary["agreement"]["1"]["num_steps"] == 0
    report = freeze(tmp_path / "one", out=tmp_path / "f.parquet")
    assert (report["num_solutions"], report["num_complete"]) == (12, 11)
    assert report["measures"]["labels"]["so_far"]["accuracy"]["mean"] == 1  # every label that lies is in the other stratum
    from components.annotate.showing import frozen_lines

    assert "no solution of disagreement was judged: 6 solutions are not spoken of" in "\n".join(
        frozen_lines(tmp_path, report)
    )


def test_who_stops_at_the_first_error_of_a_solution_says_as_much_of_the_way_there_as_who_goes_on(audit, tmp_path, capsys):
    """Else the solutions without an error would speak for all."""
    folder, truth = audit
    marks = drawn_truth(folder, truth)
    stopped = {key: [None if "-" in row[:i] else mark for i, mark in enumerate(row)] for key, row in marks.items()}
    reports = []
    for name, said in (("whole", marks), ("stopped", stopped)):
        read_answers(folder, [page_file(tmp_path / f"{name}.json", folder, said)], out=tmp_path / name)
        reports.append(freeze(tmp_path / name, out=tmp_path / f"{name}-frozen.parquet"))
    whole, short = reports
    num_short = sum(None in row for row in stopped.values())
    assert num_short > 0
    assert (whole["num_complete"], whole["num_complete_so_far"]) == (30, 30)
    assert (short["num_complete"], short["num_complete_so_far"]) == (30 - num_short, 30)
    for name in ("labels", "scores"):
        assert short["measures"][name]["so_far"] == whole["measures"][name]["so_far"]
    assert short["measures"]["labels"]["own"] != whole["measures"]["labels"]["own"]
    from components.annotate.showing import frozen_lines

    assert f"{num_short} more as far as an error" in "\n".join(frozen_lines(tmp_path, short))
    assert "as far as an error" not in "\n".join(frozen_lines(tmp_path, whole))


def test_a_frozen_set_never_replaces_what_it_is_made_of(audit, tmp_path):
    folder, truth = audit
    read_answers(folder, [page_file(tmp_path / "a.json", folder, drawn_truth(folder, truth))], out=tmp_path / "one")
    for name in ("audit.parquet", "answers.parquet", "summary.parquet"):
        with pytest.raises(SettingsError, match="would replace its own input"):
            freeze(tmp_path / "one", out=tmp_path / "one" / name)
    said = (tmp_path / "a.json").read_bytes()
    with pytest.raises(SettingsError, match=r"would replace '.*a\.json', which is none"):
        freeze(tmp_path / "one", out=tmp_path / "a.parquet")
    assert (tmp_path / "a.json").read_bytes() == said
    assert not (tmp_path / "a.parquet").exists()
    for _ in range(2):
        freeze(tmp_path / "one", out=tmp_path / "one/frozen.parquet")
    assert read_audit(tmp_path / "one")


def test_folders_that_cannot_be_read_or_frozen_say_what_to_do(audit, tmp_path, capsys):
    folder, truth = audit
    with pytest.raises(DataError, match=r"holds no answers\.parquet"):
        freeze(folder, out=tmp_path / "f.parquet")
    empty = page_file(tmp_path / "a.json", folder, {})
    with pytest.raises(DataError, match="no step was marked"):
        read_answers(folder, [empty], out=tmp_path / "one")
    marks = drawn_truth(folder, truth)
    path = page_file(tmp_path / "b.json", folder, marks)
    with pytest.raises(DataError, match=r"the adjudicator 'eve' answered nothing"):
        read_answers(folder, [path], out=tmp_path / "one", adjudicator="eve")
    other = {key: ["-" if mark == "+" else "+" for mark in row] for key, row in marks.items()}
    bob = page_file(tmp_path / "c.json", folder, other, who="bob")
    read_answers(folder, [path, bob], out=tmp_path / "one")
    with pytest.raises(DataError, match="people settled no step"):
        freeze(tmp_path / "one", out=tmp_path / "f.parquet")
    assert main(["annotate", "freeze", str(tmp_path / "one"), "--out", str(tmp_path / "folder")]) == 2
    assert "is no Parquet file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"num": 3}, "3 solutions"),
        ({"threshold": 1.0}, "a threshold of 1.0"),
        ({"margin": float("nan")}, "a margin of nan"),
        ({"score_threshold": float("inf")}, "a score threshold of inf"),
        ({"prm": "x", "scores": Path("y")}, "--prm and --scores"),
    ],
)
def test_settings_of_a_draw_that_make_no_sense_are_refused(run_folder, tmp_path, options, what):
    names = {name: run_folder[0] / name for name in ("seeds", "rollouts", "labels")}
    with pytest.raises(SettingsError, match=re.escape(what)):
        draw_audit(**names, out=tmp_path / "audit", **options)


def test_a_reward_model_scores_every_labelled_solution_and_brings_its_threshold(
    run_folder, tiny_policy, tmp_path, monkeypatch
):
    from components.prm import RewardModel

    model = RewardModel.from_policy(tiny_policy, marker="<prm>", label_tokens=("+", "-"), device="cpu", sees=True).eval()
    model.save(tmp_path / "prm/prm", tiny_policy, {"task": "maths", "threshold": 0.6})
    monkeypatch.setenv("STEPFORGE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("STEPFORGE_DEVICE", "cpu")
    words = [word for name in ("seeds", "rollouts", "labels") for word in (f"--{name}", str(run_folder[0] / name))]
    out = tmp_path / "audit"
    assert main(["annotate", "draw", *words, "--prm", str(tmp_path / "prm"), "--num", "20", "--out", str(out)]) == 0
    rows, summary = read_audit(out)
    assert summary["thresholds"]["scores"] == pytest.approx(0.6)
    assert all(len(row["scores"]) == len(row["steps"]) and all(0 <= one <= 1 for one in row["scores"]) for row in rows)
    for row in rows:
        contradicts = any((v > 0.03) != (s > 0.6) for v, s in zip(row["values"], row["scores"], strict=True))
        assert contradicts == (row["stratum"] == DISAGREEMENT)


def test_folders_of_two_runs_are_not_drawn_from(run_folder, tmp_path):
    names = {name: run_folder[0] / name for name in ("seeds", "rollouts", "labels")}
    write_table(tmp_path / "labels/labels.parquet", [{"solution_id": "stranger", "step": 0, "mean": 0.5}], LABEL)
    with pytest.raises(DataError, match="a label of step 0 of solution stranger"):
        draw_audit(**names | {"labels": tmp_path / "labels"}, out=tmp_path / "audit")
    write_table(tmp_path / "seeds/seeds.parquet", read_table(names["seeds"] / "seeds.parquet", PROBLEM)[:5], PROBLEM)
    with pytest.raises(DataError, match="which is not among the seeds"):
        draw_audit(**names | {"seeds": tmp_path / "seeds"}, out=tmp_path / "audit")
    write_table(tmp_path / "none/labels.parquet", [], LABEL)
    with pytest.raises(DataError, match="no finished solution has a label"):
        draw_audit(**names | {"labels": tmp_path / "none"}, out=tmp_path / "audit")


def test_a_picture_that_browsers_do_not_show_becomes_one_that_they_do():
    import base64
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.open(io.BytesIO(picture(1))).save(out, "TIFF")
    (url,) = page.picture_urls([out.getvalue()])
    shown = Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,"))))
    assert shown.convert("RGB").tobytes() == Image.open(io.BytesIO(picture(1))).tobytes()
    with pytest.raises(DataError, match="cannot be decoded"):
        page.picture_urls([b"nothing"])
