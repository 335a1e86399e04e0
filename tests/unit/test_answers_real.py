"""Our verdicts against the official ones on real outputs; skipped where the rows are not on this machine.

Unknown counts as not right. What remains of disagreement is listed, with whose mistake it is, in docs/grading.md.
"""

import csv
import json
import re
from pathlib import Path

import pytest

from components.benchmarks import answer_rule
from components.grade import graded_rows, joined, read_rows
from components.grading import Gold, answer_type, grade
from components.letters import folded

REALDATA = Path(__file__).parents[3] / "shared" / "realdata"
needs_rows = pytest.mark.skipif(not REALDATA.is_dir(), reason="real rows are not on this machine")


def files(pattern: str) -> list[Path]:
    return sorted(REALDATA.glob(pattern))


def share(rows) -> float:
    judged = [row for row in rows if row.official is not None]
    return sum(not row.is_disagreement for row in judged) / len(judged)


def math_vision(path: Path, response: str):
    golds = read_rows(REALDATA / "mathvision/test_all_3040_noimages.jsonl")
    rows = joined(read_rows(path), golds, "id")
    return rows, list(graded_rows(rows, answer_rule("mathvision"), response=response, official="correct"))


@needs_rows
@pytest.mark.parametrize("response", ["response", "model_answer"])
@pytest.mark.parametrize("path", files("mathvision/judged/*.jsonl"), ids=lambda path: path.stem)
def test_math_vision_free_form(path, response):
    rows, graded = math_vision(path, response)
    free = [verdict for row, verdict in zip(rows, graded, strict=True) if not row["options"]]
    assert share(free) >= 0.99
    false_rejects = {(v.gold, v.answer) for v in free if v.is_disagreement and v.official}
    theirs = {r"\frac{1}{55}", r"(\frac{\sqrt{3}}{49})^6", r"\left( \frac{\sqrt{3}}{49} \right)^6"}
    assert {answer for _, answer in false_rejects} <= theirs  # accepted there because both round to 0.02 or to 0
    assert not [v for v in free if v.is_disagreement and not v.official]


def is_bare_option(row) -> bool:
    """Whether the official extraction is one letter, or an option's text: what the official comparison can read."""
    said = row["model_answer"].strip()
    return re.fullmatch(r"[a-eA-E]?", said) is not None or (said.isalnum() and folded(said) in map(folded, row["options"]))


@needs_rows
@pytest.mark.parametrize("response", ["response", "model_answer"])
@pytest.mark.parametrize("path", files("mathvision/judged/*.jsonl"), ids=lambda path: path.stem)
def test_math_vision_multiple_choice(path, response):
    rows, graded = math_vision(path, response)
    choices = [(row, verdict) for row, verdict in zip(rows, graded, strict=True) if row["options"]]
    assert share([verdict for _, verdict in choices]) >= 0.92  # `32 cm^2` and `(E) MATH` are wrong answers there
    assert share([verdict for row, verdict in choices if is_bare_option(row)]) >= 0.99
    assert share([verdict for _, verdict in choices if verdict.official]) >= 0.95  # what they call right, we do


def is_sound(row) -> bool:
    """Whether MathVista's scorer compared what the model said: it takes the nearest option for any text, and 3.9 for 3."""
    said = (row["extraction"] or "").strip()
    if row["choices"]:
        letter = re.fullmatch(r"\(?([A-Z])\)?\.?", said)
        return (ord(letter[1]) - 65 < len(row["choices"])) if letter else folded(said) in map(folded, row["choices"])
    if row["answer_type"] == "integer" and re.fullmatch(r"-?\d+\.\d+", said):
        return float(said) == int(float(said))
    return True


@needs_rows
@pytest.mark.parametrize(("response", "least"), [("extraction", 0.999), ("response", 0.96)])
def test_math_vista_where_the_official_rule_is_sound(response, least):
    verdicts = []
    for path in files("mathvista/judged/*.jsonl"):
        rows = [row for row in read_rows(path) if row["response"]]  # the file of random guesses holds none
        graded = graded_rows(rows, answer_rule("mathvista"), response=response, official="true_false")
        verdicts += [verdict for row, verdict in zip(rows, graded, strict=True) if is_sound(row)]
    assert len(verdicts) > 3000
    assert share(verdicts) >= least


@needs_rows
def test_ursa_outputs_on_math_vista_with_their_inverted_polarity():
    rows = read_rows(REALDATA / "ursa_outputs/infer_mathvista_1000.jsonl")
    for row in rows:
        row["choices"] = row["choices"] or None
    graded = list(graded_rows(rows, answer_rule("mathvista"), official="match", inverted=True))
    assert share(graded) >= 0.98


