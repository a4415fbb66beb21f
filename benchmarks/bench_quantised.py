"""What int8 costs a student: kNN of fp32, of int8 by measured ranges and of an int8-aware last phase, in ONNX Runtime and ExecuTorch.

CIFAR-10, EfficientNet-Lite0 at 128 px as teacher, the demonstration's student (ViT-T, 64 px). One student is trained (1,000 steps) and goes
on for the last phase twice, with the same steps, batches and learning rate: plain, and aware of int8 in each step. Both are exported;
ranges of the plain one are measured on 256 of its own views, those of the aware one are what it saw. kNN by our protocol (k = 10,
cosine) on the class token and the mean patch token. The standard error of a difference is that over 25 groups of test images, which both
graphs classify. Latency is processor time a picture, in rounds that take turns.

Runs and exports stay in --folder, each figure in a file there: run again, it does what is missing. A runtime that is not installed is
left out. About an hour of one core.

    python -m benchmarks.bench_quantised [--steps 1000 --last-steps 200 --images 10000 --test-images 5000 --folder runs/bench-quantised]
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from eupe_pipeline.jobs.evaluation.knn import EvaluationSize, embed_images, labels_as, sample_images
from eupe_pipeline.jobs.export_run import ExportOptions, export_run
from eupe_pipeline.student.export.runtimes import CannotRunHere, executorch_runner, onnx_runner
from eupe_pipeline.student.model.recipe import AdapterConfig, OptimizerConfig, QuantiseConfig, StudentConfig
from eupe_pipeline.student.probes.knn import Embeddings, knn
from eupe_pipeline.teachers.encoders.tokens import Tokens
from eupe_pipeline.teachers.registry.resolve import load_teacher, resolve_teacher
from torch import Tensor

from .figures import machine
from .quantised_knn import program
from .study_arms import TEACHER, Scale, Study

SIZE_PX = 64
STUDENTS = {
    "vitt": (StudentConfig("eupe_vitt16", {"layer_scale": 1.0}, (SIZE_PX,)), "the demonstration's (ViT-T"),
    "small": (
        StudentConfig("vit", {"width": 96, "depth": 4, "heads": 3, "layer_scale": 1.0, "patch_px": 16}, (SIZE_PX,)),
        "a small one (a ViT of width 96 and depth 4",
    ),
}
GROUPS = 25
GOAL_POINTS = 0.5
MEASURED, AWARE, DYNAMIC = "int8, measured ranges", "int8, aware last phase", "int8, dynamic (linear layers)"
ROWS = (  # (run, runtime, what, folder of the export, file)
    ("plain", "ONNX Runtime", "fp32", "onnx-edge", "student.onnx"),
    ("plain", "ONNX Runtime", MEASURED, "onnx-edge-int8", "student.onnx"),
    ("aware", "ONNX Runtime", "fp32", "onnx-edge", "student.onnx"),
    ("aware", "ONNX Runtime", AWARE, "onnx-edge-int8", "student.onnx"),
    ("plain", "ExecuTorch", "fp32", "executorch", "student-fp32.pte"),
    ("plain", "ExecuTorch", DYNAMIC, "executorch", "student-int8.pte"),
    ("plain", "ExecuTorch", MEASURED, "executorch-int8", "student-int8-static.pte"),
    ("aware", "ExecuTorch", AWARE, "executorch-int8", "student-int8-static.pte"),
)
Runner = Callable[[Tensor], Tokens]


class Bench:
    """A store, three runs and their exports in one folder."""

    def __init__(self, folder: Path, scale: Scale, last_steps: int, name: str) -> None:
        self.study, self.scale, self.last_steps, self.name = Study(folder, scale), scale, last_steps, name
        self.folder, self.store = folder, self.study.store

    def train(self) -> dict[str, Path]:
        """Return the runs by name, trained unless they are."""
        student = STUDENTS[self.name][0]
        features, shared = self.study.extract(TEACHER, seed=0, views=2, codec="int8"), self.study.recipe(0, student)
        first = OptimizerConfig(learning_rate=2e-3, beta2=0.95, weight_decay=0.02)
        base = replace(shared, adapter=AdapterConfig(256), optimizer=first, precision="auto")
        start = str(self.study.train(base, features, self.name))
        run = replace(base.run, steps=self.last_steps, checkpoint_every=self.last_steps)
        optimizer = OptimizerConfig(learning_rate=2e-4, beta2=0.95, weight_decay=0.02)
        plain = replace(base, student=replace(student, init_from=start), run=run, optimizer=optimizer)
        recipes = {"plain": plain, "aware": replace(plain, quantise=QuantiseConfig(self.last_steps))}
        return {name: self.study.train(recipe, features, f"{self.name}-{name}") for name, recipe in recipes.items()}

    def export(self, run: Path) -> Path:
        """Return the folder of a run's exports, made unless they are there."""
        out = self.folder / "exports" / run.name
        for options in (
            ExportOptions(run, out, ("onnx",), target="edge"),
            ExportOptions(run, out, ("onnx",), target="edge", precision="int8", store=self.store.url),
            ExportOptions(run, out, ("executorch",)),
            ExportOptions(run, out, ("executorch",), precision="int8", store=self.store.url),
        ):
            if not (out / options.graph.folder(options.formats[0])).exists():
                try:
                    export_run(options)
                except CannotRunHere as error:
                    print(f"left out: {error}", flush=True)
        return out

    def embed(self, run: Path, runner: Runner) -> tuple[Embeddings, Embeddings]:
        """Return the features of training and test images."""
        teacher = program(load_teacher(resolve_teacher(str(run))), runner)
        train, test = (self.store.dataset(name) for name in ("train", "test"))
        images = sample_images(train, self.scale.images, "train"), sample_images(test, self.scale.test_images, "test")
        self.labels = train.labels()[images[0]], labels_as(test, train.label_names)[images[1]]
        bank, queries = (embed_images(teacher, one, of, EvaluationSize()) for one, of in zip((train, test), images, strict=True))
        return bank, queries


