"""A tiny real store that several rooms test on: 24 photos-like PNGs in three classes, two views each, one random ViT as teacher.

Session-wide and read-only: tests that change a store copy it first.
"""

import os
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from eupe_pipeline.storage.features.features import FeatureLayout, FeatureReader, features_identity
from eupe_pipeline.storage.features.statistics import Moments, Statistics
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views.view_set import ViewSet
from eupe_pipeline.storage.views.view_spec import ViewSpec, cut, pixel_digest, resize
from eupe_pipeline.student.model.student import Student, TargetSpec
from eupe_pipeline.student.training.run_folder import save_model
from eupe_pipeline.teachers.encoders.build import build_encoder
from eupe_pipeline.teachers.registry.resolve import load_teacher, resolve_teacher
from eupe_pipeline.teachers.registry.teacher import Teacher
from hypothesis import settings
from numpy.typing import NDArray
from PIL import Image

from .fault_log import passed_tests, write_down_end, write_down_marked

TEACHER_PX = 16
# Files of half a minute and more. Started first, they end while the many small ones still keep the other process busy.
LONGEST = (
    "test_end_to_end.py",
    "test_gpu_check.py",
    "jobs/training/test_ranks.py",
    "storage/test_s3_faults.py",
    "jobs/extraction/test_pool.py",
    "student/model/test_sharding.py",
    "storage/test_state_machine.py",
    "storage/test_s3.py",
    "student/export/test_usage_examples.py",
    "pipeline/commands/test_ways_out.py",
    "pipeline/distillation/test_distill_page.py",
    "student/export/test_edge_onnx.py",
    "jobs/runs/test_upload_thread.py",
)
settings.register_profile("side by side", deadline=None)  # another process may hold the core for longer than an example takes
settings.register_profile("quick", deadline=None, max_examples=40)
settings.load_profile("side by side")
if "PYTEST_XDIST_WORKER" in os.environ:  # the cores are shared by several processes: threads of one would only take them from another
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start


@dataclass(frozen=True)
class TinyStore:
    """The store, the folder of the teacher's run, and the loaded teacher."""

    store: FeatureStore
    teacher_run: Path
    teacher: Teacher

    def features(self, name: str = "tiny-teacher") -> FeatureReader:
        return self.store.features(name)


def write_images(folder: Path, count: int) -> None:
    """Noisy colour gradients, a class a direction, of several sizes."""
    generator = np.random.default_rng(5)
    for n in range(count):
        label = n % 3
        height, width = 24 + n % 5, 28 - n % 3
        y, x = np.mgrid[:height, :width]
        ramp = (x if label == 0 else y if label == 1 else x + y)[..., None] * np.array([4.0, 3.0, 2.0])
        pixels = np.clip(ramp + generator.normal(60, 20, (height, width, 3)), 0, 255).astype(np.uint8)
        target = folder / f"class{label}" / f"{n:03d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(target)


def make_teacher(run: Path, seed: int = 1) -> Teacher:
    """A random small ViT in a run folder, loaded as a teacher."""
    torch.manual_seed(seed)
    student = Student(build_encoder({"name": "vit-mini", "layer_scale": 1.0}), 8, {"none": TargetSpec(None, 4, (1, 1))})
    save_model(student, run / "model", size_px=TEACHER_PX, targets={})
    return load_teacher(resolve_teacher(str(run)))


