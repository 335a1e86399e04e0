"""Whole stages through the engines that are not `hf`: a server (an imitation, and vLLM's) and vLLM in process."""

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from components.cli import main
from components.engines import wire
from components.records import (
    CANDIDATE,
    CONTINUATION,
    PREFIX,
    PROBLEM,
    SOLUTION,
    read_json,
    read_table,
    tree_sha256,
    write_table,
)
from components.settings import load_params
from components.tasks import load_task
from tests.conftest import picture
from tests.contract.conftest import HAS_VLLM
from tests.contract.engine_fixture import write_served

ROOT = Path(__file__).parents[2]
NUM_PROBLEMS = 10
SEARCHES = {
    "joint": {"type": "joint", "price": 0.003},
    "monte_carlo": {"type": "monte_carlo", "num_continuations": 4},
}
needs_vllm = pytest.mark.skipif(not HAS_VLLM, reason="vLLM has an environment of its own: make test-vllm")


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder with seeds, a benchmark, and one settings file a search; the commands run in it."""
    for name in [*os.environ]:
        if name.startswith("STEPFORGE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("STEPFORGE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("STEPFORGE_THREADS", "1")
    monkeypatch.setattr(wire, "FIRST_WAIT_SECONDS", 0.001)
    problems = [
        {
            "problem_id": f"{i:032x}",
            "source_id": str(i),
            "source": "made",
            "question": f"{i} + 1 ?",
            "images": [{"bytes": picture(i), "path": None}],
            "answer": str(i + 1),
            "answer_type": "integer",
            "options": None,
        }
        for i in range(NUM_PROBLEMS)
    ]
    write_table(tmp_path / "seeds" / "seeds.parquet", problems, PROBLEM)
    content = load_params(ROOT / "params.yaml").model_dump(mode="json")
    content["rollout"] |= {"num_solutions": 8, "max_failed_frac": 1.0}  # random weights often find no end
    content["rollout"]["sampling"]["max_tokens"] = 160
    for name, search in SEARCHES.items():
        content["rollout"]["search"] = search
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
    rows = [{"id": str(i), "question": f"{i} + 1 ?", "answer": str(i + 1), "image": picture(i)} for i in range(NUM_PROBLEMS)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "dev.parquet")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def imitated(work, imitation, monkeypatch):
    """The commands ask an imitation, which knows two ways of solving every problem, one of them wrong."""
    task = load_task("maths")
    imitation.script = {
        task.question(f"{i} + 1 ?"): [
            f"{a}\n\n{b}\n\n\\boxed{{{i + off}}}"
            for a in "ab"
            for b in "cd"
            for off in (1, 2)
            for _ in range(1 + (a == "a"))
        ]
        for i in range(NUM_PROBLEMS)
    }
    write_served(work / "policy")
    monkeypatch.setenv("STEPFORGE_ENGINE", "server")
    monkeypatch.setenv("STEPFORGE_SERVER_URL", imitation.url)
    return imitation


def rollout(search, out):
    return ["rollout", "--seeds", "seeds", "--policy", "policy", "--params", f"{search}.yaml", "--out", out]


def label(search, rollouts, out):
    return ["label", "--seeds", "seeds", "--rollouts", rollouts, "--params", f"{search}.yaml", "--out", out]


def sample(out):
    return ["sample", "--split", "dev=dev.parquet", "--policy", "policy", "--params", "joint.yaml", "--out", out]


def cost(stage, out):
    """(sampled, from the journal), as the receipt of the run that wrote `out` last says."""
    receipt = read_json(Path(os.environ["STEPFORGE_HOME"]) / "receipts" / stage / f"{tree_sha256(Path(out))}.json")
    return receipt["sampled_tokens"], receipt["journal_tokens"]


def spent(out):
    return read_json(Path(out) / "summary.json")["tokens"]


def rows_in_journal(path):
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db:
            return int(db.execute("SELECT count(*) FROM completion").fetchone()[0])
    except sqlite3.OperationalError:
        return 0


@pytest.mark.parametrize("search", SEARCHES)
def test_a_rollout_through_a_server_is_paid_once_and_labelled(imitated, search):
    assert main(rollout(search, "first")) == 0
    assert cost("rollout", "first") == (spent("first"), 0)
    asked = len(imitated.asked)
    assert main(rollout(search, "second")) == 0
    assert tree_sha256(Path("second")) == tree_sha256(Path("first"))
    assert cost("rollout", "second") == (0, spent("first"))
    assert len(imitated.asked) == asked  # nothing but the look at what the server can do

    prefixes = {row["prefix_id"]: row for row in read_table(Path("first/prefixes.parquet"), PREFIX)}
    told = Counter(row["prefix_id"] for row in read_table(Path("first/continuations.parquet"), CONTINUATION))
    assert told
    for prefix, num in told.items():
        assert prefixes[prefix]["num_verdicts"] + prefixes[prefix]["num_unknown"] >= num
    assert main(label(search, "first", "labels")) == 0
    assert read_json(Path("labels/summary.json"))["labels"] > NUM_PROBLEMS


def test_candidates_through_a_server_are_paid_once(imitated):
    assert main(sample("first")) == 0
    assert cost("sample", "first")[1] == 0
    asked = len(imitated.asked)
    assert main(sample("second")) == 0
    assert tree_sha256(Path("second")) == tree_sha256(Path("first"))
    assert cost("sample", "second")[0] == 0
    assert len(imitated.asked) == asked
    assert len(read_table(Path("first/candidates.parquet"), CANDIDATE)) == 9 * NUM_PROBLEMS


@pytest.mark.parametrize("dies_at", [0, 7, 15, 40])
def test_a_server_that_dies_midway_is_one_line_and_75_and_the_next_run_goes_on(imitated, capsys, monkeypatch, dies_at):
    assert main(rollout("monte_carlo", "whole")) == 0
    num_asked = len(imitated.asked)
    assert num_asked > 40
    monkeypatch.setenv("STEPFORGE_HOME", "another")
    answer = imitated.answer

    def dying(body):
        return answer(body) if len(imitated.asked) - num_asked <= dies_at else (503, {"error": {"message": "shutting down"}})

    imitated.answer = dying
    capsys.readouterr()
    assert main(rollout("monte_carlo", "out")) == 75
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("error", "hint"))]
    assert [line.partition(":")[0] for line in told] == ["error", "hint"]
    assert "answers 503: shutting down (7 tries)" in told[0]
    assert not Path("out").exists()

    imitated.answer = answer
    assert main(rollout("monte_carlo", "out")) == 0
    assert tree_sha256(Path("out")) == tree_sha256(Path("whole"))
    sampled, reused = cost("rollout", "out")
    assert sampled + reused == spent("whole")


def test_a_run_that_is_killed_goes_on_where_the_journal_ends(imitated):
    assert main(rollout("joint", "whole")) == 0
    whole = rows_in_journal("home/journal.sqlite")
    environment = os.environ | {"STEPFORGE_HOME": "another", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "components", *rollout("joint", "out")]
    imitated.delay_seconds = 0.2
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    while not rows_in_journal("another/journal.sqlite") and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    process.wait()
    imitated.delay_seconds = 0.0
    kept = rows_in_journal("another/journal.sqlite")
    assert 0 < kept < whole
    assert not Path("out").exists()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert tree_sha256(Path("out")) == tree_sha256(Path("whole"))
    assert rows_in_journal("another/journal.sqlite") == whole


STAGES = """
import json, sys
from components.cli import main
for arguments in json.loads(sys.argv[1]):
    code = main(arguments)
    if code:
        sys.exit(code)
