"""The log of the fault table: what a stopped run had begun does not count, and what is run again replaces what it did before."""

import json
from pathlib import Path

import pytest

from .fault_log import Trials, last_lines, passed_tests, write_down_end


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty log that tests write to, as this one does."""
    path = tmp_path / "faults.jsonl"
    path.touch()
    monkeypatch.setenv("EUPE_FAULT_LOG", str(path))
    return path


def as_test(monkeypatch: pytest.MonkeyPatch, name: str, outcome: str, ended: bool = True) -> None:
    """Write what a test of two trials writes; a stopped one has no end."""
    monkeypatch.setenv("PYTEST_CURRENT_TEST", f"{name} (call)")
    trials = Trials(4)
    trials.counts.update({outcome: 2})
    trials.__exit__(None, None, None)
    if ended:
        write_down_end(name, outcome != "silent", 0.5)


def counted(log: Path) -> dict[str, dict[str, int]]:
    lines = [line for line in last_lines(log) if "fault" in line]
    return {line["test"]: {name: line[name] for name in ("right", "silent", "detected") if name in line} for line in lines}


def test_a_log_counts_each_tests_last_run_that_ended(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_test(monkeypatch, "a.py::right[x (y)]", "right")
    as_test(monkeypatch, "a.py::mended", "silent")
    as_test(monkeypatch, "a.py::broken", "right")
    as_test(monkeypatch, "a.py::stopped", "detected", ended=False)
    with log.open("a") as file:
        file.write('{"test": "a.py::stopp\n' + json.dumps({"commit": "1234567"}) + "\n")
    assert passed_tests() == {"a.py::right[x (y)]", "a.py::broken"}
    assert counted(log) == {"a.py::right[x (y)]": {"right": 2}, "a.py::mended": {"silent": 2}, "a.py::broken": {"right": 2}}
    as_test(monkeypatch, "a.py::mended", "right")
    as_test(monkeypatch, "a.py::broken", "silent")
    as_test(monkeypatch, "a.py::stopped", "detected")
    assert passed_tests() == {"a.py::right[x (y)]", "a.py::mended", "a.py::stopped"}
    assert counted(log) == {
        "a.py::right[x (y)]": {"right": 2}, "a.py::mended": {"right": 2}, "a.py::broken": {"silent": 2}, "a.py::stopped": {"detected": 2},
    }  # fmt: skip
    assert [line["commit"] for line in last_lines(log) if "commit" in line] == ["1234567"]


def test_without_a_log_no_test_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EUPE_FAULT_LOG", raising=False)
    assert passed_tests() == set()
