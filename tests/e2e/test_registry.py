"""Promotion, refusal and rollback on a real MLflow registry in SQLite."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from components.decision import Policy
from components.errors import DataError, RefusedError, SettingsError, TryAgainError
from components.ledger import append, verify_ledger
from components.lineage import exclusive
from components.promote import ledger_path, promote, register, rollback, strangers
from components.records import SELECTION, write_json, write_table
from flows.cli import main
from flows.promotion import registry_lines, registry_summary

GATES = {
    "min_problems": {"test": 4},
    "data_gates": ["seeds"],
    "differences": [{"split": "test", "a": "prm", "b": "random", "low_above": 0.0}],
    "step_metrics": [],
    "incumbent": {"split": "test", "selector": "prm", "max_loss": 0.25, "confidence": 0.95},
    "approver": False,
}
POLICY = Policy.model_validate({"version": 1, "environments": {"staging": GATES, "prod": {**GATES, "approver": True}}})


@pytest.fixture
def tracking(home):
    """The registry of one workspace."""
    from components.tracking import Tracking

    return Tracking(home)


@pytest.fixture
def trained(tracking, tmp_path):
    """Makes a PRM's outputs and registers it: the version in dev."""

    def make(prm_digest, *, low=0.1, picks=(1.0, 1.0, 1.0, 0.0), trainer="Ada"):
        artifacts = tmp_path / "artifacts"
        shutil.rmtree(artifacts, ignore_errors=True)
        difference = {"a": "prm", "b": "random", "mean": low + 0.1, "low": low, "high": low + 0.2}
        metrics = {
            "prm_digest": prm_digest,
            "pools": {"test": "pool-1"},
            "splits": {"test": {"num_problems": len(picks), "differences": [difference]}},
        }
        write_json(artifacts / "evaluation" / "metrics.json", metrics)
        rows = [{"split": "test", "problem_id": f"p{i}", "selector": "prm", "value": value} for i, value in enumerate(picks)]
        write_table(artifacts / "evaluation" / "selections.parquet", rows, SELECTION)
        write_json(artifacts / "seeds" / "gate.json", {"passed": True})
        run = tracking.start_run("retrain")
        version, _ = register(tracking, artifacts=artifacts, run_id=run, trainer=trainer)
        return version

    return make


@pytest.fixture
def ask(tracking, home):
    """Asks for a promotion."""

    def asked(environment="staging", **more):
        return promote(tracking, home, POLICY, environment=environment, actor="Ada", **more)

    return asked


def actions(home):
    return [record["action"] for record in verify_ledger(ledger_path(home))]


def test_the_first_version_is_promoted_and_asking_again_changes_nothing(tracking, home, trained, ask):
    version = trained("a" * 32)
    assert str(version) == "prm.dev/1"
    promotion = ask()
    assert promotion.is_champion
    champion = tracking.aliased("staging", "champion")
    assert (str(champion), champion.prm_digest, champion.tags["trainer"]) == ("prm.staging/1", "a" * 32, "Ada")
    before = ledger_path(home).read_bytes()
    assert trained("a" * 32) == version
    again = ask()
    assert again.is_champion
    assert again.decision is None
    assert ledger_path(home).read_bytes() == before
    announced, done = verify_ledger(ledger_path(home))
    assert (announced["action"], announced["version"], announced["from"]) == ("promote", "prm.staging/1", "prm.dev/1")
    assert (done["action"], done["of"], done["moved"]) == ("done", 1, True)
    assert tracking.versions("prod") == []


def test_a_refused_version_moves_no_alias_and_its_reasons_are_recorded_once(tracking, home, trained, ask):
    trained("a" * 32)
    ask()
    trained("b" * 32, low=-0.01)
    for _ in range(2):
        refusal = ask()
        assert not refusal.is_champion
        assert [reason.gate for reason in refusal.decision.reasons if not reason.passed] == ["test: prm - random"]
    assert actions(home) == ["promote", "done", "refuse"]
    assert tracking.aliased("staging", "champion").prm_digest == "a" * 32
    assert [version.prm_digest for version in tracking.versions("staging")] == ["a" * 32]
    last = verify_ledger(ledger_path(home))[-1]
    assert (last["version"], last["replaces"]) == ("prm.dev/2", "prm.staging/1")


