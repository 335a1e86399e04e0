"""A small made-up run in the shape that the stages write: enough files for the page, no model."""

from __future__ import annotations

import random
import struct
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from components import records
from components.records import CANDIDATE, SCORE, SELECTION, bytes_digest, digest, problem_id, write_json, write_table

POLICY, VERIFIER, PRM, BLIND = digest("policy"), digest("verifier"), digest("prm"), digest("blind")
COLOURS = {"red": (214, 60, 50), "green": (40, 160, 80), "blue": (50, 90, 210), "yellow": (235, 190, 40)}
SKILLS = {"prm": 0.42, "blind": 0.12, "shuffled": 0.0, "likelihood": 0.25, "likelihood_mean": 0.2, "orm": 0.3}
STAGES = ("curate", "sft", "rollout", "label", "train", "sample", "evaluate")


def build_run(folder: Path, *, num_problems: int = 40, seed: int = 0, hostile: str = "") -> dict[str, Any]:
    """Write data/ and artifacts/ under `folder`; returns the arguments of write_report but `out`.

    Args:
        hostile: text put into every question, answer, step, source and reason.
    """
    rng = random.Random(seed)
    data, artifacts = folder / "data", folder / "artifacts"
    data.mkdir(parents=True, exist_ok=True)
    for name, num in (("train", 60), ("demonstrations", 30), ("step_errors", 20)):
        pq.write_table(pa.table({"id": [f"{name}-{i}" for i in range(num)]}), data / f"{name}.parquet")
    candidates: list[dict] = []
    scores: list[dict] = []
    selections: list[dict] = []
    splits: dict[str, Any] = {}
    for split, share in (("dev", 0.5), ("test", 0.35), ("ood", 0.2)):
        problems = [_problem(rng, split, i, hostile) for i in range(num_problems)]
        _write_problems(data / f"{split}.parquet", problems)
        for problem in problems:
            _sample(rng, split, problem, share, hostile, candidates, scores, selections)
        splits[split] = _split_metrics(split, problems, selections, candidates, scores)
    write_table(artifacts / "candidates" / "candidates.parquet", candidates, CANDIDATE)
    write_table(artifacts / "evaluation" / "scores.parquet", scores, SCORE)
    write_table(artifacts / "evaluation" / "selections.parquet", selections, SELECTION)
    write_json(artifacts / "evaluation" / "metrics.json", _metrics(splits, hostile))
    write_json(artifacts / "search" / "search.json", _search(hostile))
    for stage, folder_name in zip(
        STAGES, ("seeds", "policy", "rollouts", "labels", "prm", "candidates", "evaluation"), strict=True
    ):
        write_json(artifacts / folder_name / "summary.json", _summaries(hostile, len(candidates))[stage])
    for folder_name in ("seeds", "rollouts", "labels", "candidates"):
        write_json(artifacts / folder_name / "gate.json", _gate(folder_name, hostile))
    return {
        "artifacts": artifacts,
        "data": data,
        "receipts": [_receipt(stage, i) for i, stage in enumerate(STAGES)],
        "registry": registry(hostile),
    }


def registry(hostile: str = "") -> dict[str, Any]:
    """As the flow gives it: what stands where, and the ledger."""
    gain = {"gate": "test: prm - random", "passed": True, "seen": f"+0.292{hostile}", "required": "mean at least +0.100"}
    sight = {"gate": "test: prm - blind", "passed": True, "seen": "+0.248", "required": "interval above +0.000"}
    nobody = {"gate": f"approver{hostile}", "passed": False, "seen": "nobody", "required": "a named approver"}
    at = {"prm_digest": PRM, "actor": f"ada{hostile}", "approver": None, "time": "2026-11-20T18:30:00.000+00:00"}
    staging = {**at, "seq": 1, "action": "promote", "environment": "staging", "version": "prm.staging/2"}
    done = {"seq": 2, "action": "done", "of": 1, "environment": "staging", "moved": True, "time": at["time"]}
    prod = {**at, "seq": 3, "action": "refuse", "environment": "prod", "version": "prm.staging/2"}
    ledger = [{**staging, "reasons": [gain, sight]}, done, {**prod, "reasons": [gain, nobody]}]
    places = {"dev": {"version": 2, "digest": PRM}, "staging": {"version": 2, "digest": PRM}, "prod": None}
    return {"model": f"prm{hostile}", "environments": places, "ledger": ledger}


