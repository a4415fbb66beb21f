"""What holds on the device that teachers and students run on: `pytest -m gpu` on CUDA; the same lines on a CPU with `--device cpu`.

Stated tolerances: tokens in fp32 1e-3 of their scale, in bf16 a cosine of 0.999; losses of a training from cached targets against the
live teacher 1e-3 in fp32 on one device; a patch loss and its gradient 1e-5 in fp32, 1e-2 in bf16. Resized pixels are equal to the byte.
"""

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from eupe_pipeline.storage.core.choices import RESIZE_ON, ResizeOn
from eupe_pipeline.storage.images import nvjpeg
from eupe_pipeline.storage.sources.decode import decode_image
from eupe_pipeline.storage.views.letterbox import Letterbox
from eupe_pipeline.storage.views.renderers import fast
from eupe_pipeline.storage.views.view_spec import Input, fit
from eupe_pipeline.student.data.order import Order
from eupe_pipeline.student.data.stream import Stream
from eupe_pipeline.student.data.targets import STUDENT, CachedTargets, Rendering
from eupe_pipeline.student.model.losses import patch_loss
from eupe_pipeline.student.model.recipe import (
    AdapterConfig,
    LossConfig,
    OptimizerConfig,
    RunConfig,
    StudentConfig,
    TeacherConfig,
    TrainRecipe,
)
from eupe_pipeline.student.model.sharding import full_tensor, shard
from eupe_pipeline.student.model.student import Student, TargetSpec
from eupe_pipeline.student.training.run_folder import read_metrics
from eupe_pipeline.teachers.encoders.build import build_encoder
from eupe_pipeline.teachers.registry.resolve import load_teacher, resolve_teacher
from eupe_pipeline.teachers.runtime.device_resize import CutViews, require_same_bytes
from PIL import Image
from torch.nn import functional

from .jobs.training_request import train

pytestmark = pytest.mark.gpu

STEPS = 8
RECIPE = TrainRecipe(
    stage=2,
    precision="fp32",
    student=StudentConfig("vit-mini", {"depth": 1, "layer_scale": 0.5}, (24,)),
    adapter=AdapterConfig(32),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_share=0.1),
    run=RunConfig(STEPS, 6, checkpoint_every=STEPS, log_every=1, reader_threads=2),
)


def losses(tiny: Any, out: Path, recipe: TrainRecipe) -> list[float]:
    live = {"proxy": tiny.teacher_run} if recipe.teacher.source == "live" else {}
    train(recipe, tiny.store, ("tiny-teacher",), data="photos", out=out, **live)
    return [line["loss"] for line in read_metrics(out)]


@pytest.mark.parametrize(("precision", "cosine"), [("fp32", 0.999999), ("bf16", 0.999)])
def test_a_teacher_gives_the_tokens_of_the_cpu(tiny_store: Any, device: str, precision: Any, cosine: float) -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8))
    reference = load_teacher(resolve_teacher(str(tiny_store.teacher_run)))(pixels)
    tokens = load_teacher(resolve_teacher(str(tiny_store.teacher_run), precision=precision), device)(pixels.to(device))
    assert tokens.patch_BHWD.dtype == torch.float32
    assert functional.cosine_similarity(tokens.patch_BHWD.cpu(), reference.patch_BHWD, dim=-1).min() > cosine
    assert tokens.cls_BD is not None
    assert reference.cls_BD is not None
    assert functional.cosine_similarity(tokens.cls_BD.cpu(), reference.cls_BD, dim=-1).min() > cosine


def test_a_training_from_cached_targets_is_the_one_beside_the_live_teacher(tiny_store: Any, device: str, tmp_path: Path) -> None:
    cached = losses(tiny_store, tmp_path / "cached", replace(RECIPE, device=device))
    live = losses(tiny_store, tmp_path / "live", replace(RECIPE, device=device, teacher=TeacherConfig("live")))
    assert len(cached) == STEPS
    assert cached == pytest.approx(live, abs=1e-3)
    assert cached[0] != cached[-1]


def test_bf16_and_the_compiler_train_what_fp32_trains(tiny_store: Any, device: str, tmp_path: Path) -> None:
    plain = losses(tiny_store, tmp_path / "fp32", replace(RECIPE, device=device))
    mixed = losses(tiny_store, tmp_path / "bf16", replace(RECIPE, device=device, precision="bf16"))
    assert mixed == pytest.approx(plain, abs=2e-2)
    if device == "cuda":  # on a CPU the compiler's own time would be the test's
        compiled = losses(tiny_store, tmp_path / "compiled", replace(RECIPE, device=device, compile=True))
        assert compiled == pytest.approx(plain, abs=2e-3)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest"])
@pytest.mark.parametrize("letterbox", [None, Letterbox("center")])
def test_the_device_resizes_to_the_bytes_of_the_host(device: str, interpolation: str, letterbox: Letterbox | None) -> None:
    require_same_bytes(torch.device(device))
    random = np.random.default_rng(0)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")  # as a training on CUDA does: products in TF32
    try:
        for px in (16, 64, 224, 256) if device == "cuda" else (16, 48):
            wanted = Input(px, interpolation)
            views = CutViews.allocate(wanted, letterbox, 24, pin=device == "cuda")
            expected = np.zeros((24, *wanted.shape), np.uint8)
            for start in (0, 12):  # as two threads cut: a gap lies between them
                part = views.part(start, start + 12)
                for n in range(12):
                    crop = random.integers(0, 256, (*random.integers(1, 2 * px, 2), 3), np.uint8)
                    crop, flip = crop if n % 2 else np.where(crop > 127, np.uint8(255), np.uint8(0)), bool(n % 3)
                    part.put(n, crop, flip, letterbox, fast())
                    fit(crop, flip, wanted, letterbox, fast(), expected[start + n])
            np.testing.assert_array_equal(views.to(torch.device(device)).resized().cpu().numpy(), expected)
    finally:
        torch.set_float32_matmul_precision(before)


