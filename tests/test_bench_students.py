"""`make bench-students` keeps each answer as it is given: a run that was cut goes on, another timm is asked anew, the table says all."""

import json
from importlib.metadata import version
from pathlib import Path

from benchmarks import bench_students
from benchmarks.bench_students import ANSWERS, ask, keep_answers, read_answers

CHECKOUT = Path(__file__).parents[1]


def test_answers_are_added_kept_by_name_and_asked_anew_of_another_timm(tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    assert read_answers(answers) == {}
    old = {"timm": "0.1", "model": "resnet10t", "features_only": True, "patch": "NCHW", "cls": "x"}
    other = {**old, "timm": version("timm"), "model": "a_model"}
    answers.write_text(json.dumps(old) + "\n" + json.dumps(other) + "\n")
    ask("test_vit", answers)
    with answers.open("a") as file:
        file.write('{"timm": "1.0')  # a kill came here
    found = read_answers(answers)
    assert list(found) == ["a_model", "test_vit"], "the old timm's answer is none"
    assert found["test_vit"] == {"timm": version("timm"), "model": "test_vit", "features_only": True, "patch": "vit", "cls": "class token"}
    keep_answers(answers, dict(reversed(found.items())))
    assert [json.loads(line)["model"] for line in answers.read_text().splitlines()] == ["a_model", "test_vit"]
    assert read_answers(answers) == found


def test_the_table_is_of_the_answers_beside_it() -> None:
    lines = [json.loads(line) for line in (CHECKOUT / ANSWERS).read_text().splitlines()]
    figures = json.loads((CHECKOUT / bench_students.RESULTS / "bench-students.json").read_text())
    having = [one for one in lines if one["features_only"]]
    assert {one["timm"] for one in lines} == {figures["timm"]}
    assert (figures["asked"], figures["features_only"]) == (len(lines), len(having))
    assert figures["accepted"] == sum("patch" in one for one in having)
    refused = [one["model"] for one in lines if "patch" not in one]
    assert all(name in (CHECKOUT / "docs/results/students.md").read_text() for name in refused)
