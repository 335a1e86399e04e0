"""Later opinions decide only what our rules leave open, and never accept what is not equal."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

import components.equality
from components.equality import compare
from components.errors import SettingsError
from components.grading import VERIFIER_DIGEST, Gold, Verdict, grade
from components.settings import Judge, Verify, load_runtime
from components.verifier import Asked, Verifier
from tests.unit.test_judge import Server, part, said

RUNTIME = replace(load_runtime({}), num_workers=2)
ALONE = Verify(math_verify=False)


@pytest.fixture(scope="module")
def is_same():
    """math-verify's opinion in this process: for harmless input only."""
    pytest.importorskip("math_verify")
    return components.equality._math_verify()


@pytest.fixture(scope="module")
def verifier():
    pytest.importorskip("math_verify")
    with Verifier(Verify(), RUNTIME) as verifier:
        yield verifier


def boxed(answer, gold, kind="expression", **more):
    return Asked("?", rf"\boxed{{{answer}}}", Gold(gold, kind, **more))


SAME = [
    ("integer", "35", r"\binom{7}{3}"),
    ("integer", "10", "C_5^2"),
    ("integer", "20", "A_{5}^{2}"),
    ("integer", "3", r"\lfloor \pi \rfloor"),
    ("integer", "4", r"x = \lceil \pi \rceil"),
    ("integer", "3", r"\log_{2} 8"),
    ("integer", "1,024", r"2^{5} \times 2^{5}"),
    ("integer", "6", "2(3)"),  # math-verify itself reads 5
    ("number", "0.5", r"\frac{\binom{4}{2}}{12}"),
    ("number", r"\frac{1}{2}", r"\prod_{k=1}^{1} \frac{k}{2}"),
    ("expression", r"\frac{n(n+1)}{2}", r"\sum_{k=1}^{n} k"),
    ("expression", r"\frac{n(n+1)(2n+1)}{6}", r"\sum_{i=1}^n i^2"),
    ("expression", r"\frac{(2n)!}{n! n!}", r"\binom{2n}{n}"),
    ("expression", "2^{100000}", "4^{50000}"),
    ("expression", r"\sqrt{2}+\sqrt{3}", r"\sqrt{5+2\sqrt{6}}"),
    ("expression", r"2\sin(x)\cos(x)", r"\sin(2x)"),
    ("expression", "a^2-b^2", "(a-b)(a+b)"),
    ("expression", "ab", "ba"),
    ("interval", "(1,10]", r"(1,\binom{5}{2}]"),
    ("interval", r"(-\infty,1]\cup[10,+\infty)", r"x \in (-\infty, 0!] \cup [\binom{5}{2}, \infty)"),
    ("tuple", "(3, 6)", r"(\binom{3}{1}, 3!)"),
    ("set", r"\{1,6\}", r"\{3!, 1\}"),
]
DIFFERENT = [
    ("integer", "35", r"\binom{7}{2}"),
    ("integer", "5", "2(3)"),
    ("expression", r"1-\frac{1}{e}", r"1+\frac{1}{e}"),
    ("expression", r"\frac{n(n+1)}{2}", r"\sum_{k=1}^{n} k^2"),
    ("expression", "a-b", "b-a"),
    ("tuple", "(3,1)", "(4,2)"),
    ("tuple", "(1,6)", "(3!,1)"),
    ("set", r"\{1,2\}", r"\{3!,1\}"),
    ("interval", "(1,2)", "(1,3!)"),
]
NEVER_RIGHT = [
    # below 1e-6 math-verify takes everything for equal
    ("expression", r"\frac{1}{2004!}", r"\frac{1}{2006!}"),
    ("expression", r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}"),
    ("expression", r"\frac{2^{2005}+1}{3 \times 2^{2006}}", r"\frac{1}{3 \times 2^{2006}}"),
    ("expression", r"\sqrt{2}", r"\sqrt{2}+10^{-100}"),
    ("expression", r"\sqrt{2}", r"\sqrt{2}+10^{-20}"),
    ("expression", "2^{100000}", "4^{50000}+1"),
    ("expression", r"2\pi", "6.283185307179586"),
    ("expression", r"\frac{1}{3}", "0.333333333333333"),
    ("integer", "0", "10^{-9}"),
    # its parser stops early, joins or drops
    ("expression", r"1-\frac{1}{\mathrm{e}}", r"1+\frac{1}{\mathrm{e}}"),
    ("expression", "3*x-1*y+13", "3x+4y+14"),
    ("expression", r"3x-1 \ldots", "3x-1"),
    ("integer", "4", r"4\sqrt(2)"),
    ("integer", "10", "5 5"),
    ("integer", "7", r"2 \frac{5}{1}"),
    ("integer", "1", "1:2"),
    ("integer", "9", "we cannot determine 9"),
    ("expression", "x", "x'"),
    ("expression", "f(x+1)", "fx+f"),
    ("expression", "P(A)", "PA"),
    # case, segments, words, units
    ("expression", "AB", "ab"),
    ("expression", "AB", "BA"),
    ("expression", "x", "X"),
    ("expression", "5m", "5"),
    ("integer", "45", "45h"),
    ("integer", "45", "45c"),
    ("integer", "69", "69{degrees}"),
    ("integer", "5", r"5\text{ cm}"),
    ("number", "50%", "50"),
    ("number", "50%", "0.5"),
    ("number", "30°", r"\frac{\pi}{6}"),
    # readings that are not unique
    ("expression", "1/2x", r"\frac{x}{2}"),
    ("expression", "1/2x", r"\frac{1}{2x}"),
    ("expression", "2^3^2", "64"),
    ("expression", "2^3^2", "512"),
    ("expression", r"\sin^{-1} x", r"\arcsin(x)"),
    ("expression", r"\sin 2x y", r"\sin(2xy)"),
    ("expression", r"\log 100", "2"),
    ("expression", r"\sum_{k=1}^{n} k+1", r"\frac{n(n+3)}{2}"),
    ("expression", r"\sum_{k=1}^{n} k+1", r"\frac{n(n+1)}{2}+1"),
    ("expression", "-1", "i^2"),
    ("expression", "-2", r"\sqrt[3]{-8}"),
    ("expression", "x", r"\sqrt{x^2}"),
    ("expression", "x", "|x|"),
    ("expression", "C_5^2", "10"),
    ("integer", "25", "C_5^2"),
    ("integer", "10", "10_{2}"),
    ("integer", "10", "10_2"),
    ("integer", "8", r"\log_28"),
    ("expression", "x^10", "x^{10}"),
    ("expression", r"\frac{d}{dx} x", "1"),
    # order, ends, number of elements
    ("interval", "(1,2)", "[1,2]"),
    ("interval", "(1,2]", "[1,2)"),
    ("interval", r"(-\infty,1)", r"(\infty,1)"),
    ("interval", "(1,2)", r"\{1,2\}"),
    ("tuple", "(1,2)", "(2,1)"),
    ("tuple", "(1,2)", "(1,2,2)"),
    ("tuple", "(1,234)", "(1234)"),
    ("number", "1,234", "(1,234)"),
    ("set", r"\{1,2\}", r"\{1\}"),
    ("set", r"\{1,2\}", r"\{1,1,2\}"),
    ("set", r"\{1,2,2\}", r"\{1,1,2\}"),
    ("set", r"\{1,2\}", "1,2,..."),
    ("set", r"\{1,234\}", r"\{1234\}"),
    ("choice", "A", "A"),
    ("equation", "x=1", "x=1"),
]


