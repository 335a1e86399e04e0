"""The decision gate by gate, the ledger's proof, and who is acting."""

from __future__ import annotations

import copy
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from components import ledger
from components.decision import Evidence, Policy, decide, load_policy, plain
from components.errors import DataError, RefusedError, SettingsError
from components.ledger import FIRST, append, unfinished, verify_ledger
from components.promote import acting_as, collect_evidence, in_force, read_evidence
from components.records import write_json

GATES = {
    "min_problems": {"test": 4},
    "data_gates": ["seeds"],
    "differences": [
        {"split": "test", "a": "prm", "b": "random", "min_mean": 0.125, "low_above": 0.0},
        {"split": "test", "a": "shuffled", "b": "random", "low_at_most": 0.0},
    ],
    "step_metrics": [{"pool": "candidates", "scorer": "prm", "metric": "macro_f1", "min": 0.5}],
    "incumbent": {"split": "test", "selector": "prm", "max_loss": 0.25, "confidence": 0.95},
    "approver": False,
}
POLICY = Policy.model_validate({"version": 1, "environments": {"staging": GATES, "prod": {**GATES, "approver": True}}})
METRICS = {
    "pools": {"test": "pool-1"},
    "splits": {
        "test": {
            "num_problems": 4,
            "differences": [
                {"a": "prm", "b": "random", "mean": 0.125, "low": 0.001, "high": 0.25},
                {"a": "shuffled", "b": "random", "mean": 0.0, "low": 0.0, "high": 0.1},
            ],
        }
    },
    "steps": {"candidates": {"prm": {"macro_f1": 0.5}}},
}
PICKS = {("test", "prm"): {"p1": 1.0, "p2": 1.0, "p3": 0.0, "p4": 1.0}}


def evidence(prm_digest="new", metrics=METRICS, gates=None, picks=PICKS, trainer="Ada", rolled_back=""):
    return Evidence(
        prm_digest, trainer, metrics, {"seeds": {"passed": True}} if gates is None else gates, picks, rolled_back
    )


def changed(path, value):
    """METRICS with one leaf changed; `...` removes it."""
    metrics = copy.deepcopy(METRICS)
    at = metrics
    for key in path[:-1]:
        at = at[key]
    if value is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return metrics


def refused(candidate, incumbent=None, environment="staging", approver=None):
    return [r.gate for r in decide(candidate, incumbent, POLICY, environment, approver).reasons if not r.passed]


def test_a_candidate_exactly_on_every_boundary_is_promoted_and_every_gate_is_named():
    decision = decide(evidence(), None, POLICY, "staging")
    assert decision.is_promoted
    assert [reason.gate for reason in decision.reasons] == [
        "test problems",
        "data gate of seeds",
        "test: prm - random",
        "test: shuffled - random",
        "macro_f1 of prm on candidates",
        "test: not worse than the champion",
    ]
    assert "no champion" in decision.reasons[-1].seen
    assert (decision.prm_digest, decision.incumbent, decision.policy_digest) == ("new", None, POLICY.digest())


ROW = ("splits", "test", "differences", 0)


@pytest.mark.parametrize(
    ("path", "value", "gate"),
    [
        (("splits", "test", "num_problems"), 3, "test problems"),
        ((*ROW, "mean"), 0.1249, "test: prm - random"),
        ((*ROW, "low"), 0.0, "test: prm - random"),
        (("splits", "test", "differences", 1, "low"), 0.0001, "test: shuffled - random"),
        (("steps", "candidates", "prm", "macro_f1"), 0.4999, "macro_f1 of prm on candidates"),
    ],
)
def test_a_value_just_past_its_boundary_refuses_by_that_gate_alone(path, value, gate):
    assert refused(evidence(metrics=changed(path, value))) == [gate]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "0.9", True, ...])
