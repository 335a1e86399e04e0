"""May this PRM be promoted? mlflow/policy.yaml, typed, and the pure decision with every reason.

Owns what each gate compares; does not know where versions are kept nor what happens after the decision.
"""

from __future__ import annotations

import difflib
import math
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from components.errors import SettingsError
from components.records import digest

Frac = Annotated[float, Field(ge=0.0, le=1.0)]
Points = Annotated[float, Field(ge=-1.0, le=1.0)]
Split = Literal["dev", "test", "ood"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Difference(_Section):
    """A paired difference between two selectors on one split; 0.12 is 12 points of accuracy."""

    split: Split
    a: str
    b: str
    min_mean: Points | None = None
    """The mean is at least this."""
    low_above: Points | None = None
    """The whole interval lies above this: its lower end is strictly greater."""
    low_at_most: Points | None = None
    """The lower end is not above this: with 0, `a` is not shown to beat `b`."""

    @model_validator(mode="after")
    def _asks_something(self) -> Difference:
        if self.min_mean is None and self.low_above is None and self.low_at_most is None:
            raise ValueError("it asks nothing: give min_mean, low_above or low_at_most")
        return self


class StepMetric(_Section):
    """A number about single steps: Best-of-N alone can be had by judging answers only."""

    pool: Literal["candidates", "step_errors"]
    scorer: str
    metric: Literal["auroc", "auroc_reading", "f1_right", "f1_wrong", "macro_f1", "first_error_f1"]
    min: Frac


class Control(_Section):
    """A number of the suite of components/controls.py: what else the reward model may reward."""

    name: Literal[
        "answer_only",
        "before_last",
        "steps_shuffled",
        "blind",
        "picture",
        "shuffled",
        "length",
        "padding",
        "format",
        "empty",
        "one_dot",
        "truncated",
        "paraphrase",
        "last_minimum",
    ]
    low_above: Points | None = None
    """The whole interval lies above this."""
    high_below: Points | None = None
    """The whole interval lies below this."""
    min_mean: Points | None = None
    max_mean: Points | None = None
    min_num: Annotated[int, Field(ge=1)] = 30
    """An interval over fewer comparisons says nothing."""

    @model_validator(mode="after")
    def _asks_something(self) -> Control:
        if self.low_above is self.high_below is self.min_mean is self.max_mean is None:
            raise ValueError("it asks nothing: give low_above, high_below, min_mean or max_mean")
        return self


class Incumbent(_Section):
    """Not worse than the champion that it would replace, on the same frozen pools, paired by problem."""

    split: Split
    selector: str
    max_loss: Frac
    """The lower end of the interval of (candidate - champion) is at least minus this."""
    confidence: Annotated[float, Field(gt=0.0, lt=1.0)]


class Gates(_Section):
    """What one environment asks of a version."""

    min_problems: dict[Split, Annotated[int, Field(ge=1)]]
    data_gates: list[str]
    """Stage outputs whose data gate must have passed."""
    differences: list[Difference]
    step_metrics: list[StepMetric]
    controls: list[Control] = []
    incumbent: Incumbent
    approver: bool
    """A person other than the trainer must be named."""


class Environments(_Section):
    """`dev` takes every version; these two ask first."""

    staging: Gates
    prod: Gates


class Policy(_Section):
    """mlflow/policy.yaml."""

    version: Literal[1]
    """Of this file's form."""
    environments: Environments

    def digest(self) -> str:
        """The name of these rules, for the ledger."""
        return digest("policy", self.model_dump(mode="json"))


@dataclass(frozen=True)
class Evidence:
    """What is known of one PRM."""

    prm_digest: str
    trainer: str
    """Who started the run that trained it; empty if unknown."""
    metrics: Mapping[str, Any]
    """evaluation/metrics.json."""
    data_gates: Mapping[str, Any]
    """Stage output -> its gate.json."""
    selections: Mapping[tuple[str, str], Mapping[str, float]]
    """(split, selector) -> problem -> accuracy of what the selector picks."""
    rolled_back: str = ""
    """When, by whom and why it was taken out of this environment; empty if it was not."""


@dataclass(frozen=True)
class Reason:
    """One gate's answer."""

    gate: str
    passed: bool
    seen: str
    required: str

    def __str__(self) -> str:
        """One line for people."""
        return f"{'passed ' if self.passed else 'REFUSED'}  {self.gate}: {self.seen}; required: {self.required}"


@dataclass(frozen=True)
class Decision:
    """The answer and every reason for it."""

    environment: Literal["staging", "prod"]
    prm_digest: str
    incumbent: str | None
    policy_digest: str
    reasons: tuple[Reason, ...]

    @property
    def is_promoted(self) -> bool:
        """Every gate passed."""
        return all(reason.passed for reason in self.reasons)


# Blank on a screen though Unicode counts them as letters, marks or symbols.
_INVISIBLE = frozenset(
    map(chr, (0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, *range(0x180B, 0x1810), 0x2800, 0x3164, *range(0xFE00, 0xFE10)))
) | frozenset(map(chr, range(0xE0100, 0xE01F0)))
_MIN_LETTERS = 2  # of a name that can be asked who it was


def plain(text: str) -> str:
    """`text` as it reads: NFKC, single blanks, nothing that is invisible; empty if there is nothing to see."""
    blanks = "".join(" " if char.isspace() else char for char in unicodedata.normalize("NFKC", text))
    seen = (char for char in blanks if unicodedata.category(char) not in ("Cf", "Cc") and char not in _INVISIBLE)
    return " ".join(unicodedata.normalize("NFKC", "".join(seen)).split())


def _person(name: str) -> str:
    """What two ways to write one name have in common: an invisible character may stand where a blank was."""
    return unicodedata.normalize("NFKC", plain(name).casefold()).replace(" ", "")


def _is_name(name: str) -> bool:
    return sum(char.isalpha() for char in plain(name)) >= _MIN_LETTERS


def decide(
    candidate: Evidence,
    incumbent: Evidence | None,
    policy: Policy,
    environment: Literal["staging", "prod"],
    approver: str | None = None,
) -> Decision:
    """Whether `candidate` may become the champion of `environment`, with a reason for every gate.

    Pure: no file, clock or registry. Nothing raises for a refusal; what is missing or is no finite number
    fails its gate.

    Args:
        incumbent: the champion now; None if there is none.
        approver: who stands for it by name.
    """
    gates: Gates = getattr(policy.environments, environment)
    name = plain(approver or "")
    reasons = [
        *(_enough_problems(candidate, split, least) for split, least in gates.min_problems.items()),
        *(_data_gate(candidate, stage) for stage in gates.data_gates),
        *(_difference(candidate, wanted) for wanted in gates.differences),
        *(_step_metric(candidate, wanted) for wanted in gates.step_metrics),
        *(_control(candidate, wanted) for wanted in gates.controls),
        _not_worse(candidate, incumbent, gates.incumbent),
        *_rollback(candidate, name),
        *([_approved(candidate, name)] if gates.approver else []),
    ]
    champion = incumbent.prm_digest if incumbent else None
    return Decision(environment, candidate.prm_digest, champion, policy.digest(), tuple(reasons))


def _enough_problems(candidate: Evidence, split: str, least: int) -> Reason:
    seen = _number(candidate.metrics, "splits", split, "num_problems")
    return Reason(f"{split} problems", seen is not None and seen >= least, _shown(seen, "{:.0f}"), f"at least {least}")


def _data_gate(candidate: Evidence, stage: str) -> Reason:
    gate = candidate.data_gates.get(stage)
    passed = gate.get("passed") if isinstance(gate, Mapping) else None
    seen = {True: "passed", False: "failed"}.get(passed, "missing") if isinstance(passed, bool) else "missing"
    return Reason(f"data gate of {stage}", passed is True, seen, "passed")


def _difference(candidate: Evidence, wanted: Difference) -> Reason:
    rows = _at(candidate.metrics, "splits", wanted.split, "differences")
    rows = rows if isinstance(rows, list) else []
    row = next((r for r in rows if isinstance(r, Mapping) and (r.get("a"), r.get("b")) == (wanted.a, wanted.b)), {})
    mean, low, high = (_number(row, key) for key in ("mean", "low", "high"))
    asked: list[tuple[str, bool]] = []
    if wanted.min_mean is not None:
        asked.append((f"mean at least {wanted.min_mean:+.3f}", mean is not None and mean >= wanted.min_mean))
    if wanted.low_above is not None:
        asked.append((f"interval above {wanted.low_above:+.3f}", low is not None and low > wanted.low_above))
    if wanted.low_at_most is not None:
        words = f"lower end not above {wanted.low_at_most:+.3f}"
        asked.append((words, low is not None and low <= wanted.low_at_most))
    is_whole = mean is not None and low is not None and high is not None
    seen = f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]" if is_whole else "missing"
    passed = is_whole and all(answer for _, answer in asked)
    return Reason(f"{wanted.split}: {wanted.a} - {wanted.b}", passed, seen, " and ".join(words for words, _ in asked))


