"""Training from the store against the same work without a store, interleaved (BENCHMARKS.md, bench-train).

`step/in_memory`: optimiser steps of a student on streamed batches, each round with a new stream whose start counts, against the same steps
on one batch kept in memory; `step_cpu/in_memory`: their processor time, all threads together, which is what streaming costs where no core
is idle and what other work on the machine moves less (so too `stream_alone_cpu/raw`). `cached_speedup/ideal`: live step over cached step
with a ViT-B-shaped random teacher, against 1 + the teacher's forward over the student's step in memory. `stream_alone/raw`: images and
int8 targets streamed with no training (views and digests checked, tokens checksummed) against the sum of decode, crop and resize alone
and of unchecked raw reads of the same bytes, both on as many threads; torch's DataLoader does the same work with as many worker
processes, from our store and from LitData's and MDS's containers with the same bytes where those install. `step_convnext` is `step` for
a ConvNeXt-T. `loss_gap_fp32`: the largest difference of cached and live losses over 50 steps. Everything is in the page cache.

    python -m benchmarks.bench_train [--student eupe_vitt16] [--batch 4] [--rounds 7] [--folder DIR]
"""

import argparse
import itertools
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from eupe_pipeline.jobs.training.train import initial_student
from eupe_pipeline.storage.features.features import FeatureReader
from eupe_pipeline.storage.views.view_spec import cut, resize
from eupe_pipeline.student.data.order import Order
from eupe_pipeline.student.data.stream import Batch, Stream
from eupe_pipeline.student.data.targets import STUDENT, CachedTargets, LiveTargets, Rendering, TargetSource
from eupe_pipeline.student.model.recipe import RunConfig, StudentConfig, TrainRecipe
from eupe_pipeline.student.model.student import Student, TargetSpec
from eupe_pipeline.student.training.learner import Learner
from eupe_pipeline.student.training.run_folder import RunFolder, save_model
from eupe_pipeline.student.training.trainer import Trainer
from eupe_pipeline.teachers.encoders.build import build_encoder
from eupe_pipeline.teachers.registry.resolve import load_teacher, resolve_teacher
from eupe_pipeline.teachers.registry.teacher import Teacher
from eupe_pipeline.teachers.runtime.devices import Choice, choose_precision
from torch.utils.data import DataLoader

from .figures import interleave, medians, report
from .loss_gap import loss_gap_fp32
from .training_peers import PackedDataset, written
from .training_store import PlainDataset, RawTokens, make_store, unit_statistics

SIZE_PX, TEACHER = 256, "eupe_vitb16"
CPU = Choice("cpu", "benchmark")
TARGETS = {
    "train.step/in_memory": (">=", 0.95),
    "train.step_convnext/in_memory": (">=", 0.95),
    "train.cached_speedup/ideal": (">=", 0.95),
    "train.stream_alone/raw": (">=", 0.9),
    "train.loss_gap_fp32": ("<=", 0.0),
}


def make_teacher(folder: Path) -> Teacher:
    """Return a random ViT-B in a run folder, loaded as a frozen teacher."""
    torch.manual_seed(0)
    student = Student(build_encoder({"name": TEACHER, "layer_scale": 1.0}), 8, {"none": TargetSpec(None, 4, (1, 1))})
    save_model(student, folder / "model", size_px=SIZE_PX, targets={})
    return load_teacher(resolve_teacher(str(folder)))


def make_trainer(recipe: TrainRecipe, source: TargetSource, reader: FeatureReader, folder: Path) -> Trainer:
    """Make a trainer that nobody starts: its steps are called one by one."""
    student = initial_student(recipe, source.specs)
    precision = choose_precision(recipe.precision, "cpu")
    learner = Learner(recipe, student, RunFolder(folder), device=CPU, precision=precision, statistics={})
    views = reader.views
    return Trainer([learner], source, views, Order(len(views.dataset), views.views_per_image, 0))


def kept(batch: Batch) -> Batch:
    """Return a copy that the stream does not write over."""
    return Batch(batch.plan, {name: tensor.clone() for name, tensor in batch.tensors.items()})