@pytest.mark.parametrize(
    "path",
    [
        ("splits", "test", "num_problems"),
        (*ROW, "mean"),
        (*ROW, "low"),
        ("splits", "test", "differences", 1, "low"),
        ("steps", "candidates", "prm", "macro_f1"),
        ("splits",),
        ("steps", "candidates"),
    ],
)
def test_what_is_missing_or_no_finite_number_refuses_and_never_raises(path, value):
    candidate = evidence(metrics=changed(path, value))
    decision = decide(candidate, None, POLICY, "staging")
    failed = [reason for reason in decision.reasons if not reason.passed]
    assert failed
    assert all(reason.seen == "missing" for reason in failed)


@pytest.mark.parametrize(
    ("gates", "seen"), [({}, "missing"), ({"seeds": {}}, "missing"), ({"seeds": {"passed": False}}, "failed")]
)
def test_a_data_gate_that_failed_or_left_no_word_refuses(gates, seen):
    failed = [reason for reason in decide(evidence(gates=gates), None, POLICY, "staging").reasons if not reason.passed]
    assert [(reason.gate, reason.seen) for reason in failed] == [("data gate of seeds", seen)]


def test_a_loss_against_the_champion_is_judged_by_the_lower_end_of_the_paired_interval():
    # gains -1, 0, 0, 0: mean -0.25, standard deviation 0.5, standard error 0.25, 1.959964 * 0.25 = 0.489991
    theirs = {("test", "prm"): {"p1": 1.0, "p2": 1.0, "p3": 1.0, "p4": 1.0}}
    reason = decide(evidence(), evidence("old", picks=theirs), POLICY, "staging").reasons[-1]
    assert (reason.passed, reason.seen) == (False, "-0.250 [-0.740, +0.240] over 4 problems")
    # the same loss on every problem has no spread: exactly the allowed loss passes
    quarter = {("test", "prm"): {p: v - 0.25 for p, v in PICKS["test", "prm"].items()}}
    assert refused(evidence(picks=quarter), evidence("old")) == []
    more = {("test", "prm"): {p: v - 0.2501 for p, v in PICKS["test", "prm"].items()}}
    assert refused(evidence(picks=more), evidence("old")) == ["test: not worse than the champion"]


def test_problems_that_belong_together_do_not_narrow_the_interval_against_the_champion():
    # gains of two clusters of two: -1, -1 and 0, 0: mean -.5; the clusters' sums are 1 from it: sqrt(2 * 2 / 4**2) = .5
    theirs = {("test", "prm"): {"p1": 1.0, "p2": 1.0, "p3": 1.0, "p4": 1.0}}
    mine = {("test", "prm"): {"p1": 0.0, "p2": 0.0, "p3": 1.0, "p4": 1.0}}

    def seen(clusters):
        metrics = changed(("clusters",), {"test": clusters})
        return decide(evidence(metrics=metrics, picks=mine), evidence("old", picks=theirs), POLICY, "staging").reasons[-1]

    assert seen({"p1": "0", "p2": "0", "p3": "1", "p4": "1"}).seen == "-0.500 [-1.480, +0.480] over 4 problems in 2 clusters"
    alone = "-0.500 [-1.066, +0.066] over 4 problems"  # sqrt(4 * .25 * 4 / 3) / 4 = .288675
    assert seen({}).seen == seen({"p1": "0", "p2": "1", "p3": "2", "p4": "3"}).seen == seen("no table").seen == alone
    one = seen(dict.fromkeys(("p1", "p2", "p3", "p4"), "0"))
    assert (one.passed, one.seen) == (False, "all 4 problems belong together: there is no interval")


def test_other_pools_are_said_to_be_not_comparable_and_unpaired_problems_refuse():
    other = evidence(
        "old", metrics=changed(("pools", "test"), "pool-2"), picks={("test", "prm"): dict.fromkeys(["p9"], 1.0)}
    )
    reason = decide(evidence(), other, POLICY, "staging").reasons[-1]
    assert reason.passed
    assert "not comparable" in reason.seen
    for picks in (
        {},
        {("test", "prm"): {"p1": 1.0, "p2": 1.0}},
        {("test", "prm"): dict.fromkeys(PICKS["test", "prm"], float("nan"))},
    ):
        assert refused(evidence(), evidence("old", picks=picks)) == ["test: not worse than the champion"]
    assert refused(evidence(metrics=changed(("pools", "test"), ...)), evidence("old")) == [
        "test: not worse than the champion"
    ]


