"""What is measured of a student: kNN and a linear probe, agreement with its teacher on held-out photos, and masks of real things.

All of it from the same pixels for each student, made once a study: centre crops of the labelled photos (the neighbours and the probe's
training images), of the test photos, and pictures for the masks: stamps of Tux Paint, cut out by their alpha masks and put on test
photos. Stamps for training and for testing differ, and so do their backgrounds.

    knn_percent     our protocol: k = 10, cosine, class token
    linear_percent  DINOv3's logistic regression on the class token, 12 values of C
    cls_cosine      cosine of what the class adapter makes of held-out photos to the teacher's class token, × 100
    patch_cosine    as much of the patch tokens
    mask_iou        intersection over union, in percent and pixels, of the stamps with what a logistic regression on patch tokens finds

A student of several teachers, of a proxy or of other statistics has its cosines in the first teacher's mean-std space where its adapter
leads there, else NaN. Axes: N images, D channels.
"""

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from eupe_pipeline.storage.features.statistics import Statistics
from eupe_pipeline.storage.views.pixels import center_square
from eupe_pipeline.storage.views.view_spec import Input
from eupe_pipeline.student.model.student import Student
from eupe_pipeline.student.probes import linear
from eupe_pipeline.student.probes.knn import knn
from eupe_pipeline.student.training.run_folder import load_student
from eupe_pipeline.teachers.registry.resolve import load_teacher, resolve_teacher
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from .rule_sets import unpacked_stamps
from .study_arms import AGREEMENT_IMAGES, TEACHER, Study
from .study_codebooks import NAME as CODEBOOKS_NAME

PICTURES_A_STAMP = 2
C_POWERS = linear.POWERS[::4]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
_BATCH = 250


@dataclass(frozen=True)
class Measures:
    """Figures of one student."""

    knn_percent: float
    linear_percent: float
    cls_cosine: float
    patch_cosine: float
    mask_iou: float


MEASURES = tuple(field.name for field in fields(Measures))


