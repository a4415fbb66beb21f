"""`evaluate table` fills the paper's table with what is on disk: figures of the evaluations, records reused, why others are missing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eupe_pipeline.jobs.evaluation.correspondence import CorrespondenceOptions, evaluate_correspondence
from eupe_pipeline.jobs.evaluation.knn import KnnOptions, evaluate_knn
from eupe_pipeline.jobs.evaluation.models import open_model
from eupe_pipeline.jobs.evaluation.zero_shot import ZeroShotOptions, evaluate_zero_shot
from eupe_pipeline.pipeline.commands.main import main
from eupe_pipeline.pipeline.recipes.paper import paper_table
from eupe_pipeline.pipeline.reports.paper_table import COLUMNS, RIVALS, TableOptions, fill_table, found_data
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.student.model.student import Student
from eupe_pipeline.student.probes.evaluation_records import list_records, write_record
from eupe_pipeline.student.training.run_folder import save_model
from eupe_pipeline.teachers.checkpoints.weights import save_weights
from eupe_pipeline.teachers.encoders.build import build_encoder
from eupe_pipeline.teachers.registry.table import ROWS, TEACHERS
from PIL import Image

from ...teachers.published_layouts import SMALL_RADIO, adaptor_tensors, radio_tensors, small_row
from ...teachers.tiny_clip import write_clip


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ImageNet's and SPair's layouts, small, below one folder."""
    monkeypatch.setenv("EUPE_PIPELINE_HOME", str(tmp_path / "home"))
    draw, root = np.random.default_rng(0), tmp_path / "data"

    def photo(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (40, 40, 3), np.uint8)).save(path)

    for name in ("train/n01/a", "train/n01/b", "train/n02/c", "train/n02/d", "val/n01/e", "val/n02/f"):
        photo(root / "imagenet" / f"{name}.png")
    for number in range(2):
        photo(root / "spair/JPEGImages/cat" / f"{number}.jpg")
    pair = {"category": "cat", "src_imname": "0.jpg", "trg_imname": "1.jpg", "src_kps": [[10, 10], [30, 20]],
            "trg_kps": [[12, 11], [28, 25]], "trg_bndbox": [5, 5, 35, 35]}  # fmt: skip
    (root / "spair/PairAnnotation/test").mkdir(parents=True)
    (root / "spair/PairAnnotation/test/0.json").write_text(json.dumps(pair))
    return root