@pytest.mark.parametrize(
    ("trainer", "approver", "is_promoted"),
    [("Ada", "Grace", True), ("Ada", None, False), ("Ada", "  ", False), ("Ada", "ada ", False), ("", "Grace", False)],
)
def test_prod_needs_a_named_approver_who_is_not_the_trainer(trainer, approver, is_promoted):
    assert decide(evidence(trainer=trainer), None, POLICY, "prod", approver).is_promoted is is_promoted


@pytest.mark.parametrize(
    ("approver", "is_promoted"),
    [
        ("Grace Hopper", True),
        ("Ada", True),
        ("李明", True),
        ("ADA  LOVELACE", False),
        ("Ada\u00a0Lovelace", False),
        ("Ada\tLovelace", False),
        ("Ada\u200bLovelace", False),
        ("A\u200bda Love\u00adlace\ufeff", False),
        ("Ada Lovelace\x00", False),
        ("\uff21da Lovelace", False),
        ("Ada\u2800Lovelace\u3164\ufe0f", False),
        ("\u200b", False),
        ("\u3164\u3164", False),
        ("A.", False),
        ("123", False),
    ],
)
def test_the_trainers_name_written_otherwise_is_still_the_trainer(approver, is_promoted):
    decision = decide(evidence(trainer=" ada lovelace "), None, POLICY, "prod", approver)
    assert [reason.passed for reason in decision.reasons if reason.gate == "approver"] == [is_promoted]


def test_a_trainer_whose_name_cannot_be_seen_is_unknown():
    assert refused(evidence(trainer="\u200b"), environment="prod", approver="Grace") == ["approver"]


def test_a_name_reads_as_it_is_kept():
    assert plain(" Grace\u00a0\t Hopper\u200b\n") == "Grace Hopper"
    assert plain("\u200b \x00") == ""


def test_what_was_rolled_back_comes_again_only_with_somebody_standing_for_it():
    assert refused(evidence(rolled_back="rolled back by Ada: worse")) == ["no rollback"]
    assert refused(evidence(rolled_back="rolled back by Ada: worse"), approver="Grace") == []
    for nobody in ("\u200b", "-", "x"):
        assert refused(evidence(rolled_back="rolled back by Ada: worse"), approver=nobody) == ["no rollback"]


# The policy file


def test_the_policy_of_the_project_loads_and_prod_asks_no_less_than_staging():
    policy = load_policy(Path(__file__).parents[2] / "mlflow" / "policy.yaml")
    staging, prod = policy.environments.staging, policy.environments.prod
    assert prod.approver
    assert not staging.approver
    assert prod.incumbent.max_loss <= staging.incumbent.max_loss
    assert all(gate in prod.differences for gate in staging.differences)
    assert all(prod.min_problems[split] >= least for split, least in staging.min_problems.items())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda c: c["environments"]["staging"].update(aprover=True),
            ("unknown key 'environments.staging.aprover'", "'approver'"),
        ),
        (lambda c: c["environments"].pop("prod"), ("missing key 'environments.prod'",)),
        (lambda c: c["environments"]["prod"]["min_problems"].update(test=0), ("environments.prod.min_problems.test = 0",)),
        (lambda c: c.update(version=2), ("version = 2",)),
        (
            lambda c: c["environments"]["prod"].update(differences=[{"split": "ood", "a": "x", "b": "y"}]),
            ("it asks nothing",),
        ),
    ],
)
def test_a_mistake_in_the_policy_is_named_with_its_place(tmp_path, change, words):
    content = POLICY.model_dump(mode="json")
    change(content)
    path = tmp_path / "policy.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(SettingsError) as caught:
        load_policy(path)
    assert all(word in caught.value.lines() for word in words)


