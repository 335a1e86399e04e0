"""Every benchmark, from its official files through a frozen pool of a real engine and an evaluation to its own number."""

import shutil
from pathlib import Path

import pytest
import yaml

from components.benchmarks import BENCHMARKS
from components.cli import main
from components.records import read_json
from tests.unit.test_distributions import hub_snapshot
from tests.unit.test_score import trained

ROOT = Path(__file__).parents[2]
REALDATA = ROOT.parent / "shared" / "realdata"
REAL = {"dynamath": "dynamath/trial1", "mathvision": "mathvision", "logicvista": "logicvista", "wemath": "wemath"}
IMAGES = {"logicvista": "logicvista/images", "wemath": "wemath/data"}


@pytest.fixture(scope="module")
def workspace(tiny_policy, tmp_path_factory):
    """The problems of every benchmark, and one pool of answers of a small random policy to all of them."""
    folder = tmp_path_factory.mktemp("benchmarks")
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["sample"] |= {"num_candidates": 2, "sampling": {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_tokens": 6}}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    splits = []
    for name in BENCHMARKS:
        place = folder / name
        place.mkdir()
        assert main(["benchmark", name, str(hub_snapshot(place, name)), "--to", str(folder / f"{name}.parquet")]) == 0
        splits += ["--split", f"{'dev' if name == 'gsm8k' else name}={folder / name}.parquet"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STEPFORGE_HOME", str(folder / "home"))
        patch.setenv("STEPFORGE_DEVICE", "cpu")
        arguments = ["--policy", str(tiny_policy), "--params", str(folder / "params.yaml"), "--out", str(folder / "pool")]
        assert main(["sample", *splits, *arguments]) == 0
        for model in ("prm", "blind"):
            trained(tiny_policy, folder / "prm" / model, aggregation="min", threshold=0.5)
        arguments = ["--candidates", str(folder / "pool"), "--prm", str(folder / "prm")]
        arguments += ["--params", str(folder / "params.yaml"), "--out", str(folder / "evaluation")]
        assert main(["evaluate", *splits, *arguments]) == 0
    return folder


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_reaches_its_number(name, workspace, tmp_path):
    out = tmp_path / "numbers.json"
    arguments = ["--candidates", str(workspace / "pool"), "--evaluation", str(workspace / "evaluation"), "--out", str(out)]
    assert main(["benchmark", name, str(workspace / f"{name}.parquet"), *arguments]) == 0
    content = read_json(out)
    assert content["num_rows"] == 1
    assert ("official" in content["measures"]) == (BENCHMARKS[name].official is not None)
    for selectors in content["measures"].values():
        assert list(selectors) == ["greedy", "majority", "prm"]
        for measures in selectors.values():
            assert BENCHMARKS[name].overall in measures or "accuracy" in measures
    assert name == "gsm8k" or name in read_json(workspace / "evaluation" / "metrics.json")["splits"]


@pytest.mark.skipif(not REALDATA.is_dir(), reason="real rows are not on this machine")
@pytest.mark.parametrize("name", REAL)
def test_real_rows_with_their_pictures_do_too(name, workspace, tiny_policy, tmp_path, monkeypatch):
    monkeypatch.setenv("STEPFORGE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("STEPFORGE_DEVICE", "cpu")
    place, problems = REALDATA / REAL[name], tmp_path / "problems.parquet"
    images = ["--images", str(REALDATA / IMAGES[name])] if name in IMAGES else []
    split = ["--split", "testmini"] if name == "mathvision" else []
    if name == "dynamath":
        place /= "dataset.json"
    assert main(["benchmark", name, str(place), "--to", str(problems), *images, *split]) == 0
    _keep(problems, 4)
    arguments = ["--policy", str(tiny_policy), "--params", str(workspace / "params.yaml"), "--out", str(tmp_path / "pool")]
    assert main(["sample", "--split", f"{name}={problems}", *arguments]) == 0
    out = tmp_path / "numbers.json"
    assert main(["benchmark", name, str(problems), "--candidates", str(tmp_path / "pool"), "--out", str(out)]) == 0
    assert read_json(out)["num_rows"] == 4
    shutil.rmtree(tmp_path / "home", ignore_errors=True)


def _keep(path: Path, num: int) -> None:
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    pq.write_table(table.slice(0, num), path)
