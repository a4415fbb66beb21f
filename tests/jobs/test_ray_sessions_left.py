"""What Ray leaves in its folder: nothing of a session that ended, and nothing of a killed process after a day."""

import os
import tempfile
import time
from pathlib import Path

import pytest
from eupe_pipeline.jobs.ray_folders import sweep_sessions
from eupe_pipeline.jobs.ray_session import ray_session


def session(folder: Path, name: str, age_s: float, log_age_s: float) -> Path:
    path = folder / f"session_2026-11-28_10-00-00_000000_{name}"
    (path / "logs").mkdir(parents=True)
    (path / "logs" / "raylet.out").write_bytes(b"")
    for place, age in ((path / "logs" / "raylet.out", log_age_s), (path, age_s)):
        os.utime(place, (time.time() - age, time.time() - age))
    return path


def test_sessions_in_which_nothing_was_written_for_a_day_are_removed(tmp_path: Path) -> None:
    dead, alive, young = (session(tmp_path, *of) for of in (("1", 90_000, 90_000), ("2", 90_000, 60), ("3", 60, 60)))
    (tmp_path / "session_latest").symlink_to(alive)
    assert sweep_sessions(tmp_path) == 1
    assert [path.exists() for path in (dead, alive, young)] == [False, True, True]
    assert sweep_sessions(tmp_path / "none") == 0


@pytest.mark.long
def test_a_session_that_ended_leaves_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        monkeypatch.setenv("RAY_TMPDIR", folder)
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        with ray_session(cpus=1):
            assert len(list(Path(folder).glob("ray/session_2*"))) == 1
        assert list(Path(folder).glob("ray/session_2*")) == []
