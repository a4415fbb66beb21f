"""Students of timm's shapes as timm folders and ONNX graphs: loaded by their own library, they give the trained student's tokens."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.student.export.export import ExportOptions, export
from eupe_pipeline.student.export.formats import FORMATS
from eupe_pipeline.student.export.graphs import max_difference
from eupe_pipeline.student.export.import_published import import_weights
from eupe_pipeline.student.export.lineage import Trained, open_trained
from eupe_pipeline.student.export.runtimes import eager_runner
from torch import nn

from .test_export import make_run
from .test_usage_examples import need_the_students_tokens

QUICK = "timm:mobilenetv4_conv_small_035"
OTHERS = (
    ("timm:repvit_m0_9", 64), ("timm:fastvit_t8", 64), ("timm:resnet10t", 64), ("timm:swin_tiny_patch4_window7_224", 64),
    ("timm:tiny_vit_5m_224", 64), ("timm:mixer_s32_224", 224), ("timm:test_vit", 64), ("timm:test_convnext", 64),
    ("timm:efficientvit_m0", 256),
)  # fmt: skip


def made(folder: Path, name: str, size_px: int) -> Trained:
    """A run whose running statistics are not those of its start."""
    run = make_run(folder / "run", name, size_px)
    trained = open_trained(run)
    generator = torch.Generator().manual_seed(3)
    for module in trained.encoder.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    from safetensors.torch import save_file

    save_file({key: value.contiguous() for key, value in trained.encoder.state_dict().items()}, run / "model" / "backbone.safetensors")
    return open_trained(run)


def need_exports(folder: Path, name: str, size_px: int, *forms: str) -> dict[str, Any]:
    trained = made(folder, name, size_px)
    written = export(ExportOptions(trained.run, folder / "out", forms))["written"]
    pixels = torch.randn(2, 3, size_px, size_px, generator=torch.Generator().manual_seed(0))
    for form in forms:
        wanted = eager_runner(trained.encoder)(pixels)
        worst, largest = max_difference(FORMATS[form].read(folder / "out" / form)(pixels), wanted), float(wanted.patch_BHWD.abs().max())
        assert worst <= 1e-4 * max(1.0, largest), (form, worst, largest)
    found: dict[str, Any] = written
    return found


@pytest.mark.long
def test_a_student_with_batch_norm_goes_out_as_a_graph_of_any_size(tmp_path: Path) -> None:
    written = need_exports(tmp_path, "timm:resnet10t", 64, "onnx")
    assert written["onnx"]["dynamic"] == "batch, height and width"
    need_the_students_tokens(tmp_path / "run", tmp_path / "out" / "onnx")


@pytest.mark.long
def test_it_goes_out_as_timms_and_comes_back_with_its_running_statistics(tmp_path: Path) -> None:
    need_exports(tmp_path, QUICK, 64, "timm")
    need_the_students_tokens(tmp_path / "run", tmp_path / "out" / "timm")
    config = json.loads((tmp_path / "out" / "timm" / "config.json").read_text())
    assert (config["architecture"], config["student"]["map"], config["student"]["cls_width"]) == (
        "mobilenetv4_conv_small_035",
        "NCHW",
        1280,
    )
    assert "features of its own head, 1280 channels" in (tmp_path / "out" / "timm" / "README.md").read_text()
    import_weights(tmp_path / "out" / "timm", tmp_path / "again")
    first, again = open_trained(tmp_path / "run"), open_trained(tmp_path / "again")
    assert first.architecture == again.architecture
    assert all(torch.equal(value, again.encoder.state_dict()[key]) for key, value in first.encoder.state_dict().items())


@pytest.mark.parametrize("name", ["timm:test_vit", pytest.param("timm:test_convnext", marks=pytest.mark.long)])
def test_one_that_was_built_for_another_size_than_its_pictures_comes_back_as_it_was_built(name: str, tmp_path: Path) -> None:
    """timm would make a position embedding of the pictures' size, and no trained one fits it."""
    need_exports(tmp_path, name, 64, "timm")
    need_the_students_tokens(tmp_path / "run", tmp_path / "out" / "timm")


@pytest.mark.parametrize("form", ["eupe", "transformers"])
def test_a_format_of_other_families_refuses_it(form: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "timm:test_vit", 64)
    with pytest.raises(BadInput, match=f"{form} holds students of the families vit, convnext; this one is a timm-student"):
        export(ExportOptions(run, tmp_path / "out", (form,)))
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("name", "size_px"), OTHERS)
def test_other_families_go_out_as_timms_and_as_graphs_and_their_examples_run(name: str, size_px: int, tmp_path: Path) -> None:
    need_exports(tmp_path, name, size_px, "timm", "onnx")
    for form in ("timm", "onnx"):
        need_the_students_tokens(tmp_path / "run", tmp_path / "out" / form)