"""


@needs_vllm
def test_whole_stages_through_vllm_in_process(work, wide):
    (work / "policy").symlink_to(wide)
    stages = [rollout("monte_carlo", "first"), rollout("monte_carlo", "second"), sample("candidates")]
    environment = {"PYTHONPATH": str(ROOT), "VLLM_CPU_KVCACHE_SPACE": "1", "STEPFORGE_ENGINE": "vllm"}
    command = [sys.executable, "-c", STAGES, json.dumps(stages)]  # a process of its own, as a stage has
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert tree_sha256(Path("second")) == tree_sha256(Path("first"))
    assert cost("rollout", "second") == (0, spent("first"))
    assert read_json(Path("first/summary.json"))["continuations"] > 0
    assert len(read_table(Path("candidates/candidates.parquet"), CANDIDATE)) == 9 * NUM_PROBLEMS


@needs_vllm
def test_whole_stages_through_vllm_serve(work, wide, vllm_server, monkeypatch):
    (work / "policy").symlink_to(wide)
    monkeypatch.setenv("STEPFORGE_ENGINE", "server")
    monkeypatch.setenv("STEPFORGE_SERVER_URL", vllm_server)
    for search in SEARCHES:
        assert main(rollout(search, search)) == 0
        assert read_json(Path(search) / "summary.json")["continuations"] > 0
    assert main(rollout("joint", "second")) == 0
    assert tree_sha256(Path("second")) == tree_sha256(Path("joint"))
    assert cost("rollout", "second") == (0, spent("joint"))
    assert main(sample("candidates")) == 0
    assert len(read_table(Path("candidates/candidates.parquet"), CANDIDATE)) == 9 * NUM_PROBLEMS

    monkeypatch.setenv("STEPFORGE_HOME", "another")  # nothing is known there: the server says the same again
    assert main(rollout("joint", "again")) == 0
    told, again = (
        Counter(row["text"] for row in read_table(Path(out) / "solutions.parquet", SOLUTION)) for out in ("joint", "again")
    )
    assert (told & again).total() >= 0.9 * told.total()  # but for rounding, which depends on the company
