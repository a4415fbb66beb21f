"""A SLURM batch script over two hosts, each with processes, shared memory and Ray files of its own. The second is cut off in the middle,
and the extraction ends; or the first, and the same script, which SLURM puts into the queue again, ends it. Two trainings on the two
hosts then share the store.

Needs root and `ip netns`. `srun`, `scontrol` and `hostname` are stand-ins; script, Ray, token and program are the real ones.
"""

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from eupe_pipeline.jobs.cluster.slurm import SlurmOptions, batch_script

from ..two_hosts import ADDRESSES, cut_off, kill_all, plug_in

RAY_PROGRAM = "import sys; from ray.scripts.scripts import main; sys.exit(main())"
PROGRAM = "import sys; from eupe_pipeline.pipeline.commands.main import main; sys.exit(main(sys.argv[1:]))"
# A host of its own: network, processes, name, shared memory and Ray's folder. What is started ends with it.
HOST = """#!/bin/bash
name=$1; shift
exec ip netns exec "$name" unshare --mount --pid --fork --kill-child --mount-proc --uts bash -c '
  hostname "$1"; shift
  mkdir -p /tmp/ray; mount -t tmpfs tmpfs /tmp/ray; mount -t tmpfs -o size=2g tmpfs /dev/shm; exec "$@"' host "$name" "$@"
"""
# As SLURM does with --no-kill: a node that is lost ends nothing else, and the worst status is srun's.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
worst=0; started=()
for name in $FAKE_HOSTS; do as-host "$name" "$@" & started+=($!); done
for one in "${started[@]}"; do wait "$one" || worst=$?; done
exit "$worst"
"""
SHARDS = 24  # of the photos, one each
SCONTROL = "#!/bin/bash\nprintf '%s\\n' $FAKE_HOSTS\n"

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


def programs(folder: Path) -> Path:
    """A folder with stand-ins for SLURM, and the real programs of this environment."""
    python = f"#!{sys.executable}\n"
    texts = {"as-host": HOST, "srun": SRUN, "scontrol": SCONTROL, "ray": python + RAY_PROGRAM, "eupe-pipeline": python + PROGRAM}
    folder.mkdir()
    for name, text in texts.items():
        (folder / name).write_text(text + "\n")
        (folder / name).chmod(0o755)
    return folder


def commits(store: Any) -> dict[str, tuple[int, bytes]]:
    """The records of the shards that are there for good, and when each was written."""
    found = Path(store.url).glob("features/*/commits/*.json")
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in found}


class Job:
    """The script of an extraction over two hosts, as sbatch starts it: on the first."""

    def __init__(self, hosts: tuple[str, str], store: Any, teacher: str, root: Path) -> None:
        self.hosts, self.store, self.root, self.binaries = hosts, store, root, programs(root / "bin")
        self.environment = {
            **os.environ, "PATH": f"{self.binaries}:{os.environ['PATH']}", "FAKE_HOSTS": " ".join(hosts), "SLURM_JOB_NODELIST": "two hosts",
            "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_ON_NODE": "1", "EUPE_HEAD_ADDRESS": ADDRESSES[0], "OMP_NUM_THREADS": "1",
            "RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "2000", "RAY_health_check_failure_threshold": "3",
            "RAY_worker_niceness": "0",  # beside other tests, Ray's 15 would let the actors wait
        }  # fmt: skip
        words = ("extract-features", "--store", store.url, "--data", "photos", "--views", "2", "--teacher", teacher,
                 "--shard-images", "1", "--codec", "fp32", "--statistics-batches", "40", "--address", "auto", "--json")  # fmt: skip
        (root / "job.sh").write_text(batch_script(SlurmOptions(words, cpus_per_node=1)))

    def start(self) -> None:
        """Start it, or start it again; what it says is added to what it said (`--open-mode=append`)."""
        with (self.root / "job.log").open("a") as log:
            words = ["ip", "netns", "exec", self.hosts[0], "bash", str(self.root / "job.sh")]
            self.process = subprocess.Popen(words, env=self.environment, stdout=log, stderr=log, cwd=self.root)

    def lose(self, host: str) -> dict[str, tuple[int, bytes]]:
        """Cut a host off as soon as two shards are there; returns what was committed by then."""
        while len(commits(self.store)) < 2:
            assert self.process.poll() is None, self.said()
            time.sleep(0.02)
        cut_off(host)
        found = commits(self.store)
        assert len(found) < SHARDS, "the extraction was over before the host was lost"
        return found

    def said(self) -> str:
        return (self.root / "job.log").read_text()

    def end(self) -> Any:
        """Wait for the script's end; returns the feature set, complete and verified."""
        assert self.process.wait(480) == 0, self.said()
        reader = self.store.features(self.store.list_features()[0])
        assert reader.complete
        assert reader.rows == 2 * SHARDS
        assert len(commits(self.store)) == SHARDS
        verify = [self.binaries / "eupe-pipeline", "features", "verify", reader.key, "--store", self.store.url]
        assert subprocess.run(verify, check=False).returncode == 0
        return reader


