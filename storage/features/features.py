"""A feature set: one teacher's normalised tokens over one view set.

    features/<teacher>@<digest>/        a Zarr v3 group: any Zarr client reads it
      identity.json  zarr.json
      cls/ patch/ [patch_scale/] [patch_position/] [patch.4/ …]   as drawn in `layout.py`
      statistics/      mean and std that undo the normalisation
      commits/000412.json

`FeatureReader.read` returns codes and scales undecoded, because integers are cheaper to move and the device decodes them faster than the
CPU. Tokens that are not finite, do not fit fp16 or are constant are refused before the commit.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core.errors import BadInput, CacheDamaged
from ..core.identity import digest, ids_digest, short
from ..core.selection import Selection, only_rows, rows_or_ids
from ..images.dataset import ImageDataset
from ..objects.content_addressed import MAX_IDENTITY_BYTES, check_metadata, check_name, create_set, parsing
from ..objects.objects import Objects
from ..shards.commit import Record
from ..shards.rows import check_out
from ..shards.shard_repair import readable_record, repair_shard
from ..shards.shards import ShardedGroup
from ..shards.zarr_format import ArraySpec, group_metadata, parse_small_array, small_array, small_key
from ..views.input_size import SizePx, as_size
from ..views.view_set import ViewSet
from .codec import Encoded, decode, encode
from .layers import layer_of_array, patch_array
from .layout import FeatureLayout
from .sampling import Positions, draw_positions, first_bad_row
from .statistics import Statistics
from .teacher_files import TeacherFile, noted_teacher_files
from .teacher_terms import noted_terms
from .token_checks import first_nonfinite, refuse_tokens

__all__ = ["FeatureLayout", "FeatureReader", "LayerRows", "TokenRows", "features_identity", "refuse_tokens"]


class TokenRows(NamedTuple):
    """n rows as stored: cls (n, D) or None, patch codes and scale as in `codec.Encoded`; normalised tokens.

    A set that samples its tokens has (n, T, …) instead of (n, H, W, …), and their grid positions (n, T) in `position`.
    """

    cls: NDArray[np.floating] | None
    patch: NDArray[np.generic]
    scale: NDArray[np.float16] | None
    position: Positions | None = None


LayerRows = Mapping[int, Encoded]
"""Intermediate layers' tokens of n rows as stored, by block; at the positions of the final tokens of a sampled set."""
NO_LAYERS: LayerRows = MappingProxyType({})


def features_identity(
    teacher: Mapping[str, Any],
    views: ViewSet,
    statistics: Statistics,
    sampling: Mapping[str, Any],
    layout: FeatureLayout,
) -> dict[str, Any]:
    """Return everything that decides a feature set; `sampling` says which views the statistics were measured on."""
    return {
        "format": 1,
        "teacher": dict(teacher),
        "views": views.digest,
        "statistics": {**statistics.described(), **sampling},
        "layout": layout.identity(),
    }


