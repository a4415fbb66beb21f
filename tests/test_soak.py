"""The soak's own parts, and a short soak as it is run: commands that are killed and repeated leave nothing and change nothing."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from benchmarks.soak import SLACK_S, Soak
from benchmarks.soak_watch import Leftovers, Sample, growth, mapped_files, memory_mb, open_files


def test_growth_compares_the_last_third_with_the_first() -> None:
    assert growth([100.0, 100.0, 300.0, 50.0, 110.0, 110.0]) == pytest.approx(0.1)
    assert growth([100.0, 90.0, 1.0, 1.0, 1.0]) is None


def test_a_sample_keeps_the_most_of_a_tree_of_processes() -> None:
    sample, own = Sample("x"), os.getpid()
    sample.look([own])
    block = bytearray(os.urandom(32 << 20))
    sample.look([own, 2**30])  # another that has ended
    before = sample.memory_mb
    assert before > len(block) / 2**20
    assert sample.processes == 2
    assert sample.files >= 3
    assert (memory_mb(2**30), open_files(2**30)) == (0.0, 0)
    del block
    sample.look([own])
    assert sample.memory_mb == pytest.approx(before, rel=0.5)


def test_what_is_left_behind_is_named_by_kind(tmp_path: Path) -> None:
    before = Leftovers.look(tmp_path)
    assert all(names == [] for kind, names in before.beyond(before).items() if kind != "shared memory")
    litter = ("store/leases/set@0/run-1.json", "store/probes/1-a", "runs/a/.tmp-1-x")
    for name in litter:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    left = Leftovers.look(tmp_path).beyond(before)
    assert [left[kind] for kind in ("leases", "probes", "temporary files")] == [[str(tmp_path / name)] for name in litter]


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="no shared memory here")
def test_shared_memory_counts_as_left_when_no_living_process_has_it(tmp_path: Path) -> None:
    import mmap

    before = Leftovers.look(tmp_path)
    with tempfile.NamedTemporaryFile(dir="/dev/shm", prefix="psm_soak") as file:
        file.truncate(4096)
        mapped = mmap.mmap(file.fileno(), 4096)
        assert file.name in mapped_files()
        assert file.name not in Leftovers.look(tmp_path).beyond(before)["shared memory"]
        mapped.close()
        assert file.name in Leftovers.look(tmp_path).beyond(before)["shared memory"]


def test_a_pruned_set_is_not_pruned_again_after_a_kill(tmp_path: Path) -> None:
    from eupe_pipeline.storage.store import FeatureStore

    FeatureStore.create(str(tmp_path / "store"))
    soak = Soak(tmp_path, 0, (20, 60), 10, 0)
    assert soak._is_done(["features", "prune", "set@0123456789ab", "--store", "x"])
    assert not soak._is_done(["features", "verify", "--store", "x"])


def test_kills_come_by_the_clock_however_slow_the_command_and_stop_with_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.soak.POLL_S", 0.02)
    soak = Soak(tmp_path, 1.2 / 60, (0.0, 0.01), 10, 0)
    soak.begin()
    soak.run({"help": ["features", "--help"]})  # takes longer than the pause, until no kill comes any more
    assert len(soak.kills) >= 3
    assert soak.longest_between_kills() < 1.0
    assert soak.failures == []
    assert [sample.killed for sample in soak.samples] == [True] * len(soak.kills) + [False]


@pytest.mark.long
def test_a_short_soak_leaves_nothing_and_changes_no_weight(tmp_path: Path) -> None:
    options = ["--minutes", "1", "--pause", "8", "20", "--steps", "40", "--workers", "0", "--seed", "1"]
    words = [sys.executable, "-m", "benchmarks.soak", *options, "--out", str(tmp_path / "soak"), "--json", str(tmp_path / "soak.json")]
    done = subprocess.run(words, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "soak.json").read_text())
    assert found["failures"] == found["different_weights"] == []
    assert not any(found["left"].values())
    assert len(found["kills"]) >= 2
    assert found["figures"]["soak.longest_between_kills_s"]["value"] <= 20 + SLACK_S
    assert "kills of whole process trees" in (tmp_path / "soak.md").read_text()
