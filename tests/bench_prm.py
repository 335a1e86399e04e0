"""What sharing saves: scoring and training time, tokens and peak memory of the reward model, each pair in one run.

The two sides of a pair take turns on one thread and medians are compared; that they compute the same is asserted.

    make bench-prm           or: python -m tests.bench_prm --repetitions 7 --artifacts artifacts
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from components.settings import TinyBase, limit_threads
from tests.conftest import name_policy, picture

limit_threads(1)
NUM_CANDIDATES, NUM_STEPS = 8, 8
PROMPT_TOKENS = 600
VOCABULARY, ROW_TOKENS = 150_000, 8192


def main() -> None:
    """Print the tables."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--artifacts", type=Path, help="of a finished run: its labels' own trees are counted")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model = policy(Path(folder))
        scoring(model, options.repetitions)
        training(model, options.repetitions)
    if options.artifacts:
        tokens_of(options.artifacts)
    memory()


def policy(folder: Path) -> Any:
    """A random reward model of the known-truth world's architecture, wide enough for matrices to be what costs."""
    from components.prm import RewardModel
    from components.tiny import write_base

    write_base(folder, TinyBase(type="tiny", hidden_size=256, num_layers=6), seed=0)
    name_policy(folder)
    return RewardModel.from_policy(folder, device="cpu", max_tokens=4096).eval()