def teacher_tokens(teacher: Teacher, views: ViewSet) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.uint8]]:
    """Raw class and patch tokens of every view, one forward a view, and the crops' digests."""
    classes, patches, digests = [], [], []
    for shard in range(views.shards):
        drawn = views.draw_shard(shard)
        first, _ = views.shard_images(shard)
        for place in range(len(drawn.crop)):
            crop = cut(views.dataset.read_image(first + place // views.views_per_image), drawn.crop[place])
            digests.append(np.frombuffer(pixel_digest(crop), np.uint8))
            pixels = resize(crop, bool(drawn.flip[place]), TEACHER_PX)
            tokens = teacher(torch.from_numpy(pixels.copy())[None])
            assert tokens.cls_BD is not None
            classes.append(tokens.cls_BD.numpy())
            patches.append(tokens.patch_BHWD.numpy())
    return np.concatenate(classes), np.concatenate(patches), np.stack(digests)


def extract(store: FeatureStore, teacher: Teacher, views: ViewSet, name: str, codec: str, failed: tuple[int, ...] = ()) -> FeatureReader:
    """Commit one teacher's feature set over some views, one image at a time."""
    cls_nD, patch_nHWD, digests = teacher_tokens(teacher, views)
    cls_moments, patch_moments = Moments(cls_nD.shape[1]), Moments(patch_nHWD.shape[3])
    cls_moments.update(cls_nD)
    patch_moments.update(patch_nHWD)
    statistics = Statistics.from_moments(cls_moments, patch_moments, len(cls_nD))
    layout = FeatureLayout(cls_nD.shape[1], patch_nHWD.shape[3], teacher.spec.grid, codec)
    identity = features_identity(teacher.spec.identity(), views, statistics, {"views_measured": len(cls_nD)}, layout)
    reader = FeatureReader.create(store.objects, name, views, identity, statistics)
    for shard in range(views.shards):
        first, last = views.group.shard_span(shard)
        first_image, last_image = views.shard_images(shard)
        ids = views.dataset.ids(first_image, last_image)
        bad = {ids[image - first_image]: "broken" for image in failed if first_image <= image < last_image}
        if views.read_shard(shard) is None:
            views.commit_shard(shard, views.draw_shard(shard)._replace(digest=digests[first:last]), bad)
        record = views.group.record(shard)
        assert record is not None
        normalised = statistics.normalize_cls(cls_nD[first:last]), statistics.normalize_patch(patch_nHWD[first:last])
        reader.commit_shard(shard, reader.encode(*normalised), bad, record.digest)
    return reader


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let `-m gpu` run on a CPU as well, to see that its lines run."""
    parser.addoption("--device", choices=["cuda", "cpu"], default=None, help="Where tests marked `gpu` run; without: on CUDA where it is.")


@pytest.fixture
def device(request: pytest.FixtureRequest) -> str:
    """Return the device of a test marked `gpu`."""
    chosen = request.config.getoption("--device")
    if chosen is None and not torch.cuda.is_available():
        pytest.skip("no CUDA device; --device cpu runs the same lines here")
    return str(chosen or "cuda")


def pytest_configure(config: pytest.Config) -> None:
    """Try fewer examples where the long tests are left out; those that say their own number keep it."""
    if config.getoption("markexpr") == "not long":
        settings.load_profile("quick")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the longest files first when several processes share the tests; leave out what passed in a fault table that is gone on with."""
    passed = passed_tests()
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in passed])
    items[:] = [item for item in items if item.nodeid not in passed]
    if "PYTEST_XDIST_WORKER" in os.environ:
        tests = Path(__file__).parent
        places = {tests / name: place for place, name in enumerate(LONGEST)}
        items.sort(key=lambda item: places.get(item.path, len(LONGEST)))


@pytest.fixture(scope="session", autouse=True)
def no_wait_for_the_disk() -> Iterator[None]:
    """Leave out what only a power cut would show, which takes milliseconds a file. Processes that tests start do it all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Count a test that is marked `fault(row, outcome, trials)` as so many trials of that row, and note each test's end."""
    report = yield
    if report.when == "call" and not report.skipped:
        for marker in item.iter_markers("fault"):
            if marker.args:
                write_down_marked(report.passed, *marker.args)
        write_down_end(item.nodeid, report.passed, report.duration)
    return report


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> TinyStore:
    """Dataset `photos` (24 images) and feature sets `tiny-teacher` (fp32), `tiny-int8` and `tiny-gaps` (image 5 failed)."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("tiny")
    write_images(root / "images", 24)
    store = FeatureStore.create(str(root / "store"))
    dataset = build_index(store.objects, str(root / "images"), "photos")
    views = ViewSet.create(store.objects, dataset, ViewSpec(views_per_image=2, seed=3), images_per_shard=8)
    teacher = make_teacher(root / "teacher")
    extract(store, teacher, views, "tiny-teacher", "fp32")
    extract(store, teacher, views, "tiny-int8", "int8")
    gaps = ViewSet.create(store.objects, dataset, ViewSpec(views_per_image=2, seed=4), images_per_shard=8)
    extract(store, teacher, gaps, "tiny-gaps", "fp16", failed=(5,))
    return TinyStore(store, root / "teacher", teacher)


@pytest.fixture
def events() -> tuple[list[dict[str, object]], Callable[[dict[str, object]], None]]:
    """A list and the callback that fills it."""
    seen: list[dict[str, object]] = []
    return seen, seen.append