@pytest.mark.parametrize(("kind", "gold", "answer"), SAME)
def test_equal_answers_are_right_in_both_orders(is_same, kind, gold, answer):
    assert compare(kind, gold, answer, is_same) == "right"
    if not answer.startswith(("x", "C", "A")):  # as a gold answer, C_5^2 is a variable
        assert compare(kind, answer, gold, is_same) == "right"


@pytest.mark.parametrize(("kind", "gold", "answer"), DIFFERENT)
def test_different_answers_are_wrong_in_both_orders(is_same, kind, gold, answer):
    assert compare(kind, gold, answer, is_same) == "wrong"
    assert compare(kind, answer, gold, is_same) == "wrong"


@pytest.mark.parametrize(("kind", "gold", "answer"), NEVER_RIGHT)
def test_what_is_not_surely_equal_is_never_right(is_same, kind, gold, answer):
    assert compare(kind, gold, answer, is_same) != "right"
    assert compare(kind, answer, gold, is_same) != "right"


HOSTILE = [
    "2^{10^{12}}",
    "(10^9)!",
    "9^{9^{9}}",
    r"\binom{10^9}{5 \times 10^8}",
    r"\sum_{k=1}^{10^9} k!",
    r"\prod_{k=1}^{999999999} k",
]
HOSTILE += ["(" * 190 + "1" + ")" * 190, "{" * 10**5, r"\sqrt{" * 50 + "2" + "}" * 50, "1+" * 199 + "1", r"\binom{" * 40]
HOSTILE += [
    r"\frac{1}{" * 40 + "2" + "}" * 40,
    "x^{" * 60 + "x" + "}" * 60,
    "a" * 400,
    "\x00",
    "\ud800",
    "__import__('os').abort()",
]


