"""A SLURM batch script over two hosts, each a network namespace with processes, shared memory and Ray files of its own; one is cut off in
the middle, the extraction ends, and two trainings on the two hosts then share its store.

Needs root and `ip netns`. `srun`, `scontrol` and `hostname` are stand-ins; script, Ray, token and program are the real ones.
"""

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from eupe_pipeline.jobs.cluster.slurm import SlurmOptions, batch_script

ADDRESSES = ("10.231.78.1", "10.231.78.2")
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
SCONTROL = "#!/bin/bash\nprintf '%s\\n' $FAKE_HOSTS\n"

pytestmark = [pytest.mark.long, pytest.mark.timeout(560)]


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def pids_of(host: str) -> list[int]:
    found = subprocess.run(["ip", "netns", "pids", host], capture_output=True, text=True, check=False)
    return [int(pid) for pid in found.stdout.split()]


def kill_all(host: str) -> None:
    for pid in pids_of(host):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    """Two namespaces that reach each other and nothing else."""
    if os.geteuid() or shutil.which("ip") is None or shutil.which("unshare") is None:
        pytest.skip("network namespaces need root and the commands `ip` and `unshare`")
    tag = secrets.token_hex(3)
    names, links = (f"eupe-1-{tag}", f"eupe-2-{tag}"), (f"va{tag}", f"vb{tag}")
    try:
        try:
            for name in names:
                ip("netns", "add", name)
            ip("link", "add", links[0], "netns", names[0], "type", "veth", "peer", "name", links[1], "netns", names[1])
        except subprocess.CalledProcessError as error:
            pytest.skip(f"this machine gives no network namespaces: {error.stderr.decode().strip()}")
        for name, link, address in zip(names, links, ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", link)
            for device in (link, "lo"):
                ip("-n", name, "link", "set", device, "up")
        yield names
    finally:
        for name in names:
            kill_all(name)
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def programs(folder: Path) -> Path:
    """A folder with stand-ins for SLURM, and the real programs of this environment."""
    python = f"#!{sys.executable}\n"
    texts = {"as-host": HOST, "srun": SRUN, "scontrol": SCONTROL, "ray": python + RAY_PROGRAM, "eupe-pipeline": python + PROGRAM}
    folder.mkdir()
    for name, text in texts.items():
        (folder / name).write_text(text + "\n")
        (folder / name).chmod(0o755)
    return folder


def committed(store: Any) -> int:
    """Shards of the only feature set that are there for good."""
    return len(list(Path(store.url).glob("features/*/commits/*.json")))


def test_a_host_is_cut_off_the_extraction_ends_and_both_hosts_train_on_its_store(hosts: tuple[str, str], photos: Any) -> None:
    store, options, root = photos
    binaries = programs(root / "bin")
    environment = {
        **os.environ, "PATH": f"{binaries}:{os.environ['PATH']}", "FAKE_HOSTS": " ".join(hosts), "SLURM_JOB_NODELIST": "two hosts",
        "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_ON_NODE": "1", "EUPE_HEAD_ADDRESS": ADDRESSES[0], "OMP_NUM_THREADS": "1",
        "RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "2000", "RAY_health_check_failure_threshold": "3",
    }  # fmt: skip
    words = ("extract-features", "--store", store.url, "--data", "photos", "--views", "2", "--teacher", options.teachers[0].name,
             "--shard-images", "1", "--codec", "fp32", "--statistics-batches", "40", "--address", "auto", "--json")  # fmt: skip
    (root / "job.sh").write_text(batch_script(SlurmOptions(words, cpus_per_node=1)))
    began = time.monotonic()
    with (root / "job.log").open("w") as log:
        job = subprocess.Popen(
            ["ip", "netns", "exec", hosts[0], "bash", str(root / "job.sh")], env=environment, stdout=log, stderr=log, cwd=root
        )
    while committed(store) < 2:
        assert job.poll() is None, (root / "job.log").read_text()
        time.sleep(0.02)
    started_s = time.monotonic() - began
    link = next(line.split(": ")[1].split("@")[0] for line in links_of(hosts[1]) if "veth" in line or "@" in line)
    ip("-n", hosts[1], "link", "set", link, "down")
    kill_all(hosts[1])
    at_the_cut = committed(store)
    status = job.wait(480)
    said = (root / "job.log").read_text()
    assert status == 0, said
    assert at_the_cut < 24, "the extraction was over before the host was lost"
    assert "a node was lost on the way" in said
    reader = store.features(store.list_features()[0])
    assert reader.complete
    assert reader.rows == 48
    assert committed(store) == 24
    result = next(json.loads(line) for line in reversed(said.splitlines()) if line.startswith("{") and '"result"' in line)
    ended_s = time.monotonic() - began
    assert subprocess.run([binaries / "eupe-pipeline", "features", "verify", reader.key, "--store", store.url], check=False).returncode == 0

    assert trained_on(hosts, store, reader.key, environment, root) == {store.url: 1}
    figures = {"started_s": started_s, "at_the_cut": at_the_cut, "ended_s": ended_s, "ray": ray.__version__, "retried": result}
    print(json.dumps(figures, default=str))


def links_of(host: str) -> list[str]:
    """The network devices of a host, a line each, loopback left out."""
    found = subprocess.run(["ip", "-n", host, "-o", "link"], capture_output=True, text=True, check=True)
    return [line for line in found.stdout.splitlines() if " lo:" not in line]


def trained_on(hosts: tuple[str, str], store: Any, key: str, environment: dict[str, str], root: Path) -> dict[str, int]:
    """Train the same on both hosts at once; how many different students came of it, by store."""
    small = [f"--set={one}" for one in ("student.architecture='vit-mini'", "student.sizes_px=[32]", "run.steps=6", "run.batch_size=8")]
    words = [
        "eupe-pipeline",
        "train",
        "--stage",
        "2",
        "--recipe",
        "demo",
        "--store",
        store.url,
        "--data",
        "photos",
        "--features",
        key,
        *small,
    ]
    trainings = [
        subprocess.Popen(
            [root / "bin" / "as-host", host, *words, "--out", str(root / f"on-{number}")], env=environment, stderr=subprocess.PIPE
        )
        for number, host in enumerate(hosts)
    ]
    for training in trainings:
        _, errors = training.communicate(timeout=120)
        assert training.returncode == 0, errors.decode()
    weights = [next((root / f"on-{number}").rglob("model.safetensors")) for number in range(2)]
    return {store.url: len({hashlib.sha256(path.read_bytes()).hexdigest() for path in weights})}