def test_a_worse_version_is_refused_against_the_champion_on_the_same_pools(trained, ask):
    trained("a" * 32)
    ask()
    trained("b" * 32, picks=(0.0, 0.0, 0.0, 0.0))
    refusal = ask()
    assert [reason.gate for reason in refusal.decision.reasons if not reason.passed] == ["test: not worse than the champion"]
    assert refusal.decision.incumbent == "a" * 32


def test_rollback_returns_to_the_champion_before_and_only_once(tracking, home, trained, ask):
    trained("a" * 32)
    ask()
    with pytest.raises(RefusedError, match="no previous version"):
        rollback(tracking, home, environment="staging", actor="Grace", reason="worse")
    trained("b" * 32)
    ask()
    assert tracking.aliased("staging", "previous").prm_digest == "a" * 32
    assert rollback(tracking, home, environment="staging", actor="Grace", reason="worse").prm_digest == "a" * 32
    assert tracking.aliased("staging", "champion").prm_digest == "a" * 32
    with pytest.raises(RefusedError, match="no previous version"):
        rollback(tracking, home, environment="staging", actor="Grace", reason="worse")
    refusal = ask()  # the newest in dev is what was just taken out
    failed = [reason for reason in refusal.decision.reasons if not reason.passed]
    assert [reason.gate for reason in failed] == ["no rollback"]
    assert "by Grace: worse" in failed[0].seen
    assert ask(approver="Grace").is_champion
    assert actions(home) == ["promote", "done", "promote", "done", "rollback", "done", "refuse", "promote", "done"]


def test_new_evidence_for_the_champions_prm_is_judged_again(tracking, home, trained, ask):
    first = trained("a" * 32)
    ask()
    worse = trained("a" * 32, low=-0.01)
    assert (str(worse), worse.prm_digest) == ("prm.dev/2", first.prm_digest)
    assert worse.evidence_sha256 != first.evidence_sha256
    refusal = ask()
    assert [reason.gate for reason in refusal.decision.reasons if not reason.passed] == ["test: prm - random"]
    assert str(tracking.aliased("staging", "champion")) == "prm.staging/1"
    last = verify_ledger(ledger_path(home))[-1]
    assert (last["action"], last["version"], last["replaces"]) == ("refuse", "prm.dev/2", "prm.staging/1")
    better = trained("a" * 32, low=0.2)
    assert ask().decision.is_promoted
    champion = tracking.aliased("staging", "champion")
    assert (str(champion), champion.evidence_sha256) == ("prm.staging/2", better.evidence_sha256)
    assert str(tracking.aliased("staging", "previous")) == "prm.staging/1"
    assert ask().decision is None
    assert trained("a" * 32) == first  # the first evidence again: nothing new
    assert [version.number for version in tracking.versions("dev")] == [1, 2, 3]
    assert tracking.version_of("staging", "a" * 32, worse.evidence_sha256) is None
    assert tracking.version_of("staging", "b" * 32, better.evidence_sha256) is None
    assert tracking.version_of("staging", "a" * 32, first.evidence_sha256).number == 1
    assert actions(home) == ["promote", "done", "refuse", "promote", "done"]
    assert strangers(tracking, verify_ledger(ledger_path(home))) == []


def test_what_was_rolled_back_stays_so_with_new_evidence(tracking, home, trained, ask):
    trained("a" * 32)
    ask()
    trained("b" * 32)
    ask()
    rollback(tracking, home, environment="staging", actor="Grace", reason=" worse ")
    assert [r["reason"] for r in verify_ledger(ledger_path(home)) if r["action"] == "rollback"] == ["worse"]
    trained("b" * 32, low=0.2)
    assert [reason.gate for reason in ask().decision.reasons if not reason.passed] == ["no rollback"]
    assert ask(approver=" Grace\u00a0\u200b Hopper ").is_champion
    moved = [record for record in verify_ledger(ledger_path(home)) if record["action"] == "promote"][-1]
    assert (moved["approver"], moved["version"]) == ("Grace Hopper", "prm.staging/3")


@pytest.mark.parametrize("reason", ["", " \t\n", "\u200b"])
def test_a_rollback_without_a_reason_changes_nothing(tracking, home, trained, ask, reason):
    for prm_digest in ("a" * 32, "b" * 32):
        trained(prm_digest)
        ask()
    before = ledger_path(home).read_bytes()
    with pytest.raises(SettingsError, match="rollback in staging: the reason is"):
        rollback(tracking, home, environment="staging", actor="Grace", reason=reason)
    assert ledger_path(home).read_bytes() == before
    assert tracking.aliased("staging", "champion").prm_digest == "b" * 32


