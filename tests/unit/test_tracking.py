"""What tracking decides without MLflow: where it reports to, and which numbers it keeps."""

from __future__ import annotations

from components.tracking import Version, flat, numbers, tracking_uri


def test_the_named_server_wins_and_an_empty_variable_names_none(tmp_path):
    own = f"sqlite:///{tmp_path}/mlflow.db"
    assert tracking_uri(tmp_path, {"MLFLOW_TRACKING_URI": "http://mlflow:5000"}) == "http://mlflow:5000"
    assert tracking_uri(tmp_path, {}) == own
    assert tracking_uri(tmp_path, {"MLFLOW_TRACKING_URI": ""}) == own


def test_nested_settings_become_dotted_names_and_lists_stay_whole():
    content = {"seed": 0, "train": {"optimiser": {"num_steps": 5}, "controls": ["blind"], "perception": None}}
    expected = {"seed": 0, "train.optimiser.num_steps": 5, "train.controls": ["blind"], "train.perception": None}
    assert flat(content) == expected


def test_only_numbers_become_metrics():
    content = {
        "seeds": 3,
        "mean_mc": 0.5,
        "ok": True,
        "name": "x",
        "none": None,
        "histogram": [[0, 1, 2]],
        "verdicts": {"right": 1},
    }
    assert numbers(content) == {"seeds": 3.0, "mean_mc": 0.5, "verdicts.right": 1.0}


def test_a_version_reads_as_mlflow_addresses_it():
    assert str(Version("staging", 3, "abc", 0.0, {})) == "prm.staging/3"
