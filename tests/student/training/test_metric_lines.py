"""Lines of metrics: their numbers, and whole lines of a file that grows, is cut in the middle of one, and is replaced."""

import json
from pathlib import Path
from typing import Any

from eupe_pipeline.storage.objects.atomic_files import write_atomically
from eupe_pipeline.student.training.metric_lines import GrowingLines, numbers, place


def test_numbers_have_the_path_of_their_keys_and_words_are_left_out() -> None:
    line = {"step": 3, "loss": 2, "losses": {"dinov3-h+": {"cls": 0.5}}, "device": "cpu", "knn": {"cls": {"ours": 81.5}}}
    assert numbers(line) == [("loss", 2.0), ("losses/dinov3-h+/cls", 0.5), ("knn/cls/ours", 81.5)]


def test_an_evaluation_stands_before_the_losses_of_its_step() -> None:
    lines: list[dict[str, Any]] = [{"step": 4, "loss": 0.5}, {"step": 6, "knn": {}}, {"step": 4, "knn": {}}, {"step": 2, "loss": 1.0}]
    assert sorted(lines, key=place) == [lines[3], lines[2], lines[0], lines[1]]


def test_whole_lines_come_once_and_those_of_a_file_in_its_place_as_well(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = GrowingLines(path)
    assert list(lines.new()) == []
    path.write_text('{"step": 1}\n{"st')
    assert list(lines.new()) == [{"step": 1}]
    with path.open("a") as file:
        file.write('ep": 2}\n')
    assert list(lines.new()) == [{"step": 2}]
    assert list(lines.new()) == []
    write_atomically(path, json.dumps({"step": 1}).encode() + b"\n")
    assert list(lines.new()) == [{"step": 1}]
    path.unlink()
    assert list(lines.new()) == []