def problem(branches: bool) -> tuple[str, list[tuple[str, ...]]]:
    """A question of about 600 tokens and eight solutions of eight steps; `branches`: pairs share their first half."""
    question = " ".join(f"bars : total of red and blue {i % 170} ?" for i in range(PROMPT_TOKENS // 9))
    solutions = []
    for c in range(NUM_CANDIDATES):
        half = c // 2 if branches else c
        steps = [f"{half + s} + {s} = {half + 2 * s} red: {half} blue: {s}" for s in range(NUM_STEPS // 2)]
        steps += [f"{c + s} - {s} = {c} red: {c} blue: {s + 20}" for s in range(NUM_STEPS // 2)]
        solutions.append(tuple(steps))
    return question, solutions


def scoring(model: Any, repetitions: int) -> None:
    """Best-of-8: one tree, one padded batch, and the prefix run again for every step."""
    import torch

    from components.prm import Reading

    question, solutions = problem(branches=False)
    readings = [Reading(question, (picture(0),), steps) for steps in solutions]
    prompt = model.renderer.prompt(question, (picture(0),))
    rendered = [model.renderer.solution(steps) for steps in solutions]

    def tree() -> list[list[float]]:
        return model.score(readings)  # type: ignore[no-any-return]

    @torch.inference_mode()
    def padded() -> list[list[float]]:
        hidden = model.hidden([prompt.ids + r.ids for r in rendered], [prompt] * len(rendered))
        at = [hidden[b, [len(prompt.ids) + m for m in r.markers]] for b, r in enumerate(rendered)]
        return [model.formulation.scores(states @ model.head.T).tolist() for states in at]

    @torch.inference_mode()
    def step_by_step() -> list[list[float]]:
        scores = []
        for r in rendered:
            states = [model.hidden([prompt.ids + r.ids[: m + 1]], [prompt])[0, -1] for m in r.markers]
            scores.append(model.formulation.scores(torch.stack(states) @ model.head.T).tolist())
        return scores

    sizes = (
        f"prompt {len(prompt.ids)} tokens, {len(rendered)} solutions of {statistics.mean(len(r.ids) for r in rendered):.0f}"
    )
    times, values = in_turns({"tree": tree, "padded batch": padded, "prefix again a step": step_by_step}, repetitions)
    apart = max(
        abs(a - b) for other in values[1:] for x, y in zip(values[0], other, strict=True) for a, b in zip(x, y, strict=True)
    )
    table("scoring", sizes, times)
    print(f"  largest difference of a score {apart:.1e}")
    assert apart < 1e-4


def training(model: Any, repetitions: int) -> None:
    """One forward and backward of a problem's solutions, as one tree and as padded rows."""
    import torch

    from components.formulations import Targets
    from components.packing import tree

    question, solutions = problem(branches=True)
    prompt = model.renderer.prompt(question, (picture(0),))
    rendered = [model.renderer.solution(steps) for steps in solutions]
    joined, rows = [tree(prompt, rendered)], [tree(prompt, [r]) for r in rendered]
    labels = torch.linspace(0, 1, sum(len(r.markers) for r in rendered))

    def learn(layout: Sequence[Any]) -> Callable[[], torch.Tensor]:
        def step() -> torch.Tensor:
            model.zero_grad()
            loss = model.formulation.loss(model.logits(layout), Targets.of(labels))
            loss.backward()
            return torch.cat([loss.detach()[None], model.head.grad.flatten()])

        return step

    times, values = in_turns({"tree": learn(joined), "rows": learn(rows)}, repetitions)
    num = [sum(map(len, layout)) for layout in (joined, rows)]
    table("training step", f"{num[1]:,} tokens as rows, {num[0]:,} as a tree: {num[1] / num[0]:.1f}x fewer", times)
    apart = float((values[0] - values[1]).norm() / values[1].norm())
    print(f"  relative difference of loss and head gradient {apart:.1e}")
    assert apart < 1e-5


def tokens_of(artifacts: Path) -> None:
    """Tokens of a run's own labelled solutions, as rows and as trees."""
    from components.examples import read_examples
    from components.learner import trees_of
    from components.prm import RewardModel
    from components.settings import load_params
    from components.tasks import load_task

    params = load_params(Path("params.yaml"))
    model = RewardModel.from_policy(artifacts / "policy", device="cpu")
    folders = (artifacts / name for name in ("seeds", "rollouts", "labels"))
    examples = read_examples(model, load_task(params.task), *folders)
    trees, _ = trees_of(model, examples)
    prompts = (model.renderer.prompt(e.question, e.images) for e in examples)
    rows = sum(len(prompt.ids) + len(e.rendered.ids) for prompt, e in zip(prompts, examples, strict=True))
    joined = sum(map(len, trees))
    print(f"\n{artifacts}: {rows:,} tokens as rows, {joined:,} as trees: {rows / joined:.1f}x fewer")


def memory() -> None:
    """Peak memory of one training row of 8,192 tokens with a vocabulary of 150,000, each form in a process of its own."""
    context = multiprocessing.get_context("spawn")
    peaks = {}
    for form in ("markers first", "full logits"):
        queue = context.SimpleQueue()
        process = context.Process(target=_peak, args=(form, queue))
        process.start()
        process.join()
        peaks[form] = queue.get()
    print(f"\npeak memory, one row of {ROW_TOKENS:,} tokens, vocabulary {VOCABULARY:,}")
    for form, peak in peaks.items():
        print(f"  {form:<20}{peak / 2**30:6.2f} GiB")
    print(f"  difference {(peaks['full logits'] - peaks['markers first']) / 1e9:.2f} GB")


def _peak(form: str, queue: Any) -> None:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.set_num_threads(2)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Qwen2Config(vocab_size=VOCABULARY, max_position_embeddings=ROW_TOKENS, num_key_value_heads=2, **shape)
    model = Qwen2ForCausalLM(config)
    ids = torch.randint(0, VOCABULARY, (1, ROW_TOKENS))
    markers, rows = torch.arange(63, ROW_TOKENS, 64), [10, 12]
    if form == "full logits":
        logits = model(input_ids=ids, use_cache=False).logits[0, markers][:, rows]
    else:
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        logits = hidden[0, markers] @ model.lm_head.weight[rows].T
    torch.nn.functional.cross_entropy(logits, torch.zeros(len(markers), dtype=torch.long)).backward()
    queue.put(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def in_turns(sides: dict[str, Callable[[], Any]], repetitions: int) -> tuple[dict[str, list[float]], list[Any]]:
    """CPU seconds of each side, in turns, after one time that does not count; and what each gave last."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    values: dict[str, Any] = {}
    for repetition in range(repetitions + 1):
        for name, side in sides.items():
            started = time.process_time()
            values[name] = side()
            if repetition:
                times[name].append(time.process_time() - started)
    return times, list(values.values())


def table(title: str, sizes: str, times: dict[str, list[float]]) -> None:
    """Median and range of each side, and its ratio to the first."""
    first = statistics.median(next(iter(times.values())))
    print(f"\n{title}: {sizes}")
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        print(f"  {name:<22}{middle:8.3f} s  [{min(seconds):.3f}, {max(seconds):.3f}]  {middle / first:5.1f}x")


if __name__ == "__main__":
    main()
