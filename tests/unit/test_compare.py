"""Two runs side by side: what differs is told, what is paired is tested, what is not known is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from page_fixture import build_run

from components.cli import main
from components.compare import comparison, lines_of
from components.errors import DataError, SettingsError
from components.records import SELECTION, read_json, read_table, write_json, write_table
from components.report.changes import write_changes
from components.report.evidence import FOLDERS
from components.runs import Run, read_run

HOSTILE = '<script>alert(1)</script>"><img onerror=alert(1) src=x>'


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    build_run(folder, num_problems=20)
    return folder


@pytest.fixture
def workspaces(made: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two equal workspaces, each with a dvc.lock that describes its artifacts."""
    found = []
    for name in ("a", "b"):
        shutil.copytree(made, tmp_path / name)
        lock(tmp_path / name)
        found.append(tmp_path / name)
    return found[0], found[1]


def lock(workspace: Path, **changes: Any) -> None:
    """Write a dvc.lock as DVC would, with settings `label.threshold` and so on changed."""
    stages = {}
    for stage, folder in FOLDERS.items():
        files = [path for path in (workspace / "artifacts" / folder).rglob("*") if path.is_file()]
        output = {"path": f"artifacts/{folder}", "md5": "0.dir", "size": sum(p.stat().st_size for p in files)}
        data = workspace / "data" / "test.parquet"
        stages[stage] = {
            "deps": [
                {"path": f"components/{stage}.py", "md5": changes.get("code", "1" * 32), "size": 7},
                {"path": "data/test.parquet", "md5": changes.get("data", "2" * 32), "size": data.stat().st_size},
            ],
            "params": {"params.yaml": {stage: {"depth": 1, "deep": {"est": [1, 2]}}, "seed": 0, **changes.get(stage, {})}},
            "outs": [{**output, "nfiles": len(files)}],
        }
    (workspace / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))


def change_json(path: Path, change: Any) -> None:
    content = read_json(path)
    change(content)
    write_json(path, content)


def of(workspaces: tuple[Path, Path]) -> dict[str, Any]:
    a, b = (read_run(str(path), home=path / ".stepforge") for path in workspaces)
    return comparison(a, b)


def row_of(rows: list[dict[str, Any]], what: str) -> dict[str, Any]:
    return next(row for row in rows if row["what"] == what)


# What differs


def test_equal_runs_differ_in_nothing(workspaces):
    found = of(workspaces)
    assert all(row["is_same"] for title in ("data", "labels", "steps") for row in found[title])
    assert found["settings"] == {"num_same": 15, "differ": [], "is_known": True}
    assert found["code"]["files"] == []
    assert found["code"]["a"] == found["code"]["b"] is not None
    for split in found["metrics"].values():
        for row in split["selectors"]:
            if "difference" in row:
                assert (row["difference"], row["p"]) == ({"mean": 0.0, "low": 0.0, "high": 0.0}, 1.0)
    assert "settings: all 15 are the same" in lines_of(found)


def test_settings_are_told_key_by_key_with_what_one_side_does_not_set(workspaces):
    lock(workspaces[1], label={"label": {"depth": 2, "deep": {"est": [1, 2]}}, "task": "scene"})
    found = of(workspaces)["settings"]
    assert [(row["what"], row["a"], row["b"]) for row in found["differ"]] == [
        ("label.depth", "1", "2"),
        ("task", "not set", '"scene"'),
    ]
    assert found["num_same"] == 14


def test_settings_of_a_stage_that_the_lock_does_not_describe_are_not_known(workspaces):
    write_json(workspaces[1] / "artifacts" / "labels" / "more.json", {})
    found = of(workspaces)
    assert [(row["what"], row["b"]) for row in found["settings"]["differ"]] == [
        ("label.deep.est", "not known"),
        ("label.depth", "not known"),
    ]
    assert found["runs"]["b"]["unknown"] == ["what label ran with: dvc.lock is of another run of it"]


def test_code_and_data_are_told_by_digest_with_the_stages_that_ran_it(workspaces):
    lock(workspaces[1], code="9" * 32, data="8" * 32)
    found = of(workspaces)
    assert {one["file"]: one["stages"] for one in found["code"]["files"]} == {
        f"components/{stage}.py": [stage] for stage in FOLDERS
    }
    assert found["code"]["a"] != found["code"]["b"]
    assert row_of(found["data"], "data/test.parquet") == {
        **{"what": "data/test.parquet", "a": "2" * 32, "b": "8" * 32},
        **{"form": "digest", "is_same": False},
    }
    assert row_of(found["data"], "rows of data/test.parquet")["a"] == 20
    assert row_of(found["data"], "pool of test")["is_same"]