def _step_metric(candidate: Evidence, wanted: StepMetric) -> Reason:
    seen = _number(candidate.metrics, "steps", wanted.pool, wanted.scorer, wanted.metric)
    gate = f"{wanted.metric} of {wanted.scorer} on {wanted.pool}"
    return Reason(gate, seen is not None and seen >= wanted.min, _shown(seen, "{:.3f}"), f"at least {wanted.min:.3f}")


def _control(candidate: Evidence, wanted: Control) -> Reason:
    """What was not measured is refused, with the reason that the evaluation gives."""
    rows = _at(candidate.metrics, "controls", "measures")
    rows = rows if isinstance(rows, list) else []
    row = next((r for r in rows if isinstance(r, Mapping) and r.get("name") == wanted.name), {})
    mean, low, high, num = (_number(row, key) for key in ("mean", "low", "high", "num"))
    is_whole = mean is not None and low is not None and high is not None and num is not None
    asked: list[tuple[str, bool]] = []
    if wanted.min_mean is not None:
        asked.append((f"mean at least {wanted.min_mean:+.3f}", mean is not None and mean >= wanted.min_mean))
    if wanted.max_mean is not None:
        asked.append((f"mean at most {wanted.max_mean:+.3f}", mean is not None and mean <= wanted.max_mean))
    if wanted.low_above is not None:
        asked.append((f"interval above {wanted.low_above:+.3f}", low is not None and low > wanted.low_above))
    if wanted.high_below is not None:
        asked.append((f"interval below {wanted.high_below:+.3f}", high is not None and high < wanted.high_below))
    why = _at(candidate.metrics, "controls", "absent", wanted.name)
    seen = f"missing: {why}" if isinstance(why, str) else "missing"
    if is_whole:
        seen = f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"
        if num is not None and num < wanted.min_num:
            seen += f" of {num:.0f} comparisons"
            asked.append((f"at least {wanted.min_num} comparisons", False))
    passed = is_whole and all(answer for _, answer in asked)
    return Reason(f"control {wanted.name}", passed, seen, " and ".join(words for words, _ in asked))


