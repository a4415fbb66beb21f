"""What int8 costs a student in kNN: the same pictures through the trained student and through each ExecuTorch program of its export.

python benchmarks/quantised_knn.py RUN EXPORT --store URL --train DATASET --test DATASET --train-images 5000 --test-images 1000
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from eupe_pipeline.jobs.evaluation.knn import EvaluationSize, compare, embed_images, labels_as, sample_images
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.student.export.runtimes import executorch_runner
from eupe_pipeline.teachers.encoders.tokens import Tokens
from eupe_pipeline.teachers.registry.resolve import load_teacher, resolve_teacher
from eupe_pipeline.teachers.registry.teacher import Teacher
from torch import Tensor


class Program(Teacher):
    """A teacher whose tokens come from an exported program, one picture at a time."""

    run: Callable[[Tensor], Tokens]

    def forward(self, pixels_BHWC: Tensor) -> Tokens:
        singles = [self.run(one[None]) for one in self.spec.preprocessing.apply(pixels_BHWC).contiguous()]
        return Tokens(torch.cat([one.cls_BD for one in singles if one.cls_BD is not None]), torch.cat([one.patch_BHWD for one in singles]))


def program(teacher: Teacher, run: Callable[[Tensor], Tokens]) -> Program:
    found = Program(teacher.spec, teacher.encoder)
    found.run = run
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("export", type=Path)
    for name in ("--store", "--train", "--test"):
        parser.add_argument(name, required=True)
    parser.add_argument("--train-images", type=int)
    parser.add_argument("--test-images", type=int)
    given = parser.parse_args()
    store, teacher = FeatureStore.open(given.store), load_teacher(resolve_teacher(given.run))
    models: dict[str, Teacher] = {"trained student, eager fp32": teacher}
    models |= {path.name: program(teacher, executorch_runner(path)) for path in sorted((given.export / "executorch").glob("*.pte"))}
    bank, queries = store.dataset(given.train), store.dataset(given.test)
    chosen = sample_images(bank, given.train_images, "train"), sample_images(queries, given.test_images, "test")
    labels = bank.labels()[chosen[0]], labels_as(queries, bank.label_names)[chosen[1]]
    sys.stdout.write("| | kNN, our protocol | official, k = 10 | official, k = 20 | mean patch, ours |\n|---|---|---|---|---|\n")
    for name, model in models.items():
        embedded = [embed_images(model, one, images, EvaluationSize()) for one, images in zip((bank, queries), chosen, strict=True)]
        found: dict[str, Any] = compare(embedded[0], labels[0], embedded[1], labels[1])
        cls = found["cls"]
        cells = [cls["ours"], cls["official"]["10"], cls["official"]["20"], found["mean_patch"]["ours"]]
        sys.stdout.write(f"| {name} | {' | '.join(f'{one:.1f}' for one in cells)} |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
