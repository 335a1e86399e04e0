"""How often the paired interval holds the truth: simulated problems, alone and in clusters, 93 to 97 of 100 times."""

import zlib

import numpy as np
import pytest

from components.metrics import Bootstrap

NUM_TRIALS = 2000
# clusters, problems in each, how difficulty is spread (Beta), gain, how often both selectors share their luck
SCENARIOS = {
    "30 problems, no gain": (30, "one", (2, 2), 0.0, 0.5),
    "30 problems": (30, "one", (2, 2), 0.1, 0.5),
    "50 problems": (50, "one", (2, 2), 0.1, 0.5),
    "50 easy problems": (50, "one", (4, 1), 0.2, 0.3),
    "100 problems": (100, "one", (2, 2), 0.1, 0.8),
    "100 hard problems": (100, "one", (1, 3), 0.1, 0.5),
    "300 problems": (300, "one", (2, 2), 0.05, 0.5),
    "300 easy problems": (300, "one", (4, 1), 0.2, 0.8),
    "15 clusters of 10": (15, "ten", (2, 2), 0.1, 0.5),
    "30 clusters of 10, no gain": (30, "ten", (2, 2), 0.0, 0.5),
    "50 clusters of 10": (50, "ten", (1, 3), 0.1, 0.5),
    "20 clusters of 1 to 5": (20, "mixed", (2, 2), 0.1, 0.5),
    "50 clusters of 1 to 5": (50, "mixed", (4, 1), 0.2, 0.3),
    "30 clusters of 1 to 30": (30, "heavy", (2, 2), 0.1, 0.5),
    "60 clusters of 1 to 30": (60, "heavy", (2, 2), 0.1, 0.5),
}


def sizes(rng, num_clusters, kind):
    return {
        "one": lambda: np.ones(num_clusters, int),
        "ten": lambda: np.full(num_clusters, 10),
        "mixed": lambda: rng.integers(1, 6, num_clusters),
        "heavy": lambda: np.minimum(30, rng.geometric(0.25, num_clusters)),
    }[kind]()


def paired_verdicts(rng, cluster_P, num_clusters, spread, gain, shared):
    """Two selectors' verdicts: problems of a cluster are alike in difficulty and in what the first gains there."""
    share_P = rng.beta(*spread, num_clusters)[cluster_P]
    gain_P = 2 * gain * rng.random(num_clusters)[cluster_P]
    luck_P = rng.random(len(cluster_P))
    other_P = np.where(rng.random(len(cluster_P)) < shared, luck_P, rng.random(len(cluster_P)))
    return (luck_P < share_P + gain_P * (1 - share_P)).astype(float), (other_P < share_P).astype(float)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_the_truth_lies_inside_as_often_as_the_interval_says(name, capsys):
    num_clusters, kind, spread, gain, shared = SCENARIOS[name]
    truth = gain * (1 - spread[0] / sum(spread))
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    is_fixed = kind in ("one", "ten")
    held, width = 0, 0.0
    for trial in range(NUM_TRIALS):
        if trial % 100 == 0 or not is_fixed:
            cluster_P = np.repeat(np.arange(num_clusters), sizes(rng, num_clusters, kind))
            names = [str(c) for c in cluster_P] if kind != "one" else None
            bootstrap = Bootstrap(len(cluster_P), num_resamples=1000, confidence=0.95, seed=trial, clusters=names)
        a_P, b_P = paired_verdicts(rng, cluster_P, num_clusters, spread, gain, shared)
        interval = bootstrap.mean(a_P - b_P)
        held += interval["low"] <= truth <= interval["high"]
        width += interval["high"] - interval["low"]
    with capsys.disabled():
        print(f"\n{name:28} truth {truth:+.3f}  held {held / NUM_TRIALS:.3f}  mean width {width / NUM_TRIALS:.3f}", end=" ")
    assert 0.93 <= held / NUM_TRIALS <= 0.97
