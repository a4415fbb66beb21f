"""How many files it takes to add a thing: done in a copy of the package, by the steps of docs/adding-plugins.md.

Each addition is at most two source files. In the copy the new thing is used from the command line; with one file taken back, a test is red.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from eupe_pipeline.storage.core.choices import EXPORT_FORMATS
from eupe_pipeline.student.export.contract import make_student

CHECKOUT = Path(__file__).parents[1]
ROOMS = ("pipeline", "jobs", "student", "teachers", "storage")


class Addition(NamedTuple):
    """Text put before another in a file; a new file where nothing stands before."""

    edits: Mapping[str, tuple[tuple[str, str], ...]]
    red: str
    """A test that is red when the first file alone was edited."""


TIMM_ROW = """\
    "tiny-vit": _timm_row(
        "test_vit.r160_in1k", Preprocessing(160), "class token", 64, 16, 64, Terms("Apache-2.0", False, "huggingface.co/timm")
    ),
"""
FORMAT_FUNCTIONS = """\
def _plain(trained: Trained, folder: Path) -> Written:
    torch.save(trained.encoder.state_dict(), folder / "plain.pt")
    return ["plain.pt"], {}


def _read_plain(folder: Path) -> Runner:
    import json

    record = json.loads((folder / "export.json").read_text())
    return eager_runner(load_encoder(record["architecture"], torch.load(folder / "plain.pt", weights_only=True)))


"""
FORMAT_ROW = """\
    "plain": ExportFormat("a plain state dict", _plain, _read_plain, "import torch"),
"""
EVALUATION_ROW = """\
    "norm": Evaluation("norm", "evaluate_norm", "norm", "", ".2f", ("norm",), options="NormOptions", help="Measure the norm.",
                       hub=HubTask("image-feature-extraction", "Norm", "norm", {"norm": ("norm", "mean norm")})),
"""
EVALUATION_FILE = """\
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class NormOptions:
    model: str
    data: Path
    level: float = 2.0
    kind: Literal["l1", "l2"] = field(default="l2", metadata={"help": "Which norm."})
    size_px: int | None = None
    twice: bool = False


def evaluate_norm(options: NormOptions, on_event: Any) -> dict[str, Any]:
    norm = options.level * (1 + options.twice)
    return {"norm": norm, "kind": options.kind, "data": str(options.data), "size_px": options.size_px}
"""
ADDITIONS = {
    "a timm teacher": Addition({"teachers/registry/table.py": (('    "sam-h": _timm_row(', TIMM_ROW),)}, ""),
    "an export format": Addition(
        {
            "student/export/formats.py": (("_OURS = (", FORMAT_FUNCTIONS), ("}  # fmt: skip\nFORMATS = ", FORMAT_ROW)),
            "storage/core/choices.py": (("]\nEXPORT_FORMATS", ', "plain"'),),
        },
        "tests/student/export/test_formats.py::test_the_list_of_names_is_the_table",
    ),
    "an evaluation": Addition(
        {
            "jobs/evaluation/registry.py": (('    "knn": Evaluation(', EVALUATION_ROW),),
            "jobs/evaluation/norm.py": (("", EVALUATION_FILE),),
        },
        "tests/jobs/evaluation/test_registry.py",
    ),
}


def copy_of_the_package(folder: Path) -> Path:
    package = folder / "eupe_pipeline"
    for room in ROOMS:
        shutil.copytree(CHECKOUT / room, package / room, ignore=shutil.ignore_patterns("__pycache__"))
    return package


def edit(package: Path, where: str, changes: Sequence[tuple[str, str]]) -> None:
    path = package / where
    for before, text in changes:
        source = path.read_text() if before else ""
        assert source.count(before) == 1, f"{where} has {source.count(before)} of {before!r}"
        path.write_text(source.replace(before, text + before))


def run(package: Path, *arguments: str, module: str = "eupe_pipeline.pipeline") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(package.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=package.parent, timeout=200, check=False)


@pytest.mark.parametrize("what", ADDITIONS)
def test_an_addition_touches_at_most_two_source_files(what: str) -> None:
    assert 1 <= len(ADDITIONS[what].edits) <= 2


@pytest.mark.long
def test_what_was_added_is_there_from_the_command_line_on(tmp_path: Path) -> None:
    package = copy_of_the_package(tmp_path)
    for addition in ADDITIONS.values():
        for where, changes in addition.edits.items():
            edit(package, where, changes)
    teacher = run(package, "evaluate", "depth", "tiny-vit", "--data", str(tmp_path))
    assert "the weights of teacher tiny-vit are missing" in teacher.stderr
    assert "huggingface.co/timm/test_vit.r160_in1k" in teacher.stderr
    make_student(tmp_path / "run", {"name": "vit-mini", "layer_scale": 1.0}, 32)
    exported = run(package, "export", str(tmp_path / "run"), "--format", "plain", "--out", str(tmp_path / "out"), "--json")
    assert exported.returncode == 0, exported.stderr
    assert (tmp_path / "out" / "plain" / "plain.pt").is_file()
    listed = run(package, "evaluate", "norm", "--help")
    assert "--kind [l1|l2]" in listed.stdout
    assert "Which norm." in listed.stdout
    measured = run(package, "evaluate", "norm", "m", "--data", str(tmp_path), "--level", "3", "--twice", "--json")
    assert json.loads(measured.stdout.splitlines()[-1]) == {
        "norm": 6.0, "kind": "l2", "data": str(tmp_path), "size_px": None, "event": "result",
    }  # fmt: skip
    assert run(package, "evaluate", "norm", "m", "--data", str(tmp_path), "--kind", "l3").returncode == 2


@pytest.mark.long
@pytest.mark.parametrize("what", [what for what, addition in ADDITIONS.items() if addition.red])
def test_with_one_file_forgotten_a_test_is_red(tmp_path: Path, what: str) -> None:
    package, addition = copy_of_the_package(tmp_path), ADDITIONS[what]
    where, changes = next(iter(addition.edits.items()))
    edit(package, where, changes)
    for name in ("tests", "docs", "pyproject.toml"):
        source = CHECKOUT / name
        _ = shutil.copytree(source, tmp_path / name) if source.is_dir() else shutil.copy(source, tmp_path / name)
    done = run(package, addition.red, "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), module="pytest")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "passed" not in done.stdout.splitlines()[-1] or "failed" in done.stdout.splitlines()[-1]


def test_the_page_names_every_table_and_every_group_of_entry_points() -> None:
    page = (CHECKOUT / "docs" / "adding-plugins.md").read_text()
    for where in [where for addition in ADDITIONS.values() for where in addition.edits if where != "jobs/evaluation/norm.py"]:
        assert where in page
    assert all(f"eupe_pipeline.{group}" in page for group in ("teachers", "students", "exports"))
    assert len(EXPORT_FORMATS) == 7
