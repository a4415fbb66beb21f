"""SLURM batch scripts: the work's words arrive as they were given, its status is the job's, and a lost node is none of it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from eupe_pipeline.jobs.cluster.slurm import SlurmOptions, batch_script
from eupe_pipeline.pipeline.commands.main import main
from eupe_pipeline.storage.core.errors import BadInput

HOSTILE = ("two words", "it's", 'a "quote"', "$HOME", "`id`", "$(id)", "back\\slash", "line\nbreak", "", "*", "#", "!x", "-- x", "ü")
SCONTROL = (
    "#!/bin/sh\necho first\nseq -f node%.0f 2 20000\n"  # more than a pipe holds: a script that reads one line alone would end it by SIGPIPE
)
# A stand-in that runs the work of the first node alone, where FAKE_SRUN says so, and ends as srun would.
SRUN = f"""#!{sys.executable}
import json, os, subprocess, sys
words = sys.argv[1:]
work = words[words.index("--") + 1:]
if os.environ["FAKE_SRUN"] != "never":
    subprocess.run(work)
json.dump([words, {{name: value for name, value in os.environ.items() if name.startswith("RAY_")}}], open("seen.json", "w"))
sys.exit(int(os.environ["FAKE_STATUS"]))
"""
PROGRAM = f"""#!{sys.executable}
import json, os, sys
json.dump(sys.argv[1:], open("words.json", "w"))
sys.exit(int(os.environ["WORK_STATUS"]))
"""


def shellcheck(script: str, folder: Path) -> str:
    """What shellcheck says of a script, at its strictest."""
    file = folder / "checked.sh"
    file.write_text(script)
    program = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or shutil.which("shellcheck")
    assert program is not None
    done = subprocess.run([program, "--severity=style", str(file)], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def run(script: str, folder: Path, srun: str = "work", srun_status: int = 0, work_status: int = 0) -> "subprocess.CompletedProcess[str]":
    """Run a batch script with stand-ins for SLURM and for the program."""
    (folder / "bin").mkdir(exist_ok=True)
    for name, text in (("scontrol", SCONTROL), ("srun", SRUN), ("eupe-pipeline", PROGRAM)):
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    (folder / "job.sh").write_text(script)
    environment = {
        **os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "FAKE_SRUN": srun, "FAKE_STATUS": str(srun_status),
        "WORK_STATUS": str(work_status), "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_ON_NODE": "3",
        "EUPE_HEAD_ADDRESS": "192.0.2.7",
    }  # fmt: skip
    return subprocess.run(["bash", "job.sh"], cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "options",
    [
        SlurmOptions(HOSTILE),
        SlurmOptions(("train",), 16, 8, 96, "2-00:00:00", "a.b", "gpu", "lab", ("--constraint=a100|h100",), ("module load python",), 7000),
    ],
)
def test_a_script_passes_shellcheck(options: SlurmOptions, tmp_path: Path) -> None:
    assert shellcheck(batch_script(options), tmp_path) == ""


def test_every_word_of_the_command_arrives_as_it_was_given(tmp_path: Path) -> None:
    done = run(batch_script(SlurmOptions(HOSTILE)), tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "words.json").read_text()) == list(HOSTILE)


def test_ray_starts_on_every_node_with_the_jobs_own_token(tmp_path: Path) -> None:
    tokens = []
    for _ in range(2):
        run(batch_script(SlurmOptions(("train",), gpus_per_node=8)), tmp_path)
        words, ray = json.loads((tmp_path / "seen.json").read_text())
        assert words[: words.index("symmetric-run")][-1] == "ray"
        assert {"--no-kill", "--ntasks=2", "--wait=0", "--kill-on-bad-exit=0", "--num-cpus=3", "--num-gpus=8"} <= set(words)
        assert words[words.index("--address") + 1] == ray["RAY_ADDRESS"] == "192.0.2.7:6379"
        assert ray["RAY_AUTH_MODE"] == "token"
        tokens.append(ray["RAY_AUTH_TOKEN"])
    assert tokens[0] != tokens[1]
    assert all(len(token) == 64 and int(token, 16) for token in tokens)
    assert not any(token in (tmp_path / "job.sh").read_text() for token in tokens)


@pytest.mark.parametrize(
    ("srun", "srun_status", "work_status", "status"),
    [("work", 0, 0, 0), ("work", 137, 0, 0), ("work", 0, 2, 2), ("work", 137, 1, 1), ("never", 137, 0, 137), ("never", 0, 0, 1)],
    ids=["all well", "a node lost", "the work failed", "both", "never began", "never began, and srun says well"],
)
def test_the_jobs_status_is_the_works(tmp_path: Path, srun: str, srun_status: int, work_status: int, status: int) -> None:
    done = run(batch_script(SlurmOptions(("train",))), tmp_path, srun, srun_status, work_status)
    assert done.returncode == status
    assert ("a node was lost on the way" in done.stderr) == (srun_status == 137 and status == 0)
    assert ("submit this again" in done.stderr) == (srun == "never")


def test_a_job_outlives_a_node_and_is_queued_again_without_its_first() -> None:
    lines = batch_script(SlurmOptions(("train",), 4, 8, time="12:00:00", more=("--mem=0",))).splitlines()
    asked = {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")}
    assert {"--no-kill", "--requeue", "--exclusive", "--nodes=4", "--gpus-per-node=8", "--time=12:00:00", "--mem=0"} <= asked


@pytest.mark.parametrize(
    "wrong",
    [{"name": "a b"}, {"name": "a\n#SBATCH --x"}, {"time": "soon"}, {"partition": "-x"}, {"more": ("--a\nrm -rf",)}, {"more": ("rm",)}],
)
def test_what_would_be_another_line_of_the_script_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(BadInput, match=r"SLURM|sbatch"):
        SlurmOptions(("train",), **wrong)  # type: ignore[arg-type]


def test_the_command_writes_a_script_that_names_its_own_cluster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["extract-features", "--store", str(tmp_path / "my store"), "--data", "photos", "--teacher", "efficientnet-lite0"]
    out = tmp_path / "job.sh"
    assert main(["cluster", "slurm", "--nodes", "4", "-o", str(out), "--", *words]) == 0
    assert f"sbatch {out}" in capsys.readouterr().out
    assert main(["cluster", "slurm", "--nodes", "4", "--", *words]) == 0
    assert capsys.readouterr().out == out.read_text()
    assert "  --address\n  auto\n)" in out.read_text()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "give the command behind `--`"),
        (["evaluate", "knn"], "unknown command that runs on a cluster 'evaluate'"),
        (["extract-features", "--data", "photos"], "Missing option '--store'"),
        (["train", "--stage", "2", "--store", "s", "--data", "d", "--features", "f", "--out", "o"], "give --workers"),
        (["extract-features", "--store", "s", "--data", "d", "--teacher", "t", "--address", "x:1"], "leave it out of the command"),
        (["extract-features", "--store", "s", "--data", "d", "--teacher", "t", "--address=auto"], "leave it out of the command"),
        (["extract-features", "--store", "s", "--data", "d", "--teacher", "t", "--codecs", "int8"], "codec"),
    ],
)
def test_a_command_that_would_fail_after_hours_in_a_queue_is_refused_now(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cluster", "slurm", "--", *words]) == 2
    assert says in capsys.readouterr().err
