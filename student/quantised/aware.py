"""The last phase of a training that knows of int8: the encoder computes as its int8 graph will, and learns with that.

torchao's PT2E traces the encoder, once for each input size, and puts stand-ins for int8 into the graph (`SimulatedInt8`), which computes
with the very parameters of the student: optimiser, gradients over ranks, moving average and checkpoints are those of any other step.
Stand-ins of the same tensor are shared by the graphs of all sizes; their ranges are the phase's only state. The encoder is traced as it is
deployed: without the rescaling of positions and the left out branches of training, which end where the phase begins.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from ...storage.core.errors import BadInput
from ...storage.views.input_size import SizePx, as_size, size_hw, size_text
from ...teachers.encoders.build import build_encoder
from ...teachers.encoders.encoder import Encoder
from ...teachers.encoders.tokens import Tokens
from ..edge.quiet import quiet
from ..model.batch_norms import running_statistics
from ..model.ranks import Ranks
from ..model.recipe import TrainRecipe
from .scheme import observer_of, observers, prepare, read_ranges, require_torchao, set_ranges

_MOST_IMAGES = 65_536
_HOW = "each rank observes each part of its batch; ranges are averaged over ranks after each step"


def aware_identity(architecture: Mapping[str, Any], recipe: TrainRecipe, ranks: Ranks) -> dict[str, Any]:
    """Return what a run with an aware phase records, {} for any other; raise `BadInput` where that cannot be trained."""
    if not recipe.quantise.steps:
        return {}
    require_torchao()
    where = f"quantise.steps = {recipe.quantise.steps}"
    if ranks.count > 1 and recipe.run.parallel == "fsdp":
        raise BadInput(f"{where} computes with whole weights and does not work with run.parallel = 'fsdp'; use 'ddp'")
    with torch.device("meta"):
        if running_statistics(build_encoder(architecture)):
            raise BadInput(
                f"{where}: the student {architecture['name']} has batch norm, whose scale belongs into the int8 weights and is not known "
                "before its training ends; train it without and export it with --precision int8, which measures the ranges afterwards"
            )
    return {"quantise": {"how": _HOW, "accumulate": recipe.run.accumulate, "ranks": ranks.count}}


class AwareEncoder:
    """Pixels (B, 3, h, w) → tokens as int8 would give them, for the sizes that it was traced at; a step updates the ranges."""

    def __init__(self, encoder: Encoder, sizes_px: tuple[SizePx, ...]) -> None:
        self.found: dict[str, Any] = {}
        self.graphs = {size_px: self._graph(encoder, size_px) for size_px in sizes_px}

    def _graph(self, encoder: Encoder, size_px: SizePx) -> fx.GraphModule:
        prepared = prepare(_traced(encoder, size_px), "aware")
        prepared.to(next(encoder.parameters()).device)
        for name, module in observers(prepared).items():
            shared = self.found.setdefault(name, module)
            for path, other in list(prepared.named_modules()):
                if other is module and shared is not module:
                    prepared.set_submodule(path, shared)
        return prepared

    def __call__(self, pixels_BCHW: Tensor) -> Tokens:
        """Return the tokens of a batch."""
        height, width = pixels_BCHW.shape[-2:]
        return Tokens(*self.graphs[as_size((height, width))](pixels_BCHW))

    def state(self) -> dict[str, Tensor]:
        """Return the ranges by name, as (least, largest)."""
        return read_ranges(self.found)

    def load(self, ranges: Mapping[str, Tensor], where: str) -> None:
        """Go on with ranges; raises `BadInput` for those of another student."""
        set_ranges(self.found, ranges, where)

    def keep(self) -> Callable[[], None]:
        """Return what undoes the changes of the ranges from now on."""
        kept = [(one, one.min_val.clone(), one.max_val.clone()) for one in self._observers()]

        def put_back() -> None:
            for observer, least, largest in kept:
                observer.min_val, observer.max_val = least.clone(), largest.clone()

        return put_back

    def _observers(self) -> list[Any]:
        """Return each observer once."""
        return list({id(one): one for one in map(observer_of, self.found.values())}.values())

    def average_over_ranks(self, ranks: Ranks) -> None:
        """Set the ranges to their mean over all ranks; collective, nothing is sent with one rank."""
        if ranks.count == 1:
            return
        seen = self._observers()
        together = ranks.sum(torch.stack([torch.stack([one.min_val, one.max_val]) for one in seen])) / ranks.count
        for observer, (least, largest) in zip(seen, together, strict=True):
            observer.min_val, observer.max_val = least.clone(), largest.clone()


class _Traced(nn.Module):
    """Gives tokens as a tuple; the encoder's name is part of the ranges' names."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return class and patch tokens."""
        cls_BD, patch_BHWD = self.encoder(pixels)
        return cls_BD, patch_BHWD


def _traced(encoder: Encoder, size_px: SizePx) -> fx.GraphModule:
    """Return the encoder's graph for any batch at one size, with the encoder's own parameters; raises `BadInput` where torch cannot."""
    was_training, device = encoder.training, next(encoder.parameters()).device
    try:
        with quiet():
            batch = torch.export.Dim("batch", min=1, max=_MOST_IMAGES)
            example = torch.zeros(2, 3, *size_hw(size_px), device=device)
            program = torch.export.export(_Traced(encoder).eval(), (example,), dynamic_shapes=({0: batch},))
            graph: fx.GraphModule = program.module(check_guards=False)
    except Exception as error:  # models and torch's tracer raise what each operator happens to
        why = str(error).strip().split("\n")[0][:300] or type(error).__name__
        raise BadInput(
            f"this student cannot be traced at {size_text(size_px)} px, which quantise.steps needs: {why}. Train it without, and export it "
            "with --precision int8, which measures the ranges afterwards"
        ) from error
    finally:
        encoder.train(was_training)
    own = {id(parameter) for parameter in encoder.parameters()}
    assert all(id(parameter) in own for parameter in graph.parameters())
    return graph