class FeatureReader:
    """One feature set of a store: rows of normalised tokens, verified on every read; thread-safe."""

    def __init__(self, objects: Objects, key: str, views: ViewSet, identity: dict[str, Any]) -> None:
        self.key, self.name, self.views, self.identity = key, key.split("@")[0], views, identity
        self.digest = digest(identity)
        with parsing(f"features/{key}/identity.json"):
            self.layout = FeatureLayout.from_identity(identity["layout"])
            specs = self.layout.specs(views)
            if identity["views"] != views.digest:
                raise ValueError("it names other views")
            if self.layout.in_image and views.spec.letterbox is None:
                raise ValueError("its tokens are sampled in letterboxed images, and its views are not letterboxed")
            normalised = identity["statistics"]
            if set(normalised.get("layers", {})) != set(map(str, self.layout.layers)):
                raise ValueError("its statistics are of other layers than its tokens")
        self.codec, self.grid = self.layout.codec, self.layout.grid
        self.cls_dim, self.patch_dim = self.layout.cls_dim, self.layout.patch_dim
        self.group = ShardedGroup(objects, f"features/{key}", self.digest, specs, self._check_views, views.group)
        self.rows, self.shards = self.group.rows, self.group.shards
        self.statistics = read_statistics(objects, f"features/{key}", normalised)
        check_metadata(objects, f"features/{key}", features_metadata(identity, specs, self.statistics))
        self._objects = objects

    def __repr__(self) -> str:
        return f"FeatureReader({self.key!r}, {self.rows} rows, {self.codec}, grid {self.grid[0]}×{self.grid[1]})"

    @property
    def store_url(self) -> str:
        """Folder or URL of the store."""
        return self._objects.url

    @property
    def input_px(self) -> SizePx:
        """Size of the input at which the teacher made the tokens."""
        return as_size(self.identity["teacher"]["preprocessing"]["size_px"])

    def taught(self, rows: NDArray[np.int64], position: Positions | None = None) -> NDArray[np.bool_] | None:
        """Return which tokens (n, H · W), or (n, T) of a sampled set, see any of a letterboxed image; None where nothing is padded."""
        if self.views.spec.letterbox is None:
            return None
        flat = self._taught(self.views.read(rows).crop)
        return flat if position is None else np.take_along_axis(flat, position.astype(np.int64), axis=1)

    def _taught(self, crop: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Return which tokens (n, H · W) see any of the image of letterboxed views."""
        cells = self.views.spec.taught_cells(crop, self.input_px, self.grid)
        assert cells is not None
        return cells.reshape(len(crop), -1)

    def mean_patch(self, rows: NDArray[np.int64], stored: TokenRows) -> NDArray[np.float32]:
        """Return the mean of each view's normalised patch tokens (n, D), without those in the padding of letterboxed views."""
        tokens_nND = self.decode(stored).reshape(len(rows), -1, self.patch_dim)
        taught_nN = self.taught(rows, stored.position)
        if taught_nN is None:
            mean: NDArray[np.float32] = tokens_nND.mean(axis=1)
            return mean
        counts_n1 = np.maximum(taught_nN.sum(axis=1, keepdims=True), 1).astype(np.float32)
        of_taught: NDArray[np.float32] = (tokens_nND * taught_nN[..., None]).sum(axis=1) / counts_n1
        return of_taught

    @classmethod
    def create(cls, objects: Objects, name: str, views: ViewSet, identity: dict[str, Any], statistics: Statistics) -> "FeatureReader":
        """Open the feature set of this identity, creating it when the store does not have it yet."""
        key = f"{check_name('feature set', name)}@{short(digest(identity))}"
        files = features_metadata(identity, FeatureLayout.from_identity(identity["layout"]).specs(views), statistics)
        create_set(objects, f"features/{key}", "features", identity, files)
        return cls(objects, key, views, identity)

    def _check_views(self, record: Record) -> None:
        """Raise `CacheDamaged` for tokens of other images or views than those committed now."""
        of_views = self.views.group.record(record.shard)
        if of_views is None and not record.views_record:
            return
        if of_views is None or record.image_ids_sha256 != of_views.image_ids_sha256 or record.views_record not in ("", of_views.digest):
            raise CacheDamaged(
                f"shard {record.shard} of features/{self.key} was made from other views than those that are committed now; "
                "run `eupe-pipeline features verify`, then `features repair`"
            )

    @property
    def complete(self) -> bool:
        """Whether every shard has its record (listed afresh)."""
        return bool(self.group.committed_mask().all())

    def missing_shards(self) -> list[int]:
        """Return the shards without a record, in order."""
        missing: list[int] = np.flatnonzero(~self.group.committed_mask()).tolist()
        return missing

    def failed_rows(self) -> NDArray[np.int64]:
        """Return the rows of failed images, which have no tokens, and of images that were removed from the source; in order."""
        rows: list[int] = [row for image in self.views.dataset.removed().tolist() for row in self._rows_of_image(image)]
        for record in self.group.records(sorted({*self.group.uncompacted(), *self.group.ledgers.totals()[1]})):
            if record.failed:
                first, last = self.views.shard_images(record.shard)
                for image, image_id in enumerate(self.views.dataset.ids(first, last), start=first):
                    if image_id in record.failed:
                        rows += self._rows_of_image(image)
        return np.unique(np.array(rows, np.int64))

    def _rows_of_image(self, image: int) -> range:
        return range(image * self.views.views_per_image, (image + 1) * self.views.views_per_image)

    def empty(self, count: int) -> TokenRows:
        """Return uninitialised memory for `count` rows of final tokens, for the `out` of `read`."""
        arrays = self._memory(count, self._names(()))
        return TokenRows(arrays.get("cls"), arrays["patch"], arrays.get("patch_scale"), arrays.get("patch_position"))

    def empty_layers(self, count: int, layers: Sequence[int]) -> LayerRows:
        """Return uninitialised memory for `count` rows of some layers, by block; raise `BadInput` for one that is not stored."""
        arrays = self._memory(count, self._names(layers))
        return {layer: Encoded(arrays[patch_array(layer)], arrays.get(f"{patch_array(layer)}_scale")) for layer in layers}

    def _memory(self, count: int, names: Sequence[str]) -> dict[str, NDArray[Any]]:
        specs = [self.group.specs[name] for name in names]
        return {spec.name: np.empty((count, *spec.shape[1:]), spec.dtype) for spec in specs}

    def _names(self, layers: Sequence[int]) -> list[str]:
        """Return the arrays of the final tokens and of some layers; raise `BadInput` for a layer that is not stored."""
        if stray := [layer for layer in layers if layer not in self.layout.layers]:
            stored = ", ".join(map(str, self.layout.layers)) or "none"
            raise BadInput(f"{self.key} stores no tokens of block {stray[0]}; its layers: {stored}. Extract it with --layers")
        return [name for name in self.group.specs if (layer := layer_of_array(name)) is None or layer in layers]

    def rows_of(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Return the rows of images by id: all views of the first image, then of the next; raise `BadInput` for an unknown id."""
        views = self.views.views_per_image
        rows: NDArray[np.int64] = (self.views.dataset.index_of(ids)[:, None] * views + np.arange(views)).reshape(-1)
        return rows

    def dataset(self) -> ImageDataset:
        """Return the dataset of the images."""
        return self.views.dataset

    def read(self, which: Selection, out: TokenRows | None = None, *, check: bool = True, threads: int | None = None) -> TokenRows:
        """Return rows by number, or all views of images by id, in the order of the selection, in `out` when given.

        A selection may be an array, a list or a range (`selection`). Large reads use several threads, at most `threads`. Raise `BadInput`
        for rows out of range and unknown ids, `CacheDamaged` naming the shard for damage. Intermediate layers: `read_layers`.
        """
        rows = self._selected(which)
        target = self.empty(len(rows)) if out is None else out
        self._fill(rows, _arrays_by_name(target), check=check, threads=threads)
        return target

    def read_layers(
        self, which: Selection, layers: Sequence[int], out: LayerRows | None = None, *, check: bool = True, threads: int | None = None
    ) -> LayerRows:
        """Return some intermediate layers' tokens of rows, by block, as `read` does; raise `BadInput` for one that is not stored."""
        rows = self._selected(which)
        target = self.empty_layers(len(rows), layers) if out is None else out
        self._fill(rows, _layer_arrays(target), check=check, threads=threads)
        return target

    def _selected(self, which: Selection) -> NDArray[np.int64]:
        selected = rows_or_ids(which)
        return only_rows(self.rows_of(selected) if isinstance(selected, list) else selected, self.rows, self.key)

    def _fill(self, rows: NDArray[np.int64], arrays: Mapping[str, NDArray[Any]], *, check: bool, threads: int | None) -> None:
        self.group.read(rows, [spec for spec in self.group.specs if spec in arrays], arrays, check=check, threads=threads)

    def prefetch(self, rows: NDArray[np.int64], layers: Sequence[int] = ()) -> None:
        """Announce rows that will be read soon; with a shard cache their shards are downloaded in the background."""
        self.group.prefetch(rows, self._names(layers))

    def read_cls(self, rows: NDArray[Any] | Sequence[int]) -> NDArray[np.floating]:
        """Return class tokens (n, D) alone; raise `BadInput` when the teacher has none, and for rows out of range."""
        if self.cls_dim is None:
            raise BadInput(f"{self.key} has no class tokens: its teacher has none")
        chosen = only_rows(rows, self.rows, self.key)
        out = np.empty((len(chosen), self.cls_dim), self.group.specs["cls"].dtype)
        self.group.read(chosen, ["cls"], {"cls": out})
        return out

    def decode(self, tokens: TokenRows, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Return normalised patch tokens (n, H, W, D), or (n, T, D) of a sampled set, fp32 from stored rows, in `out` when given."""
        return decode(tokens.patch, tokens.scale, self.codec, out)

    def draw_positions(self, shard: int) -> Positions | None:
        """Return the grid positions (n, T) of the tokens that a shard stores, drawn again; None when it stores all."""
        if self.layout.tokens_per_view is None:
            return None
        ids, views = self.views.dataset.ids(*self.views.shard_images(shard)), self.views
        taught_nN = self._taught(views.draw_shard(shard).crop) if self.layout.in_image else None
        cells = self.grid[0] * self.grid[1]
        return draw_positions(views.spec.seed, ids, views.views_per_image, cells, self.layout.tokens_per_view, taught_nN)

    def decode_layer(self, encoded: Encoded) -> NDArray[np.float32]:
        """Return a layer's normalised patch tokens, as `decode` does the final ones."""
        return decode(*encoded, self.codec)

    def encode(self, cls_nD: NDArray[np.float32] | None, patch: NDArray[np.float32], position_nT: Positions | None = None) -> TokenRows:
        """Return the stored form of n rows of normalised fp32 tokens; values that are not finite stay so and are refused at the commit.

        `patch` is (n, H, W, D), or for a sampled set the tokens (n, T, D) at `position_nT`.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            cls = None if cls_nD is None else cls_nD.astype(self.group.specs["cls"].dtype, copy=False)
            return TokenRows(cls, *encode(patch, self.codec), position_nT)

    def encode_layers(self, layers: Mapping[int, NDArray[np.float32]]) -> LayerRows:
        """Return the stored form of layers' tokens, by block, as `encode` does."""
        with np.errstate(over="ignore", invalid="ignore"):
            return {layer: encode(patch, self.codec) for layer, patch in layers.items()}

    def commit_shard(
        self, shard: int, tokens: TokenRows, failed: Mapping[str, str], views_record: str, layers: LayerRows = NO_LAYERS
    ) -> Record:
        """Publish one shard of encoded tokens, those of all `layers` included; rows of the images in `failed` (id → reason) are left out.

        Raise `BadInput` naming the image when a token is not finite.
        """
        return self.group.publish(*self._checked(shard, tokens, failed, views_record, layers))

    def repair_shard(
        self, shard: int, tokens: TokenRows, failed: Mapping[str, str], views_record: str, layers: LayerRows = NO_LAYERS
    ) -> Record:
        """Repair a damaged shard in place from its recomputed tokens (`shards.shard_repair`); return its record.

        Raise as `commit_shard`, and `CacheMismatch` where its intact rows differ from these tokens.
        """
        record, arrays, present = self._checked(shard, tokens, failed, views_record, layers)
        current = readable_record(self.group, shard)
        is_ours = current is None or (
            current.image_ids_sha256 == record.image_ids_sha256 and current.views_record in ("", record.views_record)
        )
        repaired = repair_shard(self.group, record, arrays, present, trust=is_ours)
        repaired.write_to(self.group)
        return repaired.record

    def _checked(
        self, shard: int, tokens: TokenRows, failed: Mapping[str, str], views_record: str, layers: LayerRows
    ) -> tuple[Record, dict[str, NDArray[Any]], NDArray[np.bool_]]:
        """Return a shard's record without objects, its arrays, and which rows are present."""
        first, last = self.views.shard_images(shard)
        ids = self.views.dataset.ids(first, last)
        present = np.repeat([image_id not in failed for image_id in ids], self.views.views_per_image)
        arrays = _arrays_by_name(tokens) | _layer_arrays(layers)
        if tokens.position is not None and (row := first_bad_row(tokens.position, self.grid[0] * self.grid[1])) is not None:
            raise BadInput(f"shard {shard} of {self.key}: the token places of row {row} do not ascend within its grid")
        for name, values in arrays.items():
            check_out(self.group.specs[name], values, len(present))
            bad_row = first_nonfinite(values, present)
            if bad_row is not None:
                image_id = ids[bad_row // self.views.views_per_image]
                raise BadInput(f"image {image_id}: its {name} is not finite as {values.dtype}; leave the image out as failed")
        return Record(self.digest, shard, len(present), ids_digest(ids), {}, dict(failed), views_record), arrays, present

    def teacher_files(self) -> list[TeacherFile]:
        """Return the recorded locations of the file of a user's own teacher."""
        return noted_teacher_files(self._objects, self.identity["teacher"])

    def teacher_terms(self) -> list[dict[str, dict[str, Any]]]:
        """Return the recorded notes of the terms that the teacher's weights are under; raise `CacheDamaged`."""
        return noted_terms(self._objects, self.identity["teacher"])

    def stored_bytes(self) -> int:
        """Return the bytes of the committed shards' objects, from their records."""
        return self.group.stored_bytes()

    def open_zarr(self) -> Any:
        """Return the set as a read-only zarr-python group, for notebooks; it checks the inner crc32c but not our records."""
        import zarr

        return zarr.open_group(f"{self._objects.url.rstrip('/')}/features/{self.key}", mode="r")


def _arrays_by_name(tokens: TokenRows) -> dict[str, NDArray[Any]]:
    """Return the arrays by their names in the group."""
    arrays = {"cls": tokens.cls, "patch": tokens.patch, "patch_scale": tokens.scale, "patch_position": tokens.position}
    return {name: array for name, array in arrays.items() if array is not None}


def _layer_arrays(layers: LayerRows) -> dict[str, NDArray[Any]]:
    """Return the arrays of layers by their names in the group."""
    codes = {patch_array(layer): encoded.codes for layer, encoded in layers.items()}
    return codes | {f"{patch_array(layer)}_scale": encoded.scale for layer, encoded in layers.items() if encoded.scale is not None}


def features_metadata(identity: Mapping[str, Any], specs: list[ArraySpec], statistics: Statistics) -> dict[str, bytes]:
    """Return every file of the set that follows from its identity and its statistics."""
    files: dict[str, bytes] = {"statistics/zarr.json": group_metadata({"count": statistics.count})}
    for name, values in statistics.arrays().items():
        channel = "cls_channel" if name.startswith("cls") else "channel"
        axes = (channel,) if values.ndim == 1 else (f"normalised_{channel}", channel)
        files |= small_array(f"statistics/{name}", values, axes, _about(name))
    files |= {f"{spec.name}/zarr.json": spec.metadata() for spec in specs}
    members = {name.removesuffix("/zarr.json"): data for name, data in files.items() if name.endswith("/zarr.json")}
    group = group_metadata({"kind": "eupe-pipeline features", "identity_sha256": digest(dict(identity))}, members)
    return {"zarr.json": group, **files}


def _about(name: str) -> dict[str, str]:
    """Return the Zarr attributes of one array of the statistics."""
    kind, layer = name.split("_")[1], layer_of_array(name)
    meaning = {"mean": "mean", "std": "standard deviation, floored", "matrix": "PHI-S matrix W: normalised = W (x − mean)"}[kind]
    units = "1 / the teacher's own unit" if kind == "matrix" else "the teacher's own"
    tokens = "class tokens" if name.startswith("cls") else "patch tokens" if layer is None else f"patch tokens of block {layer}"
    return {"long_name": f"{meaning}, of {tokens}", "units": units}


def read_statistics(objects: Objects, prefix: str, described: Mapping[str, Any]) -> Statistics:
    """Return the statistics in a feature set, verified against its identity; raise `CacheDamaged`."""
    names = objects.names(f"{prefix}/statistics")
    arrays: dict[str, NDArray[np.float32]] = {}
    kinds = ["cls", "patch", *(f"patch.{layer}" for layer in described.get("layers", {}))]
    for name in [f"{kind}_{values}" for kind in kinds for values in ("mean", "std", "matrix")]:
        if name in names:
            where = small_key(f"{prefix}/statistics/{name}", 2 if name.endswith("matrix") else 1)
            try:
                arrays[name] = parse_small_array(objects.read(where, MAX_IDENTITY_BYTES), where)
            except FileNotFoundError as error:
                raise CacheDamaged(f"{where} is missing; run `eupe-pipeline features repair`") from error
    try:
        statistics = Statistics.from_arrays(arrays, described["count"])
        matches = statistics.are_those_of(described)
    except (KeyError, TypeError, ValueError) as error:
        raise CacheDamaged(f"{prefix}/statistics are not whole ({error}); run `eupe-pipeline features repair`") from error
    if not matches:
        raise CacheDamaged(f"{prefix}/statistics are not those that the identity names; run `eupe-pipeline features repair`")
    return statistics
