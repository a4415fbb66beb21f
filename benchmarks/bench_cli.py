"""How long the command line takes to answer: a cold start, and a listing of 100 feature sets (BENCHMARKS.md, bench-cli).

Whole processes are timed, as a user waits for them: interpreter, imports, work. The store has 100 small feature sets of 4 shards each over
one set of views, in different codecs and widths; each is opened and checked, and its records are read, as `features ls` always does.

    python -m benchmarks.bench_cli [--rounds 7]
"""

import argparse
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from eupe_pipeline.storage.features.features import FeatureLayout, FeatureReader, features_identity
from eupe_pipeline.storage.features.statistics import Statistics
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views.view_set import ViewSet
from eupe_pipeline.storage.views.view_spec import ViewSpec
from PIL import Image

from .figures import interleave, medians, report

SETS, IMAGES, SHARD_IMAGES = 100, 16, 4
TARGETS = {"cli.help_seconds": ("<", 0.3), "cli.ls100_seconds": ("<", 1.0)}


def make_store(folder: Path) -> str:
    """Return a store of 100 feature sets; returns its path."""
    random = np.random.default_rng(0)
    (folder / "images").mkdir()
    for n in range(IMAGES):
        Image.fromarray(random.integers(0, 256, (16, 16, 3), np.uint8)).save(folder / f"images/{n:02d}.png")
    store = FeatureStore.create(str(folder / "store"))
    dataset = build_index(store.objects, str(folder / "images"), "photos")
    views = ViewSet.create(store.objects, dataset, ViewSpec(), SHARD_IMAGES)
    for number in range(SETS):
        dim, codec = 64 * (1 + number % 5), ("int8", "fp16", "fp32", "int4")[number % 4]
        ones = np.ones(dim, np.float32)
        statistics = Statistics(ones, ones, ones, ones, number + 1)
        layout = FeatureLayout(dim, dim, (2, 2), codec)
        identity = features_identity({"weights_sha256": f"{number:064d}"}, views, statistics, {}, layout)
        features = FeatureReader.create(store.objects, f"teacher{number:03d}", views, identity, statistics)
        for shard in range(features.shards):
            tokens = random.normal(size=(SHARD_IMAGES, 2, 2, dim)).astype(np.float32)
            features.commit_shard(shard, features.encode(tokens[:, 0, 0].copy(), tokens), {}, "")
    return store.url


def run(arguments: list[str], number: int) -> None:
    """Run one process of the command line; raises CalledProcessError when it fails."""
    del number
    subprocess.run([sys.executable, "-m", "eupe_pipeline.pipeline", *arguments], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    """Make the store, time both commands in turn, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("docs/results/bench-cli.json"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="eupe-bench-") as folder:
        commands = {"cli.help_seconds": ["--help"], "cli.ls100_seconds": ["features", "ls", "--store", make_store(Path(folder))]}
        seconds = interleave({name: partial(run, words) for name, words in commands.items()}, given.rounds)
    report(medians(seconds), TARGETS, {"rounds": given.rounds, "seconds": seconds}, given.out)


if __name__ == "__main__":
    main()
