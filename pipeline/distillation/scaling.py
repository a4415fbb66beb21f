"""The rules as formulas: numbers in, numbers out. `rules` puts them together and gives each its reason; sources: docs/recipes-by-rule.md.

Each formula passes through two measured points and says what it does between and beyond them: the demonstration's scale (EUPE's ViT-T,
1,250 steps of 32 views, two CPU cores) and the paper's (ViT-B, 390,000 steps of 8,192 views of 1.7e9 images, arXiv 2603.22387).
"""

import math

from ...storage.views.input_size import SizePx, as_size, size_hw

LEAST_STEPS = 1_000
"""Below, no student of the study was better than at its start by a margin worth a run."""
LEAST_BATCH, LARGEST_BATCH = 32, 8192
LONG_RUN_STEPS = 100_000
"""From here on blocks can start at the official layer scale."""
LEAST_INPUT_PX, LARGEST_INPUT_PX = 16, 4096
"""What recipes take as an input."""
CPU_HOURS = 8.0
"""A run's bound on a CPU where nobody gave one: a night."""
STAGE3_SHARE = 1 / 8  # of stage 2's views; the paper: 0.128
_IMAGENET = 1_281_167
_IMAGENET_EPOCHS, _EPOCHS_EXPONENT, _MOST_EPOCHS = 100.0, 0.55, 3000.0
_STEPS_PER_VIEW_OF_BATCH = 40.0
_RATE, _RATE_STEPS, _RATE_WIDTH = 2e-3, 1250, 192
_LARGEST_RATE, _LEAST_RATE = 3e-3, 1e-6
_STAGE3_RATE = 1 / 5
_LAMB_RATE, _LAMB_BATCH = 1e-3, 1024


def nearest_power_of_two(value: float) -> int:
    """Return the power of two that is nearest by ratio, at least 1."""
    return 1 << max(0, round(math.log2(max(value, 1.0))))


def epochs_of(images: int) -> float:
    """Return how often a run looks at each photo: 100 times at ImageNet-1k's size, by their power −0.55, at most 3,000 times."""
    return min(_MOST_EPOCHS, _IMAGENET_EPOCHS * math.pow(_IMAGENET / images, _EPOCHS_EXPONENT))


def batch_of(samples: float) -> int:
    """Return the views of a step for a run of so many views: √(views / 40), a power of two from 32 to 8,192."""
    return min(LARGEST_BATCH, max(LEAST_BATCH, nearest_power_of_two(math.sqrt(samples / _STEPS_PER_VIEW_OF_BATCH))))


def batch_of_steps(steps: int) -> int:
    """Return the views of a step for a run of so many steps: steps / 40, as `batch_of` has it."""
    return batch_of(steps * steps / _STEPS_PER_VIEW_OF_BATCH)


def adamw_rate(samples: float, batch_size: int, width: int) -> float:
    """Return AdamW's peak rate: 2e-3 · √(batch / 32) · √(40,000 / views) · (192 / width), between 1e-6 and 3e-3.

    The root of the batch at equal views is the scaling rule of adaptive methods (arXiv 2205.10287); the root of the views keeps
    rate² × steps, the time of that paper's stochastic differential equation, equal for runs of all lengths; the inverse width is µP's
    rule for hidden matrices under Adam (arXiv 2203.03466).
    """
    in_batch, in_views = math.sqrt(batch_size / LEAST_BATCH), math.sqrt(_RATE_STEPS * LEAST_BATCH / samples)
    return min(_LARGEST_RATE, max(_LEAST_RATE, _RATE * in_batch * in_views * _RATE_WIDTH / width))


def stage3_rate(samples: float, batch_size: int, width: int) -> float:
    """Return a fifth of `adamw_rate`: stage 3 finetunes what stage 2 trained."""
    return adamw_rate(samples, batch_size, width) * _STAGE3_RATE


def lamb_rate(batch_size: int) -> float:
    """Return LAMB's rate, 1e-3 at 1,024 views and by the root of the batch (arXiv 1904.00962)."""
    return _LAMB_RATE * math.sqrt(batch_size / _LAMB_BATCH)


def uses_lamb(stage: int, batch_size: int) -> bool:
    """Return whether LAMB trains: stage 1 at batches from 1,024."""
    return stage == 1 and batch_size >= _LAMB_BATCH


def beta2_of(steps: int) -> float:
    """Return the second moment's decay: it averages over a fiftieth of the run, 0.95 to 0.999."""
    return round(min(0.999, max(0.95, 1 - 50 / steps)), 4)


def warmup_share_of(steps: int, beta2: float) -> float:
    """Return the share of the steps with a rising rate: 5 %, and at least 2 / (1 − beta2) steps (arXiv 1910.04209), at most a fifth."""
    return round(min(0.2, max(0.05, 2 / (1 - beta2) / steps)), 4)


def adapter_width_of(stage: int, teacher_width: int, student_width: int) -> int:
    """Return the adapters' hidden width: twice the widest teacher's in stages 2 and 3, once in stage 1.

    At most four of the student's, but never below the teacher's: a narrower layer loses directions of the targets.
    """
    wanted = min(teacher_width * (1 if stage == 1 else 2), max(teacher_width, 4 * student_width))
    return max(64, wanted // 64 * 64)


def teacher_size_of(native_px: SizePx, stride_px: int, side_px: int, aspect: float = 1.0) -> SizePx:
    """Return a teacher's input: the smallest multiple of its stride from four of the photos' sides on, at most its native one.

    This is the shorter side; the longer one follows from `aspect`, width over height, in strides.
    """
    shorter = min(min(size_hw(native_px)), max(2, -(-4 * side_px // stride_px)) * stride_px)
    longer = stride_px * max(1, round(shorter * max(aspect, 1 / aspect) / stride_px))
    return _sized(shorter, longer, is_wide=aspect >= 1)


def student_size_of(patch_px: int, grid: tuple[int, int], teacher_px: SizePx, side_px: int) -> SizePx:
    """Return the student's input: the coarsest teacher's grid in the student's patches, at most that teacher's input.

    No photo is enlarged more than fourfold, and four patches of the shorter side are the least.
    """
    most = max(4, min(min(size_hw(teacher_px)), 4 * side_px) // patch_px)
    shorter, longer = min(grid), max(grid)
    patches = min(shorter, most)
    along = longer if patches == shorter else max(patches, round(patches * longer / shorter))
    return _sized(in_patches(patch_px * patches, patch_px), in_patches(patch_px * along, patch_px), is_wide=grid[1] >= grid[0])


def scaled(size_px: SizePx, factor: float, patch_px: int) -> SizePx:
    """Return an input times a factor, each side in patches."""
    return as_size([in_patches(side * factor, patch_px) for side in size_hw(size_px)])


def _sized(shorter: int, longer: int, *, is_wide: bool) -> SizePx:
    return as_size([shorter, longer] if is_wide else [longer, shorter])


def in_patches(px: float, patch_px: int) -> int:
    """Return the multiple of a patch, or stride, that is nearest to an input's side, among those that recipes take."""
    return patch_px * min(LARGEST_INPUT_PX // patch_px, max(-(-LEAST_INPUT_PX // patch_px), round(px / patch_px)))


def views_of(epochs: float) -> int:
    """Return the recorded views of a photo: one for every hundred epochs, a power of two from 2 to 16, and no more than epochs."""
    wanted = min(16, max(2, nearest_power_of_two(epochs / 100)))
    return max(1, min(wanted, math.ceil(epochs)))
