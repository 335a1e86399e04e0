"""Generated tokens per CPU-second of the engine `hf` and of plain transformers, on the same tiny policy, in one run.

Prompts, pictures, sampling and numbers of completions are equal; the two take turns, and medians are compared. Also
compares what they say: the share of each token and the lengths of the texts (two-sample tests), and greedy texts.

    make bench-engine        or: python -m tests.bench_engine --repetitions 9 --policy artifacts/policy
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.engines import Prompt
from components.settings import Sampling, TinyBase, limit_threads
from tests.conftest import picture

limit_threads(1)
QUESTION = "bars : most minus least ?"
STEPS = ("red: 3\n\n", "blue: 5\n\n", "green: 2\n\n")
NUM_PROMPTS = 16
NUM_COMPLETIONS = 16
SAMPLING = Sampling(temperature=1.0, top_k=50, max_tokens=64)
GREEDY = Sampling(temperature=0.0, top_k=0, max_tokens=64)


@dataclass
class Contest:
    """Generated tokens per CPU-second of each repetition."""

    ours: list[float]
    theirs: list[float]

    @property
    def speedup(self) -> float:
        """Ratio of the medians."""
        return statistics.median(self.ours) / statistics.median(self.theirs)


def contest(policy: Path, mix: str, *, repetitions: int) -> Contest:
    """Let the two generate the same work in turns, `repetitions` times, after a first time that does not count."""
    engine = watched(policy)
    result = Contest([], [])
    for repetition in range(repetitions + 1):
        prompts = work(mix, seed=repetition)
        rates = []
        for generate in (
            lambda: engine.texts_of(prompts, SAMPLING),  # noqa: B023
            lambda: plain_generate(engine, prompts, SAMPLING, seed=repetition),  # noqa: B023
        ):
            started = time.process_time()
            num_tokens = sum(map(len, generate()))
            rates.append(num_tokens / (time.process_time() - started))
        if repetition:
            result.ours.append(rates[0])
            result.theirs.append(rates[1])
    return result


def watched(policy: Path) -> Any:
    """The engine, which also gives the token ids of its texts."""
    from components.engines.hf import HfEngine

    class Watched(HfEngine):
        def texts_of(self, prompts: list[Prompt], sampling: Sampling) -> list[list[int]]:
            self.lines: dict[tuple[int, ...], list[list[int]]] = {}
            self.generate(prompts, sampling)
            return [line for prompt in prompts for line in self.lines[prompt.seeds]]

        def _decode(self, encoded: Any, seeds: Any, sampling: Any) -> Any:
            self._asked = seeds
            return super()._decode(encoded, seeds, sampling)

        def _completions(self, tokens: Any, logprobs: Any, counts: Any) -> Any:
            lines = iter([line[line >= 0].tolist() for line in tokens])
            for seeds in self._asked:
                self.lines[seeds] = [next(lines) for _ in seeds]
            return super()._completions(tokens, logprobs, counts)

    return Watched(policy, device="cpu")


def work(mix: str, *, seed: int) -> list[Prompt]:
    """The prompts, each with a picture of its own: whole solutions to ask for, or continuations after 0 to 3 steps."""
    prompts = []
    for i in range(NUM_PROMPTS):
        first = 1_000_000 * seed + 1000 * i
        prefill = "".join(STEPS[: i % 4]) if mix == "continuations" else ""
        prompts.append(Prompt(QUESTION, (picture(i),), prefill, tuple(range(first, first + NUM_COMPLETIONS))))
    return prompts


def plain_generate(
    engine: Any, prompts: list[Prompt], sampling: Sampling, *, seed: int, banned: bool = False
) -> list[list[int]]:
    """Token ids of one call of `generate(num_return_sequences=K)`, padded on the left where lengths differ."""
    import torch

    from components.render import join_tensors

    torch.manual_seed(seed)
    encoded = [engine._encode(prompt) for prompt in prompts]
    width = max(len(e.ids) for e in encoded)
    ids = torch.tensor([[engine.tokenizer.pad_token_id] * (width - len(e.ids)) + e.ids for e in encoded])
    mask = torch.tensor([[0] * (width - len(e.ids)) + [1] * len(e.ids) for e in encoded])
    chosen: dict[str, Any] = {"do_sample": False}
    if sampling.temperature:
        chosen = {"do_sample": True, "temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
        chosen["num_return_sequences"] = NUM_COMPLETIONS
    if banned:
        chosen["suppress_tokens"] = engine.banned_ids.tolist()
    with torch.inference_mode():
        out = engine.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=sampling.max_tokens,
            **chosen,
            **join_tensors(encoded, width, "cpu", engine.model.dtype),
        )
    texts = []
    for line in out[:, width:].tolist():
        end = next((at for at, token in enumerate(line) if token in engine.end_ids), len(line) - 1)
        texts.append(line[: end + 1])
    return texts


def disagreement(policy: Path, mix: str, *, repetitions: int = 8) -> dict[str, float]:
    """p-values of "the same distribution": tokens at three places, all tokens of one text a prompt, lengths."""
    from scipy import stats

    engine = watched(policy)
    ours, theirs = [], []
    for repetition in range(repetitions):
        prompts = work(mix, seed=100 + repetition)
        ours += engine.texts_of(prompts, SAMPLING)
        theirs += plain_generate(engine, prompts, SAMPLING, seed=100 + repetition, banned=True)
    told = {
        f"token {place + 1}": _same_shares(*[[t[place : place + 1] for t in texts] for texts in (ours, theirs)])
        for place in (0, 1, 7)
    }
    lengths = [[len(text) for text in texts] for texts in (ours, theirs)]
    return told | {"length": float(stats.ks_2samp(*lengths).pvalue)}


def _same_shares(ours: list[list[int]], theirs: list[list[int]]) -> float:
    from scipy import stats

    counts = [Counter(token for text in texts for token in text) for texts in (ours, theirs)]
    words = sorted(counts[0] | counts[1])
    often = [w for w in words if counts[0][w] + counts[1][w] >= 10]
    table = [[c[w] for w in often] + [sum(c[w] for w in words if w not in often)] for c in counts]
    columns = [column for column in zip(*table, strict=True) if sum(column)]
    return float(stats.chi2_contingency(list(zip(*columns, strict=True))).pvalue) if len(columns) > 1 else 1.0


def greedy_agreement(policy: Path, mix: str) -> float:
    """Share of the prompts whose greedy text is the same token by token."""
    engine = watched(policy)
    prompts = [Prompt(p.question, p.images, p.prefill, p.seeds[:1]) for p in work(mix, seed=0)]
    told = engine.texts_of(prompts, GREEDY)
    lines = plain_generate(engine, prompts, GREEDY, seed=0, banned=True)
    return sum(a == b for a, b in zip(told, lines, strict=True)) / len(told)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="tokens per CPU-second against plain transformers")
    parser.add_argument("--policy", type=Path, help="a policy's folder; without it, one with random weights")
    parser.add_argument("--repetitions", type=int, default=9)
    args = parser.parse_args()
    print(f"{'':16}{'engine hf':>12}{'transformers':>14}{'speed-up':>10}{'lowest':>8}{'highest':>9}   tokens per CPU-second")
    with tempfile.TemporaryDirectory() as scratch:
        policy = args.policy or random_policy(Path(scratch))
        for mix in ("solutions", "continuations"):
            result = contest(policy, mix, repetitions=args.repetitions)
            ours, theirs = statistics.median(result.ours), statistics.median(result.theirs)
            each = [a / b for a, b in zip(result.ours, result.theirs, strict=True)]
            print(f"{mix:<16}{ours:>12,.0f}{theirs:>14,.0f}{result.speedup:>10.2f}{min(each):>8.2f}{max(each):>9.2f}")
            told = ", ".join(f"{name} {p:.2f}" for name, p in disagreement(policy, mix).items())
            print(f"  the same distribution, p: {told}; greedy texts that agree: {greedy_agreement(policy, mix):.0%}")


def random_policy(folder: Path) -> Path:
    """A policy of the known-truth world's architecture and size, with random weights."""
    from components.checkpoints import POLICY, files_digest
    from components.records import write_json
    from components.tiny import write_base

    write_base(folder, TinyBase(type="tiny"), seed=1)
    write_json(folder / POLICY, {"path_or_id": None, "revision": None, "digest": files_digest(folder)})
    return folder


if __name__ == "__main__":
    main()
