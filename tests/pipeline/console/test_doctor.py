"""The doctor measures and says what to do, and leaves nothing behind."""

from pathlib import Path

import pytest
from eupe_pipeline.pipeline.console import doctor
from eupe_pipeline.storage.core.errors import StoreUnavailable


def ignore(event: object) -> None:
    """Take an event and do nothing."""


def test_everything_a_bug_report_needs_is_there(tmp_path: Path) -> None:
    found = doctor.examine(folder=tmp_path, on_event=ignore)
    assert found["versions"]["torch"].startswith("2.")
    assert found["machine"]["cores"] >= 1
    assert found["machine"]["memory_gb"] > 0
    assert found["devices"]["threads"] >= 1
    assert "torchvision" in found["torchvision"]
    assert list(tmp_path.iterdir()) == []


def test_the_disks_rates_are_measured_in_the_given_folder(tmp_path: Path) -> None:
    found = doctor.disk(tmp_path)
    assert found["folder"] == str(tmp_path)
    assert 0 < found["write_mb_per_s"] < 1_000_000
    assert 0 < found["read_mb_per_s"] < 1_000_000


def test_a_folder_that_refuses_writing_is_an_error_that_says_so() -> None:
    with pytest.raises((StoreUnavailable, OSError), match=r"/proc|permission|No such"):
        doctor.disk(Path("/proc"))


def test_a_package_that_is_absent_is_reported_and_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", ("no-such-package",))
    assert doctor.versions()["no-such-package"] == "not installed"


def test_the_weights_folder_is_listed_with_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EUPE_PIPELINE_HOME", str(tmp_path))
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "lite.safetensors").write_bytes(b"\0" * 1_500_000)
    assert doctor.weights() == {"folder": str(tmp_path / "weights"), "files": {"lite.safetensors": "1.5 MB"}}


def test_small_shared_memory_is_a_known_problem_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "SHARED_MEMORY_WANTED_BYTES", 1 << 60)
    assert any("--shm-size" in trap for trap in doctor.traps())
    monkeypatch.setattr(doctor, "SHARED_MEMORY_WANTED_BYTES", 0)
    assert doctor.traps() == []


def test_a_check_that_fails_does_not_end_the_examination(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("a library that does not load")

    for name in ("versions", "machine", "devices", "torchvision", "weights", "user"):
        monkeypatch.setattr(doctor, name, broken)
    found = doctor.examine(folder=Path("/proc"), on_event=ignore)
    for name in ("versions", "machine", "devices", "torchvision", "weights", "user"):
        assert found[name] == {"failed": "RuntimeError: a library that does not load"}
    assert "failed" in found["disk"]
    assert "failed" in found["publishing"]
    assert isinstance(found["traps"], list)


def test_how_files_are_published_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.publishing(tmp_path) == "hard links"

    def refuse(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    assert doctor.publishing(tmp_path) == "exclusive rename (no hard links: Operation not permitted)"
    assert list(tmp_path.iterdir()) == []


def test_places_that_do_not_work_are_traps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "home_folder", lambda: None)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("long" * 20)))
    monkeypatch.setattr(doctor, "can_be_written", lambda folder: False)
    found = " ".join(doctor.traps(tmp_path))
    for said in ("no home folder: set EUPE_PIPELINE_HOME", "too long", "set RAY_TMPDIR", f"{tmp_path} cannot be written"):
        assert said in found
