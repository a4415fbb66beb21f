"""A detector on a student's tokens learns shapes, its AP is COCO's, and the exported graph finds what the evaluation found."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eupe_pipeline.jobs.detection.detection import DetectionOptions, evaluate_detection
from eupe_pipeline.pipeline.demo.fetch import CIFAR10
from eupe_pipeline.storage.annotations.coco import CocoSplit, read_coco
from eupe_pipeline.storage.annotations.dense_pairs import read_picture
from eupe_pipeline.storage.core.cache_home import downloads_folder
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.views.view_spec import resize
from eupe_pipeline.student.export.export import ExportOptions, export
from eupe_pipeline.student.export.lineage import open_trained
from eupe_pipeline.student.export.runtimes import onnx_outputs
from eupe_pipeline.student.heads.automodel import run_folder
from eupe_pipeline.student.heads.detection import DETECTION_RECIPE, INTERPOLATION, DetectorShape, average_precision, best_found
from eupe_pipeline.student.heads.kept import read_head
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from ...pipeline.distillation.conftest import photo_bytes
from ...student.export.test_export import make_run

SIDE = 64
CATEGORIES = {3: "disc", 7: "square"}  # ids with holes
COLOURS = {3: (235, 40, 40), 7: (40, 70, 235)}
SHAPE = DetectorShape(64, 2, 128, 4, 4, 10, 3, 1)
RECIPE = replace(DETECTION_RECIPE, steps=120, batch_size=8, learning_rate=2e-3, warmup_steps=10, clip_norm=1.0)
OPTIONS = DetectionOptions(model="", data=Path(), size_px=SIDE, device="cpu", shape=SHAPE, head=RECIPE)


def draw_coco(root: Path, counts: dict[str, int], backgrounds: list[NDArray[np.uint8]] | None = None) -> Path:
    """Pictures of 96 × 80 px with up to two shapes, every fifth without any, with a crowd in each that follows an empty one."""
    generator = np.random.default_rng(1)
    for split, count in counts.items():
        (root / f"{split}2017").mkdir(parents=True)
        images, annotations = [], list[dict[str, Any]]()
        for number in range(count):
            coarse = np.clip(generator.normal(120, 40, (4, 5, 3)), 0, 255).astype(np.uint8)
            background = coarse if backgrounds is None else backgrounds[(number + 60 * (split == "val")) % len(backgrounds)]
            picture = Image.fromarray(background).resize((96, 80), Image.Resampling.BICUBIC)
            for _ in range(0 if number % 5 == 4 else generator.integers(1, 3)):
                category, (width, height) = int(generator.choice(list(CATEGORIES))), generator.integers(26, 50, 2).tolist()
                left, top = int(generator.integers(0, 96 - width)), int(generator.integers(0, 80 - height))
                corners = [left, top, left + width, top + height]
                draw = ImageDraw.Draw(picture)
                (draw.ellipse if category == 3 else draw.rectangle)(corners, fill=COLOURS[category])
                annotations.append({"id": len(annotations) + 1, "image_id": 1000 + 3 * number, "category_id": category,
                                    "bbox": [left, top, width, height], "area": width * height, "iscrowd": 0})  # fmt: skip
            if number % 5 == 0:
                annotations.append({"id": len(annotations) + 1, "image_id": 1000 + 3 * number, "category_id": 7,
                                    "bbox": [0, 0, 96, 80], "area": 7680, "iscrowd": 1})  # fmt: skip
            picture.save(root / f"{split}2017" / f"{number}.png")
            images.append({"id": 1000 + 3 * number, "file_name": f"{number}.png", "width": 96, "height": 80})
        (root / "annotations").mkdir(exist_ok=True)
        categories = [{"id": number, "name": name} for number, name in CATEGORIES.items()]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_coco(tmp_path_factory.mktemp("coco"), {"train": 40, "val": 15})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("detection") / "run", {"name": "vit-mini", "depth": 1, "layer_scale": 1.0}, SIDE)


@pytest.fixture(scope="module")
def learnt(run: Path, data: Path) -> dict[str, Any]:
    return evaluate_detection(replace(OPTIONS, model=str(run), data=data))


def test_a_detector_learns_shapes_on_frozen_tokens_and_its_record_is_found_again(learnt: dict[str, Any], run: Path, data: Path) -> None:
    assert learnt["ap50"] > 20
    assert learnt["ap50"] >= learnt["ap"] > 0
    assert set(learnt["ap_by_class"]) == {"disc", "square"}
    assert learnt["ap_large"] is None, "no shape is above 96 × 96 px"
    again = evaluate_detection(replace(OPTIONS, model=str(run), data=data))
    assert (again["already"], again["ap"]) == (True, learnt["ap"])
    assert sorted(path.name.partition(".")[2] for path in (run / "evaluations").glob("detection-*")) == ["head.safetensors", "json"]


def found_by(outputs: Any, run: Path, split: CocoSplit) -> list[dict[str, Any]]:
    prep, found = open_trained(run).preprocessing, list[dict[str, Any]]()
    for picture in split.pictures:
        square = resize(read_picture(picture.path), False, SIDE, INTERPOLATION)
        boxes, scores = outputs(prep.apply(torch.from_numpy(square.copy())[None]).contiguous())
        found += best_found(boxes[0], scores[0], picture, split)
    return found


def of_folder(folder: Path) -> Any:
    def outputs(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found = run_folder(folder, pixels)
        return found["detection_boxes"], found["detection_scores"]

    return outputs


def test_the_exported_folder_has_the_detectors_ap(learnt: dict[str, Any], run: Path, data: Path, tmp_path: Path) -> None:
    export(ExportOptions(run, tmp_path, ("transformers",), heads=("detection",)))
    val = read_coco(data, "val")
    squares = np.stack([resize(read_picture(picture.path), False, SIDE, INTERPOLATION) for picture in val.pictures])
    boxes, scores = of_folder(tmp_path / "transformers")(open_trained(run).preprocessing.apply(torch.from_numpy(squares)).contiguous())
    found = [one for number, picture in enumerate(val.pictures) for one in best_found(boxes[number], scores[number], picture, val)]
    assert average_precision(val, found)["ap"] == pytest.approx(learnt["ap"])
    assert json.loads((tmp_path / "transformers" / "config.json").read_text())["id2label"] == {"0": "disc", "1": "square"}
    assert f"AP {learnt['ap']:.2f}, AP50 {learnt['ap50']:.2f}" in (tmp_path / "transformers" / "README.md").read_text()


@pytest.mark.long
def test_the_exported_graph_has_the_detectors_ap(learnt: dict[str, Any], run: Path, data: Path, tmp_path: Path) -> None:
    export(ExportOptions(run, tmp_path, ("onnx",), heads=("detection",)))
    outputs = onnx_outputs(tmp_path / "onnx" / "student.onnx", ("detection_boxes", "detection_scores"))
    measured = average_precision(read_coco(data, "val"), found_by(outputs, run, read_coco(data, "val")))
    figures = ("ap", "ap50", "ap75")
    assert [measured[name] for name in figures] == pytest.approx([learnt[name] for name in figures])
    with pytest.raises(BadInput, match=r"operators that edge runtimes may not have: .*GridSample.*TopK"):
        export(ExportOptions(run, tmp_path, ("onnx",), heads=("detection",), target="edge"))


def restated_ap(split: CocoSplit, found: list[dict[str, Any]], least_iou: float) -> float:
    """COCO's AP at one IoU, as its paper and code state it: greedy by score, crowds neither right nor wrong, 101 recalls."""

    def overlap(a: Any, b: Any, crowd: bool) -> float:
        width, height = (min(a[k] + a[k + 2], b[k] + b[k + 2]) - max(a[k], b[k]) for k in (0, 1))
        both = max(0.0, width) * max(0.0, height)
        return float(both / (a[2] * a[3] if crowd else a[2] * a[3] + b[2] * b[3] - both))

    means = []
    for category, number in enumerate(split.category_ids):
        marks, objects = list[tuple[float, int]](), 0
        for picture in split.pictures:
            truth = [one for one in picture.objects if one.category == category]
            objects, taken = objects + sum(not one.crowd for one in truth), set[int]()
            for one in sorted((f for f in found if (f["image_id"], f["category_id"]) == (picture.id, number)), key=lambda f: -f["score"]):
                free = [(overlap(one["bbox"], t.box, False), t.id) for t in truth if not t.crowd and t.id not in taken]
                best = max([pair for pair in free if pair[0] >= least_iou], default=None)
                crowded = any(overlap(one["bbox"], t.box, True) >= least_iou for t in truth if t.crowd)
                if best is not None:
                    taken.add(best[1])
                    marks.append((one["score"], 1))
                elif not crowded:
                    marks.append((one["score"], 0))
        hits = np.array([hit for _, hit in sorted(marks, key=lambda mark: -mark[0])]).cumsum()
        precision, recall = hits / np.arange(1, len(hits) + 1), hits / objects
        best_from = np.maximum.accumulate(precision[::-1])[::-1]
        means.append(np.mean([best_from[np.searchsorted(recall, r)] if r <= recall[-1] else 0.0 for r in np.linspace(0, 1, 101)]))
    return 100 * float(np.mean(means))


