"""Count the trials of a fault test and what came of each, for the table that `make test-faults` prints.

A trial is detected (our own error), recovered (the work was finished and equals an undisturbed run), right (the fault did not matter), or
silent: wrong values without an error. A trial that ends in any other exception, a failed assertion included, is written down as silent
before it is raised, so that the table cannot look better than the tests. A test that is one trial, or always the same number, is marked
`@pytest.mark.fault(row, outcome, trials)` instead. Lines go to the file that EUPE_FAULT_LOG names, if it names one.
"""

import json
import os
from collections import Counter
from types import TracebackType

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
    """Add a line to the log, if there is one."""
    path = os.environ.get("EUPE_FAULT_LOG")
    if path:
        with open(path, "a") as file:
            file.write(json.dumps({"fault": fault, "trials": counts.total(), **counts}) + "\n")


def write_down_marked(passed: bool, fault: int, outcome: str, trials: int = 1) -> None:
    """The trials of a test that is marked `fault(row, outcome, trials)`: its outcome when it passed, one silent trial when it did not."""
    assert outcome in OUTCOMES, outcome
    write_down(fault, Counter({outcome: trials} if passed else {"silent": 1}))
