"""Closed pipes and descriptors, full log disks, narrow encodings, paths that are no UTF-8: the work goes on, and says what it can."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.pipeline.commands.main import main
from eupe_pipeline.storage.store import FeatureStore
from PIL import Image

COMMAND = f"{sys.executable} -m eupe_pipeline.pipeline"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for label in ("cat", "dög"):
        (folder / label).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (16, 16), (60 * number, 9, 9 * len(label))).save(folder / label / f"{number}.png")
    return folder


def shell(line: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    line = f"set -o pipefail; {line}"
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=60, env={**os.environ, **environment}, check=False)


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        ("2>&-", 0),
        (">&-", 0),
        (">&- 2>&- <&-", 0),
        ("--json | head -c 1", 0),
        ("2>/dev/full", 0),
        (">/dev/full", 3),
        ("--json >/dev/full", 3),
    ],
)
def test_streams_that_nobody_reads_do_not_stop_an_index(photos: Path, tmp_path: Path, ending: str, status: int) -> None:
    done = shell(f"{COMMAND} index {photos} --store {tmp_path}/store --name photos {ending}")
    assert (done.returncode, "Traceback" in done.stderr) == (status, False), done.stderr
    if status == 3:
        assert "the result could not be written to standard output (No space left on device)" in done.stderr
    store = FeatureStore.open(str(tmp_path / "store"))
    dataset = store.dataset("photos")
    assert [dataset.row(n).id for n in range(8)] == [f"{label}/{n}.png" for label in ("cat", "dög") for n in range(4)]
    kept = {path.name for path in (tmp_path / "store").rglob("*") if path.is_file()}
    assert kept == {"eupe-store.json", "identity.json", "index.parquet"}


def test_a_closed_pipe_is_no_damage(photos: Path, tmp_path: Path) -> None:
    shell(f"{COMMAND} index {photos} --store {tmp_path}/store --name photos")
    assert shell(f"{COMMAND} features verify --store {tmp_path}/store --json | head -c 1").returncode == 0
    assert shell(f"{COMMAND} recipe show eupe-stage2 2>&- | head -n 1").returncode == 0
    wrong = shell(f"{COMMAND} features ls --store {tmp_path}/nothing 2>&-")
    assert (wrong.returncode, wrong.stdout) == (2, "")


def test_ascii_streams_get_escapes(photos: Path, tmp_path: Path) -> None:
    line = f"{COMMAND} index {photos} --store {tmp_path}/störe --name photos; {COMMAND} features ls --store {tmp_path}/störe"
    done = shell(line, PYTHONIOENCODING="ascii", LC_ALL="C.UTF-8")
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert "images: 8" in done.stdout


def test_a_store_and_results_may_lie_in_a_folder_whose_name_is_not_utf8(
    photos: Path, tmp_path: Path, tiny_store: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    home = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    os.mkdir(home)
    words = {
        "store": f"{home}/store",
        "teacher": str(tiny_store.teacher_run),
        "home": home,
        "run": str(tmp_path / "run"),
        "photos": str(photos),
    }
    train = (
        "train --stage 2 --recipe demo --store {store} --data photos --features teacher --out {run} --set student.sizes_px=[32] --set "
        "student.architecture=vit-mini --set student.options={{depth=1}} --set run.steps=2 --set run.batch_size=2 --set adapter.width=8"
    )
    lines = [
        "index {photos} --store {store} --name photos",
        "extract-features --store {store} --data photos --teacher {teacher} --workers 0 --views 1",
        train,
        "runs show {run}",
        "evaluate knn {run} --store {store} --train photos --test photos --allow-overlap",
        "report {run} --store {store} --out {home}/page.html",
        "features verify --store {store}",
        "features show teacher --store {store} --html {home}/cache.html",
    ]
    for line in lines:
        status = main([*(word.format(**words) for word in line.split()), "--json"])
        said = capsys.readouterr()
        assert status == 0, (line, said.err)
        assert json.loads(said.out.splitlines()[-1])["event"] == "result"
    for line in (train, "export {run} --format timm --out {home}/export"):
        arguments = [word.format(**words) for word in line.replace("--out {run}", "--out {home}/run").split()]
        assert main(arguments) == 2
        assert not os.path.exists(arguments[arguments.index("--out") + 1])
        assert re.search("has bytes that are not UTF-8, and .* give another folder", capsys.readouterr().err)
