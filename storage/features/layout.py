"""Which tokens of a view a feature set stores, and as which arrays: all of the teacher's grid, or less of it by name.

    patch/           (rows, H, W, D)   or, of a sampled set, (rows, T, D)
    patch_scale/     (rows, H, W, groups[, 2])   or (rows, T, groups[, 2]), for the integer codecs
    patch_position/  (rows, T) uint16, only of a sampled set: position y × W + x of each stored token
    cls/             (rows, D)
    patch.4/ …       of a set with intermediate layers: as patch/ and patch_scale/, at the same positions (`layers.py`)

Less is a value of the identity: `tokens_per_view` for recorded random positions (`sampling.py`), `resampled_from` and `resampling` for a
grid that was made smaller before it was stored. Both together sample the smaller grid. Statistics are those of the original tokens.
Positions are drawn over the whole grid, and of letterboxed views where the image is: `sampled_in` says so, which older sets lack.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np

from ..core.errors import BadInput
from ..shards.zarr_format import ArraySpec
from ..views.view_set import ViewSet
from .codec import TokenCodec, get_codec
from .layers import LAYER_NORM, checked_layers, patch_array
from .sampling import MAX_CELLS

RESAMPLING = "least squares for bicubic upsampling"
"""Along each axis the pseudo-inverse of the upsampling that the loss does (bicubic, a = −0.75, half-pixel centres)."""
SAMPLED_IN = "cells with any of the image"
_SMALL_CHUNK_ROWS = 8
_UNIT = "standard deviations of the teacher's coordinate"


@dataclass(frozen=True)
class FeatureLayout:
    """Shape and storage of a feature set's tokens; raises `BadInput` for an impossible one."""

    cls_dim: int | None
    patch_dim: int
    grid: tuple[int, int]
    """Of the stored tokens: the teacher's, unless it was resampled."""
    codec: str
    tokens_per_view: int | None = None
    """How many of the grid's tokens are stored; None: all."""
    resampled_from: tuple[int, int] | None = None
    """The teacher's own grid, where the stored one was made from it."""
    layers: tuple[int, ...] = ()
    """Blocks whose tokens are stored beside the final ones, rising."""
    in_image: bool = False
    """Whether sampled positions are drawn among the tokens that see any of a letterboxed image, instead of over the whole grid."""

    def __post_init__(self) -> None:
        if checked_layers(self.layers) != self.layers:
            raise BadInput(f"layers rise, got {self.layers}")
        cells, count, original_grid = math.prod(self.grid), self.tokens_per_view, self.resampled_from
        if self.in_image and count is None:
            raise BadInput("only sampled tokens are drawn where the image is: give tokens_per_view")
        if count is not None and not (1 <= count <= cells <= MAX_CELLS):
            raise BadInput(
                f"{count} tokens a view of a grid of {_as_text(self.grid)}: give 1 to {cells}, of a grid of at most {MAX_CELLS:,}"
            )
        if original_grid is not None and (
            self.grid == original_grid or min(self.grid) < 1 or any(a > b for a, b in zip(self.grid, original_grid, strict=True))
        ):
            raise BadInput(
                f"a grid of {_as_text(original_grid)} can be stored resampled to a smaller one, not to {_as_text(self.grid)}; "
                f"give at most {original_grid[0]} rows and {original_grid[1]} columns, or no other grid"
            )

    @classmethod
    def from_identity(cls, described: Mapping[str, Any]) -> "FeatureLayout":
        """Return the layout that an identity describes; raise ValueError, KeyError or TypeError for anything else."""
        original_grid = described.get("resampled_from")
        layout = cls(
            described["cls_dim"],
            described["patch_dim"],
            tuple(described["grid"]),
            described["codec"],
            described.get("tokens_per_view"),
            None if original_grid is None else tuple(original_grid),
            tuple(described.get("layers", ())),
            "sampled_in" in described,
        )
        if layout.identity() != described:
            raise ValueError("it describes a layout that this version does not know")
        return layout

    def identity(self) -> dict[str, Any]:
        """Return the layout as JSON-able data; fields that storing the whole grid does not need are left out."""
        plain = {"cls_dim": self.cls_dim, "patch_dim": self.patch_dim, "grid": list(self.grid), "codec": self.codec}
        sampled = {"tokens": "all"} if self.tokens_per_view is None else {"tokens": "sampled", "tokens_per_view": self.tokens_per_view}
        drawn_in = {"sampled_in": SAMPLED_IN} if self.in_image else {}
        original_grid = {} if self.resampled_from is None else {"resampled_from": list(self.resampled_from), "resampling": RESAMPLING}
        layers = {"layers": list(self.layers), "layers_norm": LAYER_NORM} if self.layers else {}
        return {**plain, **sampled, **drawn_in, **original_grid, **layers}

    @property
    def token_shape(self) -> tuple[int, ...]:
        """Shape of one view's stored tokens: (H, W), or (T,)."""
        return self.grid if self.tokens_per_view is None else (self.tokens_per_view,)

    @property
    def view_bytes(self) -> int:
        """Bytes of one stored view, without checksums and indexes; raises `BadInput` for a width that the codec cannot store."""
        return sum(spec.row_bytes for spec in self._arrays(1, 1))

    @property
    def can_be_stored(self) -> bool:
        """Whether the codec takes these widths: it stores groups of channels, of which a width has to be a multiple."""
        try:
            return self.view_bytes > 0
        except BadInput:
            return False

    def specs(self, views: ViewSet) -> list[ArraySpec]:
        """Return the arrays over a view set; class tokens are fp32 beside fp32 patch tokens and fp16 otherwise."""
        return self._arrays(views.rows, views.group.shard_rows)

    def _arrays(self, rows: int, shard_rows: int) -> list[ArraySpec]:
        codec = get_codec(self.codec)
        axes = ("view", *(("grid_y", "grid_x") if self.tokens_per_view is None else ("token",)))
        specs = self._patch_arrays(codec, "patch", "patch tokens", axes, (rows, shard_rows))
        chunk = gcd(shard_rows, _SMALL_CHUNK_ROWS)
        if self.tokens_per_view is not None:
            about = {"long_name": "places of the stored patch tokens", "units": f"cells of the grid: grid_y × {self.grid[1]} + grid_x"}
            specs.append(ArraySpec("patch_position", (rows, *self.token_shape), np.dtype(np.uint16), shard_rows, chunk, axes, about))
        if self.cls_dim is not None:
            about = {"long_name": "class token, normalised", "units": _UNIT}
            specs.append(ArraySpec("cls", (rows, self.cls_dim), codec.cls_dtype, shard_rows, chunk, ("view", "cls_channel"), about, True))
        for layer in self.layers:
            specs += self._patch_arrays(codec, patch_array(layer), f"patch tokens of block {layer}", axes, (rows, shard_rows))
        return specs

    def _patch_arrays(self, codec: TokenCodec, name: str, what: str, axes: tuple[str, ...], rows: tuple[int, int]) -> list[ArraySpec]:
        """Return the arrays of codes and of scales for the final tokens or one layer's; `rows`: of the set and of a shard."""
        total, shard_rows = rows
        codes, scales = codec.stored_shapes(self.token_shape, self.patch_dim)
        scaling = codec.scaling
        described = {"long_name": f"{what}, normalised", "units": _UNIT, "codec": codec.name}
        code_axis = "channel" if scaling is None else scaling.code_axis
        attributes = {} if scaling is None else {key: text.replace("patch", name) for key, text in scaling.attributes.items()}
        specs = [ArraySpec(name, (total, *codes), codec.code_dtype, shard_rows, 1, (*axes, code_axis), described | attributes, True)]
        if scaling is not None and scales is not None:
            about = {"long_name": f"scale of the {name} codes", "units": _UNIT, **attributes}
            scale_axes = (*axes, *scaling.scale_axes)
            specs.append(ArraySpec(f"{name}_scale", (total, *scales), np.dtype(np.float16), shard_rows, 1, scale_axes, about, True))
        return specs


def _as_text(grid: tuple[int, int]) -> str:
    return f"{grid[0]}×{grid[1]}"