def test_nvjpeg_gives_the_same_pixels_alone_and_in_company_and_nearly_pillows() -> None:
    """Digests of crops are compared, so a file's pixels must not hang on what shares its call."""
    if not torch.cuda.is_available():
        assert "torch finds none here" in nvjpeg.flaw()
        return
    assert nvjpeg.flaw() == ""
    random, files = np.random.default_rng(0), []
    for number in range(40):
        coarse = Image.fromarray(random.integers(0, 256, (9, 12, 3), np.uint8))
        photo, buffer = coarse.resize(tuple(random.integers(200, 600, 2).tolist())), io.BytesIO()
        photo.save(buffer, "JPEG", quality=90, subsampling=number % 3, progressive=number % 4 == 3)
        files.append(buffer.getvalue())
    alone = [nvjpeg.decode_jpeg(data, "stored") for data in files]
    with ThreadPoolExecutor(16) as threads:
        shared = list(threads.map(lambda data: nvjpeg.decode_jpeg(data, "stored"), files))
    for data, one, other in zip(files, alone, shared, strict=True):
        assert one is not None
        assert other is not None
        np.testing.assert_array_equal(one, other)
        assert np.abs(one.astype(np.int32) - decode_image(data, where="x")).mean() < 2
    cut_off = files[0][: len(files[0]) // 2]
    assert nvjpeg.decode_jpeg(cut_off, "stored") is None
    assert nvjpeg._decoded([files[1], b"\xff\xd8\xff\xe0 no image \xff\xd9", files[2]])[1] is None


@pytest.mark.parametrize("resize", RESIZE_ON)
def test_batches_that_cross_while_the_device_is_busy_are_not_overwritten(tiny_store: Any, device: str, resize: ResizeOn) -> None:
    """Two slots of memory and a device that is far behind: a reader that did not wait would fill one before it has crossed."""
    views = tiny_store.features().views

    def stream(pin: bool, resize: ResizeOn = "host") -> Stream:
        order = Order(len(views.dataset), views.views_per_image, 0)
        source = CachedTargets({"tiny-teacher": tiny_store.features()})
        return Stream(
            views, source, order, lambda step: Rendering(STUDENT, 64, "bicubic"), batch_size=8, largest_px={STUDENT: 64}, slots=2, pin=pin,
            resize=resize,
        )  # fmt: skip

    wanted = [batch.to("cpu", keep=True) for batch in stream(pin=False).batches(0, 40)]
    received = []
    for batch in stream(device == "cuda", resize).batches(0, 40):
        if device == "cuda":
            torch.cuda._sleep(20_000_000)  # type: ignore[no-untyped-call]  # some 10 ms of the device's time
        received.append(batch.to(device, keep=True))
    for ours, theirs in zip(received, wanted, strict=True):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name].cpu(), theirs[name]) for name in theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("letterboxed", [False, True])
def test_the_patch_loss_and_its_gradient_are_those_of_the_cpu(device: str, dtype: torch.dtype, letterboxed: bool) -> None:
    random = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(4, 6, 6, 48, generator=random).to(of) for of in (dtype, torch.float16))
    taught = torch.rand(4, 6, 6, generator=random) > 0.5 if letterboxed else None
    found = []
    for where in (device, "cpu"):
        tokens = student.to(where).requires_grad_()
        with torch.autocast(where, torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = patch_loss(tokens, teacher.to(where), LossConfig(), None if taught is None else taught.to(where))
        (gradient,) = torch.autograd.grad(loss, tokens)
        found.append((loss.detach().cpu(), gradient.cpu()))
    assert found[0][0].dtype == torch.float32
    torch.testing.assert_close(found[0], found[1], rtol=1e-5 if dtype == torch.float32 else 1e-2, atol=1e-8)


def test_a_sharded_student_on_one_rank_takes_the_step_of_a_whole_one(device: str, tmp_path: Path) -> None:
    def made() -> Student:
        torch.manual_seed(0)
        return Student(build_encoder({"name": "vit-mini"}), 16, {"teacher": TargetSpec(8, 8, (2, 2))}).to(device)

    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)).to(device)
    dist.init_process_group("nccl" if device == "cuda" else "gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        results = []
        for student in (made(), shard(made(), 1)):
            optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3, fused=True)
            torch.manual_seed(1)  # the rescale of positions is drawn
            tokens = student(pixels)["teacher"]
            (tokens.patch_BHWD.square().mean() + tokens.cls_BD.square().mean()).backward()
            optimizer.step()
            results.append({name: full_tensor(value.detach()).cpu() for name, value in student.named_parameters()})
    finally:
        dist.destroy_process_group()
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, atol=1e-5, rtol=1e-4)
