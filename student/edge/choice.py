"""What a graph is written for: inputs of any size or edge devices, in which numbers, for how many pictures at once.

A format says which of these it takes (`ExportFormat.takes`). Target and precision stand in the name of the export's folder, so that an
open graph, an edge graph and its fp16 twin lie beside one another; size and batch do not: a graph of another shape replaces the former.
"""

from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Any

from ...storage.core.choices import GRAPH_PRECISIONS, GRAPH_TARGETS, GraphPrecision, GraphTarget
from ...storage.core.errors import BadInput, unknown_name


@dataclass(frozen=True)
class GraphChoice:
    """How a graph is written; the defaults are those of a call that asks for nothing."""

    target: GraphTarget = "open"
    """open: any batch and any sides, newest operators. edge: one shape, operators that devices have."""
    precision: GraphPrecision = "fp32"
    """Numbers of weights and activations; pixels go in and tokens come out as fp32."""
    batch: int = 1
    """Pictures that a graph of one shape takes at once."""

    def __post_init__(self) -> None:
        if self.target not in GRAPH_TARGETS:
            raise unknown_name("target", self.target, GRAPH_TARGETS)
        if self.precision not in GRAPH_PRECISIONS:
            raise unknown_name("precision", self.precision, GRAPH_PRECISIONS)
        batch: object = self.batch
        if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
            raise BadInput(f"batch is a number of pictures, at least 1; got {self.batch!r}")

    def asked(self) -> dict[str, Any]:
        """Return the fields that are not the default."""
        return {field.name: getattr(self, field.name) for field in fields(self) if getattr(self, field.name) != field.default}

    def of(self, taken: Collection[str]) -> "GraphChoice":
        """Return the choice as far as a format takes it."""
        return GraphChoice(**{name: value for name, value in self.asked().items() if name in taken})

    def folder(self, form: str) -> str:
        """Return the name of a format's folder: "onnx", "onnx-edge", "onnx-edge-fp16"."""
        return "-".join([form, *(str(value) for name, value in self.asked().items() if name != "batch")])