@pytest.fixture
def run(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    encoder = build_encoder({"name": "vit-mini", "patch_px": 16, "layer_scale": 1.0})
    save_model(Student(encoder, 8, {}), tmp_path / "run" / "model", size_px=32, targets={})
    return tmp_path / "run"


def cells(result: dict[str, Any], row: str) -> dict[str, Any]:
    (found,) = [one for one in result["rows"] if one["row"] == row]
    return dict(found["cells"])


def test_every_rival_of_table_1_is_a_teacher_by_name_and_every_column_has_an_evaluation() -> None:
    table = paper_table(1)
    assert set(RIVALS) <= set(TEACHERS)
    assert set(RIVALS.values()) | {"EUPE-ViT-B"} == set(table.rows)
    assert tuple(COLUMNS) == table.columns


def test_a_rival_without_weights_says_where_they_go_and_one_with_random_ones_is_marked(root: Path) -> None:
    result = fill_table(TableOptions(models=("dinov3-b",), data=(root,), dry_run=True))
    assert "weights of teacher dinov3-b are missing" in cells(result, "DINOv3-ViT-B")["IN1k-KNN"]["why"]
    for name, row in RIVALS.items():
        told = fill_table(TableOptions(models=(name,), data=(root,), dry_run=True, allow_random_weights=True))
        (line,) = [line for line in told["lines"] if line.startswith(f"{row}: {name}")]
        assert "[random weights]" in line
        assert cells(told, row)["SPair"]["state"] == "would run"
    with pytest.raises(BadInput, match="no rival of Table 1 has its weights on disk"):
        fill_table(TableOptions(data=(root,)))


def test_figures_are_those_of_the_evaluations_and_a_second_time_reuses_them(root: Path, run: Path, tmp_path: Path) -> None:
    options = TableOptions(models=(f"EUPE-ViT-B={run}",), data=(root,), device="cpu")
    planned = cells(fill_table(TableOptions(**{**vars(options), "dry_run": True})), "EUPE-ViT-B")
    assert (planned["IN1k-KNN"]["state"], planned["SPair"]["state"]) == ("would run", "would run")
    assert list_records(run) == []
    result = fill_table(options)
    found = cells(result, "EUPE-ViT-B")
    assert result["complete"]
    assert (found["IN1k-KNN"]["state"], found["SPair"]["state"]) == ("evaluated", "evaluated")
    assert (found["IN1k-KNN"]["paper"], found["SPair"]["paper"], found["TextVQA"]["paper"]) == (84.1, 51.3, 50.4)
    alone = evaluate_knn(KnnOptions(model=str(run), data=str(root / "imagenet"), size_px=224, device="cpu", out=tmp_path / "alone"))
    assert found["IN1k-KNN"]["ours"] == alone["cls"]["paper"]
    pairs = evaluate_correspondence(CorrespondenceOptions(model=str(run), data=root / "spair", protocol="paper", out=tmp_path / "alone"))
    assert found["SPair"]["ours"] == pairs["pck"]
    assert "no ADE20k among --data" in found["ADE20k"]["why"]
    assert "no text tower" in found["IN1k-ZS"]["why"]
    again = cells(fill_table(options), "EUPE-ViT-B")
    assert (again["IN1k-KNN"]["state"], again["SPair"]["state"]) == ("recorded", "recorded")
    assert again["SPair"]["ours"] == pairs["pck"]
    assert cells(fill_table(TableOptions(**{**vars(options), "dry_run": True})), "EUPE-ViT-B")["SPair"]["ours"] == pairs["pck"]


def test_rows_of_other_tables_and_the_papers_own_stand_beside(root: Path, run: Path) -> None:
    result = fill_table(TableOptions(models=(f"Stage 1&2={run}",), data=(root,), table=2, dry_run=True))
    assert cells(result, "Stage 1&2")["NYUv2"]["paper"] == 0.557
    assert [row["row"] for row in result["rows"]] == ["Stage 1&2", "Stage 2 only", "Stage 1&3", "Stage 1&2&3"]
    with pytest.raises(BadInput, match="Table 1 has no row 'Stage 1&2'"):
        fill_table(TableOptions(models=(f"Stage 1&2={run}",), data=(root,), dry_run=True))
    own = fill_table(TableOptions(models=(str(run),), data=(root,), dry_run=True))
    assert own["rows"][0]["row"] == ""
    assert own["rows"][0]["cells"]["SPair"]["paper"] is None
    assert any(line.startswith("run") and "to run (not at hand)" in line for line in own["lines"])


def test_a_language_models_recorded_answer_fills_its_column(root: Path, run: Path) -> None:
    model = open_model(str(run), size_px=384)  # at another size than its own, as language models see it
    write_record(model.folder, "vlm-textvqa", {"model": model.identity}, {"accuracy": 48.5}, 1.0)
    cell = cells(fill_table(TableOptions(models=(f"EUPE-ViT-B={run}",), data=(root,), dry_run=True)), "EUPE-ViT-B")["TextVQA"]
    assert (cell["state"], cell["ours"], cell["paper"]) == ("recorded", 48.5, 50.4)


def test_a_figure_of_other_data_or_settings_has_a_remark_and_of_two_language_models_neither_is_shown(root: Path, run: Path) -> None:
    options = TableOptions(models=(f"EUPE-ViT-B={run}",), data=(root / "imagenet",), device="cpu")
    model = open_model(str(run), size_px=384)
    tested = {"test": {"questions": 5}, "model": model.identity}
    write_record(model.folder, "vlm-pope", {**tested, "llm": "a" * 64}, {"f1": 80.0, "differs_from_paper": ["seed is from x"]}, 1.0)
    result = fill_table(options)
    found = cells(result, "EUPE-ViT-B")
    (imagenet,) = found["IN1k-KNN"]["remarks"]
    assert "has 2 classes, ImageNet-1k 1,000" in imagenet
    assert found["POPE"]["remarks"] == ["seed is from x", "by language model aaaaaaaaaaaa, 5 questions"]
    assert any("POPE: by language model aaaaaaaaaaaa" in remark for remark in result["remarks"])
    assert "80.0*" in next(line for line in result["lines"] if line.startswith("EUPE-ViT-B"))
    write_record(model.folder, "vlm-pope", {**tested, "llm": "b" * 64}, {"f1": 20.0}, 1.0)
    pope = cells(fill_table(TableOptions(**{**vars(options), "dry_run": True})), "EUPE-ViT-B")["POPE"]
    assert (pope["ours"], pope["state"]) == (None, "missing")
    assert "aaaaaaaaaaaa, bbbbbbbbbbbb" in pope["why"]


def test_radios_zero_shot_goes_through_its_adaptor_where_tower_and_adaptor_are_on_disk(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ROWS, "radiov2.5-b", small_row("radiov2.5-b", SMALL_RADIO))
    weights, tower, names = tmp_path / "home/weights/radiov2.5-b.safetensors", tmp_path / "tower", tmp_path / "names.toml"
    names.write_text('[classes]\nn01 = "red thing"\nn02 = "blue"\n')
    save_weights(radio_tensors(), weights)

    def cell(*text: str, dry_run: bool = True) -> dict[str, Any]:
        options = TableOptions(models=("radiov2.5-b",), data=(root / "imagenet",), text=text, classes=names, device="cpu", dry_run=dry_run)
        return dict(cells(fill_table(options), "RADIOv2.5-B")["IN1k-ZS"])

    assert "no text tower: --text radiov2.5-b=FOLDER, DFN CLIP's (apple/DFN5B-CLIP-ViT-H-14-378)" in cell()["why"]
    tower.mkdir()
    text = f"radiov2.5-b={tower}"
    assert f"{tower} has no open_clip_config.json or config.json, *.safetensors, tokenizer.json" in cell(text)["why"]
    write_clip(tower)
    for dry_run in (True, False):
        found = cell(text, dry_run=dry_run)
        assert (found["state"], "holds no adaptors" in found["why"]) == ("missing", True)
    save_weights({**radio_tensors(), **adaptor_tensors(clip=20, siglip=24)}, weights)
    planned = cell(text)
    assert (planned["state"], "the paper's figure is that of RADIO's README: 768 px" in planned["why"]) == ("would run", True)
    found = cell(text, dry_run=False)
    alone = ZeroShotOptions(
        model="radiov2.5-b", data=str(root / "imagenet/val"), text=tower, classes=names, templates="names", size_px=224, device="cpu",
        out=tmp_path / "alone",
    )  # fmt: skip
    assert (found["state"], found["ours"], found["paper"]) == ("evaluated", evaluate_zero_shot(alone)["top1"], 74.6)
    assert any("768 px" in remark for remark in found["remarks"])
    for split in ("train", "val"):
        (root / "imagenet" / split / "n01").rename(root / "imagenet" / split / "n01440764")
    names.write_text("")
    assert "1 labels are ids and no words (n01440764): give their names" in cell(text, dry_run=False)["why"]


def test_pairs_in_spairs_layout_that_are_not_spairs_have_a_remark(root: Path, run: Path) -> None:
    result = fill_table(TableOptions(models=(f"EUPE-ViT-B={run}",), data=(root / "spair",), device="cpu"))
    assert any("is not SPair-71k as published" in remark for remark in cells(result, "EUPE-ViT-B")["SPair"]["remarks"])


def test_a_cell_that_fails_is_told_with_status_2_and_the_others_stand(root: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "spair/JPEGImages/cat/1.jpg").write_bytes(b"no picture")
    words = ["evaluate", "table", "--models", f"EUPE-ViT-B={run}", "--data", str(root)]
    assert main([*words, "--json"]) == 2
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert cells(told, "EUPE-ViT-B")["IN1k-KNN"]["ours"] is not None
    assert len(told["failed"]) == 1
    assert "SPair" in told["failed"][0]
    assert main([*words, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "ours (the paper's)" in text
    assert "rows" not in [line.split(":")[0] for line in text.splitlines()]


def test_data_are_known_by_what_they_hold(root: Path, tmp_path: Path) -> None:
    assert found_data([root]) == {"ImageNet-1k": root / "imagenet", "SPair-71k": root / "spair"}
    assert found_data([root / "spair"]) == {"SPair-71k": root / "spair"}
    (root / "nyu").mkdir()
    (root / "nyu/nyu_train.txt").write_text("")
    for split, folder in (("train", "training"), ("val", "validation")):
        for kind in ("images", "annotations"):
            (root / "scenes" / kind / folder).mkdir(parents=True)
            (root / "scenes" / kind / folder / f"ADE_{split}_00000001.jpg").write_bytes(b"x")
    assert set(found_data([root])) == {"ImageNet-1k", "SPair-71k", "NYUv2", "ADE20k"}
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="is none of ImageNet-1k"):
        found_data([tmp_path / "empty"])
    with pytest.raises(BadInput, match="both hold what is taken for SPair-71k"):
        found_data([root / "spair", root])


@pytest.mark.long
def test_heads_are_trained_for_their_columns_and_say_that_they_are_short(root: Path, run: Path) -> None:
    draw = np.random.default_rng(1)
    for split, folder, count in (("train", "training", 4), ("val", "validation", 2)):
        for number in range(1, count + 1):
            name = f"ADE_{split}_{number:08d}"
            photo, mask = draw.integers(0, 256, (40, 40, 3)), draw.integers(1, 5, (40, 40))
            for kind, pixels, ending in (("images", photo, "jpg"), ("annotations", mask, "png")):
                path = root / "scenes" / kind / folder / f"{name}.{ending}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(path)
    options = TableOptions(models=(f"EUPE-ViT-B={run}",), data=(root / "scenes",), steps=2, device="cpu")
    cell = cells(fill_table(options), "EUPE-ViT-B")["ADE20k"]
    assert (cell["state"], cell["paper"], cell["remarks"][0]) == ("evaluated", 52.4, "steps is 2")
    assert "is not ADE20k as published" in cell["remarks"][1]
    (record,) = list_records(run)
    assert record["protocol"]["name"] == "official"
    assert cell["ours"] == record["results"]["best_miou"]
    assert cells(fill_table(options), "EUPE-ViT-B")["ADE20k"]["state"] == "recorded"
