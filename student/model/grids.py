"""Grids of patch tokens: two of unequal size are brought to one, and two that lie shifted against each other to their overlap.

The smaller grid is upsampled to the larger by 2-D bicubic interpolation (paper, section 3.2), after the adapter. That interpolation is
linear and separable, so it is done here by two small matrix products: the same values as `torch.nn.functional.interpolate` up to rounding,
and its backward pass is a matrix product too (on a CPU the library's bicubic backward is scalar code).
A shift is (rows, columns) in tokens of the student: its token at row r sees what lies at row r + shift of the teacher's view.
Where images are letterboxed, `shared_cells` says which tokens of the two, aligned, see any of them: those in the padding do not teach.
Axes: B images, H and W grid, C colours, D channels; student first, teacher second, everywhere.
"""

import math
from collections.abc import Iterable
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

Shift = tuple[int, int]
NO_SHIFT: Shift = (0, 0)
_MOST_SHIFTED = 4  # a shift leaves three quarters of each side of the grid in the overlap


def align_grids(student_BHWD: Tensor, teacher_BHWD: Tensor) -> tuple[Tensor, Tensor]:
    """Return both grids at the larger height and the larger width of the two; one that has them already is returned as it is."""
    height = max(student_BHWD.shape[1], teacher_BHWD.shape[1])
    width = max(student_BHWD.shape[2], teacher_BHWD.shape[2])
    return upsample(student_BHWD, height, width), upsample(teacher_BHWD, height, width)


def overlap(student_BHWD: Tensor, teacher_BHWD: Tensor, shift: Shift) -> tuple[Tensor, Tensor]:
    """Return both grids where they see the same pixels, aligned; without a shift what `align_grids` returns.

    The student is cut before it is upsampled, so that no token from outside of the overlap takes part. The shift has to be whole in the
    teacher's tokens where those are the finer ones (`smallest_shift`).
    """
    sides = [_overlap(student_BHWD.shape[axis], teacher_BHWD.shape[axis], shift[axis - 1]) for axis in (1, 2)]
    (of_student_H, of_teacher_H, height, own_H), (of_student_W, of_teacher_W, width, own_W) = sides
    student = upsample(student_BHWD[:, of_student_H, of_student_W], height, width)
    return student, upsample(teacher_BHWD, own_H, own_W)[:, of_teacher_H, of_teacher_W]


def _overlap(student: int, teacher: int, shift: int) -> tuple[slice, slice, int, int]:
    """Return of one axis the student's tokens, the teacher's once upsampled, how many these are, and to how many it is upsampled."""
    whole = max(student, teacher)
    scaled, rest = divmod(shift * whole, student)
    assert not rest, f"{shift} of {student} tokens are not whole in {whole}"
    of_student = slice(max(0, -shift), student - max(0, shift))
    of_teacher = slice(max(0, scaled), whole - max(0, -scaled))
    return of_student, of_teacher, whole - abs(scaled), whole


def shared_cells(
    student_B4: Tensor, teacher_B4: Tensor, student: tuple[int, int], teacher: tuple[int, int], shift: Shift = NO_SHIFT
) -> Tensor:
    """Return (B, h, w): which tokens of the grids of `overlap` see any of an image in both inputs.

    `student_B4` and `teacher_B4`, fp64, are top, left, bottom, right of the image as shares of either input, (H, W) the two grids.
    """
    whole = max(student[0], teacher[0]), max(student[1], teacher[1])
    cells_BHW = cells_with_image(student_B4, whole) & cells_with_image(teacher_B4, whole)
    of_teacher = [_overlap(student[axis], teacher[axis], shift[axis])[1] for axis in (0, 1)]
    return cells_BHW[:, of_teacher[0], of_teacher[1]]


def cells_with_image(place_B4: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return (B, H, W): which cells of a grid over an input have any of the image in them.

    Quotients of whole numbers are compared, each rounded correctly to fp64, so that no border is moved by rounding.
    """
    rows_BH, columns_BW = (_touched(place_B4[:, axis], place_B4[:, axis + 2], count) for axis, count in enumerate(grid))
    return rows_BH[:, :, None] & columns_BW[:, None, :]


def _touched(begin_B: Tensor, end_B: Tensor, cells: int) -> Tensor:
    edges = torch.arange(cells + 1, device=begin_B.device, dtype=torch.float64) / cells
    return (edges[None, :-1] < end_B[:, None]) & (edges[None, 1:] > begin_B[:, None])


def smallest_shift(student: int, teachers: Iterable[int]) -> int:
    """Return the fewest tokens of the student, along one axis, that are whole tokens of every teacher whose grid is finer."""
    return math.lcm(*(student // math.gcd(student, teacher) if teacher > student else 1 for teacher in teachers))


def most_shifted(student: int) -> int:
    """Return the most tokens along one axis of the student's grid that a shift may have."""
    return student // _MOST_SHIFTED


def shift_pixels(pixels_BHWC: Tensor, shift_px: Shift) -> Tensor:
    """Return the pictures as a window sees them that lies (rows, columns) of pixels further on; outside, the border is repeated."""
    for axis, step in enumerate(shift_px, start=1):
        if step:
            side = pixels_BHWC.shape[axis]
            places = (torch.arange(side, device=pixels_BHWC.device) + step).clamp(0, side - 1)
            pixels_BHWC = pixels_BHWC.index_select(axis, places)
    return pixels_BHWC


def upsample(tokens_BHWD: Tensor, height: int, width: int) -> Tensor:
    """Return a grid upsampled to (B, height, width, D), bicubic (a = −0.75, half-pixel centres)."""
    if tokens_BHWD.shape[1] != height:
        weights = _bicubic_matrix(tokens_BHWD.shape[1], height, tokens_BHWD.device, tokens_BHWD.dtype)
        tokens_BHWD = torch.einsum("gh,bhwd->bgwd", weights, tokens_BHWD)
    if tokens_BHWD.shape[2] != width:
        weights = _bicubic_matrix(tokens_BHWD.shape[2], width, tokens_BHWD.device, tokens_BHWD.dtype)
        tokens_BHWD = torch.einsum("gw,bhwd->bhgd", weights, tokens_BHWD)
    return tokens_BHWD


@lru_cache(maxsize=256)
def _bicubic_matrix(small: int, large: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return (large, small): each output position as a weighted sum of input positions, read off torch's interpolation."""
    with torch.no_grad():
        unit_vectors = torch.eye(small).reshape(1, small, small, 1)
        columns = functional.interpolate(unit_vectors, size=(large, 1), mode="bicubic", align_corners=False)
    return columns.reshape(small, large).t().contiguous().to(device, dtype)