def test_ap_is_what_a_restatement_of_its_definition_gives(data: Path) -> None:
    split, generator = read_coco(data, "val"), np.random.default_rng(0)
    found = []
    for picture in split.pictures:
        for one in picture.objects:  # near an object, so that several IoUs are crossed, half of them of the right class
            box = (np.array(one.box) + generator.normal(0, 5, 4)).clip(1).tolist()
            category = split.category_ids[one.category if generator.random() < 0.7 else 0]
            found.append({"image_id": picture.id, "category_id": category, "bbox": box, "score": float(generator.random())})
        found += [{"image_id": picture.id, "category_id": 7, "bbox": [5, 5, 30, 20], "score": float(generator.random())}]
    measured = average_precision(split, found)
    assert 5 < measured["ap"] < 95
    assert measured["ap50"] == pytest.approx(restated_ap(split, found, 0.5), abs=1e-6)
    assert measured["ap"] == pytest.approx(np.mean([restated_ap(split, found, iou) for iou in np.arange(0.5, 0.96, 0.05)]), abs=1e-6)


def test_a_finetuned_detector_takes_its_own_encoder_along_and_no_other_head(run: Path, data: Path, tmp_path: Path) -> None:
    options = replace(OPTIONS, model=str(run), data=data, steps=3, finetune=True, out=tmp_path / "tuned")
    result = evaluate_detection(options)
    before = open_trained(run).encoder.state_dict()
    head = read_head(Path(result["head"]))
    changed = [name for name, tensor in before.items() if not torch.equal(head.tensors[f"encoder.{name}"], tensor)]
    assert len(changed) > len(before) / 2
    assert all(torch.equal(tensor, open_trained(run).encoder.state_dict()[name]) for name, tensor in before.items()), "a copy learns"
    export(ExportOptions(run, tmp_path, ("transformers",), heads=(result["head"],)))
    weights = load_file(tmp_path / "transformers" / "model.safetensors")
    name = "embeddings.patch_embeddings.weight"
    assert torch.equal(weights[f"backbone.{name}"], head.tensors["encoder.backbone.patch_embed.proj.weight"])
    record = json.loads((tmp_path / "transformers" / "export.json").read_text())
    assert record["weights_sha256"] != open_trained(run).weights_sha256
    with pytest.raises(BadInput, match="shares none with other heads"):
        export(ExportOptions(run, tmp_path, ("onnx",), heads=("frozen=detection", result["head"])))


