"""What every export format promises, as tests that a plug-in's package can run, too.

    class TestMyFormat(ExportContract):
        form = "my-format"          # its name, ours or an installed plug-in's

A plain class: pytest collects a subclass whose name begins with Test. It exports one small random student into a temporary folder. A format
whose library is not installed is skipped.
"""

import atexit
import json
import shutil
import tempfile
import unittest
from pathlib import Path
from typing import Any, ClassVar

import torch

from ...storage.core.errors import BadInput
from ...storage.core.identity import file_sha256
from ...teachers.encoders.build import build_encoder
from ..model.student import Student, TargetSpec
from ..training.run_folder import save_model
from .export import ExportOptions, export
from .formats import FORMATS, ExportFormat
from .graphs import max_difference
from .lineage import open_trained
from .runtimes import CannotRunHere, eager_runner


def make_student(folder: Path, architecture: dict[str, Any], size_px: int) -> Path:
    """Return a finished run's folder with a small random student, taught by nobody whose terms are known."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        student = Student(build_encoder(architecture), 8, {"nobody": TargetSpec(6, 6, (1, 1))})
    save_model(student, folder / "model", size_px=size_px, targets={"nobody": "abc"})
    return folder


class ExportContract:
    """Set `form`; `architecture`, `size_px` for a format that does not take the small ones, `refused` for a student that it cannot hold."""

    form = ""
    architecture: ClassVar[dict[str, Any]] = {"name": "vit-mini", "layer_scale": 1.0}
    size_px = 32
    refused: ClassVar[dict[str, Any]] = {"name": "timm:test_vit"}
    _made: ClassVar[dict[type, Path]] = {}

    @property
    def row(self) -> ExportFormat:
        """The format under test."""
        return FORMATS[self.form]

    def exported(self) -> tuple[Path, Path]:
        """Return (run, folder of the format), made once for a class, or a skip where the format's library is not installed."""
        folder = self._made.get(type(self))
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="export-contract-"))
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            run = make_student(folder / "run", self.architecture, self.size_px)
            try:
                export(ExportOptions(run=run, out=folder / "out", formats=(self.form,)))
            except CannotRunHere as error:
                raise unittest.SkipTest(str(error)) from error
            self._made[type(self)] = folder
        return folder / "run", folder / "out" / self.form

    def test_what_is_read_back_gives_the_students_tokens(self) -> None:
        """At the student's own size, one picture."""
        run, folder = self.exported()
        trained = open_trained(run)
        pixels_BCHW = torch.randn(1, 3, self.size_px, self.size_px, generator=torch.Generator().manual_seed(0))
        try:
            run_exported = self.row.read(folder)
        except CannotRunHere as error:
            raise unittest.SkipTest(str(error)) from error
        worst = max_difference(run_exported(pixels_BCHW), eager_runner(trained.encoder)(pixels_BCHW))
        assert worst <= self.row.tolerance, f"{self.form}: tokens differ by {worst:.2g}, its row allows {self.row.tolerance:g}"

    def test_the_folder_says_what_it_holds_and_how_it_is_used(self) -> None:
        """Model files, record, card with the terms and the example, checksums of everything."""
        run, folder = self.exported()
        record = json.loads((folder / "export.json").read_text())
        assert record["format"] == self.form
        assert record["weights_sha256"] == open_trained(run).weights_sha256
        assert record["files"], "a format writes a file"
        assert all((folder / name).is_file() for name in record["files"]), record["files"]
        usage, card = (folder / "usage.py").read_text(), (folder / "README.md").read_text()
        compile(usage, "usage.py", "exec")
        assert "eupe_pipeline" not in usage, "who deploys a student does not install this package"
        assert self.row.title in card, "the card says what the folder holds"
        assert usage in card, "the card shows the example"
        assert "terms unknown to us" in card, "the card passes the teachers' terms on, or says that it does not know them"
        sums = {line[66:]: line[:64] for line in (folder / "SHA256SUMS").read_text().splitlines()}
        there = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file() and path.name != "SHA256SUMS"}
        assert sums == {name: file_sha256(path) for name, path in there.items()}

    def test_its_runtimes_open_what_was_written(self) -> None:
        """Each file that a runtime names is there and gives tokens."""
        _, folder = self.exported()
        for runtime, (file, open_runner) in self.row.runtimes.items():
            try:
                run_exported = open_runner(folder / file, 1)
            except CannotRunHere as error:
                raise unittest.SkipTest(str(error)) from error
            cls_BD, patch_BHWD = run_exported(torch.zeros(1, 3, self.size_px, self.size_px))
            assert cls_BD is not None, runtime
            assert bool(torch.isfinite(cls_BD).all() and torch.isfinite(patch_BHWD).all()), runtime

    def test_a_student_that_it_cannot_hold_is_refused_and_leaves_nothing(self) -> None:
        """A folder that looks like an export and is none would be deployed. A format of any family has nothing to refuse here."""
        if self.row.families is None:
            return
        with tempfile.TemporaryDirectory() as folder:
            run = make_student(Path(folder) / "run", self.refused, 160)
            try:
                export(ExportOptions(run=run, out=Path(folder) / "out", formats=(self.form,)))
            except BadInput:
                assert not (Path(folder) / "out" / self.form).exists()
            else:
                raise AssertionError(f"{self.form} took {self.refused}, which it should refuse")
