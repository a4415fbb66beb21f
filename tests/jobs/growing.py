"""A folder that grows from 40 to 44 photos, its dataset, and an extraction that counts the views its teachers see."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from eupe_pipeline.jobs.extraction.extract import extract_features
from eupe_pipeline.jobs.extraction.options import ExtractOptions, TeacherRequest
from eupe_pipeline.storage.core.events import OnEvent, ignore_event
from eupe_pipeline.storage.features.features import FeatureReader
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views.view_spec import ViewSpec
from eupe_pipeline.student.model.student import Student, TargetSpec
from eupe_pipeline.student.training.run_folder import save_model
from eupe_pipeline.teachers.encoders.build import build_encoder

from ..conftest import TEACHER_PX, make_teacher, write_images

NEW = ("class0/042.png", "class1/040.png", "class1/043.png", "class2/041.png")


def make_photos(root: Path) -> Path:
    """Write 44 photos, four of which come later, and two teachers; return `root`."""
    write_images(root / "images", 44)
    make_teacher(root / "teacher")
    torch.manual_seed(2)
    encoder = build_encoder({"name": "vit-mini", "width": 64, "heads": 4, "layer_scale": 1.0})
    student = Student(encoder, 8, {"none": TargetSpec(None, 4, (1, 1))})
    save_model(student, root / "other" / "model", size_px=TEACHER_PX, targets={})  # 64 channels, as int4 wants
    return root


class Growing:
    """A folder of 40 photos, their dataset, and an extraction that counts the views its teachers see."""

    def __init__(self, root: Path, everything: Path, store: str | None = None) -> None:
        self.root, self.everything, self.images = root, everything, root / "images"
        shutil.copytree(everything / "images", self.images)
        for name in NEW:
            (self.images / name).unlink()
        self.store = FeatureStore.create(store or str(root / "store"))
        self.forwards = 0
        self.options = ExtractOptions(
            self.store.url, "photos", (self.teacher("teacher"),), ViewSpec(views_per_image=2, seed=3), images_per_shard=16,
            codec="int8", statistics_batches=2, batch_size=8, workers=0,
        )  # fmt: skip
        self.index()

    def teacher(self, name: str) -> TeacherRequest:
        return TeacherRequest(str(self.everything / name))

    def index(self, **values: Any) -> str:
        return build_index(self.store.objects, str(self.images), "photos", **values).key

    def grow(self, *names: str) -> str:
        """Put new photos into the folder (all four), and index it; return the dataset's key."""
        for name in names or NEW:
            shutil.copy(self.everything / "images" / name, self.images / name)
        return self.index()

    def extract(self, on_event: OnEvent = ignore_event, **changes: Any) -> dict[str, Any]:
        self.forwards = 0
        return extract_features(replace(self.options, **changes), on_event)

    def reader(self, summary: dict[str, Any], name: str | None = None) -> FeatureReader:
        return self.store.features(summary["features"][name] if name else next(iter(summary["features"].values())))

    def fresh(self, **changes: Any) -> FeatureReader:
        """The tokens of all 44 photos by the same statistics, computed in a store of its own."""
        other = FeatureStore.create(str(self.root / "fresh"))
        build_index(other.objects, str(self.everything / "images"), "photos")
        options = replace(self.options, store=other.url, **changes)
        return other.features(next(iter(extract_features(options)["features"].values())))
