"""The page: what it says, what it says when something is missing, and that no data can become markup."""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import json
import random
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from page_fixture import PRM, build_run, png
from PIL import Image

from components.errors import DataError
from components.metrics import AGGREGATIONS
from components.records import CANDIDATE, SCORE, read_json, read_table, write_json, write_table
from components.report import MAX_BYTES, write_report
from components.report.cases import FILES, MAX_OF_KIND, Case, read_cases, shortlist
from components.report.charts import Line, lines, scale_for
from components.report.comparison import GROUPS, direction
from components.report.evidence import FOLDERS, RESTORED
from components.report.markup import Html, count, decimal, duration, memory, p_value, percent, points, tag
from components.report.pictures import picture_of

REALDATA = Path(__file__).parents[3] / "shared" / "realdata"
HOSTILE = '<script>alert(1)</script>"><img onerror=alert(1) src=x></script></title>{{script}}\u202e'
SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


class Seen(HTMLParser):
    """Tags with their attributes, and the text a reader sees."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.faults: list[str] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "input", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.faults.append(tag)

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, name: str, **attributes: str) -> list[dict[str, str | None]]:
        return [found for tag, found in self.tags if tag == name and attributes.items() <= found.items()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return build_run(tmp_path_factory.mktemp("run"), num_problems=12)


@pytest.fixture
def run(whole, tmp_path) -> dict[str, Any]:
    """A copy that a test may damage."""
    for name in ("artifacts", "data"):
        shutil.copytree(whole[name], tmp_path / name)
    return {**whole, "artifacts": tmp_path / "artifacts", "data": tmp_path / "data"}


def page_of(run: dict[str, Any], folder: Path) -> Seen:
    return Seen(write_report(folder / "page.html", **run).read_text(encoding="utf-8"))


def change_metrics(run: dict[str, Any], change: Any) -> None:
    path = run["artifacts"] / "evaluation" / "metrics.json"
    metrics = read_json(path)
    change(metrics)
    write_json(path, metrics)


# What the page says


def test_headline_names_the_version_and_the_gains_with_their_intervals(whole, tmp_path):
    text = page_of(whole, tmp_path).text
    test = read_json(whole["artifacts"] / "evaluation" / "metrics.json")["splits"]["test"]
    assert "Version 2 of prm stands in staging." in text
    assert f"is right {percent(test['selectors']['prm']['mean'])} % of the time" in text
    for a, b in (("prm", "random"), ("prm", "blind")):
        one = next(d for d in test["differences"] if (d["a"], d["b"]) == (a, b))
        assert f"{points(one['mean'])} points" in text
        assert f"interval {points(one['low'])} to {points(one['high'])}" in text


def test_every_selector_stands_in_both_panels_in_the_order_of_the_groups(whole, tmp_path):
    text = page_of(whole, tmp_path).text
    splits = read_json(whole["artifacts"] / "evaluation" / "metrics.json")["splits"]
    place = 0
    for split in ("test", "ood"):
        for name, _, _, members in GROUPS:
            place = text.index(name, place)
            for key, _, _ in members:
                one = splits[split]["selectors"][key]
                value = f"{percent(one['mean'])} {percent(one['low'])} to {percent(one['high'])}"
                place = text.index(value, place)


def test_the_aggregation_chosen_on_dev_is_marked_once(whole, tmp_path):
    seen = page_of(whole, tmp_path)
    assert [name for name in AGGREGATIONS if f"{name} chosen on dev" in seen.text] == ["min"]
    assert seen.text.count("min, chosen on dev") == 2  # in the label of PRM Best-of-8, a split


def test_pipeline_shows_counts_seconds_and_receipts(whole, tmp_path):
    text = page_of({**whole, "receipts": whole["receipts"][:3]}, tmp_path).text
    for shown in (
        "2,400 seeds",
        "51 of 2,451 quarantined: duplicate 30, leaked 15, broken image 6",
        "183,220 continuations",
    ):
        assert shown in text
    assert f"20 s · receipt {whole['receipts'][1]['output']['sha256'][:10]}" in text
    assert text.count(RESTORED) == 2 * 4  # label, train, sample, evaluate: in the pipeline and in the cost table


def test_cost_totals_add_up_and_memory_is_the_largest(whole, tmp_path):
    text = page_of(whole, tmp_path).text
    wall = sum(receipt["wall_seconds"] for receipt in whole["receipts"])
    tokens = sum(receipt.get("sampled_tokens", 0) for receipt in whole["receipts"])
    assert f"all stages {count(tokens)} 469,134 {duration(wall)}" in text
    peak = memory(max(receipt["peak_memory_bytes"] for receipt in whole["receipts"]))
    assert f"{peak} of memory, the largest" in text


def test_decisions_of_the_registry_stand_with_their_reasons(whole, tmp_path):
    text = page_of(whole, tmp_path).text
    assert "prm.staging/2 promoted to staging (2026-11-20 18:30, ada)" in text
    assert "Refused for prod: approver." in text
    assert "approver ✗ failed nobody a named approver" in text


def test_gates_stand_with_their_checks_and_what_did_not_pass(whole, tmp_path):
    text = page_of(whole, tmp_path).text
    assert "seeds ✓ passed 2 1 rollouts ✓ passed 2 0" in text
    failed = "seeds: seeds/rows ✗ failed 1 1 above 0.3 (warning) quarantined_frac = 0.31"
    assert text.count(failed) == 2  # among what did not pass, and among all
    assert "all 8 checks" in text


def test_headline_names_the_baselines_that_are_not_beaten(run, tmp_path):
    ends = {"majority": (0.01, 0.2), "greedy": (-0.1, 0.1), "likelihood": (-0.2, -0.1)}

    def change(metrics: dict[str, Any]) -> None:
        for one in metrics["splits"]["test"]["differences"]:
            if one["a"] == "prm" and one["b"] in ends:
                one["low"], one["high"] = ends[one["b"]]

    change_metrics(run, change)
    said = "It is clearly above majority vote; not clearly above greedy decoding; below policy likelihood."
    assert said in page_of(run, tmp_path).text


@pytest.mark.parametrize(
    ("places", "said"),
    [
        ({}, "Nothing is promoted yet."),
        (
            {"staging": {"version": 1, "digest": "other"}},
            "The PRM shown here is not in the registry. Version 1 of prm stands",
        ),
        ({"dev": {"version": 3, "digest": PRM}}, "Version 3 of prm stands in dev."),
        ({"dev": {"version": 3, "digest": PRM}, "prod": {"version": 1, "digest": PRM}}, "Version 1 of prm stands in prod."),
    ],
)
def test_headline_says_where_the_shown_prm_stands(whole, tmp_path, places, said):
    assert said in page_of({**whole, "registry": {"model": "prm", "environments": places}}, tmp_path).text


@pytest.mark.parametrize(
    ("low", "high", "said", "expected"),
    [
        (0.01, 0.2, "a clear gain.", 1),
        (-0.01, 0.2, "no clear gain", 0),
        (0.0, 0.2, "no clear gain", 0),
        (-0.2, -0.01, "the PRM does harm.", -1),
        (None, None, "was not measured", None),
    ],
)
def test_a_gain_is_claimed_only_when_its_interval_lies_above_zero(run, tmp_path, low, high, said, expected):
    def change(metrics: dict[str, Any]) -> None:
        for one in metrics["splits"]["test"]["differences"]:
            if (one["a"], one["b"]) == ("prm", "random"):
                one |= {"low": low, "high": high}

    change_metrics(run, change)
    assert direction({"low": low, "high": high}) == expected
    assert said in page_of(run, tmp_path).text


def test_equal_inputs_give_equal_bytes(whole, tmp_path):
    first, second = (write_report(tmp_path / name, **whole).read_bytes() for name in ("a.html", "b.html"))
    assert first == second


# The gallery


def test_misses_and_rescues_are_those_of_the_selections(whole):
    cases = read_cases(whole["artifacts"], "min")
    selections = pq.read_table(whole["artifacts"] / "evaluation" / "selections.parquet").to_pylist()
    majority = {row["problem_id"]: row["value"] for row in selections if row["selector"] == "majority"}
    assert len({case.problem_id for case in cases}) == 24
    assert {case.kind for case in cases} == set(MAX_OF_KIND)
    for case in cases:
        best = max(min(row["scores"]) for row in case.sampled)
        picked = [row for row in case.sampled if min(row["scores"]) == best]
        assert case.chosen == {row["candidate_id"] for row in picked}
        is_right = picked[0]["verdict"] == "right"
        assert case.prm == float(is_right)
        assert (case.kind == "miss") == (not is_right and case.is_solvable)
        assert (case.kind == "rescue") == (is_right and not majority[case.problem_id])


def test_errors_come_first_and_the_surest_of_them_before_the_others(whole, tmp_path):
    cases = read_cases(whole["artifacts"], "min")
    cards = page_of(whole, tmp_path).all("article")
    assert [card["data-kind"] for card in cards] == sorted(
        (card["data-kind"] for card in cards), key=list(MAX_OF_KIND).index
    )
    surest = max((c for c in cases if c.kind == "miss" and c.split == "test"), key=lambda c: c.surety)
    assert cards[0]["id"] == f"p-{surest.problem_id}"


def test_equal_candidates_are_shown_once_with_their_number(run, tmp_path):
    path = run["artifacts"] / "candidates" / "candidates.parquet"
    rows = read_table(path, CANDIDATE)
    name = next(case.problem_id for case in read_cases(run["artifacts"], "min") if case.split == "test")
    ours = [row for row in rows if row["problem_id"] == name and row["decoding"] == "sample"]
    for row in ours[:3]:
        row |= {"steps": ours[0]["steps"], "answer": "7", "verdict": "wrong"}
    write_table(path, rows, CANDIDATE)
    case = next(case for case in read_cases(run["artifacts"], "min") if case.problem_id == name)
    assert sorted(row["copies"] for row in case.sampled) == [1] * 5 + [3]
    card = next(part for part in write_report(tmp_path / "page.html", **run).read_text().split("<article") if name in part)
    assert card.count("written 3 times") == 1
    assert "(3 of 8 say so)" in Seen(card).text


def case_of(kind: str, split: str, i: int) -> Case:
    return Case(kind, split, f"{kind}-{split}-{i:03}", [], [], frozenset(), i / 100, None)


def test_places_that_a_kind_leaves_free_go_to_the_next_and_splits_alternate():
    few = [case_of("miss", "test", i) for i in range(4)] + [
        case_of("other", s, i) for s in ("test", "ood") for i in range(90)
    ]
    shown = shortlist(few)
    assert [c.kind for c in shown] == ["miss"] * 4 + ["other"] * (sum(MAX_OF_KIND.values()) - 4)
    assert [c.surety for c in shown[:4]] == [0.03, 0.02, 0.01, 0.0]
    assert [c.split for c in shown[4:8]] == ["test", "ood", "test", "ood"]


def test_each_step_shows_its_score_and_the_first_truly_wrong_one_its_sign(whole, tmp_path):
    text = page_of(whole, tmp_path).text
    case = next(c for c in read_cases(whole["artifacts"], "min") if c.kind == "miss")
    row = next(row for row in case.sampled if row["candidate_id"] in case.chosen)
    wrong = row["truth"].index(0.0)
    steps = [f"{step} {decimal(score, 2)}" for step, score in zip(row["steps"], row["scores"], strict=True)]
    steps[wrong] = f"✗ {steps[wrong]}"
    assert " ".join(" ".join(steps).split()) in text


def test_pictures_are_data_inside_the_page_with_a_text_for_those_who_cannot_see(whole, tmp_path):
    seen = page_of(whole, tmp_path)
    pictures = seen.all("img")
    assert len(pictures) == len(seen.all("article")) > 10
    for picture in pictures:
        assert base64.b64decode(picture["src"].removeprefix("data:image/png;base64,")).startswith(b"\x89PNG")
        assert picture["alt"]


def test_page_keeps_its_size_when_pictures_are_huge(tmp_path, monkeypatch):
    noise = png([[tuple(random.randbytes(3)) for _ in range(150)] for _ in range(150)])
    monkeypatch.setitem(build_run.__globals__, "_bars", lambda rng, values: noise + rng.randbytes(8))
    run = build_run(tmp_path, num_problems=40)
    page = write_report(tmp_path / "page.html", **run).read_text(encoding="utf-8")
    assert page.count("<article") == page.count("data:image/webp") == 80  # as previews, though 80 x 68 kB would not fit
    monkeypatch.setattr("components.report.MAX_BYTES", 700_000)
    page = write_report(tmp_path / "page.html", **run).read_text(encoding="utf-8")
    assert len(page.encode()) <= 700_000
    assert page.count("<article") == 80
    assert 0 < page.count("data:image/webp") < 80
    assert page.count("(68 kB) did not fit") == 80 - page.count("data:image/webp")


def test_cards_that_do_not_fit_are_counted_and_the_surest_errors_are_kept(run, whole, tmp_path, monkeypatch):
    shutil.rmtree(run["artifacts"] / "candidates")
    without = write_report(tmp_path / "without.html", **run).stat().st_size
    monkeypatch.setattr("components.report.MAX_BYTES", without + 60_000)
    seen = page_of(whole, tmp_path)
    shown = len(seen.all("article"))
    assert 0 < shown < 24
    assert f"{shown} of 24 problems" in seen.text
    assert f"{24 - shown} problems did not fit into the page" in seen.text
    misses = [case for case in read_cases(whole["artifacts"], "min") if case.kind == "miss"]
    assert len(seen.all("article", **{"data-kind": "miss"})) == min(len(misses), shown)


def test_a_thousand_problems_with_thumbnails_stay_below_three_megabytes(tmp_path):
    run = build_run(tmp_path, num_problems=500)
    page = write_report(tmp_path / "page.html", **run)
    assert page.stat().st_size <= MAX_BYTES == 3_000_000
    text = page.read_text(encoding="utf-8")
    assert text.count("<article") == text.count("<img src=") == 1000
    assert "did not fit" not in text


@pytest.mark.slow
def test_a_thousand_problems_with_pictures_of_real_benchmarks_stay_below_three_megabytes(tmp_path, monkeypatch):
    pictures = sorted(path for path in REALDATA.rglob("*") if path.suffix in (".jpg", ".png"))
    if len(pictures) < 100:
        pytest.skip("no real pictures here")
    turn = itertools.cycle(pictures)  # a byte at the end makes each its own
    monkeypatch.setitem(build_run.__globals__, "_bars", lambda rng, values: next(turn).read_bytes() + rng.randbytes(4))
    page = write_report(tmp_path / "page.html", **build_run(tmp_path, num_problems=500))
    assert page.stat().st_size <= 3_000_000
    text = page.read_text(encoding="utf-8")
    assert text.count("<article") == 1000
    assert text.count("<img src=") > 900


def test_a_miss_says_how_it_came_about_and_how_sure_the_choice_was(whole, tmp_path):
    cases = {c.problem_id: c for c in read_cases(whole["artifacts"], "min", threshold=0.42) if c.kind == "miss"}
    assert {fault for case in cases.values() for fault in case.faults} >= {"believed", "doubted", "overlooked"}
    for case in cases.values():
        wrong = next(row for row in case.sampled if row["candidate_id"] in case.chosen)
        right = max((row for row in case.sampled if row["verdict"] == "right"), key=lambda row: min(row["scores"]))
        assert case.surety == min(wrong["scores"]) - min(right["scores"])
        told = (min(wrong["scores"]) <= 0.42, min(right["scores"]) <= 0.42)
        meant = {(False, False): "believed", (False, True): "doubted", (True, True): "both"}[told]
        assert meant in case.faults
        first = wrong["truth"].index(0.0)
        assert ("overlooked" in case.faults) == (wrong["scores"][first] > 0.42)
    for card in page_of(whole, tmp_path).all("article", **{"data-kind": "miss"}):
        case = cases[card["id"].removeprefix("p-")]
        assert (card["data-faults"].split(), card["data-margin"]) == (list(case.faults), f"{case.surety:.4f}")


def test_a_right_answer_with_a_wrong_step_is_no_plain_miss(run):
    case = next(case for case in read_cases(run["artifacts"], "min", threshold=0.42) if case.kind == "miss")
    right = max((row for row in case.sampled if row["verdict"] == "right"), key=lambda row: min(row["scores"]))
    path = run["artifacts"] / "evaluation" / "scores.parquet"
    rows = read_table(path, SCORE)
    truth = next(row for row in rows if (row["scorer"], row["candidate_id"]) == ("truth", right["candidate_id"]))
    truth["step_scores"] = [1.0, *([0.0] * (len(truth["step_scores"]) - 1))]
    write_table(path, rows, SCORE)
    found = {c.problem_id: c.faults for c in read_cases(run["artifacts"], "min", threshold=0.42)}
    assert "lucky" not in case.faults
    assert "lucky" in found[case.problem_id]


def test_pictures_become_previews_without_metadata_and_what_is_no_picture_stays_a_word():
    picture = Image.effect_noise((900, 300), 80).convert("RGB")
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=95, exif=b"Exif\0\0secret")
    made = picture_of(out.getvalue(), is_shown_whole=True)
    sizes = [Image.open(io.BytesIO(content)).size for content in (made.whole, *made.thumbnails)]
    assert sizes == [(640, 213), (128, 43), (80, 27)]
    assert b"secret" not in made.whole
    assert not made.is_small
    broken = picture_of(b"\x89PNG\r\n\x1a\nno picture", is_shown_whole=False)
    assert broken.thumbnails == ()
    assert picture_of(b"text", is_shown_whole=False).whole == b"text"


# Curves, groups, controls, p-values


def test_every_point_of_the_curves_stands_in_the_page_as_text(whole, tmp_path):
    seen = page_of(whole, tmp_path)
    metrics = read_json(whole["artifacts"] / "evaluation" / "metrics.json")
    for split in ("test", "ood"):
        for name, rows in metrics["splits"][split]["curves"].items():
            values = " ".join(f"{percent(r['mean'])} {percent(r['low'])} to {percent(r['high'])}" for r in rows)
            assert values in seen.text, (split, name)
        first, *_, half, last = metrics["splits"][split]["curves"]["prm"]
        assert f"the PRM's pick goes from {percent(first['mean'])} to {percent(last['mean'])} % right" in seen.text
        assert f"the last step, from 4 on, brings {points(last['mean'] - half['mean'])}." in seen.text
    assert len(seen.all("svg", role="img")) == 2 * 2 + 2  # curves by number and by tokens; calibration and labels


def test_search_is_drawn_beside_the_curves_of_its_own_split_and_reward_model_only(run, tmp_path):
    assert "lookahead 8 352 56.0 51.0 to 61.0" in page_of(run, tmp_path).text
    path = run["artifacts"] / "search" / "search.json"
    for change in ({"split": "dev"}, {"prm_digest": "another"}):
        write_json(path, read_json(path) | change)
        assert "lookahead" not in page_of(run, tmp_path).text


def test_names_beside_a_chart_never_overlap(whole, tmp_path):
    chart = lines(
        [Line(f"curve {i}", "prm", [(1, {"mean": 0.5}), (8, {"mean": 0.5 + i / 1000})]) for i in range(7)],
        scale_for([0.0, 1.0]),
        title="t",
        x_label="x",
        x_ticks=[1, 8],
        form=decimal,
    )
    heights = sorted(float(y) for y in re.findall(r'x="320" y="([\d.]+)" class="name', chart))
    assert len(heights) == 7
    assert all(b - a > 14 for a, b in itertools.pairwise(heights))


def test_differences_show_p_before_and_after_holm(whole, tmp_path):
    text = page_of(whole, tmp_path).text
    found = read_json(whole["artifacts"] / "evaluation" / "metrics.json")["splits"]["test"]["differences"]
    low = [sum(one[key] < 0.05 for one in found) for key in ("p", "p_holm")]
    assert f"on test {low[0]} of {len(found)} differences have p below 0.05, {low[1]} after it" in text
    assert "<0.001 0.003" in text
    assert p_value(0.0009999) == "<0.001"
    assert (p_value(0.0341), p_value(1), p_value(None)) == ("0.034", "1.000", "–")


def test_groups_stand_with_their_gain_and_sort_by_number(whole, tmp_path):
    seen = page_of(whole, tmp_path)
    tables = read_json(whole["artifacts"] / "evaluation" / "metrics.json")["splits"]["ood"]["tables"]
    for rows in tables.values():
        for row in rows:
            gain = row["gain"]
            value = f"{points(gain['mean'])} {points(gain['low'])} to {points(gain['high'])}"
            means = " ".join(percent(row[name]) for name in ("random", "majority", "prm", "oracle"))
            assert f"{value} {means} {row['num_problems']}" in seen.text
            assert seen.all("td", **{"data-value": str(gain["mean"])})
    assert len(seen.all("table", **{"class": "sortable groups"})) == 6


def test_controls_stand_with_their_sentence_and_are_flagged_by_the_last_decision_on_this_prm(run, tmp_path):
    measures = read_json(run["artifacts"] / "evaluation" / "metrics.json")["controls"]["measures"]
    text = page_of(run, tmp_path).text
    assert all(str(one["says"]) in text for one in measures)
    assert "so nothing is flagged here" in text
    ledger = run["registry"]["ledger"]
    reasons = [{"gate": "control padding", "passed": False}, {"gate": "control empty", "passed": True}]
    asked = {**ledger[0], "action": "refuse", "reasons": reasons}
    of_another = {**asked, "prm_digest": "another", "reasons": [{"gate": "control length", "passed": False}]}
    registry = {**run["registry"], "ledger": [*ledger, asked, of_another]}
    text = page_of({**run, "registry": registry}, tmp_path).text
    assert "1 of 2 gates on controls flag this PRM" in text
    assert "a step said again ✗ flagged" in text
    assert "against saying nothing ✓ not flagged" in text
    assert text.count("flagged") == 2


def test_other_benchmarks_get_a_row_each_and_panels_of_their_own(run, tmp_path):
    change_metrics(run, lambda m: m["splits"].update(mathvista={**m["splits"]["test"], "num_problems": 77}))
    seen = page_of(run, tmp_path)
    assert "Every benchmark, % right" in seen.text
    assert "mathvista · 77 problems" in seen.text
    assert "Every benchmark" not in page_of({**run, "artifacts": Path("none")}, tmp_path).text


def test_another_reward_model_stands_in_a_group_of_its_own_with_its_aggregation(whole, tmp_path):
    text = page_of(whole, tmp_path).text
    assert text.index("Other reward models") < text.index("orm last, chosen on dev") < text.index("Controls blind")
    assert "orm-weighted vote" in text


# What is missing is said


def test_a_file_from_before_the_tables_still_shows_its_sources(run, tmp_path):
    def change(metrics: dict[str, Any]) -> None:
        metrics["splits"]["test"].pop("tables")
        row = {"num_problems": 7, "random": 0.25, "majority": 0.5, "prm": 0.75, "oracle": 1.0}
        metrics["splits"]["test"]["sources"] = {"world/old": row}

    change_metrics(run, change)
    assert "world/ old – 25.0 50.0 75.0 100.0 7" in page_of(run, tmp_path).text


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("evaluation", "Nothing was evaluated yet: there is no metrics.json."),
        ("evaluation/metrics.json", "Nothing was evaluated on the test split yet."),
        ("evaluation/scores.parquet", "No gallery: evaluation/scores.parquet not found."),
        ("candidates", "No gallery: candidates/candidates.parquet not found."),
        ("labels", "The labels have no histogram."),
        ("seeds", "curate – no summary.json 3.0 s · receipt"),
    ],
)
def test_a_missing_file_is_named_and_breaks_nothing(run, tmp_path, path, said):
    victim = run["artifacts"] / path
    shutil.rmtree(victim) if victim.is_dir() else victim.unlink()
    assert said in page_of(run, tmp_path).text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m["splits"].pop("ood"), "No out of domain split was evaluated."),
        (lambda m: m["splits"].pop("test"), "Nothing was evaluated on the test split yet."),
        (lambda m: [m["splits"].pop(s) for s in ("test", "ood")], "No test split was evaluated."),
        (lambda m: m.pop("splits"), "No test split was evaluated."),
        (lambda m: m.update(splits=None), "No test split was evaluated."),
        (lambda m: m["splits"]["test"].update(selectors=None), "Nothing was evaluated on the test split yet."),
        (lambda m: [d.pop("a") for d in m["splits"]["test"]["differences"]], "No paired differences for test."),
        (lambda m: m["splits"]["test"]["tables"].update(source=None), "No figures by source for test."),
        (lambda m: m["splits"]["test"]["selectors"].pop("blind"), "not measured: blind Best-of-8"),
        (lambda m: m["splits"]["test"].update(differences=[]), "there is no blind control."),
        (lambda m: m["splits"]["test"].pop("tables"), "No figures by source for test."),
        (lambda m: m["splits"]["test"]["tables"].pop("difficulty"), "No figures by difficulty for test."),
        (lambda m: [m["splits"][s].pop("curves") for s in ("test", "ood")], "No curves were measured: metrics.json"),
        (lambda m: m.pop("controls"), "The controls were not measured: metrics.json has nothing under controls."),
        (lambda m: m["controls"].update(absent={"blind": "not scored"}), "Not measured: without the picture (not scored)."),
        (
            lambda m: m["splits"]["test"].update(gap_closed={"prm": None}),
            "of the possible gain from random pick to pass@8 not measured",
        ),
        (lambda m: m["steps"].pop("step_errors"), "Not measured: metrics.json has nothing under steps.step_errors."),
        (lambda m: m["steps"]["candidates"].pop("blind"), "Not measured: blind PRM."),
        (lambda m: m.pop("steps"), "Not measured: metrics.json has nothing under steps.candidates."),
        (lambda m: m.update(calibration=None), "Calibration was not measured."),
        (lambda m: m.update(aggregation=None), "It is not known which aggregation was chosen on dev."),
        (lambda m: m.update(aggregation="median"), "No gallery: the aggregation 'median' is not one of min"),
        (lambda m: m.update(blind_digest=None), "blind PRM not known"),
        (lambda m: m["splits"]["test"]["selectors"].update(mine={"mean": 0.5, "low": 0.4, "high": 0.6}), "Others"),
    ],
)
def test_a_missing_measurement_is_named_and_breaks_nothing(run, tmp_path, change, said):
    change_metrics(run, change)
    assert said in page_of(run, tmp_path).text


def test_numbers_may_be_null_everywhere(run, tmp_path):
    def blank(content: Any) -> Any:
        if isinstance(content, dict):
            return {key: blank(value) for key, value in content.items()}
        if isinstance(content, list):
            return [blank(value) for value in content]
        return None if isinstance(content, float) else content

    write_json(
        run["artifacts"] / "evaluation" / "metrics.json", blank(read_json(run["artifacts"] / "evaluation" / "metrics.json"))
    )
    for folder in FOLDERS.values():
        path = run["artifacts"] / folder / "summary.json"
        summary = read_json(path)
        summary.pop("histogram", None)
        write_json(path, dict.fromkeys(summary) | {"any": 1})
    seen = page_of({**run, "receipts": [{"stage": stage} for stage in FOLDERS]}, tmp_path)
    assert not seen.faults
    assert "nan" not in seen.text.lower().split()
    assert "None" not in seen.text


def test_nothing_at_all_still_gives_a_page(tmp_path):
    seen = page_of({"artifacts": tmp_path / "no", "data": tmp_path / "no", "receipts": [], "registry": {}}, tmp_path)
    for said in ("Nothing is promoted yet.", "no Parquet file found", "No receipt is here", "No gate.json was found"):
        assert said in seen.text


def test_problems_that_data_does_not_hold_are_shown_without_picture(run, tmp_path):
    shutil.rmtree(run["data"])
    seen = page_of(run, tmp_path)
    assert len(seen.all("article")) > 10
    assert not seen.all("img")
    assert "The question is not in data/." in seen.text


def test_candidates_that_were_not_evaluated_are_not_judged(run, tmp_path):
    path = run["artifacts"] / "candidates" / "candidates.parquet"
    rows = read_table(path, CANDIDATE)
    next(row for row in rows if row["split"] == "ood")["candidate_id"] = "another"
    write_table(path, rows, CANDIDATE)
    seen = page_of(run, tmp_path)
    assert "No gallery: these candidates are not those that were evaluated." in seen.text
    assert not seen.all("article")


@pytest.mark.parametrize("name", ["evaluation/metrics.json", "labels/summary.json", *FILES])
def test_a_damaged_file_is_an_error_that_names_it(run, tmp_path, name):
    (run["artifacts"] / name).write_bytes(b"[1, 2")
    with pytest.raises(DataError, match=Path(name).name):
        write_report(tmp_path / "page.html", **run)
    assert not list(tmp_path.glob("*page.html*"))


def test_a_place_that_cannot_be_written_is_an_error_that_names_it(whole, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(DataError, match="cannot be written"):
        write_report(tmp_path / "file" / "page.html", **whole)


# No data can become markup


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("hostile")
    return write_report(folder / "page.html", **build_run(folder, num_problems=12, hostile=HOSTILE)).read_text(
        encoding="utf-8"
    )


def test_text_of_the_data_stays_text(hostile):
    seen = Seen(hostile)
    assert not seen.faults
    assert not seen.open
    assert len(seen.all("script")) == 1
    assert not [(tag, found) for tag, found in seen.tags for name in found if name.startswith("on")]
    assert all(picture["src"].startswith("data:image/png;base64,") for picture in seen.all("img"))
    assert seen.text.count("<script>alert(1)</script>") > 100  # a reader sees what was written
    assert "\u202e" not in hostile


def test_only_the_script_of_the_template_may_run_and_nothing_may_be_loaded(hostile):
    seen = Seen(hostile)
    policy = seen.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    script = SCRIPT.search(hostile)[1]
    assert rules["script-src"] == f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    assert "filters" in script
    outside = [
        found for _, found in seen.tags for key in ("src", "href") if not (found.get(key) or "#").startswith(("data:", "#"))
    ]
    assert not outside


TURNING = "\x00\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


@given(st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from(TURNING + "<>&'\""))))
def test_tag_gives_back_its_text_but_for_what_turns_text_around(text):
    seen = Seen(tag("p", text, title=text))
    expected = "".join("\ufffd" if character in TURNING else character for character in text)
    assert seen.tags == [("p", {"title": expected})]
    assert "".join(seen.words) == expected


def test_tag_leaves_out_none_and_false_and_keeps_markup():
    made = tag("input", None, hidden=True, title=None, checked=False, class_="a", data_x=1)
    assert made == '<input hidden class="a" data-x="1">'
    assert tag("p", Html("<b>x</b>"), "<b>") == "<p><b>x</b>&lt;b&gt;</p>"


# Numbers and axes


def test_numbers_are_written_for_readers():
    assert (count(1234567), percent(0.7275), points(0.2921), points(-0.05)) == ("1,234,567", "72.8", "+29.2", "−5.0")
    assert (decimal(0.9664), decimal(-0.5, 1)) == ("0.966", "−0.5")
    assert [duration(s) for s in (0.04, 9.94, 9.96, 119.4, 119.6, 380, 7199, 11100)] == [
        *("0.0 s", "9.9 s", "10 s", "119 s", "2 min 0 s", "6 min 20 s", "119 min 59 s", "3 h 5 min")
    ]
    assert (memory(612_000_000), memory(1_380_000_000)) == ("612 MB", "1.38 GB")
    for form in (count, percent, points, decimal, duration, memory):
        assert form(None) == form(float("nan")) == form("7") == form(True) == "–"


@given(st.lists(st.floats(-1, 1), min_size=1))
def test_an_axis_holds_all_values_in_at_most_six_round_steps(values):
    scale = scale_for(values)
    assert scale.low <= min(values) + 1e-6
    assert scale.high >= max(values) - 1e-6
    assert 1 <= len(scale.ticks()) - 1 <= 6
    places = [scale.at(value) for value in sorted(values)]
    assert places == sorted(places)
    assert all(3.0 <= place <= 97.0 for place in places)


def test_metrics_of_the_fixture_are_json_without_nan(whole):
    text = (whole["artifacts"] / "evaluation" / "metrics.json").read_text(encoding="utf-8")
    json.loads(text, parse_constant=pytest.fail)
