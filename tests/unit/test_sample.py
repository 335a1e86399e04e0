"""Frozen pools: a larger one begins with the smaller one, and a server need not be more than one that answers."""

import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components import sample
from components.candidates import PoolDigest, PoolWriter
from components.engines import wire
from components.errors import DataError
from components.records import CANDIDATE, digest, read_json, read_table, write_table
from components.settings import Sampling, load_params, load_runtime
from tests.contract.engine_fixture import ImitatedServer, write_script, write_served

NUM_PROBLEMS = 3
QUESTIONS = [f"{i} + 1 ?" for i in range(NUM_PROBLEMS)]
SCRIPT = {q: [f"step {a}\n\n\\boxed{{{i + a % 2}}}" for a in range(37)] for i, q in enumerate(QUESTIONS)}


@pytest.fixture
def sampled(tmp_path, monkeypatch):
    """(N, engine) -> (rows, summary, what it cost); runs share one journal."""
    monkeypatch.setattr(wire, "FIRST_WAIT_SECONDS", 0.001)
    rows = [{"id": str(i), "question": q, "answer": str(i + 1)} for i, q in enumerate(QUESTIONS)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "test.parquet")
    write_script(tmp_path / "scripted", SCRIPT)
    write_served(tmp_path / "served")

    def run(num, *, url=None, top_k=50):
        content = load_params().model_dump()
        content["sample"] = {"num_candidates": num, "sampling": Sampling(top_k=top_k, max_tokens=12).model_dump()}
        params = type(load_params()).model_validate(content)
        environment = {"STEPFORGE_HOME": str(tmp_path / "home"), "STEPFORGE_ENGINE": "server" if url else "scripted"}
        runtime = load_runtime(environment | ({"STEPFORGE_SERVER_URL": url} if url else {}))
        out = tmp_path / f"out{num}"
        out.mkdir(exist_ok=True)
        policy = tmp_path / ("served" if url else "scripted")
        cost = sample.run(params, runtime, split={"test": tmp_path / "test.parquet"}, policy=policy, out=out)
        return read_table(out / "candidates.parquet", CANDIDATE), read_json(out / "summary.json"), cost

    return run


@pytest.fixture
def server():
    with ImitatedServer() as one:
        one.script = SCRIPT
        yield one


def first(rows, num):
    return [row for row in rows if row["index"] < num]


def test_a_pool_that_grows_keeps_what_it_had_and_pays_for_the_rest(sampled):
    eight, _, _ = sampled(8)
    sixteen, summary, cost = sampled(16)
    assert first(sixteen, 8) == eight
    new = [row for row in sixteen if row["index"] >= 8]
    assert cost["sampled_tokens"] == sum(row["num_tokens"] for row in new)
    assert summary["tokens"] == sum(row["num_tokens"] for row in sixteen)
    assert sampled(8)[2]["sampled_tokens"] == 0  # and a smaller one is a part of it


def test_a_pool_from_a_server_grows_by_blocks(sampled, server):
    eight, _, _ = sampled(8, url=server.url)
    asked = len(server.asked)
    sixteen, _, cost = sampled(16, url=server.url)
    assert first(sixteen, 8) == eight
    assert cost["sampled_tokens"] == sum(row["num_tokens"] for row in sixteen if row["index"] >= 8)
    bodies = server.asked[asked:]
    assert [body["n"] for body in bodies] == [8] * NUM_PROBLEMS


def test_a_large_pool_has_a_greedy_row_and_128_of_each_problem_under_one_name(sampled, monkeypatch):
    rows, summary, _ = sampled(128)
    assert len(rows) == summary["candidates"] == 129 * NUM_PROBLEMS
    assert len({row["candidate_id"] for row in rows}) == len(rows)
    assert [row["index"] for row in rows if row["decoding"] == "greedy"] == [0] * NUM_PROBLEMS
    named = [[row["candidate_id"], row["steps"], row["verdict"]] for row in rows]
    assert summary["pools"] == {"test": digest("pool", named)}
    monkeypatch.setattr(sample, "ROWS_AT_ONCE", 100)  # of which not one problem fits
    again, parts, _ = sampled(128)
    assert (again, parts) == (rows, summary)


def test_any_server_that_answers_can_be_sampled_even_if_it_cannot_continue_a_turn_and_gives_no_logprobs(sampled, server):
    server.continues, server.refused = "ignores", ("logprobs", "top_logprobs", "min_p", "repetition_penalty", "top_k")
    rows, _, _ = sampled(4, url=server.url, top_k=0)
    assert len(rows) == 5 * NUM_PROBLEMS
    assert all(math.isnan(row["logprob"]) for row in rows)
    assert all(row["num_tokens"] > 0 for row in rows)
    assert {row["verdict"] for row in rows} == {"right", "wrong"}


def test_the_digest_of_a_pool_is_that_of_its_rows():
    rows = [
        {"candidate_id": "a", "steps": ["α", '"'], "verdict": "right"},
        {"candidate_id": "b", "steps": [], "verdict": "wrong"},
    ]
    taken = PoolDigest()
    assert taken.digest() == digest("pool", [])
    for i, row in enumerate(rows, start=1):
        taken.add(row)
        assert taken.digest() == digest("pool", [[r["candidate_id"], r["steps"], r["verdict"]] for r in rows[:i]])


def test_a_pool_written_in_parts_is_the_file_written_at_once(sampled, tmp_path):
    rows, summary, _ = sampled(16)
    (tmp_path / "parts").mkdir()
    with PoolWriter(tmp_path / "parts", ["test"]) as pools:
        for start in range(0, len(rows), 7):
            pools.write(rows[start : start + 7])
    write_table(tmp_path / "whole.parquet", rows, CANDIDATE)
    assert (tmp_path / "parts" / "candidates.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert (pools.pools(), pools.num_rows, pools.num_tokens) == (summary["pools"], len(rows), summary["tokens"])


def test_a_pool_that_fails_leaves_no_file(tmp_path):
    with pytest.raises(DataError), PoolWriter(tmp_path, ["test"]) as pools:
        pools.write([{"candidate_id": "a", "split": "test", "index": "no number"}])
    assert not (tmp_path / "candidates.parquet").exists()