def test_a_stopped_training_goes_on_to_the_same_ap(run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eupe_pipeline.student.probes.head_training.KEEP_EVERY", 2)
    monkeypatch.setattr("eupe_pipeline.student.probes.head_training._LOG_EVERY", 2)
    options = replace(OPTIONS, model=str(run), data=data, steps=4)
    whole = evaluate_detection(replace(options, out=tmp_path / "whole"))

    def stop(event: dict[str, Any]) -> None:
        if event.get("stage") == "head" and event["done"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_detection(replace(options, out=tmp_path / "stopped"), stop)
    resumed = evaluate_detection(replace(options, out=tmp_path / "stopped"))
    assert resumed["ap_by_class"] == whole["ap_by_class"]
    heads = [read_head(Path(result["head"])).tensors for result in (whole, resumed)]
    assert all(torch.equal(heads[1][name], tensor) for name, tensor in heads[0].items())


def test_check_reads_the_layout_and_trains_nothing(run: Path, data: Path) -> None:
    told = evaluate_detection(replace(OPTIONS, model=str(run), data=data, check=True))
    assert (told["categories"], told["train_pictures"], told["val_pictures"]) == (2, 40, 15)
    assert told["val_boxes"] == sum(len(picture.learnt()[0]) for picture in read_coco(data, "val").pictures)


@pytest.mark.long
def test_a_detector_learns_shapes_on_real_photos(run: Path, tmp_path: Path) -> None:
    source = downloads_folder() / CIFAR10.filename
    if not source.is_file():
        pytest.skip(f"`eupe-pipeline demo --fetch-only` brings {source}")
    photos = [np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for _, data in photo_bytes(source, "train", 80, tmp_path)]
    data = draw_coco(tmp_path / "data", {"train": 60, "val": 20}, photos)
    result = evaluate_detection(replace(OPTIONS, model=str(run), data=data, steps=300, out=tmp_path / "out"))
    assert result["ap50"] > 20