def percents(bench: Bench, bank: Embeddings, queries: Embeddings) -> dict[str, list[float]]:
    """Return percent right by feature, for each group of test images."""
    groups = np.array_split(np.arange(len(bench.labels[1])), GROUPS)
    features = {"cls": (bank.cls_ND, queries.cls_ND), "mean patch": (bank.mean_patch_ND, queries.mean_patch_ND)}
    return {
        name: [knn(train_ND, bench.labels[0], test_ND[group], bench.labels[1][group], ks=()).ours for group in groups]
        for name, (train_ND, test_ND) in features.items()
        if train_ND is not None and test_ND is not None
    }


def processor_ms(runners: dict[str, Runner], rounds: int = 60) -> dict[str, float]:
    """Return the median processor time of one picture by row; rows take turns, so that a busy neighbour meets all of them."""
    pixels, took = torch.randn(1, 3, SIZE_PX, SIZE_PX), {name: list[float]() for name in runners}
    for _ in range(rounds):
        for name, run in runners.items():
            began = time.process_time()
            run(pixels)
            took[name].append((time.process_time() - began) * 1e3)
    return {name: float(np.median(each[5:])) for name, each in took.items()}


def measure(bench: Bench, runs: dict[str, Path]) -> dict[str, Any]:
    """Return and keep the figures of each row by its name."""
    kept = bench.folder / f"figures-{bench.name}.json"
    figures: dict[str, Any] = json.loads(kept.read_text()) if kept.is_file() else {}
    runners: dict[str, Runner] = {}
    for run, runtime, what, folder, file in ROWS:
        path, name = bench.export(runs[run]) / folder / file, f"{run}: {runtime}, {what}"
        if not path.is_file():
            continue
        try:
            runners[name] = (onnx_runner if file.endswith(".onnx") else executorch_runner)(path)
        except CannotRunHere as error:
            print(f"left out: {error}", flush=True)
            continue
        if name not in figures:
            facts = json.loads((path.parent / "export.json").read_text())["facts"]
            figures[name] = {"bytes": path.stat().st_size, "percent": percents(bench, *bench.embed(runs[run], runners[name]))}
            figures[name] |= {"cosine": facts["cosine of the tokens"]} if "cosine of the tokens" in facts else {}
            kept.write_text(json.dumps(figures, indent=1))
            print(name, {feature: round(float(np.mean(each)), 2) for feature, each in figures[name]["percent"].items()}, flush=True)
    for name, cpu_ms in processor_ms(runners).items():
        figures[name]["cpu_ms"] = cpu_ms
    kept.write_text(json.dumps(figures, indent=1))
    return {name: figures[name] for name in runners}


