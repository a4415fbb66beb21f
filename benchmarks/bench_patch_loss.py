"""The patch loss with its gradient in closed form against autograd's of torch's own functions: time and bytes kept.

Both compute `L_patch` and its gradient to the student, of the same tokens by turns: those of the demonstration's proxy (32 photos, a grid
of 4 × 4 of 1,280 channels and one of 3 × 3 of 2,048) and of a student of one teacher at 256 px in bf16. On one thread, as where readers
have the other cores, and the last with all of them (`_threads`). `kept` is what lies in memory until the backward pass beside the tokens
of both, as a multiple of the student's.

    python -m benchmarks.bench_patch_loss [--rounds 25]
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from eupe_pipeline.student.model.patch_terms import patch_terms
from eupe_pipeline.student.model.recipe import LossConfig
from eupe_pipeline.teachers.runtime.host_memory import keep_freed_memory
from torch import Tensor
from torch.nn import functional

from .figures import interleave, medians, report

Loss = Callable[[Tensor, Tensor, Tensor, LossConfig], Tensor]

TOKENS: dict[str, tuple[tuple[int, int], torch.dtype]] = {
    "proxy_1280": ((32 * 16, 1280), torch.float32),
    "proxy_2048": ((32 * 9, 2048), torch.float32),
    "vits_256px_bf16": ((16 * 256, 1280), torch.bfloat16),
}
"""Number of tokens and channels, and the precision of the student's; teachers' tokens come in fp32."""


def by_autograd(student_nD: Tensor, teacher_nD: Tensor, share_n: Tensor, config: LossConfig) -> Tensor:
    """Return what `patch_terms` does, by torch's functions, whose gradient torch finds."""
    student, teacher = student_nD.to(share_n.dtype), teacher_nD.to(share_n.dtype)
    smooth_l1_n = functional.smooth_l1_loss(student, teacher, beta=config.smooth_l1_beta, reduction="none").mean(dim=-1)
    cosine_n = functional.cosine_similarity(student, teacher, dim=-1)
    return (share_n * (config.patch_cosine * (1.0 - cosine_n) + config.patch_smooth_l1 * smooth_l1_n)).sum()


LOSSES: dict[str, Loss] = {"closed": patch_terms, "autograd": by_autograd}


def kept_bytes(loss: Loss, student: Tensor, teacher: Tensor, share: Tensor) -> int:
    """Return the bytes that a loss keeps for its backward pass, the tokens themselves left out."""
    own = {student.untyped_storage().data_ptr(), teacher.untyped_storage().data_ptr()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no later one has its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss(student, teacher, share, LossConfig())
    return sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in own)


def measure(name: str, rounds: int, suffix: str = "") -> dict[str, float]:
    """Return the figures of one kind of tokens."""
    (count, channels), dtype = TOKENS[name]
    random = torch.Generator().manual_seed(0)
    student = torch.randn(count, channels, generator=random).to(dtype).requires_grad_()
    teacher, share = torch.randn(count, channels, generator=random), torch.full((count,), 1 / count)

    def step(loss: Loss) -> Callable[[int], object]:
        return lambda number: torch.autograd.grad(loss(student, teacher, share, LossConfig()), student)

    seconds = interleave({way: step(loss) for way, loss in LOSSES.items()}, rounds, warm_up=3)
    ms = {way: 1e3 * value for way, value in medians(seconds).items()}
    kept = {way: kept_bytes(loss, student, teacher, share) / student.nbytes for way, loss in LOSSES.items()}
    return {
        f"patch_loss.{name}{suffix}/autograd": ms["autograd"] / ms["closed"],
        **{f"patch_loss.{name}{suffix}_ms_{way}": value for way, value in ms.items()},
        **{f"patch_loss.{name}{suffix}_kept_{way}": value for way, value in kept.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--out", type=Path, default=Path("docs/results/bench-patch-loss.json"))
    options = parser.parse_args()
    keep_freed_memory("cpu")
    results: dict[str, float] = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name in TOKENS:
        results |= measure(name, options.rounds)
    torch.set_num_threads(threads)
    results |= measure("vits_256px_bf16", options.rounds, "_threads")
    targets = {name: (">=", 1.5) for name in results if name.endswith("/autograd")}
    report(results, targets, {"command": f"python -m benchmarks.bench_patch_loss --rounds {options.rounds}"}, options.out)


if __name__ == "__main__":
    main()