@needs_rows
def test_all_scoring_examples_of_olympiad_bench():
    examples = json.loads(next(iter(files("olympiadbench/scoring_examples_*.json"))).read_text())
    rule = answer_rule("olympiadbench")
    seen = 0
    for example in examples:
        for case in example["Ans"]:
            gold = rule.read({"GT": example["GT"], "error": case.get("precision")})
            assert gold is not None, example["GT"]
            text = case["answer"] if "boxed" in case["answer"] else rf"\boxed{{{case['answer']}}}"
            assert (grade(text, gold).value == "right") == case["equal"], (example["GT"], case)
            seen += 1
    assert seen >= 18


@needs_rows
@pytest.mark.parametrize("response", ["response", "pred"])
def test_qwen_best_of_8(response):
    for path in files("qwen25math_best_of_8/*.jsonl"):
        graded = list(graded_rows(read_rows(path), answer_rule("math"), response=response, official="score"))
        assert len(graded) >= 400
        assert share(graded) >= 0.995


@needs_rows
@pytest.mark.parametrize("model", ["6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"])
def test_gsm8k(model):
    for path in files("gsm8k/example_model_solutions_*.jsonl"):
        rule = answer_rule("gsm8k")
        graded = graded_rows(read_rows(path), rule, response=f"{model}.solution", official=f"{model}.is_correct")
        assert share(list(graded)) == 1.0


@needs_rows
@pytest.mark.parametrize(
    ("pattern", "official"), [("mmmu/judged/llava*.jsonl", "official_correct"), ("mmmu/judged/mmmu_pro_*.jsonl", "if_right")]
)
def test_mmmu(pattern, official):
    for path in files(pattern):
        rows = [row for row in read_rows(path) if not row.get("official_guessed_at_random")]
        assert share(list(graded_rows(rows, answer_rule("mmmu"), official=official))) >= 0.98


@needs_rows
def test_logic_vista_letters():
    for path in files("logicvista/judged/*.csv"):
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        model = path.name.removesuffix("-accuracy-results.csv")
        graded = list(graded_rows(rows, answer_rule("logicvista"), response=f"{model} answer raw", official="match?"))
        false_accepts = [v for v in graded if v.verdict == "right" and not v.official]
        assert len(false_accepts) <= 0.02 * len(graded)  # a letter that GPT-4 dropped
        bare = [
            v for row, v in zip(rows, graded, strict=True) if re.fullmatch(r"\W*[A-Ea-e]\W*", row[f"{model} answer raw"])
        ]
        assert not [v for v in bare if v.is_disagreement]


@needs_rows
@pytest.mark.parametrize(
    ("path", "name", "least"),
    [
        ("mathvision/test_all_3040_noimages.jsonl", "mathvision", 0.999),
        ("mathvista/testmini_1000_noimages.json", "mathvista", 0.999),
        ("mathverse/testmini_text_only_200.json", "mathverse", 0.99),
        ("olympiadbench/OE_TO_maths_en_COMP_100.json", "olympiadbench", 0.97),
        ("prm800k/math500_test.jsonl", "math", 0.999),
        ("mmk12_test/k12_250_noimages.json", "mmk12", 0.9),
        ("wemath/testmini_194.json", "wemath", 0.999),
        ("dynamath/trial1/dataset.json", "dynamath", 0.999),
        ("logicvista/dataset_sample.json", "logicvista", 0.99),
        ("gsm8k/test_100.jsonl", "gsm8k", 0.999),
    ],
)
def test_nearly_every_gold_answer_has_a_rule_and_is_right_against_itself(path, name, least):
    if not (REALDATA / path).is_file():
        pytest.skip("these rows are not on this machine")
    rows, rule = read_rows(REALDATA / path), answer_rule(name)
    golds = [gold for gold in map(rule.read, rows) if gold is not None]
    assert len(golds) >= least * len(rows)
    for gold in golds:
        text = gold.answer.replace("$", "") if "\n" not in gold.answer else gold.answer
        assert grade(rf"\boxed{{{text}}}", gold).value in ("right", "unknown"), gold


@needs_rows
def test_no_gold_answer_is_right_for_another():
    answers = sorted({str(row["answer"]) for row in read_rows(REALDATA / "prm800k/math500_test.jsonl")})[::3]
    golds = [Gold(answer, kind) for answer in answers if (kind := answer_type(answer)[0])]
    accepted = [
        (gold.answer, answer) for gold in golds for answer in answers if grade(rf"\boxed{{{answer}}}", gold).value == "right"
    ]
    for gold, answer in accepted:
        assert gold == answer or grade(rf"\boxed{{{gold}}}", Gold(answer, answer_type(answer)[0])).value == "right", (
            gold,
            answer,
        )
    assert len(accepted) <= len(golds) + 10