def test_a_host_is_cut_off_the_extraction_ends_and_both_hosts_train_on_its_store(hosts: tuple[str, str], photos: Any) -> None:
    store, options, root = photos
    job, began = Job(hosts, store, options.teachers[0].name, root), time.monotonic()
    job.start()
    at_the_cut = job.lose(hosts[1])
    started_s = time.monotonic() - began
    reader = job.end()
    ended_s = time.monotonic() - began
    assert "a node was lost on the way" in job.said()
    assert at_the_cut.items() <= commits(store).items()
    assert trained_on(job, reader.key) == 1
    print(json.dumps({"started_s": started_s, "at_the_cut": len(at_the_cut), "ended_s": ended_s, "ray": ray.__version__}))


def test_the_first_host_is_cut_off_and_the_same_script_queued_again_ends_the_extraction(hosts: tuple[str, str], photos: Any) -> None:
    store, options, root = photos
    job, began = Job(hosts, store, options.teachers[0].name, root), time.monotonic()
    job.start()
    at_the_cut = job.lose(hosts[0])
    assert job.process.wait(30) != 0
    lost_s = time.monotonic() - began
    kill_all(hosts[1])  # before SLURM queues a job again, it ends what is left of it
    between = commits(store)
    assert at_the_cut.items() <= between.items()
    assert len(between) < SHARDS, "the extraction was over before it was queued again"
    plug_in(hosts[0])
    job.start()
    reader = job.end()
    assert between.items() <= commits(store).items(), "a shard was done twice"
    assert trained_on(job, reader.key) == 1
    figures = {"at_the_cut": len(at_the_cut), "when_queued_again": len(between), "lost_s": lost_s}
    print(json.dumps({**figures, "ended_s": time.monotonic() - began, "ray": ray.__version__}))


def trained_on(job: Job, key: str) -> int:
    """Train the same on both hosts at once; how many different students came of it."""
    small = [f"--set={one}" for one in ("student.architecture='vit-mini'", "student.sizes_px=[32]", "run.steps=6", "run.batch_size=8")]
    train = ["eupe-pipeline", "train", "--stage", "2", "--recipe", "demo", "--store", job.store.url, "--data", "photos"]
    trainings = []
    for number, host in enumerate(job.hosts):
        words = [job.binaries / "as-host", host, *train, "--features", key, *small, "--out", str(job.root / f"on-{number}")]
        trainings.append(subprocess.Popen(words, env=job.environment, stderr=subprocess.PIPE))
    for training in trainings:
        _, errors = training.communicate(timeout=120)
        assert training.returncode == 0, errors.decode()
    weights = [next((job.root / f"on-{number}").rglob("model.safetensors")) for number in range(2)]
    return len({hashlib.sha256(path.read_bytes()).hexdigest() for path in weights})
