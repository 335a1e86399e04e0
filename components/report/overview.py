"""The sections about the run as a whole: the headline and the pipeline.

Owns the sentences that say what was found; a gain is only claimed when its interval lies above zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from components.report.comparison import SPLIT_NAMES, difference, direction, selector_name, split_name
from components.report.evidence import ENVIRONMENTS, FOLDERS, RESTORED, Evidence
from components.report.markup import (
    MISSING,
    Html,
    count,
    decimal,
    duration,
    interval,
    join,
    missing,
    number,
    percent,
    points,
    short,
    tag,
)


def headline(evidence: Evidence) -> Html:
    """What was promoted, and the result in one breath."""
    metrics = evidence.metrics
    test, ood = ((metrics.get("splits") or {}).get(name) or {} for name in ("test", "ood"))
    standing = promoted(evidence)
    if not test.get("selectors"):
        return join([tag("p", standing, class_="lead"), missing("Nothing was evaluated on the test split yet.")])
    num = count(test.get("num_candidates"))
    gain, sight, away = difference(test, "prm", "random"), difference(test, "prm", "blind"), difference(ood, "prm", "random")
    accuracy, share = test["selectors"].get("prm"), (test.get("gap_closed") or {}).get("prm")
    tiles = [
        _tile("right answers", f"PRM Best-of-{num}, test", accuracy, percent, "%"),
        _tile("over a random pick", "same candidates, paired", gain, points, "points"),
        _tile("from looking", "seeing PRM minus blind PRM", sight, points, "points"),
        _tile("out of domain", "over a random pick", away, points, "points"),
        _tile("of the possible gain", f"from random pick to pass@{num}", share, percent, "%"),
    ]
    sentences = [_gain_sentence(test, gain, num), _baselines_sentence(test), _sight_sentence(test, sight)]
    lead = tag("p", standing, *(f" {sentence}" for sentence in sentences if sentence), class_="lead")
    return join([lead, tag("div", *tiles, class_="tiles")])


def promoted(evidence: Evidence) -> Html:
    """Where the PRM shown here stands, who stands there if it does not, and what refused it last."""
    registry, shown = evidence.registry, evidence.metrics.get("prm_digest")
    places, model = registry.get("environments") or {}, str(registry.get("model") or "the PRM")
    held = [(name, place) for name in ENVIRONMENTS if (place := places.get(name))]
    own = [(name, place) for name, place in held if shown is None or place.get("digest") == shown]
    parts: list[Html] = []
    if own:
        parts.append(tag("b", f"Version {own[0][1].get('version', MISSING)} of {model} stands in {own[0][0]}."))
    elif held:
        parts.append(tag("b", "The PRM shown here is not in the registry."))
        parts.append(join([f"Version {held[0][1].get('version', MISSING)} of {model} stands in {held[0][0]}."]))
    else:
        parts.append(tag("b", "Nothing is promoted yet."))
    about = [record for record in evidence.ledger if record.get("prm_digest") == shown]
    if about and about[-1]["action"] == "refuse":
        failed = [str(reason["gate"]) for reason in about[-1]["reasons"] if not reason["passed"]]
        parts.append(join([f"Refused for {about[-1].get('environment')}: {', '.join(failed)}."]))
    return join(parts, " ")


def _gain_sentence(test: Mapping[str, Any], gain: Mapping[str, Any] | None, num: str) -> str:
    found = test["selectors"]
    prm, random = (percent((found.get(name) or {}).get("mean")) for name in ("prm", "random"))
    facts = (
        f"Of {num} answers to each of {count(test.get('num_problems'))} held-out problems, "
        f"the one the PRM likes best is right {prm} % of the time, a random pick {random} %"
    )
    verdict = {
        1: "a clear gain.",
        0: "no clear gain, the interval of the difference holds zero.",
        -1: "the PRM does harm.",
        None: "whether that is more than chance was not measured.",
    }
    return f"{facts}: {verdict[direction(gain)]}"


def _baselines_sentence(test: Mapping[str, Any]) -> str:
    """How the PRM stands to what costs no reward model; empty if that was not measured."""
    said = {1: "clearly above", 0: "not clearly above", -1: "below"}
    found: dict[str, list[str]] = {}
    for name in ("majority", "greedy", "likelihood"):
        way = direction(difference(test, "prm", name))
        if way is not None:
            found.setdefault(said[way], []).append(selector_name(name))
    told = "; ".join(f"{words} {' and '.join(found[words])}" for words in said.values() if words in found)
    return f"It is {told}." if told else ""


def _sight_sentence(test: Mapping[str, Any], sight: Mapping[str, Any] | None) -> str:
    blind = percent((test["selectors"].get("blind") or {}).get("mean"))
    facts = f"The same model trained without the picture reaches {blind} %"
    return {
        1: f"{facts}, so this one does look.",
        0: f"{facts}: no clear difference, so nothing shows that this one looks.",
        -1: f"{facts}, more than with it.",
        None: "What the picture is worth was not measured: there is no blind control.",
    }[direction(sight)]


def _tile(name: str, about: str, estimate: Mapping[str, Any] | None, form: Any, unit: str) -> Html:
    value, between = form((estimate or {}).get("mean")), interval(estimate, form)
    is_known = value != MISSING
    figure = tag("p", value, tag("span", f" {unit}", class_="unit") if is_known else None, class_="figure-number")
    below = join(["interval ", between]) if between else "no interval" if is_known else "not measured"
    lines = (tag("p", tag("b", name)), tag("p", about, class_="sub"), tag("p", below, class_="sub"))
    return tag("div", figure, *lines, class_="tile")


def pipeline(evidence: Evidence) -> Html:
    """One box a stage: how much came out, how long it took, whether the receipt is here."""
    facts = {
        "curate": _curate_facts,
        "sft": _sft_facts,
        "rollout": _rollout_facts,
        "label": _label_facts,
        "train": _train_facts,
        "sample": _sample_facts,
    }
    boxes = [_data_box(evidence.data_rows)]
    for stage in FOLDERS:
        summary, receipt = evidence.summaries[stage], evidence.receipts.get(stage)
        if not summary:
            foot = _receipt_line(receipt) if receipt else "not run"
            boxes.append(_box(stage, [Html(MISSING), "no summary.json"], foot, "absent"))
            continue
        lines = _evaluate_facts(evidence.metrics) if stage == "evaluate" else facts[stage](summary)
        boxes.append(
            _box(stage, lines, _receipt_line(receipt), "ran") if receipt else _box(stage, lines, RESTORED, "restored")
        )
    boxes.append(_promote_box(evidence.registry))
    return tag("ol", *boxes, class_="flow")


def _box(name: str, lines: list[str], foot: str | None, state: str) -> Html:
    first, *others = lines
    body = [tag("p", first, class_="main"), *(tag("p", line, class_="sub") for line in others if line)]
    return tag("li", tag("h3", name), *body, tag("p", foot, class_="foot") if foot else None, class_=state)


def _main(value: Any, noun: str) -> Html:
    return join([tag("b", count(value)), f" {noun}"])


def _receipt_line(receipt: Mapping[str, Any]) -> Html:
    time = tag("span", duration(receipt.get("wall_seconds")), class_="time")
    return join([time, join(["receipt ", short((receipt.get("output") or {}).get("sha256"))])], " · ")


def _data_box(rows: Mapping[str, int]) -> Html:
    if not rows:
        return _box("data", [Html(MISSING), "no Parquet file found"], None, "absent")
    tests = [f"{count(rows[name])} {split_name(name)}" for name in SPLIT_NAMES if name in rows]
    beside = [name for name in rows if name not in (*SPLIT_NAMES, "train", "truth")]
    others = [f"{count(rows[name])} {name.replace('_', ' ')}" for name in beside]
    return _box("data", [_main(rows.get("train"), "problems"), ", ".join(tests), ", ".join(others)], None, "ran")


def _curate_facts(summary: Mapping[str, Any]) -> list[str]:
    reasons = sorted((summary.get("reasons") or {}).items(), key=lambda pair: (-(number(pair[1]) or 0), pair[0]))
    why = ", ".join(f"{reason.replace('_', ' ')} {count(num)}" for reason, num in reasons[:3] if num)
    aside = f"{count(summary.get('quarantined'))} of {count(summary.get('rows_in'))} quarantined"
    return [_main(summary.get("seeds"), "seeds"), f"{aside}: {why}" if why else aside]


def _learnt(summary: Mapping[str, Any]) -> str:
    return f"{count(summary.get('steps'))} steps, loss {decimal(summary.get('final_loss'))}"


def _sft_facts(summary: Mapping[str, Any]) -> list[str]:
    return [_main(summary.get("demonstrations"), "demonstrations"), _learnt(summary)]


def _rollout_facts(summary: Mapping[str, Any]) -> list[str]:
    verdicts = summary.get("verdicts") or {}
    told = ", ".join(f"{count(verdicts[name])} {name}" for name in ("right", "wrong", "unknown") if name in verdicts)
    source = f"of {count(summary.get('prefixes'))} prefixes, {count(summary.get('solutions'))} solutions"
    return [_main(summary.get("continuations"), "continuations"), source, told]


def _label_facts(summary: Mapping[str, Any]) -> list[str]:
    mean = f"mean value {decimal(summary.get('mean'))}"
    return [_main(summary.get("labels"), "labels"), mean, f"{count(summary.get('unlabelled'))} steps unlabelled"]


def _train_facts(summary: Mapping[str, Any]) -> list[str]:
    seen = number(summary.get("perception_accuracy"))
    looks = "" if seen is None else f"tells true from false readings {percent(seen)} % of the time"
    controls = ", ".join(str(name) for name in summary.get("controls") or []) or "none"
    return [_main(summary.get("labels"), "labels"), _learnt(summary), looks, f"controls: {controls}"]


def _sample_facts(summary: Mapping[str, Any]) -> list[str]:
    pools = ", ".join(split_name(name) for name in summary.get("pools") or {})
    return [_main(summary.get("candidates"), "candidates"), f"{count(summary.get('tokens'))} tokens", f"pools: {pools}"]


def _evaluate_facts(metrics: Mapping[str, Any]) -> list[str]:
    test = (metrics.get("splits") or {}).get("test") or {}
    accuracy = percent(((test.get("selectors") or {}).get("prm") or {}).get("mean"))
    chosen = f"{metrics.get('aggregation', MISSING)}, threshold {decimal(metrics.get('threshold'), 2)}, chosen on dev"
    return [join([tag("b", f"{accuracy} %"), " right, test"]), chosen]


def _promote_box(registry: Mapping[str, Any]) -> Html:
    places = registry.get("environments") or {}
    stands = [(name, place) for name in ENVIRONMENTS if (place := places.get(name))]
    if not stands:
        return _box("promote", ["nothing promoted"], None, "absent")
    name, place = stands[0]
    version = join([tag("b", f"v{place.get('version', MISSING)}"), f" in {name}"])
    return _box("promote", [version, str(registry.get("model", ""))], None, "ran")
