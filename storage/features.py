"""A feature set: one teacher's normalised tokens over one set of views.

    features/<teacher>@<digest>/        a Zarr v3 group: any Zarr client reads it
      identity.json  zarr.json
      cls/ (rows, D)   patch/ (rows, H, W, D)   patch_scale/ (rows, H, W, groups[, 2]) for the integer codecs
      statistics/      mean and std that de-normalise
      commits/000412.json

`FeatureReader.read` hands codes and scales over undecoded, because integers are cheaper to move and the device de-quantises faster than we
do. Tokens are refused before the commit when they are not finite, do not fit fp16 or carry nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .codec import code_dtype, decode, encode, stored_shapes
from .commit import Record
from .errors import BadInput, CacheDamaged
from .identity import digest, ids_digest, short
from .named import MAX_IDENTITY_BYTES, check_metadata, check_name, create_named, damage
from .objects import Objects
from .rows import check_out
from .shards import ShardedGroup
from .statistics import Statistics
from .viewset import ViewSet
from .zarr_format import ArraySpec, group_metadata, parse_small_array, small_array, small_key

_FP16_MAX = 65_504.0
_CLS_CHUNK_ROWS = 8
_SCALING = {
    "int8": {"scale": "channels in as many groups as patch_scale has: patch = patch_scale[…, group] × (code / 127) × |code / 127|"},
    "int4": {
        "packing": "two codes a byte, the even channel in the low half",
        "scale": "channels in groups of 64: patch = patch_scale[…, group, 1] + code × patch_scale[…, group, 0]",
    },
}


class TokenRows(NamedTuple):
    """n rows as they are stored: cls (n, D) or None, patch codes and scale as `codec.Encoded`; normalised tokens."""

    cls: NDArray[np.floating] | None
    patch: NDArray[np.generic]
    scale: NDArray[np.float16] | None


@dataclass(frozen=True)
class FeatureLayout:
    """Shape and storage of a feature set's tokens."""

    cls_dim: int | None
    patch_dim: int
    grid: tuple[int, int]
    codec: str

    def specs(self, views: ViewSet) -> list[ArraySpec]:
        """The arrays over a set of views; the class tokens are fp32 beside fp32 patch tokens and fp16 otherwise."""
        rows, shard_rows = views.rows, views.group.shard_rows
        codes, scales = stored_shapes(self.codec, self.grid, self.patch_dim)
        unit = {"units": "standard deviations of the teacher's coordinate"}
        described = {**unit, "codec": self.codec, **_SCALING.get(self.codec, {})}
        axes = ("view", "grid_y", "grid_x", "channel")
        specs = [ArraySpec("patch", (rows, *codes), code_dtype(self.codec), shard_rows, 1, axes, described, True)]
        if scales is not None:
            scale_axes = (*axes[:3], "group", "scale_and_minimum")[: 1 + len(scales)]
            specs.append(ArraySpec("patch_scale", (rows, *scales), np.dtype(np.float16), shard_rows, 1, scale_axes, {}, True))
        if self.cls_dim is not None:
            dtype = np.dtype(np.float32 if self.codec == "fp32" else np.float16)
            chunk = gcd(shard_rows, _CLS_CHUNK_ROWS)
            specs.append(ArraySpec("cls", (rows, self.cls_dim), dtype, shard_rows, chunk, ("view", "channel"), unit, True))
        return specs


def features_identity(
    teacher: Mapping[str, Any],
    views: ViewSet,
    statistics: Statistics,
    sampling: Mapping[str, Any],
    layout: FeatureLayout,
) -> dict[str, Any]:
    """Everything that decides a feature set; `sampling` says which views the statistics were measured on."""
    return {
        "format": 1,
        "teacher": dict(teacher),
        "views": views.digest,
        "statistics": {"method": statistics.method, "digest": statistics.digest, "count": statistics.count, **sampling},
        "layout": {
            "cls_dim": layout.cls_dim,
            "patch_dim": layout.patch_dim,
            "grid": list(layout.grid),
            "codec": layout.codec,
            "tokens": "all",
        },
    }