def test_labels_are_told_as_counts_and_shares(workspaces):
    def change(summary: dict[str, Any]) -> None:
        summary |= {"labels": 10, "histogram": [[0.0, 0.1, 2], [0.1, 0.9, 5], [0.9, 1.0, 3]], "formulation": "hard"}

    change_json(workspaces[1] / "artifacts" / "labels" / "summary.json", change)
    found = of(workspaces)["labels"]
    assert (row_of(found, "labels")["a"], row_of(found, "labels")["b"]) == (41_220, 10)
    told = [row_of(found, f"labels {words}")["b"] for words in ("at most 0.1", "between", "at least 0.9")]
    assert told == [0.2, 0.5, 0.3]
    assert row_of(found, "formulation of the labels")["b"] == "hard"
    assert row_of(found, "continuations that are right")["a"] == round(90_100 / 183_220, 6)
    assert any(line.split() == ["labels", "41,220", "10"] for line in lines_of(of(workspaces)))


def test_what_one_side_does_not_know_is_no_difference(workspaces):
    shutil.rmtree(workspaces[1] / "artifacts" / "labels")
    found = of(workspaces)
    assert row_of(found["labels"], "labels")["is_same"] is None
    assert "labels: all 10 are the same, 6 known of one only" in lines_of(found)


def test_a_file_that_only_one_of_them_read_is_told(workspaces):
    lock = yaml.safe_load((workspaces[1] / "dvc.lock").read_text())
    for stage in lock["stages"].values():
        stage["deps"].append({"path": "data/more.parquet", "md5": "5" * 32, "size": 1})
    (workspaces[1] / "dvc.lock").write_text(yaml.safe_dump(lock))
    row = row_of(of(workspaces)["data"], "data/more.parquet")
    assert (row["a"], row["b"], row["is_same"]) == ("not read", "5" * 32, False)


# Pairs


def test_the_paired_difference_is_b_minus_a_and_p_is_mcnemars(workspaces):
    path = workspaces[1] / "artifacts" / "evaluation" / "selections.parquet"
    rows = read_table(path, SELECTION)
    ours = [row for row in rows if (row["split"], row["selector"]) == ("test", "prm")]
    wrong = [row for row in ours if row["value"] == 0.0][:6]
    for row in wrong:
        row["value"] = 1.0
    write_table(path, rows, SELECTION)
    part = of(workspaces)["metrics"]["test"]
    row = next(row for row in part["selectors"] if row["selector"] == "prm")
    assert len(wrong) == 6
    assert row["difference"]["mean"] == 6 / 20
    assert row["difference"]["low"] > 0
    assert row["p"] == 2 * 0.5**6  # six of six in one direction
    others = [one["p"] for one in part["selectors"] if one.get("p") is not None and one["selector"] != "prm"]
    assert set(others) == {1.0}
    assert row["p_holm"] == round(row["p"] * (len(others) + 1), 6)


def test_baselines_on_one_pool_are_the_same_by_construction_and_cost_no_correction(workspaces):
    part = of(workspaces)["metrics"]["test"]
    told = {row["selector"]: row.get("why") for row in part["selectors"]}
    assert told["random"] == told["oracle"] == "asks no reward model: the same on the same pool"
    assert told["prm"] is None


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda b: change_json(b / "metrics.json", lambda m: m["pools"].update(test="x")), "different candidate pools"),
        (lambda b: change_json(b / "metrics.json", lambda m: m.pop("pools")), "does not say which pool"),
        (lambda b: (b / "selections.parquet").unlink(), "keeps no selections of single problems"),
    ],
)
def test_what_cannot_be_paired_is_said_with_its_reason(workspaces, change, why):
    change(workspaces[1] / "artifacts" / "evaluation")
    part = of(workspaces)["metrics"]["test"]
    assert not part["is_paired"]
    assert why in part["why"]
    assert not any("difference" in row for row in part["selectors"])
    assert any(line.startswith("test: unpaired: ") and why in line for line in lines_of(of(workspaces)))


def test_a_split_or_a_number_that_was_not_measured_is_a_dash(workspaces):
    path = workspaces[1] / "artifacts" / "evaluation" / "metrics.json"
    change_json(path, lambda m: m["splits"]["test"]["selectors"].update(prm={"mean": None, "low": None, "high": None}))
    lines = [line.split() for line in lines_of(of(workspaces))]
    of_test = lines[next(i for i, words in enumerate(lines) if words[:1] == ["test:"]) :]
    assert next(words for words in of_test if words[:1] == ["prm"])[4] == "-"  # behind A's three words
    change_json(path, lambda m: m["splits"].update(test=None))
    assert "test" not in of(workspaces)["metrics"]


