"""Verdicts in batches: our own rules first, then math-verify in killable workers, then, if wanted, a judge.

Knows nothing of where responses come from. A later opinion is asked only about what the earlier ones left open.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from components import equality
from components.formulas import MAX_CHARS
from components.grading import VERIFIER_DIGEST, Gold, Verdict, grade
from components.judge import Case, Judge
from components.records import digest
from components.settings import Runtime, Verify
from components.store import Journal
from components.workers import Pool, Result

OPEN_RULES = ("unreadable", "open", "too_complex")
"""Rules of unknown verdicts that another opinion may decide; what was cut off or states nothing stays unknown."""
_MAX_KNOWN = 1 << 17


@dataclass(frozen=True)
class Asked:
    """One response, and what it is compared with."""

    question: str
    text: str
    gold: Gold
    finish_reason: str = "stop"


class Verifier:
    """Grades batches of responses. One thread at a time.

    Args:
        journal: keeps what the judge decided; open it in the thread that grades.
    Raises:
        SettingsError: math-verify is wanted but not there as tested, or a judge without STEPFORGE_JUDGE_URL.
    """

    def __init__(self, settings: Verify, runtime: Runtime, journal: Journal | None = None) -> None:
        self._pool: Pool | None = None
        self._judge: Judge | None = None
        self._known: dict[tuple[str, str, str], Result] = {}
        opinions: list[object] = []
        if settings.math_verify:
            equality.check_versions()
            self._pool = Pool(
                "components.equality:comparer",
                num_workers=runtime.num_workers,
                cpu_seconds=settings.cpu_seconds,
                memory_bytes=settings.memory_bytes,
            )
            limits = [settings.cpu_seconds, settings.memory_bytes]
            opinions.append(["math-verify", equality.EQUALITY_VERSION, equality.VERSIONS, limits])
        if settings.judge is not None:
            self._judge = Judge(settings.judge, url=runtime.judge_url, key=runtime.judge_key, journal=journal)
            opinions.append(["judge", self._judge.digest])
        self.digest: str = digest("verifier", VERIFIER_DIGEST, opinions) if opinions else VERIFIER_DIGEST
        """Names everything that a verdict depends on."""

    def grade(self, asked: Sequence[Asked]) -> list[Verdict]:
        """The verdict on each response, in order; no response can hang or end the run.

        A verdict that is right or wrong names the opinion that decided: the kind of the gold answer, `math_verify` or
        `judge`. One that is unknown names the last that failed; `timeout`, `out_of_memory` and `crashed` are math-verify's.

        Raises:
            DataError: a gold answer is no answer of its kind.
            EngineError: the workers do not start, or the judge refuses the key or the model.
        """
        verdicts = [grade(one.text, one.gold, finish_reason=one.finish_reason) for one in asked]
        if self._pool is not None:
            self._ask_math_verify(self._pool, asked, verdicts)
        if self._judge is not None:
            self._ask_judge(self._judge, asked, verdicts)
        return verdicts

    def _ask_math_verify(self, pool: Pool, asked: Sequence[Asked], verdicts: list[Verdict]) -> None:
        wanted = {
            number: (one.gold.kind, one.gold.answer, str(verdict.answer))
            for number, (one, verdict) in enumerate(zip(asked, verdicts, strict=True))
            if _is_open(verdict) and 0 < len(verdict.answer or "") <= MAX_CHARS and _is_for_math_verify(one.gold)
        }
        if len(self._known) > _MAX_KNOWN:
            self._known.clear()
        new = [case for case in dict.fromkeys(wanted.values()) if case not in self._known]
        results = pool.map([{"kind": kind, "gold": gold, "answer": answer} for kind, gold, answer in new])
        self._known.update(zip(new, results, strict=True))
        for number, case in wanted.items():
            result = self._known[case]
            if result.status != "ok":
                verdicts[number] = Verdict("unknown", result.status, verdicts[number].answer)
            elif result.value != "unknown":
                verdicts[number] = Verdict(result.value, "math_verify", verdicts[number].answer)

    def _ask_judge(self, judge: Judge, asked: Sequence[Asked], verdicts: list[Verdict]) -> None:
        cases = {
            number: Case(one.question, _stated(one.gold), str(verdict.answer))
            for number, (one, verdict) in enumerate(zip(asked, verdicts, strict=True))
            if _is_open(verdict) and verdict.answer
        }
        for number, (value, rule) in zip(cases, judge.ask(list(cases.values())), strict=True):
            verdicts[number] = Verdict(value, rule, verdicts[number].answer)

    def close(self) -> None:
        """End the workers."""
        if self._pool is not None:
            self._pool.close()

    def __enter__(self) -> Verifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _is_open(verdict: Verdict) -> bool:
    return verdict.value == "unknown" and verdict.rule in (*OPEN_RULES, "timeout", "out_of_memory", "crashed")


def _is_for_math_verify(gold: Gold) -> bool:
    """Whether equality is what makes an answer right: a benchmark's rounding or tolerance is not known to math-verify."""
    return gold.kind in equality.KINDS and gold.precision is None and gold.tolerance is None


def _stated(gold: Gold) -> str:
    """The gold answer as a person would state it: with its unit, with others as good, or with the text of the option."""
    if gold.unit:
        return f"{gold.answer} {gold.unit}"
    if gold.kind == "any" and gold.options:
        return f"{gold.answer} (as good: {'; '.join(gold.options)})"
    letter = gold.answer.strip(" ().$")
    if gold.kind == "choice" and len(letter) == 1 and 0 <= ord(letter.upper()) - ord("A") < len(gold.options):
        return f"{letter}: {gold.options[ord(letter.upper()) - ord('A')]}"
    return gold.answer