def test_hostile_answers_are_answered_and_the_next_ones_too():
    pytest.importorskip("math_verify")
    with Verifier(Verify(cpu_seconds=0.3), RUNTIME) as verifier:
        asked = [boxed(answer, "2") for answer in HOSTILE] + [boxed(r"\binom{7}{3}", "35", "integer")]
        started = time.monotonic()
        verdicts = verifier.grade(asked)
    assert time.monotonic() - started < 60.0
    assert not [verdict for verdict in verdicts[:-1] if verdict.value == "right"]
    assert verdicts[-1].value == "right"


def test_the_rules_decide_first_and_math_verify_only_what_they_leave_open(verifier):
    asked = [
        boxed("8", "8", "integer"),
        boxed("9", "8", "integer"),
        boxed(r"\sum_{k=1}^{n} k^3", r"\frac{n^2(n+1)^2}{4}"),
        boxed(r"\sum_{k=1}^{n} k^3", "n^4"),
        boxed("no idea", "8", "integer"),
        Asked("?", "nothing", Gold("8", "integer")),
        Asked("?", r"\boxed{8}", Gold("8", "integer"), finish_reason="length"),
        boxed(r"\sum_{k=1}^{n} k^3", "2", "number", precision=1),
        boxed(r"\sum_{k=1}^{n} k^3", "2", "number", tolerance=0.1),
    ]
    alone = [grade(one.text, one.gold, finish_reason=one.finish_reason) for one in asked]
    verdicts = verifier.grade(asked)
    assert [verdict.value for verdict in verdicts[:7]] == [
        "right",
        "wrong",
        "right",
        "wrong",
        "unknown",
        "unknown",
        "unknown",
    ]
    for before, after in zip(alone, verdicts, strict=True):
        assert after == before or (before.value == "unknown" and after.rule == "math_verify")
    assert verdicts[2:4] == [
        Verdict("right", "math_verify", r"\sum_{k=1}^{n} k^3"),
        Verdict("wrong", "math_verify", r"\sum_{k=1}^{n} k^3"),
    ]
    assert verdicts[7:] == alone[7:]  # rounding and tolerance are not math-verify's business


def test_equal_questions_are_asked_once(verifier, monkeypatch):
    asked = [boxed(rf"\sum_{{k=1}}^{{n}} k^{power}", "n") for power in (2, 3, 2, 3, 2)]
    sent = []
    pool = verifier._pool
    monkeypatch.setattr(pool, "map", lambda jobs: sent.extend(jobs) or type(pool).map(pool, jobs))
    first = verifier.grade(asked)
    assert first == verifier.grade(asked)
    assert len(sent) == 2 and first[0] == first[2] == first[4]


def test_the_digest_names_every_opinion_and_its_limits(monkeypatch):
    pytest.importorskip("math_verify")
    judged = replace(RUNTIME, judge_url="http://localhost:1/v1")
    digests = [
        Verifier(ALONE, RUNTIME).digest,
        Verifier(Verify(), RUNTIME).digest,
        Verifier(Verify(cpu_seconds=2.0), RUNTIME).digest,
        Verifier(Verify(memory_bytes=1 << 29), RUNTIME).digest,
        Verifier(Verify(math_verify=False, judge=Judge(model="a")), judged).digest,
        Verifier(Verify(math_verify=False, judge=Judge(model="b")), judged).digest,
        Verifier(Verify(judge=Judge(model="a")), judged).digest,
    ]
    assert len(set(digests)) == len(digests)
    assert digests[0] == VERIFIER_DIGEST
    assert Verifier(Verify(), replace(RUNTIME, num_workers=7)).digest == digests[1]


