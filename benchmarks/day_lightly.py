"""One student of a day, as lightly-train distils it: its own defaults, with our batch size, epochs, precision and input size.

Its teacher's weights come from a file; random ones cost what real ones do. Needs lightly-train (AGPL) in the environment that runs this,
and nothing of it is part of this project.

    python -m benchmarks.day_lightly PHOTOS --student resnet18 --px 128 --epochs 10 --batch 24 --weights FILE --out OUT
"""

import argparse
from pathlib import Path

import torch
from eupe_pipeline.teachers.runtime import torchvision_guard

TEACHER = "dinov3/vitb16-notpretrained"


def write_weights(file: Path) -> None:
    """Write random weights of the teacher."""
    from lightly_train._models.dinov3.dinov3_package import DINOv3Package

    torch.manual_seed(0)
    torch.save(DINOv3Package.get_model(TEACHER.partition("/")[2]).state_dict(), file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("photos", type=Path)
    parser.add_argument("--student")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--write-weights", type=Path, metavar="FILE", help="Only make the teacher's weights.")
    for name in ("px", "epochs", "batch"):
        parser.add_argument(f"--{name}", type=int, default=1)
    options = parser.parse_args()
    torchvision_guard.install()
    if options.write_weights:
        return write_weights(options.write_weights)
    import lightly_train

    lightly_train.pretrain(
        out=str(options.out), data=str(options.photos), model=f"timm/{options.student}", method="distillation",
        method_args={"teacher": TEACHER, "teacher_weights": str(options.weights)}, epochs=options.epochs, batch_size=options.batch,
        accelerator="cpu", precision="32-true", num_workers=2, transform_args={"image_size": (options.px, options.px)}, overwrite=True,
    )  # fmt: skip
    return None


if __name__ == "__main__":
    main()