class Pixels:
    """The pixels of a study, kept in its folder."""

    def __init__(self, study: Study) -> None:
        self._folder, self._study = study.folder / "pixels", study
        self._size_px = study.scale.size_px
        self.bank, self.bank_labels = self._photos("bank", self._size_px)
        self.test, self.test_labels = self._photos("test", self._size_px)
        stamps = self._kept("stamps", self._stamps)
        self.pictures, self.masks, self.is_test = stamps["pictures"], stamps["masks"], stamps["is_test"]

    def _photos(self, split: str, size_px: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        dataset = self._study.store.dataset(split).read_as("stored")

        def make() -> dict[str, NDArray[Any]]:
            labels = dataset.labels()
            pixels = np.empty((len(labels), size_px, size_px, 3), np.uint8)
            for image in range(len(labels)):
                pixels[image] = center_square(dataset.read_image(image), Input(size_px))
            return {"pixels": pixels, "labels": labels}

        arrays = self._kept(f"{split}-{size_px}", make)
        return arrays["pixels"], arrays["labels"]

    def _stamps(self) -> dict[str, NDArray[Any]]:
        """Put each stamp on photos: at a random place, its longer side two fifths to all of the picture."""
        random, pictures, masks, is_test, side_px = np.random.default_rng(0), [], [], [], self._size_px
        for number, path in enumerate(unpacked_stamps(self._study.folder / "stamps")):
            stamp = Image.open(path).convert("RGBA")
            for _ in range(PICTURES_A_STAMP):
                scale = random.uniform(0.4, 1.0) * side_px / max(stamp.size)
                small = stamp.resize([max(1, round(side * scale)) for side in stamp.size], Image.Resampling.BOX)
                left, top = (int(random.integers(side_px - side + 1)) for side in small.size)
                half = len(self.test) // 2
                background = int(random.integers(half)) + half * (number % 2)
                picture = Image.fromarray(self.test[background]).convert("RGBA")
                picture.alpha_composite(small, (left, top))
                mask = np.zeros((side_px, side_px), np.bool_)
                mask[top : top + small.height, left : left + small.width] = np.asarray(small)[..., 3] >= 128
                pictures.append(np.asarray(picture.convert("RGB")))
                masks.append(mask)
                is_test.append(number % 2 == 1)
        return {"pictures": np.stack(pictures), "masks": np.stack(masks), "is_test": np.array(is_test)}

    def teacher_tokens(self) -> tuple[Tensor, Tensor]:
        """Return the teacher's class (N, D) and patch tokens (N, H, W, D) of the first test photos, in the common space."""
        common = self.common_statistics()

        def make() -> dict[str, NDArray[Any]]:
            teacher_px = self._study.scale.teacher_px
            teacher = load_teacher(resolve_teacher(TEACHER, size_px=teacher_px), DEVICE)
            photos, _ = self._photos("test", teacher_px)
            made: list[tuple[NDArray[Any], NDArray[Any]]] = []
            for start in range(0, min(AGREEMENT_IMAGES, len(photos)), _BATCH):
                with torch.no_grad():
                    tokens = teacher(torch.from_numpy(photos[start : start + _BATCH][: AGREEMENT_IMAGES - start]).to(DEVICE))
                assert tokens.cls_BD is not None
                cls_BD, patch_BHWD = tokens.cls_BD.float().cpu().numpy(), tokens.patch_BHWD.float().cpu().numpy()
                made.append((common.normalize_cls(cls_BD), common.normalize_patch(patch_BHWD)))
            return {kind: np.concatenate([pair[index] for pair in made]) for index, kind in enumerate(("cls", "patch"))}

        arrays = self._kept("teacher", make)
        return torch.from_numpy(arrays["cls"]), torch.from_numpy(arrays["patch"])

    def common_statistics(self) -> Statistics:
        """Return the mean and std of the first draw's fp32 tokens, in whose space all students are compared with the teacher."""
        (key,) = self._study.extract(TEACHER, seed=0, views=2, codec="fp32")
        return self._study.store.features(key).statistics

    def statistics_of(self, run: Path) -> tuple[str, Statistics] | None:
        """Return the adapter of a student that leads to the teacher, and the statistics of its space; None where it has none."""
        described = json.loads((run / "model" / "adapters.json").read_text())["teachers"]
        name = next((name for name in described if name in (TEACHER, CODEBOOKS_NAME)), None)
        if name is None:
            return None
        store = self._study.store
        keys = (
            key for key in store.list_features() if store.features_identity(key)["statistics"]["digest"] == described[name]["statistics"]
        )
        return name, store.features(next(keys)).statistics

    def _kept(self, name: str, make: Callable[[], dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
        """Return arrays of the folder, made unless they are there; they are read as they are used: photos of 224 px take gigabytes."""
        folder = self._folder / name
        with self._study.alone(f"pixels-{name}"):
            if not folder.is_dir():
                shutil.rmtree(part := folder.with_name(f"{name}.part"), ignore_errors=True)
                part.mkdir(parents=True)
                for key, array in make().items():
                    np.save(part / f"{key}.npy", array, allow_pickle=False)
                part.rename(folder)
        return {file.stem: np.load(file, mmap_mode="c") for file in folder.glob("*.npy")}


def measure_student(study: Study, pixels: Pixels, run: Path) -> Measures:
    """Return the figures of a finished run."""
    student = load_student(run)
    bank, test = _tokens(student, pixels.bank), _tokens(student, pixels.test)
    nearest = knn(bank[0].numpy(), pixels.bank_labels, test[0].numpy(), pixels.test_labels, ks=())
    return Measures(
        nearest.ours,
        _linear(bank[0], pixels.bank_labels, test[0], pixels.test_labels),
        *_cosines(student, pixels, run, test),
        _mask_iou(student, pixels),
    )


def _tokens(student: Student, pixels_NHWC: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    """Return class (N, D) and patch tokens (N, H, W, D), fp32, on the CPU."""
    classes, patches, encoder = [], [], student.encoder.to(DEVICE)
    for start in range(0, len(pixels_NHWC), _BATCH):
        with torch.no_grad():
            tokens = encoder(encoder.preprocessing.apply(torch.from_numpy(pixels_NHWC[start : start + _BATCH]).to(DEVICE)))
        classes.append(tokens.cls_BD.cpu())
        patches.append(tokens.patch_BHWD.cpu())
    return torch.cat(classes), torch.cat(patches)


def _linear(train_ND: Tensor, train_labels: NDArray[np.int64], test_ND: Tensor, test_labels: NDArray[np.int64]) -> float:
    labels, classes = torch.from_numpy(train_labels), int(train_labels.max()) + 1
    chosen = linear.sweep(train_ND, labels, classes, powers=C_POWERS)
    probe = linear.fit(train_ND.double(), labels, classes, 10.0**chosen.power)
    return probe.percent_right(test_ND.double(), torch.from_numpy(test_labels))


def _cosines(student: Student, pixels: Pixels, run: Path, test: tuple[Tensor, Tensor]) -> tuple[float, float]:
    """Return the mean cosines, × 100, of class and patch tokens with the teacher's; NaN for a student that has no adapter to it."""
    own = pixels.statistics_of(run)
    if own is None:
        return math.nan, math.nan
    name, statistics = own
    heads, common = student.adapters[student.teacher_names.index(name)], pixels.common_statistics()
    cosines = []
    for kind, features, target in zip(("cls", "patch"), test, pixels.teacher_tokens(), strict=True):
        with torch.no_grad():
            predicted = getattr(heads, kind)(features[: len(target)]).numpy()
        restated = getattr(common, f"normalize_{kind}")(getattr(statistics, f"denormalize_{kind}")(predicted))
        cosines.append(100 * float(functional.cosine_similarity(torch.from_numpy(restated), target, dim=-1).double().mean()))
    return cosines[0], cosines[1]


def _mask_iou(student: Student, pixels: Pixels) -> float:
    """Return the IoU of the test stamps: by a probe of the training stamps' patch tokens, at the threshold that is best for those."""
    _, patch_NHWD = _tokens(student, pixels.pictures)
    masks_NHW, tested_N = torch.from_numpy(pixels.masks), torch.from_numpy(pixels.is_test)
    side = masks_NHW.shape[1] // patch_NHWD.shape[1]
    covered_NHW = functional.avg_pool2d(masks_NHW[:, None].double(), side)[:, 0] > 0.5
    probe = linear.fit(patch_NHWD[~tested_N].flatten(0, 2).double(), covered_NHW[~tested_N].flatten().long(), 2, 1.0)
    logits_NHWK = patch_NHWD.double() @ probe.weight_KD.t() + probe.bias_K
    margin_N1HW = (logits_NHWK[..., 1] - logits_NHWK[..., 0])[:, None]
    margin_NHW = functional.interpolate(margin_N1HW, scale_factor=side, mode="bilinear")[:, 0]
    thresholds = margin_NHW[~tested_N].flatten()[::97].quantile(torch.linspace(0.3, 0.98, 35, dtype=torch.float64))
    best = max(thresholds, key=lambda threshold: _iou(margin_NHW[~tested_N] > threshold, masks_NHW[~tested_N]))
    return 100 * _iou(margin_NHW[tested_N] > best, masks_NHW[tested_N])


def _iou(found: Tensor, truth: Tensor) -> float:
    return float((found & truth).sum() / (found | truth).sum())