def test_other_versions_than_the_tested_ones_are_refused(monkeypatch):
    monkeypatch.setitem(components.equality.VERSIONS, "math-verify", "0.8.0")
    with pytest.raises(SettingsError, match=r"math-verify is .*, tested is 0\.8\.0") as caught:
        Verifier(Verify(), RUNTIME)
    assert "verify.math_verify to false" in caught.value.hint
    monkeypatch.setitem(components.equality.VERSIONS, "no-such-library", "1")
    assert Verifier(ALONE, RUNTIME).grade([boxed("8", "8", "integer")]) == [Verdict("right", "integer", "8")]


def test_a_judge_without_an_address_is_refused():
    with pytest.raises(SettingsError, match="STEPFORGE_JUDGE_URL"):
        Verifier(Verify(math_verify=False, judge=Judge(model="a")), RUNTIME)


def test_the_key_of_the_judge_is_not_printed():
    runtime = load_runtime({"STEPFORGE_JUDGE_URL": "http://localhost:1/v1", "STEPFORGE_JUDGE_KEY": "sesame"})
    assert runtime.judge_key == "sesame" and "sesame" not in repr(runtime)


def test_a_judge_is_asked_about_open_verdicts_only_and_a_failing_one_only_lowers_n():
    asked = [
        boxed("eleven of the marbles", "11 marbles", "integer"),
        boxed("8", "8", "integer"),
        boxed("9", "8", "integer"),
        boxed("sorry", "8", "integer"),
        Asked("?", r"\boxed{8}", Gold("8", "integer"), finish_reason="length"),
        Asked("?", "no answer at all", Gold("8", "integer")),
    ]
    asked[0] = replace(asked[0], gold=Gold("11", "integer"))

    def contrary(body):
        return said("yes" if part(body, "answer").startswith("eleven") else "no")

    with Server(contrary) as server:
        runtime = replace(RUNTIME, judge_url=server.url)
        with Verifier(Verify(math_verify=False, judge=Judge(model="j")), runtime) as verifier:
            verdicts = verifier.grade(asked)
        assert sorted(part(body, "answer") for body in server.bodies) == ["eleven of the marbles", "sorry"]
    assert [(verdict.value, verdict.rule) for verdict in verdicts] == [
        ("right", "judge"),
        ("right", "integer"),
        ("wrong", "integer"),
        ("wrong", "judge"),
        ("unknown", "truncated"),
        ("unknown", "no_answer"),
    ]
    with Server(lambda body: (500, {}, "")) as server:
        runtime = replace(RUNTIME, judge_url=server.url)
        with Verifier(Verify(math_verify=False, judge=Judge(model="j", num_attempts=1)), runtime) as verifier:
            failed = verifier.grade(asked)
    assert [(a.value, b.value) for a, b in zip(verdicts, failed, strict=True) if a != b] == [
        ("right", "unknown"),
        ("wrong", "unknown"),
    ]


REALDATA = Path(__file__).parents[3] / "shared" / "realdata"


@pytest.mark.slow
@pytest.mark.skipif(not REALDATA.is_dir(), reason="needs the benchmarks' files")
def test_on_real_answers_math_verify_never_accepts_what_the_official_scorer_refuses(verifier):
    rows = [json.loads(line) for line in (REALDATA / "qwen25math_best_of_8/math_cot_50.jsonl").open()]
    asked, official = [], []
    for row in rows:
        for answer, score in zip(row["pred"], row["score"], strict=True):
            for kind in ("integer", "number", "expression"):
                asked.append((kind, row["gt"], answer))
                official.append(score)
    results = verifier._pool.map([{"kind": kind, "gold": gold, "answer": answer} for kind, gold, answer in asked])
    given = [(result.value, score) for result, score in zip(results, official, strict=True)]
    assert ("right", False) not in given and ("wrong", True) not in given
    assert given.count(("right", True)) > 300
