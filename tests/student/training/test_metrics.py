"""Metrics and TensorBoard's events of a run that was killed and goes on: no step stands twice, whoever reads the files."""

from collections import Counter
from pathlib import Path

import pytest
from eupe_pipeline.student.training.metrics import Metrics, read_metrics, truncate_events
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader


def logged(out: Path) -> Counter[tuple[str, int]]:
    """How often each (tag, step) stands in the files of events, all of them together."""
    found: Counter[tuple[str, int]] = Counter()
    for path in sorted((out / "tensorboard").glob("events*")):
        for event in EventFileLoader(str(path)).Load():
            found.update((value.tag, event.step) for value in event.summary.value)
    return found


def killed_after(out: Path, resumed_from: int, last: int) -> None:
    """A process that goes on from a step and logs up to another; what it logged is on the disk when it dies."""
    metrics = Metrics(out, resumed_from)
    for step in range(resumed_from + 1, last + 1):
        metrics.write({"step": step, "loss": 100.0 * last + step, "losses": {"t": {"cls": 0.5}}})
    metrics.close()


@pytest.mark.parametrize("restarts", [[(0, 5)], [(0, 5), (3, 7), (3, 4)], [(0, 2), (0, 3)], [(0, 9), (4, 4), (2, 6)]])
def test_each_step_stands_once_after_any_kills(tmp_path: Path, restarts: list[tuple[int, int]]) -> None:
    for resumed_from, last in restarts:
        killed_after(tmp_path, resumed_from, last)
    steps = range(1, restarts[-1][1] + 1)
    assert logged(tmp_path) == {(tag, step): 1 for step in steps for tag in ("loss", "losses/t/cls")}
    assert [line["step"] for line in read_metrics(tmp_path)] == list(steps)


def test_tensorboard_shows_the_values_of_the_steps_that_count(tmp_path: Path) -> None:
    killed_after(tmp_path, 0, 5)
    killed_after(tmp_path, 3, 6)
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    shown = sorted((event.step, event.value) for event in board.Scalars("loss"))  # files of one second come in the order of their names
    assert shown == [(line["step"], line["loss"]) for line in read_metrics(tmp_path)]
    assert shown == [(1, 501), (2, 502), (3, 503), (4, 604), (5, 605), (6, 606)]


def test_an_event_that_a_kill_cut_short_goes_and_those_before_it_stay(tmp_path: Path) -> None:
    killed_after(tmp_path, 0, 4)
    (path,) = (tmp_path / "tensorboard").glob("events*")
    whole = path.read_bytes()
    for cut in (1, 3, 9, 20):
        path.write_bytes(whole[:-cut])
        assert truncate_events(path.parent, 4)
        kept = path.read_bytes()
        assert whole.startswith(kept)
        there = {(tag, step) for step in range(1, 5) for tag in ("loss", "losses/t/cls")}
        assert logged(tmp_path) == dict.fromkeys(there - {("losses/t/cls", 4)}, 1)


def test_a_fresh_run_has_no_events_to_cut(tmp_path: Path) -> None:
    assert not truncate_events(tmp_path / "tensorboard", 0)
