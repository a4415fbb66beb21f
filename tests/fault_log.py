"""Count the trials of a fault test and what came of each, for the table that `make test-faults` prints.

A trial is detected (our own error), recovered (the work was finished and equals an undisturbed run), right (the fault did not matter), or
silent: wrong values without an error. A trial that ends in any other exception, a failed assertion included, is written down as silent
before it is raised, so that the table cannot look better than the tests. A test that is one trial, or always the same number, is marked
`@pytest.mark.fault(row, outcome, trials)` instead. Lines go to the file that EUPE_FAULT_LOG names, if it names one: one for each outcome,
and one for each test that ended, so that a stopped run can be gone on with (tools/fault_table.py --resume).
"""

import json
import os
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any

OUTCOMES = ("right", "detected", "recovered", "silent", "lost", "circle")


class Trials:
    """The outcomes of one test's trials for a row of the fault table; a context manager that writes them down at its end."""

    def __init__(self, fault: int) -> None:
        self.fault = fault
        self.counts: Counter[str] = Counter()

    def note(self, outcome: str, times: int = 1) -> None:
        """Count an outcome; raises AssertionError for a silent or lost trial, and for advice that goes in a circle."""
        assert outcome in OUTCOMES, outcome
        self.counts[outcome] += times
        assert outcome not in ("silent", "lost", "circle"), f"fault {self.fault}: {outcome}"

    def __enter__(self) -> "Trials":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None and not self.counts["silent"] + self.counts["lost"] + self.counts["circle"]:
            self.counts["silent"] += 1
        write_down(self.fault, self.counts)


def write_down(fault: int, counts: Counter[str]) -> None:
    """Add the outcomes to the log, under the name of the test that runs."""
    test = os.environ.get("PYTEST_CURRENT_TEST", "").rsplit(" (", 1)[0]
    add_line({"test": test, "fault": fault, "trials": counts.total(), **counts})


def write_down_end(test: str, passed: bool, seconds: float) -> None:
    """Note that a test ended; what a test without this line wrote down is of a run that was stopped within it."""
    add_line({"test": test, "passed": passed, "seconds": round(seconds, 1)})


def add_line(entry: dict[str, object]) -> None:
    """Add a line to the log, if there is one."""
    path = os.environ.get("EUPE_FAULT_LOG")
    if path:
        with open(path, "a") as file:
            file.write(json.dumps(entry) + "\n")


def write_down_marked(passed: bool, fault: int, outcome: str, trials: int = 1) -> None:
    """The trials of a test that is marked `fault(row, outcome, trials)`: its outcome when it passed, one silent trial when it did not."""
    assert outcome in OUTCOMES, outcome
    write_down(fault, Counter({outcome: trials} if passed else {"silent": 1}))


def passed_tests() -> set[str]:
    """The tests that passed according to the log, if there is one; its last line may be cut where a run was stopped."""
    return {line["test"] for line in last_lines(Path(os.environ.get("EUPE_FAULT_LOG", os.devnull))) if line.get("passed")}


def last_lines(log: Path) -> list[dict[str, Any]]:
    """Of each test in a log what its last run that came to an end wrote, in that order, and each line that is of no test."""
    kept, ended, open_ones = list[dict[str, Any]](), dict[str, list[dict[str, Any]]](), dict[str, list[dict[str, Any]]]()
    for text in log.read_text().splitlines():
        line = json.loads(text) if text.endswith("}") else {"cut": text}
        if "test" not in line:
            kept.append(line)
            open_ones.clear()  # a new run begins: what was begun before it was stopped
            continue
        open_ones.setdefault(line["test"], []).append(line)
        if "passed" in line:
            ended[line["test"]] = open_ones.pop(line["test"])
    return kept + [line for lines in ended.values() for line in lines]