def test_selections_of_other_problems_and_broken_numbers_are_not_paired():
    def run(values: dict[str, float]) -> Run:
        split = {"num_problems": len(values), "selectors": {"prm": {"mean": 0.5, "low": 0.4, "high": 0.6}}}
        return Run("r", metrics={"pools": {"test": "p"}, "splits": {"test": split}}, selections={("test", "prm"): values})

    whole = run({"p": 1.0, "q": 0.0})
    for other, why in ((run({"p": 1.0, "r": 0.0}), "do not pair"), (run({"p": 1.0, "q": float("nan")}), "no finite number")):
        (row,) = comparison(whole, other)["metrics"]["test"]["selectors"]
        assert why in row["why"]
        assert "difference" not in row


def test_problems_that_belong_together_come_and_go_together():
    values = {f"p{i}": float(i % 2) for i in range(40)}
    split = {"num_problems": 40, "selectors": {"prm": {"mean": 0.5, "low": 0.4, "high": 0.6}}}
    metrics = {"pools": {"test": "p"}, "splits": {"test": split}}
    together = {"clusters": {"test": {key: str(int(key[1:]) % 2) for key in values}}}

    def paired(metrics):
        sides = (dict.fromkeys(values, 0.5), values)
        runs = [Run("r", metrics=metrics, selections={("test", "prm"): found}) for found in sides]
        return comparison(*runs)["metrics"]["test"]["selectors"][0]

    alone, clustered = paired(metrics), paired(metrics | together)
    assert clustered["difference"]["low"] < alone["difference"]["low"]
    assert clustered["p"] == 1.0  # two clusters, one each way


# Where runs are found


def test_a_workspace_its_artifacts_and_its_evaluation_are_all_runs(workspaces):
    a = workspaces[0]
    whole, artifacts, evaluation = (
        read_run(str(path), home=a) for path in (a, a / "artifacts", a / "artifacts" / "evaluation")
    )
    assert whole.metrics == artifacts.metrics == evaluation.metrics
    assert whole.settings == artifacts.settings
    assert list(evaluation.summaries) == ["evaluate"]


def test_without_a_lock_the_settings_beside_are_read_and_doubted(workspaces):
    for path in workspaces:
        (path / "dvc.lock").unlink()
        (path / "params.yaml").write_text("label: {threshold: 0.5}\nseed: 1\n")
    found = of(workspaces)
    assert found["settings"] == {"num_same": 2, "differ": [], "is_known": True}
    assert any("nothing says so" in line for line in found["runs"]["a"]["unknown"])
    assert not found["code"]["is_known"]
    assert any(line.startswith("code: not known of both") for line in lines_of(found))
    assert row_of(found["data"], "data/test.parquet")["is_same"]  # then files are compared by SHA-256


@pytest.mark.parametrize("name", ["", "nowhere", "prm.staging", "prm.staging@", "other.dev/3", "prm.dev/x", "x" * 5000])
def test_what_names_no_run_is_a_mistake_of_the_command_line(tmp_path, name):
    with pytest.raises(SettingsError, match="neither a folder nor a registered version"):
        read_run(name, home=tmp_path)


def test_a_folder_without_artifacts_is_named(tmp_path):
    with pytest.raises(DataError, match="holds none of seeds"):
        read_run(str(tmp_path), home=tmp_path)


@pytest.mark.parametrize("content", ["[1, 2", "stages: 7", "stages: {curate: {outs: []}}", "nothing: 1"])
def test_a_damaged_lock_is_named(workspaces, content):
    (workspaces[0] / "dvc.lock").write_text(content)
    with pytest.raises(DataError, match=r"dvc\.lock"):
        of(workspaces)


# The verb and the page


def test_the_verb_prints_a_table_or_json_and_writes_a_page(workspaces, tmp_path, capsys):
    a, b = map(str, workspaces)
    page = tmp_path / "changes.html"
    assert main(["compare", a, b, "--out", str(page)]) == 0
    out = capsys.readouterr().out
    assert "test: the same problems and candidates, B - A" in out
    assert f"page  {page}" in out
    assert main(["compare", a, b, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["test"]["is_paired"]


def test_a_mistake_is_two_lines_and_exit_code_two(workspaces, capsys):
    assert main(["compare", str(workspaces[0]), "nowhere"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in told] == ["error", "hint"]


def test_the_page_says_what_changed_and_no_text_becomes_markup(workspaces, tmp_path):
    lock(workspaces[1], label={"label": {"depth": HOSTILE}})
    found = of(workspaces)
    found["runs"]["b"]["name"] += HOSTILE
    first, second = (write_changes(tmp_path / name, found).read_text(encoding="utf-8") for name in ("1.html", "2.html"))
    assert first == second
    assert first.count("<script>") == 1
    assert "<img" not in first
    assert "onerror=alert(1) src=x&gt;" in first
    for said in ("On test the PRM&#x27;s pick is right", "on the same candidates", "label.depth", "2 settings differ"):
        assert said in first
