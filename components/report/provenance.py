"""The sections for auditors: what each stage cost, what the registry decided and why, gates, digests.

Owns nothing but their form; a number that no receipt holds is shown as missing, never as zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from components.report.comparison import split_name
from components.report.evidence import ENVIRONMENTS, FOLDERS, RESTORED, Evidence
from components.report.markup import MISSING, Html, count, duration, join, memory, missing, number, short, sign, table, tag

MAX_DECISIONS = 6
_VERDICTS = {"promote": "promoted to", "refuse": "refused for", "rollback": "brought back in"}


def cost(evidence: Evidence) -> Html:
    """Tokens, seconds and memory of each stage, and the totals of those that are known."""
    rows: list[list[str]] = []
    for stage in FOLDERS:
        receipt = evidence.receipts.get(stage)
        if receipt:
            rows.append([stage, *_amounts([receipt]), _run(receipt)])
        else:
            rows.append([stage, *[MISSING] * 5, RESTORED if evidence.summaries[stage] else "not run"])
    known = [evidence.receipts[stage] for stage in FOLDERS if stage in evidence.receipts]
    if known:
        name = "all stages" if len(known) == len(FOLDERS) else f"{len(known)} of {len(FOLDERS)} stages"
        rows.append([tag("b", name), *(tag("b", amount) for amount in _amounts(known)), "of memory, the largest"])
    head = ["stage", "tokens sampled", "from the journal", "wall", "CPU", "peak memory", "run"]
    shown = table(head, rows, caption="Cost of the runs that made these files")
    return join([shown, None if known else missing("No receipt is here: what these files cost is not known.")])


def _amounts(receipts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sums over the receipts that know; of memory the largest."""

    def known(key: str) -> list[float]:
        return [value for receipt in receipts if (value := number(receipt.get(key))) is not None]

    def total(key: str) -> float | None:
        return sum(known(key)) if known(key) else None

    tokens = [count(total("sampled_tokens")), count(total("journal_tokens"))]
    peak = max(known("peak_memory_bytes"), default=None)
    return [*tokens, duration(total("wall_seconds")), duration(total("cpu_seconds")), memory(peak)]


def _run(receipt: Mapping[str, Any]) -> Html:
    when = str(receipt.get("started_at") or "").replace("T", " ")[:16]
    return tag("span", ", ".join(part for part in (when, str(receipt.get("machine") or "")) if part), class_="sub")


def provenance(evidence: Evidence) -> Html:
    """The decisions of the registry, the gates and the digests."""
    metrics = evidence.metrics
    named: list[tuple[str, Any]] = [
        ("PRM", metrics.get("prm_digest")),
        ("blind PRM", metrics.get("blind_digest")),
        ("policy", metrics.get("policy_digest")),
    ]
    named += [(f"pool, {split_name(name)}", value) for name, value in (metrics.get("pools") or {}).items()]
    named += [(f"data/{name}", value) for name, value in evidence.data_sha256.items()]
    named += [(f"output of {name}", (one.get("output") or {}).get("sha256")) for name, one in evidence.receipts.items()]
    rows = [[name, tag("code", str(value)) if value else "not known"] for name, value in named]
    digests = table(["what", "digest"], rows, caption="SHA-256 of the content, some cut to 128 bits", class_="words")
    return join(
        [
            tag("h3", "Registry"),
            _registry(evidence),
            tag("h3", "Data gates"),
            _gates(evidence.gates),
            tag("h3", "Digests"),
            tag("details", tag("summary", f"all {len(named)}"), digests),
        ]
    )


def _registry(evidence: Evidence) -> Html:
    places = evidence.registry.get("environments") or {}
    held = [(name, place) for name in reversed(ENVIRONMENTS) if (place := places.get(name))]
    rows = [[name, str(place.get("version", MISSING)), short(place.get("digest"))] for name, place in held]
    caption = f"Registered model {evidence.registry.get('model', '')}"
    shown = table(["environment", "version", "PRM"], rows, caption=caption, class_="words") if rows else None
    decisions = [record for record in evidence.ledger if record["action"] in _VERDICTS]
    parts = [
        shown or missing("The registry holds no version."),
        *(_decision(one) for one in reversed(decisions[-MAX_DECISIONS:])),
    ]
    if len(decisions) > MAX_DECISIONS:
        parts.append(tag("p", f"{len(decisions) - MAX_DECISIONS} earlier decisions are in the ledger.", class_="note"))
    return join(parts)


def _decision(record: Mapping[str, Any]) -> Html:
    who = ", approved by ".join(str(name) for name in (record.get("actor"), record.get("approver")) if name)
    when = str(record.get("time") or "").replace("T", " ")[:16]
    verdict = f"{record.get('version', MISSING)} {_VERDICTS[record['action']]} {record.get('environment', MISSING)}"
    title = f"{verdict} ({', '.join(part for part in (when, who) if part)})" if when or who else verdict
    if not record["reasons"]:
        return tag("p", tag("b", title), ": ", str(record.get("reason") or "no reason was recorded"))
    rows = [
        [str(reason["gate"]), sign(reason["passed"]), str(reason["seen"]), str(reason["required"])]
        for reason in record["reasons"]
    ]
    return table(["gate", "answer", "seen", "required"], rows, caption=title, class_="words decision")


def _gates(gates: Mapping[str, Mapping[str, Any]]) -> Html:
    """One row a gate, then every check that failed, then all checks folded away."""
    if not gates:
        return missing("No gate.json was found: the rows were not checked.")
    rows, failed, every = [], [], []
    for stage, gate in gates.items():
        checks = gate.get("checks") or []
        lines = [_check(str(gate.get("gate") or stage), check) for check in checks]
        wrong = [line for line, check in zip(lines, checks, strict=True) if not check.get("passed")]
        rows.append([str(gate.get("gate") or stage), sign(gate.get("passed")), count(len(checks)), count(len(wrong))])
        failed += wrong
        every += lines
    head = ["check", "answer", "rows", "failed", "what", "first"]
    shown = [table(["gate", "answer", "checks", "not passed"], rows, caption="What every stage's rows had to satisfy")]
    if failed:
        shown.append(table(head, failed, caption="Checks that did not pass", class_="words decision"))
    everything = table(head, every, caption="Every check", class_="words")
    return join([*shown, tag("details", tag("summary", f"all {len(every)} checks"), everything)])


def _check(gate: str, check: Mapping[str, Any]) -> list[str]:
    words = [str(check.get(key) or "") for key in ("check", "says", "severity", "first")]
    numbers = [count(check.get(key)) for key in ("num_rows", "num_failed")]
    return [f"{gate}: {words[0]}", sign(check.get("passed")), *numbers, f"{words[1]} ({words[2]})", words[3]]
