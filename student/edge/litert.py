"""A LiteRT program (`.tflite`) of a folded student: pixels as PyTorch lays them out, tokens by name."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .quiet import quiet


class _Named(nn.Module):
    """Gives the tokens by name, which a program's signature keeps."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return class and patch tokens."""
        cls_BD, patch_BHWD = self.module(pixels)
        return {"cls": cls_BD, "patch": patch_BHWD}


def write_litert(folded: nn.Module, pixels_BCHW: Tensor, path: Path) -> None:
    """Write `pixels` → `cls`, `patch`, in fp32."""
    named = _Named(folded)
    named.training = False  # `eval()` is what a traced module refuses
    with quiet(), torch.no_grad():
        import litert_torch

        program: Any = litert_torch.convert(named, sample_kwargs={"pixels": pixels_BCHW})
        program.export(str(path))


def count_operations(path: Path) -> dict[str, int]:
    """Return {operation: how often} of a program as it is written, before a delegate takes some over."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    details = Interpreter(model_path=str(path), experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES)
    names = [details_of_op["op_name"] for details_of_op in details._get_ops_details()]
    return {name: names.count(name) for name in sorted(set(names))}