def table(figures: dict[str, Any]) -> str:
    """Return the rows; a loss is against the plain run's fp32 in ONNX Runtime."""
    reference = figures["plain: ONNX Runtime, fp32"]
    lines = ["| run | graph | kNN, class token | lost | kNN, mean patch | lost | MB | of fp32 | CPU time of fp32 |", f"|{'---|' * 9}"]
    for name, found in figures.items():
        run, graph = name.split(": ", 1)
        fp32 = next(figures[key] for key in figures if key.startswith(f"plain: {graph.split(',')[0]}"))
        cells = list[str]()
        for feature, each in found["percent"].items():
            lost = np.array(reference["percent"][feature]) - np.array(each)
            cells += [f"{np.mean(each):.2f}", f"{lost.mean():+.2f} ± {lost.std(ddof=1) / len(lost) ** 0.5:.2f}"]
        sizes = [f"{found['bytes'] / 1e6:.2f}", f"{found['bytes'] / fp32['bytes']:.2f}", f"{found['cpu_ms'] / fp32['cpu_ms']:.2f}"]
        lines.append(f"| {run} | {graph} | {' | '.join([*cells, *sizes])} |")
    return "\n".join(lines)


_BY_HAND = "\n## What it says\n"
_TEXT = """# What int8 costs a student

kNN accuracy (our protocol: k = 10, cosine) in percent on {test_images:,} of CIFAR-10's test photos, with {images:,} training photos to
compare with. The student is {student}, {size_px} px), taught by EfficientNet-Lite0 for {steps:,} steps of {batch_size}
views; `plain` and `aware` go on from it for {last_steps} steps of the same batches, `aware` with int8 in each of them. Lost: points below
the plain fp32 graph in ONNX Runtime, with the standard error over {groups} groups of test images. Processor time of one picture on one
thread, as a share of the plain fp32 graph's in the same runtime. Goal: at most {goal} points lost.

{table}

{machine}, `python -m benchmarks.bench_quantised --student {name}`.
"""


def write(figures: dict[str, Any], bench: Bench, out: Path) -> None:
    """Write the table above what people wrote of it, and the figures beside it."""
    here = machine()
    by_hand = out.read_text().partition(_BY_HAND)[2] if out.is_file() else ""
    described = f"{here['cpu']}, {here['cores']} cores, Python {here['python']}, torch {torch.__version__}"
    values = {
        "size_px": SIZE_PX,
        "last_steps": bench.last_steps,
        "groups": GROUPS,
        "goal": GOAL_POINTS,
        "machine": described,
        "name": bench.name,
    }
    text = _TEXT.format(**asdict(bench.scale), **values, student=STUDENTS[bench.name][1], table=table(figures))
    out.write_text(f"{text}{_BY_HAND}{by_hand}" if by_hand else text)
    record = {"machine": here, "goal_points": GOAL_POINTS, "figures": figures}
    out.with_name(f"bench-{out.stem}.json").write_text(json.dumps(record, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--test-images", type=int, default=5_000)
    parser.add_argument("--steps", type=int, default=1_000)
    parser.add_argument("--last-steps", type=int, default=200)
    parser.add_argument("--student", choices=STUDENTS, default="vitt")
    parser.add_argument("--folder", type=Path, default=Path("runs/bench-quantised"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/quantised.md"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(given.folder, Scale(given.images, given.images, given.test_images, given.steps), given.last_steps, given.student)
    write(measure(bench, bench.train()), bench, given.out)
    print(given.out.read_text())


if __name__ == "__main__":
    main()