def stepping(trainer: Trainer, steps: int, in_memory: bool) -> Callable[[int], None]:
    """Return a contestant: `steps` optimiser steps on streamed batches, or on one that is kept in memory."""
    batch = kept(next(trainer.stream.batches(0, 1)))
    learner = trainer.learners[0]

    def run(number: int) -> None:
        first = (number + 1) * steps  # other images each round; the warm-up round has number -1
        batches = itertools.repeat(batch, steps) if in_memory else trainer.stream.batches(first, first + steps)
        for one in batches:
            learner.steps_done = one.plan.step
            trainer.step(one)

    return run


def bench_steps(
    recipe: TrainRecipe, reader: FeatureReader, folder: Path, rounds: int, steps: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Return seconds a step: streamed, in memory, live, and the teacher's forward alone; then the processor seconds of the steps."""
    teacher = make_teacher(folder / "teacher")
    cached = make_trainer(recipe, CachedTargets({"bench": reader}), reader, folder / "cached")
    live_source = LiveTargets({"bench": teacher}, {"bench": unit_statistics(teacher.spec.patch_dim)})
    live = make_trainer(recipe, live_source, reader, folder / "live")
    batch = kept(next(live.stream.batches(0, 1)))
    cpu: dict[str, list[float]] = {"streamed": [], "in memory": [], "live": []}
    contestants = {
        "streamed": timed(stepping(cached, steps, False), cpu["streamed"]),
        "in memory": timed(stepping(cached, steps, True), cpu["in memory"]),
        "live": timed(stepping(live, steps, False), cpu["live"]),
        "teacher forward": lambda number: live_source.resolve(batch.tensors),
    }
    seconds = medians(interleave(contestants, rounds))
    a_step = {name: value / (1 if name == "teacher forward" else steps) for name, value in seconds.items()}
    return a_step, {name: value / steps for name, value in medians(cpu).items()}


def bench_two_ways(recipe: TrainRecipe, reader: FeatureReader, folder: Path, rounds: int, steps: int) -> dict[str, float]:
    """Return seconds a step of another student, streamed and in memory."""
    trainer = make_trainer(recipe, CachedTargets({"bench": reader}), reader, folder / "second")
    contestants = {"streamed": stepping(trainer, steps, False), "in memory": stepping(trainer, steps, True)}
    return {name: value / steps for name, value in medians(interleave(contestants, rounds)).items()}


def timed(contestant: Callable[[int], None], cpu_seconds: list[float]) -> Callable[[int], None]:
    """Return the contestant; the processor time of this process in each round goes to the list."""

    def run(number: int) -> None:
        began = time.process_time()
        contestant(number)
        if number >= 0:
            cpu_seconds.append(time.process_time() - began)

    return run


def bench_stream(
    reader: FeatureReader, folder: Path, rounds: int, batch: int, batches: int, threads: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Return seconds for `batches` batches, by way to make them; then this process's processor seconds (a DataLoader's workers are
    others).
    """
    views, dataset = reader.views, reader.views.dataset
    order = Order(len(dataset), views.views_per_image, 0)
    source, raw = CachedTargets({"bench": reader}), RawTokens(folder / "raw", reader)
    stream = Stream(
        views,
        source,
        order,
        lambda step: Rendering(STUDENT, SIZE_PX, "bicubic"),
        batch_size=batch,
        threads=threads,
        slots=3,
        largest_px={STUDENT: SIZE_PX},
    )
    pixels, tokens = np.empty((batch, SIZE_PX, SIZE_PX, 3), np.uint8), memoryview(bytearray(batch * raw.row_bytes))
    all_views = views.read(np.arange(reader.rows))

    def render(rows: np.ndarray[tuple[int], np.dtype[np.int64]], start: int) -> None:
        for place, row in enumerate(rows.tolist(), start):
            crop = cut(dataset.read_image(row // views.views_per_image), all_views.crop[row])
            pixels[place] = resize(crop, bool(all_views.flip[row]), SIZE_PX, renderer=views.renderer)

    def shared(work: Callable[[np.ndarray[tuple[int], np.dtype[np.int64]], int], None]) -> Callable[[int], None]:
        def run(number: int) -> None:
            edges = np.linspace(0, batch, threads + 1).astype(int).tolist()
            with ThreadPoolExecutor(threads) as pool:
                steps = [order.batch(step, batch).row_B for step in range((number + 1) * batches, (number + 2) * batches)]
                parts = [pool.submit(work, rows[start:stop], start) for rows in steps for start, stop in itertools.pairwise(edges)]
            for part in parts:
                part.result()

        return run

    def streamed(number: int) -> None:
        for _ in stream.batches((number + 1) * batches, (number + 2) * batches):
            pass

    def loaded(number: int) -> None:
        first = (number + 1) * batches * batch
        rows = order.at_positions(first, first + batches * batch).row_B
        data = PlainDataset(str(folder / "store"), rows, SIZE_PX)
        for _ in DataLoader(data, batch_size=batch, num_workers=threads, prefetch_factor=2):
            pass

    packed, peers = written(folder / "peers", reader)

    def peer_loaded(name: str) -> Callable[[int], None]:
        def run(number: int) -> None:
            first = (number + 1) * batches * batch
            rows = order.at_positions(first, first + batches * batch).row_B
            data = PackedDataset(name, folder / "peers" / name, packed, rows, SIZE_PX)
            for _ in DataLoader(data, batch_size=batch, num_workers=threads, prefetch_factor=2):
                pass

        return run

    row_bytes = raw.row_bytes
    contestants: dict[str, Callable[[int], None]] = {
        "stream": streamed,
        "decode, crop, resize": shared(render),
        "raw reads": shared(lambda rows, start: raw.read(rows, tokens[start * row_bytes :])),
        "DataLoader": loaded,
        **{name: peer_loaded(name) for name in peers},
    }
    cpu: dict[str, list[float]] = {name: [] for name in contestants}
    seconds = medians(interleave({name: timed(one, cpu[name]) for name, one in contestants.items()}, rounds))
    return seconds, medians(cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="eupe_vitt16")
    parser.add_argument("--second-student", default="eupe_convnext_tiny")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=Path("docs/results/bench-train.json"))
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-train-", dir=options.folder))
    run = RunConfig(10**6, options.batch, reader_threads=options.threads)
    recipe = replace(TrainRecipe(device="cpu"), student=StudentConfig(options.student, {}, (SIZE_PX,)), run=run)
    try:
        reader = make_store(folder, options.images, (16, 16), 768)
        stream, stream_cpu = bench_stream(reader, folder, options.rounds, 32, 8, options.threads)
        steps, cpu = bench_steps(recipe, reader, folder, options.rounds, options.steps)
        second = replace(recipe, student=replace(recipe.student, architecture=options.second_student))
        second_steps = bench_two_ways(second, reader, folder, options.rounds, options.steps)
        gap = loss_gap_fp32(folder / "gap", 50)
    finally:
        shutil.rmtree(folder)
    for name, value in steps.items():
        print(f"step    {name:22} {value * 1e3:9.1f} ms  {options.batch / value:7.1f} images/s")
    for name, value in second_steps.items():
        print(f"step    {options.second_student}, {name}: {value * 1e3:.1f} ms")
    for name, value in stream.items():
        print(f"stream  {name:22} {value * 1e3:9.1f} ms  {32 * 8 / value:7.1f} images/s")
    results = {
        "train.step/in_memory": steps["in memory"] / steps["streamed"],
        "train.step_cpu/in_memory": cpu["in memory"] / cpu["streamed"],
        "train.step_convnext/in_memory": second_steps["in memory"] / second_steps["streamed"],
        "train.cached_speedup/ideal": (steps["live"] / steps["streamed"]) / (1 + steps["teacher forward"] / steps["in memory"]),
        "train.stream_alone/raw": (stream["decode, crop, resize"] + stream["raw reads"]) / stream["stream"],
        "train.stream_alone_cpu/raw": sum(stream_cpu[name] for name in ("decode, crop, resize", "raw reads")) / stream_cpu["stream"],
        "train.stream_alone/dataloader": stream["DataLoader"] / stream["stream"],
        **{f"train.stream_alone/{name}": stream[name] / stream["stream"] for name in ("litdata", "mds") if name in stream},
        "train.loss_gap_fp32": gap,
    }
    details = {"command": "python -m benchmarks.bench_train", "options": {key: str(value) for key, value in vars(options).items()}}
    details |= {"torch_threads": str(torch.get_num_threads()), "precision": str(choose_precision("auto", "cpu"))}
    report(
        results,
        TARGETS,
        {
            **details,
            "seconds": {"step": steps, "step_cpu": cpu, "step_convnext": second_steps, "stream": stream, "stream_cpu": stream_cpu},
        },
        options.out,
    )


if __name__ == "__main__":
    main()