def test_a_policy_that_is_absent_or_no_yaml_is_a_settings_error(tmp_path):
    with pytest.raises(SettingsError, match="no such file"):
        load_policy(tmp_path / "policy.yaml")
    (tmp_path / "policy.yaml").write_text("version: [1")
    with pytest.raises(SettingsError, match="not YAML"):
        load_policy(tmp_path / "policy.yaml")


# Evidence


def test_evidence_comes_back_as_it_was_collected(tmp_path):
    artifacts, folder = tmp_path / "artifacts", tmp_path / "evidence"
    write_json(artifacts / "evaluation" / "metrics.json", {"prm_digest": "abc", "splits": {}})
    write_json(artifacts / "seeds" / "gate.json", {"passed": True})
    assert collect_evidence(artifacts, folder) == "abc"
    known = read_evidence(folder, trainer="Ada")
    assert (known.prm_digest, known.trainer, known.data_gates, known.selections) == (
        "abc",
        "Ada",
        {"seeds": {"passed": True}},
        {},
    )


def test_an_evaluation_that_names_no_prm_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        collect_evidence(tmp_path, tmp_path / "evidence")
    write_json(tmp_path / "evaluation" / "metrics.json", {"prm_digest": None})
    with pytest.raises(DataError, match="prm_digest is None"):
        collect_evidence(tmp_path, tmp_path / "evidence")


def test_the_actor_is_the_variable_then_git_then_the_login(tmp_path, monkeypatch):
    assert acting_as(tmp_path, {"STEPFORGE_ACTOR": " Ada "}) == "Ada"
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    subprocess.run(["git", "-C", str(tmp_path), "config", "user.name", "Grace"], check=True)
    assert acting_as(tmp_path, {}) == "Grace"
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("LOGNAME", "barbara")
    assert acting_as(tmp_path, {}) == "barbara"


# The ledger


def note(environment="staging", **content):
    return {"environment": environment, "version": f"prm.{environment}/1", "prm_digest": "abc", "actor": "Ada", **content}


def test_each_record_holds_the_hash_of_the_one_before(tmp_path):
    path = tmp_path / "ledger.jsonl"
    assert verify_ledger(path) == []
    made = [append(path, "refuse", note()), append(path, "promote", note()), append(path, "done", note(of=2, moved=True))]
    assert [record["seq"] for record in made] == [1, 2, 3]
    assert [record["previous"] for record in made] == [FIRST, made[0]["sha256"], made[1]["sha256"]]
    assert verify_ledger(path) == made


def test_a_changed_dropped_added_swapped_or_cut_line_is_found_and_blocks_further_records(tmp_path):
    path = tmp_path / "ledger.jsonl"
    for number in range(4):
        append(path, "refuse", note(number=number))
    lines = path.read_bytes().splitlines(keepends=True)
    forged = json.loads(lines[1])
    forged["actor"] = "Mallory"
    tampered = {
        2: [lines[0], json.dumps(forged, sort_keys=True).encode() + b"\n", *lines[2:]],
        1: lines[1:],
        3: [lines[0], lines[1], lines[3], lines[2]],
        4: [*lines[:3], lines[3][:-10]],
        5: [*lines, lines[3]],
    }
    for place, content in tampered.items():
        path.write_bytes(b"".join(content))
        with pytest.raises(RefusedError, match=f"line {place}"):
            verify_ledger(path)
        with pytest.raises(RefusedError, match=f"line {place}"):
            append(path, "refuse", note())
        assert path.read_bytes() == b"".join(content)


def test_two_processes_appending_at_once_make_one_unbroken_chain(tmp_path):
    path = tmp_path / "ledger.jsonl"
    code = (
        "import sys; from pathlib import Path; from components.ledger import append\n"
        "for i in range(40): append(Path(sys.argv[1]), 'refuse', \n"
        "    {'environment': 'staging', 'version': 'v', 'prm_digest': 'p', 'actor': sys.argv[2], 'i': i})"
    )
    root = Path(__file__).parents[2]
    both = [subprocess.Popen([sys.executable, "-c", code, str(path), name], cwd=root) for name in "ab"]
    assert [process.wait() for process in both] == [0, 0]
    records = verify_ledger(path)
    assert len(records) == 80
    for name in "ab":
        assert [record["i"] for record in records if record["actor"] == name] == list(range(40))


