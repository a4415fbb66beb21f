"""Curation of 60,000 images of 1,280 channels: seconds and memory, and whether 500 planted near duplicates are all that is found.

The tokens are those of 2,000 kinds with a spectrum like a real teacher's (channel variances fall by a power law); a copy is its original
with noise of a fifth of its length. Each round runs in a process of its own, whose peak memory is read at its end.

    python -m benchmarks.bench_curate
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from eupe_pipeline.jobs.curation.clusters import balanced, evenness, hierarchy
from eupe_pipeline.jobs.curation.duplicates import chosen_threshold, duplicate_groups, nearest_of_a_sample
from eupe_pipeline.jobs.curation.image_tokens import Tokens
from numpy.typing import NDArray

from .figures import medians, report

IMAGES, DIM, PLANTED, KINDS = 60_000, 1_280, 500, 2_000
TARGETS = {
    "curate.near_duplicates_seconds": ("<", 60.0),
    "curate.peak_megabytes": ("<", 1000.0),
    "curate.planted_found": (">=", float(PLANTED)),
    "curate.wrongly_found": ("<=", 0.0),
}


def planted_tokens(images: int, dim: int, planted: int, seed: int = 0) -> tuple[NDArray[np.float16], NDArray[np.int64]]:
    """Tokens (N, D), and for each the image that it is a copy of, or its own number."""
    random = np.random.default_rng(seed)
    scale = (1 + np.arange(dim, dtype=np.float32)) ** -0.25
    centres = random.standard_normal((min(KINDS, images), dim), np.float32) * scale
    values, original = np.empty((images, dim), np.float16), np.arange(images)
    for start in range(0, images, 1024):
        count = min(1024, images - start)
        kinds = random.integers(0, len(centres), count)
        values[start : start + count] = 0.7 * centres[kinds] + random.standard_normal((count, dim), np.float32) * scale
    chosen = random.permutation(images)[: 2 * planted]
    for source, copy in zip(chosen[:planted].tolist(), chosen[planted:].tolist(), strict=True):
        noise = random.standard_normal(dim, np.float32)
        token = values[source].astype(np.float32)
        values[copy] = token + noise * (0.2 * np.linalg.norm(token) / np.linalg.norm(noise))
        original[copy] = source
    return values, original


def measure() -> dict[str, Any]:
    """One round, in this process."""
    values, original = planted_tokens(IMAGES, DIM, PLANTED)
    started, cpu_started = time.perf_counter(), time.process_time()
    tokens = Tokens.of(values)
    nearest = nearest_of_a_sample(tokens, 0)
    threshold, why = chosen_threshold(nearest)
    groups = duplicate_groups(tokens, threshold, 0)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    copies = np.flatnonzero(original != np.arange(IMAGES))
    found = sum(groups.first_N[copy] == groups.first_N[original[copy]] for copy in copies.tolist())
    joined = sum(len(one) - 1 for one in groups.members())
    started = time.perf_counter()
    tree = hierarchy(tokens, 0)
    stays = balanced(tree, IMAGES // 2, 0)
    balance_seconds = time.perf_counter() - started
    even = {
        str(count): [round(evenness(label, count), 4), round(evenness(label[stays], count), 4)]
        for count, label in zip(tree.clusters, tree.label_LN, strict=True)
    }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    return {
        "curate.near_duplicates_seconds": seconds, "curate.near_duplicates_cpu_seconds": cpu_seconds,
        "curate.balance_seconds": balance_seconds, "curate.peak_megabytes": peak,
        "curate.planted_found": int(found), "curate.wrongly_found": joined - int(found), "threshold": [threshold, why], "evenness": even,
    }  # fmt: skip


def main() -> None:
    """Rounds in processes of their own; prints and keeps the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", action="store_true", help="One round in this process, as JSON.")
    parser.add_argument("--out", type=Path, default=Path("docs/results/bench-curate.json"))
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure()))
        return
    command = [sys.executable, "-m", "benchmarks.bench_curate", "--one"]
    rounds = [json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(given.rounds)]
    figures = {name: [one[name] for one in rounds] for name in rounds[0] if name.startswith("curate.")}
    details = {name: rounds[0][name] for name in ("threshold", "evenness")}
    report(medians(figures), TARGETS, {"images": IMAGES, "channels": DIM, "rounds": given.rounds, "all": figures, **details}, given.out)


if __name__ == "__main__":
    main()