def _not_worse(candidate: Evidence, incumbent: Evidence | None, wanted: Incumbent) -> Reason:
    """Non-inferiority by a normal interval of the paired differences; from some 30 problems it is the bootstrap's.

    Problems that belong together (`clusters` of metrics.json) count by their sums: the variance is that of a ratio of means.
    """
    gate = f"{wanted.split}: not worse than the champion"
    required = f"{wanted.selector} loses at most {wanted.max_loss:.3f} at {wanted.confidence:.0%} confidence"
    if incumbent is None:
        return Reason(gate, True, "no champion to compare with", required)
    pools = [_at(evidence.metrics, "pools", wanted.split) for evidence in (candidate, incumbent)]
    if not isinstance(pools[0], str) or not isinstance(pools[1], str):
        return Reason(gate, False, "a pool has no digest", required)
    if pools[0] != pools[1]:
        return Reason(gate, True, "not comparable: another policy made other candidate pools", required)
    ours, theirs = (evidence.selections.get((wanted.split, wanted.selector), {}) for evidence in (candidate, incumbent))
    if len(ours) < 2 or ours.keys() != theirs.keys():
        return Reason(gate, False, f"selections of {len(ours)} and {len(theirs)} problems do not pair", required)
    gains = [ours[problem] - theirs[problem] for problem in sorted(ours)]
    if not all(math.isfinite(gain) for gain in gains):
        return Reason(gate, False, "a selection is no finite number", required)
    mean = math.fsum(gains) / len(gains)
    names = _at(candidate.metrics, "clusters", wanted.split)
    names = names if isinstance(names, Mapping) else {}
    sums: dict[tuple[bool, str], float] = defaultdict(float)
    for problem, gain in zip(sorted(ours), gains, strict=True):
        sums[problem in names, str(names.get(problem, problem))] += gain - mean
    if len(sums) < 2:
        return Reason(gate, False, f"all {len(gains)} problems belong together: there is no interval", required)
    variance = math.fsum(one**2 for one in sums.values()) * len(sums) / (len(sums) - 1) / len(gains) ** 2
    half = NormalDist().inv_cdf((1 + wanted.confidence) / 2) * math.sqrt(variance)
    seen = f"{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}] over {len(gains)} problems"
    seen += f" in {len(sums)} clusters" if len(sums) < len(gains) else ""
    return Reason(gate, mean - half >= -wanted.max_loss, seen, required)


