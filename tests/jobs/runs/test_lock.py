"""A run's folder has one writer: a second process is told so, and a killed one holds nothing."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.jobs.runs import lock as run_lock
from eupe_pipeline.jobs.runs.lock import exclusive_run_folder
from eupe_pipeline.storage.core.errors import BadInput

from ..training.test_train import RECIPE, run

HOLD = (
    "import fcntl, os, sys, time; fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_EX); print('held', flush=True); time.sleep(600)"
)


def test_a_second_process_is_refused_until_the_first_is_gone(tiny_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "WAIT_S", 0.2)
    out = tmp_path / "run"
    out.mkdir()
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    assert first.stdout.readline() == "held\n"
    with pytest.raises(BadInput, match=f"another process is training in {out}; wait for it"):
        run(tiny_store, RECIPE, out)
    assert list(out.iterdir()) == []
    first.kill()
    first.communicate()
    assert not run(tiny_store, RECIPE, out)["already"]
    assert run(tiny_store, RECIPE, out)["already"]


def test_the_lock_goes_with_the_block_and_leaves_nothing(tmp_path: Path) -> None:
    for _ in range(2):
        with exclusive_run_folder(tmp_path / "a" / "run"):
            assert list((tmp_path / "a" / "run").iterdir()) == []