def test_prod_takes_the_champion_of_staging_with_an_approver_who_did_not_train_it(tracking, trained, ask):
    with pytest.raises(RefusedError, match="staging has no champion"):
        ask("prod", approver="Grace")
    trained("a" * 32)
    ask()
    assert not ask("prod").is_champion
    assert not ask("prod", approver="ada").is_champion
    assert ask("prod", approver="Grace").is_champion
    assert str(tracking.aliased("prod", "champion")) == "prm.prod/1"
    with pytest.raises(RefusedError, match="dev has no version 7"):
        ask(number=7)


def test_a_crash_between_ledger_and_alias_is_seen_and_closed_by_the_next_command(tracking, home, trained, ask):
    class Dies(type(tracking)):
        """The process ends the moment it would move an alias."""

        def point(self, *_):
            raise KeyboardInterrupt

    trained("a" * 32)
    with pytest.raises(KeyboardInterrupt):
        promote(Dies(home), home, POLICY, environment="staging", actor="Ada")
    assert actions(home) == ["promote"]
    assert tracking.aliased("staging", "champion") is None
    assert ask().is_champion
    assert [record.get("moved") for record in verify_ledger(ledger_path(home))] == [None, False, None, True]


def test_a_crash_after_the_alias_moved_is_closed_as_moved(tracking, home, trained, ask):
    version = trained("a" * 32)
    content = {"environment": "staging", "actor": "Ada", "prm_digest": "a" * 32, "version": "prm.staging/1", "reasons": []}
    append(ledger_path(home), "promote", content)
    tracking.point("staging", "champion", tracking.copy(version, "staging"))
    assert ask().decision is None
    assert [record.get("moved") for record in verify_ledger(ledger_path(home))] == [None, True]
    assert strangers(tracking, verify_ledger(ledger_path(home))) == []


def test_an_alias_moved_by_hand_is_reported(tracking, home, trained, ask):
    trained("a" * 32)
    ask()
    tracking.point("staging", "champion", tracking.copy(trained("b" * 32), "staging"))
    lines = registry_lines(tracking, home)
    assert lines[-1] == (
        "warning: staging: champion is prm.staging/2, the ledger says prm.staging/1: the alias was moved by hand"
    )
    summary = registry_summary(tracking, home)
    assert summary["environments"] == {
        "dev": {"version": "2", "digest": "b" * 32},
        "staging": {"version": "2", "digest": "b" * 32},
        "prod": None,
    }
    assert [record["action"] for record in summary["ledger"]] == ["promote", "done"]


def test_evidence_changed_after_registration_is_not_believed(home, trained, ask):
    trained("a" * 32, low=-0.5)
    stored = next(path for path in home.rglob("metrics.json"))
    stored.write_text(stored.read_text().replace("-0.5", "0.5"))
    with pytest.raises(DataError, match="its evidence has SHA-256"):
        ask()
    assert not ledger_path(home).exists()


def test_a_promotion_under_way_makes_the_next_one_wait(home, trained, ask):
    trained("a" * 32)
    with exclusive(home, "registry"), pytest.raises(TryAgainError):
        ask()


def test_the_commands_say_what_happened_and_exit_with_5_for_a_refusal(home, trained, monkeypatch, capsys):
    folder = home.parent
    (folder / "mlflow").mkdir()
    shutil.copy(Path(__file__).parents[2] / "mlflow" / "policy.yaml", folder / "mlflow")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("STEPFORGE_ACTOR", "Ada")
    assert main(["registry"]) == 0
    assert "no version is registered" in capsys.readouterr().out
    trained("a" * 32)
    assert main(["promote", "--to", "staging"]) == 5
    said = capsys.readouterr().out
    assert said.startswith("refused: prm.dev/1 does not go to staging\n")
    assert "REFUSED  test problems: 4; required: at least 400" in said
    assert main(["rollback", "--in", "staging", "--reason", "worse"]) == 5
    assert "error: rollback in staging: no previous version" in capsys.readouterr().err
    assert main(["rollback", "--in", "staging", "--reason", " "]) == 2
    assert "error: rollback in staging: the reason is ' '" in capsys.readouterr().err
    assert main(["registry"]) == 0
    said = capsys.readouterr().out
    assert "prm.dev/1" in said
    assert "ledger: 1 records" in said
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://here")
    assert main(["registry"]) == 2
    assert "MLFLOW_TRACKING_URI=nonsense://here" in capsys.readouterr().err