def test_a_move_without_its_done_is_unfinished_and_one_that_never_moved_is_not_in_force(tmp_path):
    path = tmp_path / "ledger.jsonl"
    append(path, "promote", note())
    append(path, "done", note(of=1, moved=True))
    append(path, "promote", note())
    append(path, "promote", note("prod"))
    assert [record["seq"] for record in unfinished(verify_ledger(path), "staging")] == [3]
    append(path, "done", note(of=3, moved=False))
    records = verify_ledger(path)
    assert unfinished(records, "staging") == []
    assert [record["seq"] for record in in_force(records, "staging")] == [1]


@pytest.mark.parametrize("spare", [0, 10])
def test_a_full_disk_leaves_the_ledger_as_it_was(tmp_path, spare):
    path = tmp_path / "ledger.jsonl"
    append(path, "refuse", note())
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + spare, hard))  # `spare` bytes are written, then no more
    try:
        with pytest.raises(DataError) as caught:
            append(path, "refuse", note())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (caught.value.place, caught.value.what) == (str(path), "cannot be written: File too large")
    assert path.read_bytes() == before
    assert append(path, "refuse", note())["seq"] == 2


def test_a_record_that_never_reached_the_disk_is_taken_back(tmp_path, monkeypatch):
    path = tmp_path / "ledger.jsonl"
    append(path, "refuse", note())
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ledger.os, "fsync", full)
    with pytest.raises(DataError, match="cannot be written: No space left on device"):
        append(path, "promote", note())
    assert path.read_bytes() == before


MOVE = {"environment": "staging", "version": "prm.staging/1", "prm_digest": "abc", "actor": "Ada", "time": "2025-01-01"}
NEEDS = [(action, MOVE, field) for action in ("promote", "rollback", "refuse") for field in MOVE] + [
    ("rollback", MOVE, "reason"),
    ("done", {"of": 1, "moved": True, "time": "2025-01-01"}, "of"),
    ("done", {"of": 1, "moved": True, "time": "2025-01-01"}, "moved"),
]


@pytest.mark.parametrize(("action", "fields", "field"), NEEDS)
def test_a_record_that_lacks_what_its_action_needs_is_a_broken_ledger(tmp_path, action, fields, field):
    path = tmp_path / "ledger.jsonl"
    whole = {**fields, "reason": "worse", "seq": 1, "previous": FIRST, "action": action}
    for value in (..., None, ["x"]):
        record = {key: kept for key, kept in whole.items() if key != field} | ({} if value is ... else {field: value})
        record["sha256"] = ledger._sha256(record)
        path.write_text(json.dumps(record) + "\n")
        with pytest.raises(RefusedError) as caught:
            verify_ledger(path)
        assert caught.value.place == f"{path} line 1"
        assert caught.value.what == f"a {action} record needs {field}, which is {record.get(field)!r}"
    whole["sha256"] = ledger._sha256(whole)
    path.write_text(json.dumps(whole) + "\n")
    assert verify_ledger(path) == [whole]


def test_a_record_of_no_known_action_is_a_broken_ledger_and_none_is_appended(tmp_path):
    path = tmp_path / "ledger.jsonl"
    for action in (None, "erase", ["done"]):
        record = {**MOVE, "seq": 1, "previous": FIRST, "action": action}
        record["sha256"] = ledger._sha256(record)
        path.write_text(json.dumps(record) + "\n")
        with pytest.raises(RefusedError, match="action is"):
            verify_ledger(path)
    path.unlink()
    with pytest.raises(ValueError, match="a done record needs of, which is None"):
        append(path, "done", {"moved": True})
    assert path.read_bytes() == b""
