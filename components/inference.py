"""The verb `search`: strategies at inference on a policy and a reward model, accuracy against tokens.

Owns how the runs of all problems are driven side by side, and what is written; the strategies are elsewhere.
Everything goes through the journal: a run that was stopped goes on, and a second one samples nothing.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from components import metrics, selection
from components.errors import EngineError, SettingsError
from components.lineage import SUMMARY
from components.progress import Progress, say
from components.records import SELECTION, row_images, seed_for, write_json, write_table
from components.report.charts import Line, lines, scale_for
from components.report.markup import Html, join, percent, table, tag
from components.settings import Params, Runtime, Sampling
from components.strategies import STRATEGIES, Continuation, Draw, Judged, Options, Outcome, Read, Strategy, Units, budgets
from components.tasks import Task, load_task

MAX_STEPS = 64  # as in sample: only a runaway text is grouped
Reader = Callable[[Sequence[tuple[Mapping[str, Any], tuple[str, ...]]]], list[Judged]]
"""(problem, steps) -> what the reward model says, in order"""


def run(
    params: Params,
    runtime: Runtime,
    *,
    split: tuple[str, Path],
    policy: Path,
    prm: Path,
    out: Path,
    how: Sequence[str] = tuple(STRATEGIES),
    num: int = 16,
    width: int | None = None,
    ahead: int = 2,
    confidence: float = 0.8,
    aggregation: str | None = None,
    num_problems: int | None = None,
) -> dict[str, Any]:
    """Write search.json, search.html and selections.parquet into `out`; returns tokens sampled and reused.

    Args:
        split: name and file of the problems.
        how: names in STRATEGIES.
        num: the largest budget; every power of two below it is measured too.
        width: prefixes that the searches by steps keep; None: the square root of the budget.
        ahead: further steps that lookahead search rolls out.
        confidence: of early stopping.
        aggregation: of step scores to one score; None: what the reward model's contract names.
        num_problems: so many of the file, drawn by the seed; None: all.
    Raises:
        SettingsError: an unknown strategy or aggregation, a number that makes no sense, early stopping on advantages.
        DataError: the problems cannot be read.
        EngineError: the policy or the reward model cannot be loaded, or the latter was trained for another task.
    """
    import torch

    from components.problems import load_benchmark
    from components.sampling import Sampler

    _check(how, num, width, ahead, confidence, num_problems)
    torch.set_num_threads(runtime.num_threads)
    model, contract = _reward_model(prm, params, runtime)
    aggregation = aggregation or contract["aggregation"]
    if aggregation not in model.formulation.aggregations:
        known = ", ".join(model.formulation.aggregations)
        raise SettingsError(
            "command line", f"--aggregation {aggregation!r} does not fit this reward model", f"known: {known}"
        )
    names = list(how)
    if "early_stop" in names and not model.formulation.is_probability:
        what = f"early_stop on a reward model of formulation {model.formulation.name!r}, whose scores are no probabilities"
        if set(how) != set(STRATEGIES):  # it was named
            raise SettingsError("command line", what, "leave it out of --how, or train `count`")
        names.remove("early_stop")
        say("search", f"left out: {what}")
    name, path = split
    problems = load_benchmark(path, max_image_pixels=params.curate.max_image_pixels)
    if num_problems is not None and num_problems < len(problems):
        drawn = np.random.default_rng(seed_for(params.seed, "search", name)).permutation(len(problems))[:num_problems]
        problems = [problems[i] for i in sorted(drawn.tolist())]
    sampling = params.sample.sampling
    options = Options(aggregation, sampling.max_tokens, width, ahead, confidence)
    with Sampler(params, runtime, policy, name="search") as sampler:
        task = sampler.task
        seen = Oracle(params.seed, sampler, sampling, _reader(model, task))
        table_NB = measured(problems, names, num, options, seen)
        cost, policy_digest = sampler.cost(), sampler.policy_digest
    by_id = {p["problem_id"]: p for p in problems}
    clusters = selection.clusters(path, {key: {} for key in by_id}, by_id, by_picture=task.unit == "picture")
    bootstrap = metrics.Bootstrap(
        len(problems),
        num_resamples=params.evaluate.num_resamples,
        confidence=params.evaluate.confidence,
        seed=seed_for(params.seed, "bootstrap"),
        clusters=clusters,
    )
    result = {
        "split": name,
        "num_problems": len(problems),
        "policy_digest": policy_digest,
        "prm_digest": contract["digest"],
        "formulation": model.formulation.name,
        "aggregation": aggregation,
        "width": width,
        "ahead": ahead,
        "stop_confidence": confidence,
        "confidence": params.evaluate.confidence,
        **standings(table_NB, bootstrap),
    }
    write_json(out / "search.json", result)
    (out / "search.html").write_text(page(result), encoding="utf-8")
    rows = [
        {"split": name, "problem_id": p["problem_id"], "selector": f"{strategy}@{budget}", "value": outcome.value}
        for (strategy, budget), outcomes in table_NB.items()
        for p, outcome in zip(problems, outcomes, strict=True)
    ]
    write_table(out / "selections.parquet", rows, SELECTION)
    write_json(out / SUMMARY, {"prm_digest": contract["digest"], "num_problems": len(problems), "rows": len(result["rows"])})
    return cost


def _check(how: Sequence[str], num: int, width: int | None, ahead: int, confidence: float, num_problems: int | None) -> None:
    unknown = [name for name in how if name not in STRATEGIES]
    if unknown or not how:
        said = f"--how {unknown[0]!r} is no strategy" if unknown else "--how names no strategy"
        raise SettingsError("command line", said, f"known: {', '.join(STRATEGIES)}")
    counts = (("--num", num), ("--width", width), ("--ahead", ahead), ("--problems", num_problems))
    for flag, value in counts:
        if value is not None and value < 1:
            raise SettingsError("command line", f"{flag} {value} is no positive number", f"for example {flag} 4")
    if not 0.0 < confidence < 1.0:
        raise SettingsError("command line", f"--confidence {confidence:g} is no probability", "for example --confidence 0.8")


def _reward_model(prm: Path, params: Params, runtime: Runtime) -> tuple[Any, Mapping[str, Any]]:
    from components.contract import read_contract
    from components.prm import RewardModel
    from components.score import checkpoint_in

    folder, task = checkpoint_in(prm), load_task(params.task)
    contract = read_contract(folder)
    if contract.get("task_digest", task.digest) != task.digest:
        what = f"trained on task {contract['task']!r}, asked to score task {task.name!r}"
        raise EngineError(str(folder), what, "set `task` in params.yaml to the one it was trained on")
    return RewardModel.load(folder, device=runtime.device), contract


def _reader(model: Any, task: Task) -> Reader:
    from components.formulations import concentration
    from components.prm import Reading

    def read(asked: Sequence[tuple[Mapping[str, Any], tuple[str, ...]]]) -> list[Judged]:
        readings = [Reading(task.question(p["question"]), row_images(p), steps) for p, steps in asked]
        judged = []
        for logits_SC in model.read(readings):
            scores = [round(score, 6) for score in model.formulation.scores(logits_SC).tolist()]
            sure = concentration(logits_SC).tolist() if model.formulation.name == "count" else []
            judged.append(Judged(tuple(scores), tuple(round(value, 3) for value in sure)))
        return judged

    return read


# --- driving --------------------------------------------------------------------------------------------------------


@dataclass
class Oracle:
    """Answers the requests of all strategies of all problems; equal ones are answered once."""

    seed: int
    sampler: Any
    """Has `task`, `engine` and `rows(asks, sampling)`, as sampling.Sampler."""
    sampling: Sampling
    read: Reader

    def __post_init__(self) -> None:
        self._task: Task = self.sampler.task
        self._drawn: dict[tuple[str, Units, bool, int], Continuation] = {}
        self._judged: dict[tuple[str, Units], Judged] = {}

    def draw(self, wanted: Sequence[tuple[Mapping[str, Any], Draw]]) -> None:
        """Make the continuations known that are asked for."""
        from components.sampling import Ask

        for greedy in (False, True):
            missing: dict[tuple[str, Units], set[int]] = defaultdict(set)
            problems = {}
            for problem, draw in wanted:
                key = problem["problem_id"]
                new = {i for i in draw.indices if (key, draw.units, greedy, i) not in self._drawn}
                if draw.greedy == greedy and new:
                    missing[key, draw.units] |= new
                    problems[key] = problem
            order = [
                (key, units, part)
                for (key, units), indices in missing.items()
                for part in self._requests(units, sorted(indices))
            ]
            if not order:
                continue
            asks = [
                Ask(problems[key], tuple(self._seed(key, units, i, greedy) for i in indices), units)
                for key, units, indices in order
            ]
            sampling = Sampling(temperature=0.0, top_k=0, max_tokens=self.sampling.max_tokens) if greedy else self.sampling
            for (key, units, indices), rows in zip(order, self.sampler.rows(asks, sampling), strict=True):
                for i, row in zip(indices, rows, strict=True):
                    self._drawn[key, units, greedy, i] = continuation(row, self._task)

    def _requests(self, units: Units, indices: list[int]) -> list[list[int]]:
        """Those of one prefix are one request, unless the server counts the seeds of a request as one: then whole texts are
        asked for as `sample` does, and next steps one by one, so that no text depends on who else asks."""
        from components.sampling import BLOCK

        if self.sampler.engine.seeding == "row":
            return [indices]
        size = 1 if units else BLOCK
        return [list(part) for _, part in itertools.groupby(indices, key=lambda i: i // size)]

    def _seed(self, key: str, units: Units, index: int, greedy: bool) -> int:
        """Whole solutions are those that `sample` draws: what is in the journal is not paid twice."""
        decoding = "greedy" if greedy else "sample"
        return (
            seed_for(self.seed, key, decoding, index)
            if not units
            else seed_for(self.seed, key, decoding, list(units), index)
        )

    def judge(self, wanted: Sequence[tuple[Mapping[str, Any], Read]]) -> None:
        """Make the scores known that are asked for."""
        new = {}
        for problem, one in wanted:
            key = (problem["problem_id"], one.units)
            if key not in self._judged and key not in new:
                if one.units:
                    new[key] = (problem, tuple(self._task.steps(self._task.text(one.units), max_steps=MAX_STEPS)))
                else:
                    self._judged[key] = Judged(())  # an empty solution is never best
        self._judged.update(zip(new, self.read(list(new.values())) if new else [], strict=True))

    def reply(self, problem: Mapping[str, Any], request: Sequence[Draw] | Sequence[Read]) -> list[Any]:
        """What a strategy is sent for what it yielded, once `draw` and `judge` know it."""
        key = problem["problem_id"]
        return [
            [self._drawn[key, one.units, one.greedy, i] for i in one.indices]
            if isinstance(one, Draw)
            else self._judged[key, one.units]
            for one in request
        ]


def continuation(row: Mapping[str, Any], task: Task) -> Continuation:
    """A sampled row; its tokens are shared out among its units by their length, and the last one takes the end token."""
    units = tuple(task.splitter.split(row["text"]))
    total = int(row["num_tokens"])
    lengths = np.cumsum([len(unit) + len(task.splitter.separator) for unit in units] or [1])
    bounds = [0, *(round(total * length / int(lengths[-1])) for length in lengths.tolist())]
    tokens = tuple(b - a for a, b in itertools.pairwise(bounds))
    return Continuation(units, tokens, row["verdict"] == "right", row["answer"])


def drive(runs: Sequence[tuple[Mapping[str, Any], Strategy]], seen: Oracle) -> list[Outcome]:
    """Run all strategies side by side, so that every round is one batch for the engine and one for the reward model."""
    outcomes: list[Outcome | None] = [None] * len(runs)
    progress = Progress("search", len(runs), unit="runs")
    requests: dict[int, Sequence[Draw] | Sequence[Read]] = {}

    def step(i: int, reply: Any) -> None:
        try:
            requests[i] = runs[i][1].send(reply)
        except StopIteration as end:
            outcomes[i] = end.value
            requests.pop(i, None)
            progress.advance(1)

    for i in range(len(runs)):
        step(i, None)
    while requests:
        asked = [(runs[i][0], one) for i, request in requests.items() for one in request]
        seen.draw([(problem, one) for problem, one in asked if isinstance(one, Draw)])
        seen.judge([(problem, one) for problem, one in asked if isinstance(one, Read)])
        for i, request in list(requests.items()):
            step(i, seen.reply(runs[i][0], request))
    return [outcome for outcome in outcomes if outcome is not None]


def measured(
    problems: Sequence[Mapping[str, Any]], names: Sequence[str], num: int, options: Options, seen: Oracle
) -> dict[tuple[str, int], list[Outcome]]:
    """(strategy, budget) -> the outcome of every problem, the mean of its runs."""
    places = [(name, budget) for name in names for budget in budgets(num)]
    runs, owners = [], []
    for i, problem in enumerate(problems):
        for name, budget in places:
            for strategy in STRATEGIES[name](budget, num, options):
                runs.append((problem, strategy))
                owners.append((name, budget, i))
    sums: dict[tuple[str, int], list[list[Outcome]]] = {place: [[] for _ in problems] for place in places}
    for (name, budget, i), outcome in zip(owners, drive(runs, seen), strict=True):
        sums[name, budget][i].append(outcome)
    return {
        place: [
            Outcome(sum(o.value for o in some) / len(some), sum(o.num_tokens for o in some) / len(some)) for some in rows
        ]
        for place, rows in sums.items()
    }


# --- what is written ------------------------------------------------------------------------------------------------


def standings(table_NB: Mapping[tuple[str, int], Sequence[Outcome]], bootstrap: metrics.Bootstrap) -> dict[str, Any]:
    """`rows`: accuracy and tokens of every strategy at every budget; `differences`: to Best-of-N at the same budget."""
    values = {place: np.array([o.value for o in outcomes]) for place, outcomes in table_NB.items()}
    rows = [
        {
            "strategy": strategy,
            "budget": budget,
            **bootstrap.mean(values[strategy, budget]),
            "tokens": round(float(np.mean([o.num_tokens for o in outcomes])), 3),
            "num_problems": len(outcomes),
        }
        for (strategy, budget), outcomes in table_NB.items()
    ]
    differences = [
        {
            **{"a": strategy, "b": "best_of_n", "budget": budget},
            **bootstrap.mean(array - values["best_of_n", budget], is_difference=True),
        }
        for (strategy, budget), array in values.items()
        if strategy != "best_of_n" and ("best_of_n", budget) in values
    ]
    return {"rows": rows, "differences": differences}


def lines_of(result: Mapping[str, Any]) -> list[str]:
    """The table as text."""
    head = f"{'strategy':<12}{'budget':>7}  {'right':<24}{'tokens a problem':>17}"
    return [head] + [
        f"{row['strategy']:<12}{row['budget']:>7}  "
        f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]    {row['tokens']:>15,.1f}"
        for row in result["rows"]
    ]


# name -> (shown, class, dashed); colours that colour-blind people tell apart (Okabe and Ito), each on light and on dark
_STYLES = {
    "best_of_n": ("Best-of-N", "k0", False),
    "vote": ("PRM vote", "k1", False),
    "majority": ("majority", "k2", True),
    "early_stop": ("early stop", "k3", False),
    "beam": ("beam", "k4", False),
    "lookahead": ("lookahead", "k5", True),
}
_STYLE = """
:root { color-scheme: light dark; --ink: #1b2126; --soft: #59636c; --line: #dfe2dd; --paper: #fff;
  --k0: #0b5f98; --k1: #a8580d; --k2: #59636c; --k3: #00775a; --k4: #a0457e; --k5: #6d5fb0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9eb; --soft: #a0abb4; --line: #333b42; --paper: #14181b;
  --k0: #6cb6ea; --k1: #e69f00; --k2: #a0abb4; --k3: #2fc79b; --k4: #e394c4; --k5: #b1a5ee; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.2rem; } .note { color: var(--soft); font-size: .85rem; } .scroll { overflow-x: auto; }
svg { width: 100%; max-width: 48rem; height: auto; font: 11px system-ui, sans-serif; } svg text { fill: var(--soft); }
.grid { stroke: var(--line); } .base { stroke: var(--soft); } .leader { stroke: var(--line); }
.line { fill: none; stroke-width: 2; } .dashed { stroke-dasharray: 5 3; } .band { opacity: .1; stroke: none; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; } caption { text-align: left; color: var(--soft); }
th, td { text-align: right; padding: .15rem .8rem .15rem 0; border-bottom: 1px solid var(--line); font-weight: normal; }
th:first-child { text-align: left; } td { white-space: nowrap; }
@media (max-width: 30rem) { table { font-size: .8rem; } th, td { padding-right: .5rem; } }
""" + "".join(
    f"circle.k{i}, .band.k{i}, svg text.name.k{i} {{ fill: var(--k{i}); }} .line.k{i} {{ stroke: var(--k{i}); }}\n"
    for i in range(len(_STYLES))
)


def page(result: Mapping[str, Any]) -> str:
    """One self-contained page: the chart of accuracy against tokens, and its numbers."""
    rows = result["rows"]
    curves = []
    for name, (shown, kind, is_dashed) in _STYLES.items():
        places = sorted((row["tokens"], row["budget"], row) for row in rows if row["strategy"] == name and row["tokens"] > 0)
        if places:
            curves.append(Line(shown, kind, [(tokens, row) for tokens, _, row in places], is_dashed))
    scale = scale_for([row[end] for row in rows for end in ("low", "mean", "high")], floor=0.0, ceiling=1.0)
    title = f"{result['split']}: right answers by tokens spent, %"
    known = [at for curve in curves for at, _ in curve.points]
    ticks = [m * 10.0**e for e in range(7) for m in (1, 2, 5) if known and min(known) <= m * 10.0**e <= max(known)]
    chart: Html | None = None
    if curves:
        label = "generated tokens a problem (logarithmic)"
        form = lambda value: f"{100 * value:.0f}"  # noqa: E731
        chart = lines(curves, scale, title=title, x_label=label, x_ticks=ticks or [min(known)], form=form)
    cells = [
        (
            _STYLES[row["strategy"]][0],
            f"{row['budget']}",
            percent(row["mean"]),
            f"{percent(row['low'])} to {percent(row['high'])}",
            f"{row['tokens']:,.1f}",
        )
        for row in rows
    ]
    note = (
        f"{result['num_problems']:,} problems, {100 * result['confidence']:g} % intervals over problems. Reward model "
        f"{result['prm_digest'][:12]}, aggregation {result['aggregation']}; lookahead of {result['ahead']} steps; early "
        f"stopping at {result['stop_confidence']:g}. Tokens are those of the steps that a strategy looked at."
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content="default-src 'none'; style-src 'unsafe-inline'"),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
        tag("title", "search at inference"),
        tag("style", Html(_STYLE)),
    )
    columns = ("strategy", "budget", "right, %", "interval, %", "tokens a problem")
    body = tag("body", tag("h1", title), chart, tag("p", note, class_="note"), table(columns, cells, caption="Every point"))
    return "<!doctype html>\n" + join([tag("html", head, body, lang="en")]) + "\n"