def png(pixels: list[list[tuple[int, int, int]]]) -> bytes:
    """A picture as PNG bytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    raw = b"".join(b"\x00" + bytes(value for pixel in row for value in pixel) for row in pixels)
    header = struct.pack(">IIBBBBB", len(pixels[0]), len(pixels), 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def _bars(rng: random.Random, values: dict[str, int]) -> bytes:
    pixels = [[tuple(rng.randint(225, 250) for _ in range(3)) for _ in range(32)] for _ in range(32)]
    for k, (colour, value) in enumerate(values.items()):
        for y in range(31 - 3 * value, 32):
            for x in range(8 * k + 1, 8 * k + 7):
                pixels[y][x] = tuple(min(255, max(0, c + rng.randint(-12, 12))) for c in COLOURS[colour])
    return png(pixels)


def _problem(rng: random.Random, split: str, i: int, hostile: str) -> dict[str, Any]:
    names = rng.sample(list(COLOURS), 4)
    values = {name: rng.randint(1, 9) for name in names}
    a, b, c = names[:3]
    image = _bars(rng, values)
    kind = rng.choice(["total", "product"])
    if kind == "total":
        question, answer = f"total of {a} {b} and {c}", values[a] + values[b] + values[c]
        sums = [f"{values[a]} + {values[b]} = {values[a] + values[b]}", f"{values[a] + values[b]} + {values[c]} = {answer}"]
    else:
        question, answer = f"{a} plus {b} times {c}", values[a] + values[b] * values[c]
        sums = [f"{values[b]} * {values[c]} = {values[b] * values[c]}", f"{values[a]} + {values[b] * values[c]} = {answer}"]
    steps = [f"{name} = {values[name]}" for name in (a, b, c)] + sums + [f"answer = {answer}"]
    question, text = question + hostile, str(answer) + hostile
    name = problem_id(question, text, [bytes_digest(image)])
    return {
        "id": f"{split}-{i}",
        "source": f"world/bars/{kind}{hostile}",
        "question": question,
        "image": image,
        "answer": text,
        "steps": steps,
        "problem_id": name,
        "ease": 2 * rng.random(),
    }


def _write_problems(path: Path, problems: list[dict[str, Any]]) -> None:
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema(
        [("id", pa.string()), ("source", pa.string()), ("question", pa.string()), ("image", image), ("answer", pa.string())]
    )
    rows = [{**problem, "image": {"bytes": problem["image"], "path": None}} for problem in problems]
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


def _sample(rng, split, problem, share, hostile, candidates, scores, selections) -> None:
    rows = []
    for index in range(9):
        is_right = rng.random() < share * problem["ease"]
        wrong_from = len(problem["steps"]) if is_right else rng.randrange(6)
        steps = [
            step if i < wrong_from else f"{step.rpartition(' ')[0]} {rng.randint(2, 90)}"
            for i, step in enumerate(problem["steps"])
        ]
        answer = problem["answer"] if is_right else steps[-1].rpartition(" ")[2]
        verdict = "right" if is_right else "unknown" if rng.random() < 0.06 else "wrong"
        row = {
            "candidate_id": digest("candidate", split, problem["id"], index),
            "split": split,
            "problem_id": problem["problem_id"],
            "decoding": "greedy" if index == 8 else "sample",
            "index": 0 if index == 8 else index,
            "seed": 1,
            "steps": [step + hostile for step in steps],
            "text": "\n\n".join(step + hostile for step in steps),
            "answer": None if verdict == "unknown" else answer,
            "verdict": verdict,
            "rule": "number",
            "finish_reason": "length" if verdict == "unknown" else "stop",
            "num_tokens": 40,
            "logprob": -rng.random() * 20,
            "policy_digest": POLICY,
            "verifier_digest": VERIFIER,
        }
        rows.append(row)
        truth = [float(i < wrong_from) for i in range(len(steps))]
        scores.append({"candidate_id": row["candidate_id"], "scorer": "truth", "step_scores": truth})
        for scorer, skill in SKILLS.items():
            told = [
                min(0.999, max(0.001, (skill * (0.95 if i < wrong_from else 0.1)) + (1 - skill) * rng.random()))
                for i in range(len(steps))
            ]
            row[scorer] = min(told)
            scores.append({"candidate_id": row["candidate_id"], "scorer": scorer, "step_scores": told})
    sampled = rows[:8]
    right = [row["verdict"] == "right" for row in sampled]
    votes = [sum(other["answer"] == row["answer"] for other in sampled) for row in sampled]
    picks = {
        "random": sum(right) / 8,
        "greedy": float(rows[8]["verdict"] == "right"),
        "majority": float(right[votes.index(max(votes))]),
        "oracle": float(any(right)),
    }
    for scorer in SKILLS:
        picks[scorer] = float(max(sampled, key=lambda row: row[scorer])["verdict"] == "right")
        if not scorer.startswith("likelihood"):
            picks[f"{scorer}_vote"] = picks[scorer]
    selections += [
        {"split": split, "problem_id": problem["problem_id"], "selector": name, "value": value}
        for name, value in picks.items()
    ]
    candidates += [{name: row[name] for name in records.CANDIDATE.names} for row in rows]


def _estimate(values: list[float]) -> dict[str, float]:
    mean = sum(values) / len(values)
    half = 1.96 * (sum((v - mean) ** 2 for v in values) / len(values) / len(values)) ** 0.5
    return {"mean": mean, "low": mean - half, "high": mean + half}


def _split_metrics(
    split: str, problems: list[dict], selections: list[dict], candidates: list[dict], scores: list[dict]
) -> dict[str, Any]:
    values: dict[str, dict[str, float]] = {}
    for row in selections:
        if row["split"] == split:
            values.setdefault(row["selector"], {})[row["problem_id"]] = row["value"]
    ids = [p["problem_id"] for p in problems]
    by = {name: [found[i] for i in ids] for name, found in values.items()}
    pairs = [("prm", other) for other in ("random", "greedy", "majority", "likelihood", "blind", "shuffled")] + [
        ("prm", "orm"),
        ("prm_vote", "majority"),
        ("shuffled", "random"),
    ]
    differences = [{"a": a, "b": b, **_estimate([x - y for x, y in zip(by[a], by[b], strict=True)])} for a, b in pairs]
    for i, one in enumerate(differences):
        one |= {"p": 0.0004 if one["low"] > 0 else 0.03 + 0.1 * i, "p_holm": 0.0032 if one["low"] > 0 else 0.2 + 0.1 * i}
    selectors = {name: _estimate(found) for name, found in by.items()}
    shifts = {"min": 0.0, "product": -0.01, "mean": -0.02, "last": -0.07, "max": -0.2}
    aggregations = {name: {key: value + shift for key, value in selectors["prm"].items()} for name, shift in shifts.items()}
    room = selectors["oracle"]["mean"] - selectors["random"]["mean"]
    gap = {
        name: {key: (selectors[name][key] - selectors["random"]["mean"]) / room for key in ("mean", "low", "high")}
        for name in ("prm", "prm_vote")
    }
    return {
        "num_problems": len(problems),
        "num_candidates": 8,
        "selectors": selectors,
        "aggregations": aggregations,
        "differences": differences,
        "gap_closed": gap,
        "curves": _curves(split, candidates, scores),
        "tables": _tables(split, problems, values, candidates),
    }


def _curves(split: str, candidates: list[dict], scores: list[dict]) -> dict[str, Any]:
    """The mean over the eight rotations of n neighbours: each candidate is in equally many."""
    told = {(row["scorer"], row["candidate_id"]): min(row["step_scores"]) for row in scores}
    pools: dict[str, list[dict]] = {}
    for row in candidates:
        if row["split"] == split and row["decoding"] == "sample":
            pools.setdefault(row["problem_id"], []).append(row)

    def picks(name: str, n: int) -> list[float]:
        found = []
        for pool in pools.values():
            turns = [[pool[(i + k) % 8] for k in range(n)] for i in range(8)]
            found.append(sum(_pick(name, turn, told) for turn in turns) / 8)
        return found

    names = ("random", "majority", "prm", "prm_vote", "orm", "oracle")
    return {name: [{"n": n, **_estimate(picks(name, n)), "tokens": 40.0 * n} for n in (1, 2, 4, 8)] for name in names}


def _pick(name: str, pool: list[dict], told: dict[tuple[str, str], float]) -> float:
    right = [row["verdict"] == "right" for row in pool]
    if name == "random":
        return sum(right) / len(right)
    if name == "oracle":
        return float(any(right))
    if name in ("majority", "prm_vote"):
        votes: dict[str, float] = {}
        for row in pool:
            weight = 1.0 if name == "majority" else told["prm", row["candidate_id"]]
            votes[row["answer"]] = votes.get(row["answer"], 0.0) + weight
        top = max(votes, key=lambda answer: votes[answer])
        return float(any(good and row["answer"] == top for good, row in zip(right, pool, strict=True)))
    return float(max(pool, key=lambda row: told[name, row["candidate_id"]])["verdict"] == "right")


DIFFICULTIES = ("0", "0 to .25", ".25 to .5", ".5 to .75", ".75 to 1", "1")


def _tables(split: str, problems: list[dict], values: dict, candidates: list[dict]) -> dict[str, Any]:
    lengths: dict[str, list[int]] = {}
    for row in candidates:
        if row["split"] == split:
            lengths.setdefault(row["problem_id"], []).append(len(row["steps"]))
    groups: dict[str, dict[str, list[str]]] = {"source": {}, "difficulty": {}, "steps": {}}
    for problem in problems:
        name, share = problem["problem_id"], values["random"][problem["problem_id"]]
        place = 0 if share == 0 else 5 if share == 1 else 1 + int(share * 4)
        mean_steps = round(sum(lengths[name]) / len(lengths[name]))
        for kind, group in (("source", problem["source"]), ("difficulty", DIFFICULTIES[place]), ("steps", str(mean_steps))):
            groups[kind].setdefault(group, []).append(name)
    orders = {"source": sorted(groups["source"]), "difficulty": [d for d in DIFFICULTIES if d in groups["difficulty"]]}
    orders["steps"] = sorted(groups["steps"], key=int)
    return {kind: [_table_row(group, groups[kind][group], values) for group in order] for kind, order in orders.items()}


def _table_row(group: str, own: list[str], values: dict[str, dict[str, float]]) -> dict[str, Any]:
    means = {name: sum(values[name][i] for i in own) / len(own) for name in ("random", "majority", "prm", "oracle")}
    gain = _estimate([values["prm"][i] - values["random"][i] for i in own])
    return {"group": group, "num_problems": len(own), **means, "gain": gain}


def _search(hostile: str) -> dict[str, Any]:
    rows = [
        {
            "strategy": strategy + hostile,
            "budget": n,
            "mean": mean,
            "low": mean - 0.05,
            "high": mean + 0.05,
            "tokens": 44.0 * n,
        }
        for strategy, base in (("beam", 0.4), ("lookahead", 0.45), ("early_stop", 0.42))
        for n, mean in ((2, base), (4, base + 0.07), (8, base + 0.11))
    ]
    return {"split": "test", "rows": rows}


def _controls(hostile: str) -> dict[str, Any]:
    """Every control: (mean, what it says); intervals of one width."""
    told = {
        "answer_only": (0.08, "The PRM, minus the same PRM shown only the last step"),
        "steps_shuffled": (0.05, "The PRM, minus the same PRM shown the steps before the last in another order"),
        "blind": (0.25, "The PRM, minus the PRM trained without the picture"),
        "shuffled": (-0.02, "The PRM shown another picture, minus a random pick"),
        "length": (0.11, "Rank correlation of score and length among equally right candidates"),
        "padding": (0.31, "Share of wrong solutions that rise when an earlier step is said again"),
        "format": (0.42, "Share of wrong solutions that rise when the same words are put in another format"),
        "empty": (0.98, "Share of right solutions that beat an empty one"),
        "truncated": (0.71, "Share of right solutions that beat themselves cut before the last step"),
        "paraphrase": (0.03, "Mean difference of scores under another wording of the prompt's frame"),
        "last_minimum": (0.39, "Share of wrong solutions whose lowest score is on the last step"),
    }
    measures = [
        {"name": name, "mean": mean, "low": mean - 0.04, "high": mean + 0.04, "num": 210, "says": f"{says}.{hostile}"}
        for name, (mean, says) in told.items()
    ]
    return {"split": "test", "num_problems": 200, "measures": measures}


def _metrics(splits: dict[str, Any], hostile: str) -> dict[str, Any]:
    row = {
        "num_steps": 2310,
        "auroc": 0.872,
        "auroc_reading": 0.966,
        "f1_right": 0.91,
        "f1_wrong": 0.84,
        "macro_f1": 0.875,
        "first_error_f1": 0.71,
        "wrong_frac": 0.31,
        "trivial": {"all_right_macro_f1": 0.406, "random_macro_f1": 0.5},
    }
    steps = {
        "prm": row,
        "blind": {**row, "auroc": 0.75, "auroc_reading": 0.641},
        "shuffled": {**row, "auroc": 0.6, "auroc_reading": 0.433},
        "likelihood": {**row, "auroc": 0.892, "auroc_reading": None, "f1_right": None, "f1_wrong": None, "macro_f1": None},
    }
    bins = [
        {
            "low": i / 10,
            "high": (i + 1) / 10,
            "num_steps": 100 + 40 * (i - 5) ** 2,
            "mean_score": i / 10 + 0.05,
            "right_frac": min(1.0, max(0.0, (i / 10 + 0.05) * 1.12 - 0.04)),
        }
        for i in range(10)
    ]
    bins[4] |= {"num_steps": 0, "mean_score": None, "right_frac": None}
    return {
        "prm_digest": PRM,
        "blind_digest": BLIND,
        "policy_digest": POLICY,
        "aggregation": "min",
        "aggregations_by_scorer": {"prm": "min", "blind": "min", "shuffled": "min", "orm": "last"},
        "controls": _controls(hostile),
        "threshold": 0.42,
        "confidence": 0.95,
        "pools": {split: digest("pool", split) for split in splits},
        "splits": splits,
        "steps": {"candidates": steps, "step_errors": steps},
        "calibration": {"ece": 0.031, "bins": bins},
    }


def _summaries(hostile: str, num_candidates: int) -> dict[str, dict[str, Any]]:
    bars = [[i / 10, (i + 1) / 10, 400 + 300 * (i in (0, 9)) * (i + 2)] for i in range(10)]
    return {
        "curate": {
            "rows_in": 2451,
            "seeds": 2400,
            "quarantined": 51,
            "reasons": {f"duplicate{hostile}": 30, "leaked": 15, "broken_image": 6},
        },
        "sft": {"demonstrations": 6000, "steps": 600, "final_loss": 0.3127, "policy_digest": POLICY},
        "rollout": {
            "problems": 2400,
            "solutions": 9600,
            "failed_solutions": 0,
            "continuations": 183_220,
            "prefixes": 21_407,
            "tokens": 1_234_567,
            "verdicts": {"right": 90_100, "wrong": 92_900, "unknown": 220},
        },
        "label": {"labels": 41_220, "unlabelled": 17, "mean": 0.4831, "histogram": bars},
        "train": {"labels": 41_220, "steps": 500, "final_loss": 0.4411, "perception_accuracy": 0.987, "controls": ["blind"]},
        "sample": {
            "pools": {"dev": digest("pool", "dev"), "test": digest("pool", "test"), "ood": digest("pool", "ood")},
            "candidates": num_candidates,
            "tokens": 345_678,
        },
        "evaluate": {"aggregation": "min", "threshold": 0.42, "prm_accuracy_test": 0.728},
    }


def _gate(name: str, hostile: str) -> dict[str, Any]:
    whole = {
        "check": f"{name}/problem_id",
        "expectation": "ColumnValuesToNotBeNull",
        "says": "have no problem",
        "severity": "critical",
        "passed": True,
        "num_rows": 2400,
        "num_failed": 0,
        "first": "",
    }
    many = {**whole, "check": f"{name}/rows{hostile}", "says": f"above 0.3{hostile}", "severity": "warning"}
    if name == "seeds":
        many |= {"passed": False, "num_rows": 1, "num_failed": 1, "first": f"quarantined_frac = 0.31{hostile}"}
    return {"gate": name, "passed": True, "checks": [whole, many]}


def _receipt(stage: str, i: int) -> dict[str, Any]:
    tokens = {"sampled_tokens": 1_000_000 + i, "journal_tokens": 234_567} if stage in ("rollout", "sample") else {}
    return {
        "stage": stage,
        "inputs": {},
        "output": {"path": f"artifacts/{stage}", "sha256": digest("out", stage) * 2},
        "params": {},
        "summary": {},
        "started_at": "2026-11-20T18:22:00+00:00",
        "wall_seconds": 3.0 + 17.0 * i,
        "cpu_seconds": 5.5 + 30.0 * i,
        "peak_memory_bytes": 600_000_000 + 130_000_000 * i,
        "machine": "Linux x86_64, 2 cores",
        "num_threads": 2,
        "num_workers": 2,
        **tokens,
    }
