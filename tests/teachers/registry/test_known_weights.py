"""A file whose name promises a sha256 is held to it, and published files are known by theirs, however they are called."""

import re
from pathlib import Path

import pytest
import torch
from eupe_pipeline.jobs.runs.licences import terms_of_run, terms_of_teacher
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.core.identity import file_sha256
from eupe_pipeline.student.export.import_published import import_weights
from eupe_pipeline.teachers.checkpoints.convert import convert_weights
from eupe_pipeline.teachers.checkpoints.official import to_official
from eupe_pipeline.teachers.checkpoints.promised_hash import promised_hash
from eupe_pipeline.teachers.checkpoints.weights import save_weights
from eupe_pipeline.teachers.registry.known_weights import KNOWN, KnownWeights, known_by_digest
from eupe_pipeline.teachers.registry.resolve import resolve_teacher
from eupe_pipeline.teachers.registry.table import OFFICIAL_EUPE, ROWS, UNKNOWN, Terms

from ..checkpoints.test_official import randomised
from ..conftest import SMALL_VIT

PAGE = Path(__file__).parents[3] / "docs" / "licences.md"
FREE = Terms("MIT", False, "here")


@pytest.mark.parametrize(("name", "promised"), [
    ("dinov3_vitb16_pretrain_lvd1689m-73cec8be.pth", "73cec8be"), ("resnet50-0676ba61.pt", "0676ba61"),
    ("efficientnet-lite0-57934424.pth", "57934424"), ("x-0123456789abcdef.pth.tar", "0123456789abcdef"),
    ("student-20261128.pth", None), ("student-73cec8b.pth", None), ("student.pth", None), ("student-DEADBEEF.pth", None),
    ("converted-73cec8be.safetensors", None), ("a-73cec8be.pth.json", None), ("vit_b_16.pth", None),
])  # fmt: skip
def test_only_names_after_torch_hub_s_convention_promise_a_digest(name: str, promised: str | None) -> None:
    assert promised_hash(name) == promised


def checkpoint(folder: Path, name: str) -> Path:
    encoder = randomised("vit-mini")
    torch.save(to_official(encoder.state_dict(), encoder.architecture), folder / name)
    return folder / name


def test_a_broken_promise_is_refused_before_anything_is_written_and_a_kept_one_is_taken_in(tmp_path: Path) -> None:
    source = checkpoint(tmp_path, "dinov3_vits16_pretrain_lvd1689m-08c60483.pth")
    says = r"is not what its name says: .* begins with 08c60483, and it is [0-9a-f]{64}"
    with pytest.raises(BadInput, match=says):
        import_weights(source, tmp_path / "run")
    with pytest.raises(BadInput, match=says):
        convert_weights(source, tmp_path / "out.safetensors")
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "out.safetensors").exists()
    kept = source.rename(tmp_path / f"student-{file_sha256(source)[:8]}.pth")
    assert import_weights(kept, tmp_path / "run", size_px=64)["layout"] == "eupe"
    convert_weights(kept, tmp_path / "out.safetensors")


def test_a_published_file_is_named_and_has_its_own_terms_in_the_layout_of_eupe_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = checkpoint(tmp_path, "mine.pth")
    import_weights(source, tmp_path / "eupe", size_px=64)
    assert terms_of_run(tmp_path / "eupe") == {"imported: mine.pth": OFFICIAL_EUPE}
    monkeypatch.setitem(KNOWN, file_sha256(source)[:8], KnownWeights("dinov3_vits16", ROWS["dinov3-7b"].terms, "there"))
    told = import_weights(source, tmp_path / "known", size_px=64)
    assert "by its sha256 it is dinov3_vits16: DINOv3 License" in told["notes"][-1]
    assert terms_of_run(tmp_path / "known") == {"imported: mine.pth": ROWS["dinov3-7b"].terms}


def test_weights_given_for_a_teacher_have_the_terms_of_the_published_file_that_they_are(
    tmp_path: Path, small_vit_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = resolve_teacher(f"timm:{SMALL_VIT}", weights=small_vit_weights)
    assert terms_of_teacher(f"timm:{SMALL_VIT}", spec, small_vit_weights) == {spec.name: UNKNOWN}
    monkeypatch.setitem(KNOWN, file_sha256(small_vit_weights), KnownWeights("timm/small", FREE, "there"))
    assert terms_of_teacher(f"timm:{SMALL_VIT}", spec, small_vit_weights) == {spec.name: FREE}
    save_weights({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    assert known_by_digest(file_sha256(tmp_path / "other.safetensors")) is None


def test_every_known_digest_is_one_and_its_source_is_on_the_page() -> None:
    page = PAGE.read_text()
    for digits, known in KNOWN.items():
        assert re.fullmatch(r"[0-9a-f]{8}|[0-9a-f]{64}", digits)
        assert known.source.split(", ")[0].removeprefix("huggingface.co/") in page, known.source
        assert known.terms in {row.terms for row in ROWS.values()}
    found = known_by_digest("73cec8be" + 56 * "0")
    assert found is not None
    assert (found.model, found.terms) == ("dinov3_vitb16 (LVD-1689M)", ROWS["dinov3-h+"].terms)
    assert {len(digits) for digits in KNOWN} == {8, 64}
