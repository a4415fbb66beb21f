"""One student of a day, as a plain PyTorch loop trains it: a DataLoader, the teacher live, cosine losses on class and patch tokens.

The loop that a user would write (timm, torchvision's transforms, AdamW), in fp32. Prints one line of JSON: seconds of the teacher's
forwards and of everything else within the epochs; what the whole process takes is timed outside.

    python -m benchmarks.day_plain PHOTOS --student resnet18 --teacher vit_base_patch16_dinov3 --px 128 --epochs 10 --batch 24
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from eupe_pipeline.teachers.runtime import torchvision_guard
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

WIDTH = 512  # of the adapters, as in ours


class Photos(Dataset[Tensor]):
    """A random crop of each photo, flipped half of the time: (3, px, px) in fp32."""

    def __init__(self, folder: Path, px: int) -> None:
        from torchvision.transforms import v2  # after the guard

        self.paths = sorted(folder.rglob("*.jpg"))
        self._transform = v2.Compose(
            [
                v2.RandomResizedCrop(px, scale=(0.32, 1.0), interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
                v2.RandomHorizontalFlip(),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self.paths[index]) as photo:
            view: Tensor = self._transform(photo.convert("RGB"))
        return view


def adapter(width: int, to: int) -> nn.Module:
    """Return an adapter as ours are."""
    return nn.Sequential(nn.Linear(width, WIDTH, bias=False), nn.LayerNorm(WIDTH), nn.GELU(), nn.Linear(WIDTH, to, bias=False))


def train(photos: Path, student_name: str, teacher_name: str, px: int, epochs: int, batch: int) -> dict[str, float]:
    """Train one student and return where the seconds of its epochs went."""
    import timm

    torch.manual_seed(0)
    teacher = timm.create_model(teacher_name, pretrained=False, num_classes=0, dynamic_img_size=True).eval().requires_grad_(False)
    student = timm.create_model(student_name, pretrained=False, num_classes=0)
    adapters = nn.ModuleList([adapter(student.num_features, teacher.num_features) for _ in range(2)])
    parameters = [*student.parameters(), *adapters.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)
    loader: DataLoader[Any] = DataLoader(Photos(photos, px), batch, shuffle=True, drop_last=True, num_workers=2, persistent_workers=True)
    started, of_teacher = time.perf_counter(), 0.0
    for _ in range(epochs):
        for pixels in loader:
            begun = time.perf_counter()
            with torch.no_grad():
                tokens = teacher.forward_features(pixels)
            of_teacher += time.perf_counter() - begun
            cls, patch = tokens[:, 0], tokens[:, teacher.num_prefix_tokens :]
            features = student.forward_features(pixels)
            side = round(patch.shape[1] ** 0.5)
            rows = functional.interpolate(features, size=(side, side), mode="bicubic").flatten(2).transpose(1, 2)
            predicted = adapters[0](features.mean(dim=(2, 3))), adapters[1](rows)
            cosines = [functional.cosine_similarity(*pair, dim=-1).mean() for pair in zip(predicted, (cls, patch), strict=True)]
            loss = 2 - cosines[0] - cosines[1]
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
    return {"teacher_s": of_teacher, "student_s": time.perf_counter() - started - of_teacher}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("photos", type=Path)
    parser.add_argument("--student", required=True)
    parser.add_argument("--teacher", required=True)
    for name in ("px", "epochs", "batch"):
        parser.add_argument(f"--{name}", type=int, required=True)
    options = parser.parse_args()
    torchvision_guard.install()
    spent = train(options.photos, options.student, options.teacher, options.px, options.epochs, options.batch)
    print(json.dumps(spent))


if __name__ == "__main__":
    main()
