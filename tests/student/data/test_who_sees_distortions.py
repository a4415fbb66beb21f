"""A batch's pixels as the student and each live teacher see them under the views' photometric mode."""

import numpy as np
import pytest
import torch
from eupe_pipeline.student.data import stream
from eupe_pipeline.teachers.encoders.photometric import apply_photometric


@pytest.mark.parametrize(("mode", "student", "teacher"), [
    ("none", False, False), ("teacher_same", True, True), ("student_only", True, False),
])  # fmt: skip
def test_a_mode_says_who_sees_the_distortion(mode: str, student: bool, teacher: bool) -> None:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), np.uint8))
    parameters = torch.tensor([[0.3, 0.1, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0.1, 1.0, 128, 0, 0]])
    tensors = {"pixels/student": pixels, "pixels/t": pixels, "photometric": parameters, "t/cls": torch.ones(2, 3)}
    seen = stream.apply_photometric(mode, tensors)
    distorted = apply_photometric(pixels, parameters)
    assert torch.equal(seen["pixels/student"], distorted if student else pixels)
    assert torch.equal(seen["pixels/t"], distorted if teacher else pixels)
    assert seen["t/cls"] is tensors["t/cls"]
    assert torch.equal(tensors["pixels/student"], pixels)