class FeatureReader:
    """One feature set of a store: rows of normalised tokens, checked on every read; safe to use from several threads."""

    def __init__(self, objects: Objects, key: str, views: ViewSet, identity: dict[str, Any]) -> None:
        self.key, self.name, self.views, self.identity = key, key.split("@")[0], views, identity
        self.digest = digest(identity)
        with damage(f"features/{key}/identity.json"):
            layout = identity["layout"]
            self.layout = FeatureLayout(layout["cls_dim"], layout["patch_dim"], tuple(layout["grid"]), layout["codec"])
            specs = self.layout.specs(views)
            if identity["views"] != views.digest:
                raise ValueError("it names other views")
        self.codec, self.grid = self.layout.codec, self.layout.grid
        self.cls_dim, self.patch_dim = self.layout.cls_dim, self.layout.patch_dim
        self.group = ShardedGroup(objects, f"features/{key}", self.digest, specs)
        self.rows, self.shards = self.group.rows, self.group.shards
        self.statistics = _read_statistics(objects, f"features/{key}", identity["statistics"])
        check_metadata(objects, f"features/{key}", _metadata(identity, specs, self.statistics))
        self._objects = objects

    @classmethod
    def create(cls, objects: Objects, name: str, views: ViewSet, identity: dict[str, Any], statistics: Statistics) -> "FeatureReader":
        """The feature set of this identity, made when the store does not have it yet."""
        key = f"{check_name('feature set', name)}@{short(digest(identity))}"
        layout = identity["layout"]
        specs = FeatureLayout(layout["cls_dim"], layout["patch_dim"], tuple(layout["grid"]), layout["codec"]).specs(views)
        files = _metadata(identity, specs, statistics)
        create_named(objects, f"features/{key}", "features", identity, files)
        return cls(objects, key, views, identity)

    @property
    def complete(self) -> bool:
        """Whether every shard has its record (listed afresh)."""
        return bool(self.group.committed_mask().all())

    def missing_shards(self) -> list[int]:
        """The shards that have no record yet, in order."""
        missing: list[int] = np.flatnonzero(~self.group.committed_mask()).tolist()
        return missing

    def failed_rows(self) -> NDArray[np.int64]:
        """The rows of images that failed, in order; they have no tokens."""
        rows: list[int] = []
        views_per_image = self.views.views_per_image
        for shard in sorted({*self.group.uncompacted(), *self.group.ledgers.totals()[1]}):
            record = self.group.record(shard)
            if record is not None and record.failed:
                first, last = self.views.shard_images(shard)
                for place, image_id in enumerate(self.views.dataset.ids(first, last), start=first):
                    if image_id in record.failed:
                        rows += range(place * views_per_image, (place + 1) * views_per_image)
        return np.array(rows, np.int64)

    def empty(self, count: int) -> TokenRows:
        """Uninitialised memory for `count` rows, to be given to `read` as `out`."""
        arrays = {spec.name: np.empty((count, *spec.shape[1:]), spec.dtype) for spec in self.group.specs.values()}
        return TokenRows(arrays.get("cls"), arrays["patch"], arrays.get("patch_scale"))

    def read(self, rows: NDArray[np.int64], out: TokenRows | None = None, *, check: bool = True) -> TokenRows:
        """The given rows in their order, into `out` when given; raises `BadInput` for rows outside, `CacheDamaged` for damage."""
        if len(rows) and not (rows.min() >= 0 and rows.max() < self.rows):
            raise BadInput(f"rows {rows.min()} to {rows.max()} of {self.key}, which has {self.rows}")
        target = self.empty(len(rows)) if out is None else out
        arrays: dict[str, Any] = {"cls": target.cls, "patch": target.patch, "patch_scale": target.scale}
        arrays = {name: array for name, array in arrays.items() if array is not None}
        self.group.read(rows, [spec for spec in self.group.specs if spec in arrays], arrays, check=check)
        return target

    def read_cls(self, rows: NDArray[np.int64]) -> NDArray[np.floating]:
        """Class tokens (n, D) alone; raises `BadInput` when the teacher has none."""
        if self.cls_dim is None:
            raise BadInput(f"{self.key} has no class tokens: its teacher has none")
        out = np.empty((len(rows), self.cls_dim), self.group.specs["cls"].dtype)
        self.group.read(rows, ["cls"], {"cls": out})
        return out

    def decode(self, tokens: TokenRows, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Normalised patch tokens (n, H, W, D) fp32 from stored rows, into `out` when given."""
        return decode(tokens.patch, tokens.scale, self.codec, out)

    def encode(self, cls_nD: NDArray[np.float32] | None, patch_nHWD: NDArray[np.float32]) -> TokenRows:
        """The stored form of n rows of normalised fp32 tokens; what is not finite stays so and is refused at the commit."""
        with np.errstate(over="ignore", invalid="ignore"):
            cls = None if cls_nD is None else cls_nD.astype(self.group.specs["cls"].dtype, copy=False)
            return TokenRows(cls, *encode(patch_nHWD, self.codec))

    def commit_shard(self, shard: int, tokens: TokenRows, failed: Mapping[str, str], views_record: str) -> Record:
        """Publish one shard of encoded tokens; rows of the images in `failed` (id → reason) are left out.

        Raises `BadInput` naming the image when a token is not finite: no reader could train on it.
        """
        first, last = self.views.shard_images(shard)
        ids = self.views.dataset.ids(first, last)
        present = np.repeat([image_id not in failed for image_id in ids], self.views.views_per_image)
        named: dict[str, Any] = {"cls": tokens.cls, "patch": tokens.patch, "patch_scale": tokens.scale}
        arrays = {name: array for name, array in named.items() if array is not None}
        for name, values in arrays.items():
            check_out(self.group.specs[name], values, len(present))
            bad = _first_nonfinite(values, present)
            if bad is not None:
                image_id = ids[bad // self.views.views_per_image]
                raise BadInput(f"image {image_id}: its {name} is not finite as {values.dtype}; leave the image out as failed")
        record = Record(self.digest, shard, len(present), ids_digest(ids), {}, dict(failed), views_record)
        return self.group.publish(record, arrays, present)

    def stored_bytes(self) -> int:
        """Bytes of the committed shards' objects, from their records."""
        return self.group.stored_bytes()

    def open_zarr(self) -> Any:
        """The set as a read-only zarr-python group, for notebooks; it checks inner checksums but not our records."""
        import zarr

        return zarr.open_group(f"{self._objects.url.rstrip('/')}/features/{self.key}", mode="r")


def _first_nonfinite(values: NDArray[Any], present: NDArray[np.bool_]) -> int | None:
    """The first present row with a NaN or an infinity, None when there is none.

    Integer arithmetic on the bits, a row at a time: `np.isfinite` takes eight times as long on fp16, half as long as writing the shard.
    """
    if values.dtype.kind != "f":
        return None
    bits = np.dtype(f"u{values.dtype.itemsize}")
    exponent = bits.type(0x7C00 if values.dtype.itemsize == 2 else 0x7F800000)
    rows = values.reshape(len(values), -1).view(bits)
    scratch = np.empty(rows.shape[1], bits)
    for row in np.flatnonzero(present).tolist():
        np.bitwise_and(rows[row], exponent, out=scratch)
        if scratch.max() == exponent:
            return int(row)
    return None


def refuse_tokens(cls_D: NDArray[np.floating] | None, patch_HWD: NDArray[np.floating], codec: str) -> str | None:
    """Why one view's normalised tokens must not be stored, None when they may: not finite, beyond fp16, or empty."""
    for name, values in (("class token", cls_D), ("patch tokens", patch_HWD)):
        if values is None:
            continue
        low, high = float(values.min()), float(values.max())
        if not np.isfinite(low) or not np.isfinite(high):
            return f"the {name} is not finite"
        if codec != "fp32" and max(-low, high) > _FP16_MAX:
            return f"the {name} reaches {max(-low, high):.0f}, more than fp16 holds"
        if low == high:
            return f"the {name} is constant ({low:g}), which no working teacher gives"
    return None


def _metadata(identity: Mapping[str, Any], specs: list[ArraySpec], statistics: Statistics) -> dict[str, bytes]:
    """Every file of the set that follows from its identity and its statistics."""
    files: dict[str, bytes] = {"statistics/zarr.json": group_metadata({"count": statistics.count})}
    for name, values in statistics.arrays().items():
        axes = ("channel",) if values.ndim == 1 else ("normalised_channel", "channel")
        files |= small_array(f"statistics/{name}", values, axes, {})
    files |= {f"{spec.name}/zarr.json": spec.metadata() for spec in specs}
    members = {name.removesuffix("/zarr.json"): data for name, data in files.items() if name.endswith("/zarr.json")}
    group = group_metadata({"kind": "eupe-pipeline features", "identity_sha256": digest(dict(identity))}, members)
    return {"zarr.json": group, **files}


def _read_statistics(objects: Objects, prefix: str, described: Mapping[str, Any]) -> Statistics:
    names = objects.names(f"{prefix}/statistics")
    arrays: dict[str, NDArray[np.float32]] = {}
    for name in ("cls_mean", "cls_std", "patch_mean", "patch_std", "cls_matrix", "patch_matrix"):
        if name in names:
            where = small_key(f"{prefix}/statistics/{name}", 2 if name.endswith("matrix") else 1)
            try:
                arrays[name] = parse_small_array(objects.read(where, MAX_IDENTITY_BYTES), where)
            except FileNotFoundError as error:
                raise CacheDamaged(f"{where} is missing; restore it or extract again") from error
    try:
        statistics = Statistics.from_arrays(arrays, described["count"])
        matches = statistics.digest == described["digest"]
    except (KeyError, TypeError, ValueError) as error:
        raise CacheDamaged(f"{prefix}/statistics are not whole ({error}); restore them or extract again") from error
    if not matches:
        raise CacheDamaged(f"{prefix}/statistics are not those that the identity names; restore them or extract again")
    return statistics