def _rollback(candidate: Evidence, approver: str) -> Iterable[Reason]:
    if candidate.rolled_back:
        required = "a named approver, because it was rolled back here"
        yield Reason("no rollback", _is_name(approver), candidate.rolled_back, required)


def _approved(candidate: Evidence, approver: str) -> Reason:
    required = "a named approver who is not the trainer"
    if not approver:
        return Reason("approver", False, "nobody", required)
    if not _is_name(approver):
        return Reason("approver", False, f"{approver!r} has fewer than {_MIN_LETTERS} letters", required)
    if not plain(candidate.trainer):
        return Reason("approver", False, f"{approver}, but the trainer is unknown", required)
    is_other = _person(approver) != _person(candidate.trainer)
    return Reason("approver", is_other, f"{approver} (trainer: {candidate.trainer})", required)


def _at(content: Any, *keys: str) -> Any:
    for key in keys:
        content = content.get(key) if isinstance(content, Mapping) else None
    return content


def _number(content: Any, *keys: str) -> float | None:
    """The finite number at that place, or None: NaN never passes a gate."""
    value = _at(content, *keys)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if is_number else None


def _shown(value: float | None, form: str) -> str:
    return "missing" if value is None else form.format(value)


def load_policy(path: Path) -> Policy:
    """mlflow/policy.yaml, checked.

    Raises:
        SettingsError: missing file, no YAML, unknown or missing key, value out of range.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SettingsError(str(path), "no such file", "run in the project's folder") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(str(path), f"not YAML: {error}", "check the indentation of that line") from error
    try:
        return Policy.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
    where = [str(part) for part in first["loc"]]
    name = ".".join(where) or "the whole file"
    if first["type"] == "extra_forbidden":
        known = sorted({key for model in _models() for key in model.model_fields})
        close = difflib.get_close_matches(where[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else "remove it; components/decision.py lists the keys"
        raise SettingsError(str(path), f"unknown key {name!r}", hint)
    if first["type"] == "missing":
        raise SettingsError(str(path), f"missing key {name!r}", "add it; components/decision.py says what it means")
    raise SettingsError(str(path), f"{name} = {first.get('input')!r}: {first['msg'].lower()}", "correct the value")


def _models() -> tuple[type[BaseModel], ...]:
    return (Policy, Environments, Gates, Difference, StepMetric, Control, Incumbent)
