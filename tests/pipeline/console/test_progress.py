"""Progress reads well on a terminal, in a log file, and for a script."""

import io
import json
import re
from collections.abc import Sequence

import pytest
from eupe_pipeline.pipeline.console.progress import Bars, Lines, bars, duration, reporter
from eupe_pipeline.storage.core.events import Event
from rich.console import Console


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def progress(done: int, total: int | None = 100, **more: object) -> Event:
    return {"event": "progress", "stage": "extract", "done": done, "total": total, "unit": "images", "rate": 50.0, **more}


STEP: Event = {"event": "step", "stage": "stage2", "step": 30, "steps": 120, "loss": 1.25, "images_per_s": 1410.2, "seconds_left": 200}


def lines_of(events: Sequence[tuple[float, Event]]) -> list[str]:
    clock, out = Clock(), io.StringIO()
    lines = Lines(out, every_s=5.0, clock=clock)
    for wait, event in events:
        clock.now += wait
        lines(event)
    return out.getvalue().splitlines()


def test_in_a_log_a_stage_shows_its_first_and_last_event_and_one_every_few_seconds() -> None:
    shown = lines_of([(0, progress(1))] + [(1, progress(done)) for done in range(2, 13)] + [(0, progress(100))])
    assert [line.split(":")[1].split("/")[0].strip() for line in shown] == ["1", "6", "11", "100"]


def test_a_line_says_counts_share_rate_and_time_left() -> None:
    shown = lines_of([(0, progress(0)), (10, progress(25))])
    assert shown[1] == "extract: 25/100 (25 %), 50 images/s, 30 s left"


def test_a_line_of_an_extraction_says_bytes_gpu_use_and_what_went_wrong() -> None:
    event = progress(20, 100, bytes_per_s=3_000_000.0, gpu_use=0.934, failed=2, retries=1)
    assert lines_of([(0, event)]) == ["extract: 20/100 (20 %), 50 images/s, 3.0 MB/s, GPU 93 %, 2 failed, 1 retried"]
    quiet = progress(20, 100, bytes_per_s=0.0, failed=0, retries=0)
    assert lines_of([(0, quiet)]) == ["extract: 20/100 (20 %), 50 images/s"]


def test_a_trainers_step_says_each_teachers_terms_and_the_wait_for_data() -> None:
    losses = {"lite0": {"cls": 0.5, "patch": 0.25}, "sam": {"patch": 0.125}}
    event = {"event": "step", "step": 3, "steps": 9, "loss": 0.875, "losses": losses, "images_per_s": 40.0, "wait_share": 0.013}
    (line,) = lines_of([(0, event)])
    assert line.endswith("loss 0.8750 (lite0 cls 0.500, lite0 patch 0.250, sam patch 0.125), 40 images/s, 1.3 % waiting")


def test_a_trainers_step_shows_loss_rate_and_its_own_estimate() -> None:
    assert lines_of([(0, STEP)]) == ["stage2: 30/120 (25 %), loss 1.2500, 1,410 images/s, 3 min 20 s left"]


def test_bytes_are_shown_as_megabytes() -> None:
    event = progress(1_500_000, 95_000_000, unit="bytes", rate=2_000_000.0)
    assert lines_of([(0, event)]) == ["extract: 1.5 MB/95.0 MB (2 %), 2.0 MB/s"]


def test_a_stage_of_unknown_length_shows_no_share() -> None:
    assert lines_of([(0, progress(7, None, rate=None))]) == ["extract: 7"]


def test_notes_and_warnings_are_never_held_back() -> None:
    shown = lines_of([(0, {"event": "note", "text": "all there"}), (0, {"event": "warning", "text": "image 7 is broken"})])
    assert shown == ["all there", "warning: image 7 is broken"]


def test_a_runs_start_says_what_was_chosen_and_why() -> None:
    start = {"event": "start", "step": 0, "steps": 1000, "parameters": 5_492_160, "images": 6000,
             "device": "cpu  # auto: no CUDA device", "precision": "fp32  # auto", "pixels": "the images"}  # fmt: skip
    assert lines_of([(0, start)]) == [
        "step 0 of 1,000: 5,492,160 parameters, 6,000 images, pixels from the images, "
        "device cpu  # auto: no CUDA device, precision fp32  # auto"
    ]


def test_an_event_of_another_kind_is_silent() -> None:
    assert lines_of([(0, {"event": "shard", "shard": 3})]) == []


def test_on_a_terminal_each_stage_has_one_bar_with_its_last_state() -> None:
    out = io.StringIO()
    with bars(Console(file=out, force_terminal=True, width=110, color_system=None)) as shown:
        display = Bars(shown)
        for event in (progress(10), STEP, progress(60), {"event": "warning", "text": "image [7] is broken"}):
            display(event)
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    assert "warning: image [7] is broken" in last
    assert "60/100" in last
    assert "loss 1.2500, 1,410 images/s" in last


def test_json_events_are_one_object_a_line_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with reporter(as_json=True) as on_event:
        on_event(progress(3))
        on_event({"event": "shard", "shard": 3})
    out, err = capsys.readouterr()
    assert [json.loads(line)["event"] for line in out.splitlines()] == ["progress", "shard"]
    assert err == ""


def test_without_a_terminal_progress_goes_to_stderr_and_stdout_stays_clean(capsys: pytest.CaptureFixture[str]) -> None:
    with reporter() as on_event:
        on_event(progress(100))
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "extract: 100/100 (100 %), 50 images/s\n"


@pytest.mark.parametrize(("seconds", "words"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (61, "1 min 01 s"), (7500, "2 h 05 min")])
def test_durations_read_as_people_say_them(seconds: float, words: str) -> None:
    assert duration(seconds) == words
