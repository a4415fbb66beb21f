"""A feature set: one teacher's normalised tokens over one set of views.

    features/<teacher>@<digest>/        a Zarr v3 group: any Zarr client reads it
      identity.json  zarr.json
      cls/ patch/ [patch_scale/] [patch_position/]   as `layout.py` draws them
      statistics/      mean and std that de-normalise
      commits/000412.json

`FeatureReader.read` hands codes and scales over undecoded, because integers are cheaper to move and the device de-quantises faster than we
do. Tokens are refused before the commit when they are not finite, do not fit fp16 or carry nothing.
"""

from collections.abc import Mapping, Sequence
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
from ..views.view_set import ViewSet
from .codec import decode, encode
from .layout import FeatureLayout
from .sampling import Positions, draw_positions, first_bad_row
from .statistics import Statistics
from .teacher_files import TeacherFile, noted_teacher_files
from .token_checks import first_nonfinite, refuse_tokens

__all__ = ["FeatureLayout", "FeatureReader", "TokenRows", "features_identity", "refuse_tokens"]


class TokenRows(NamedTuple):
    """n rows as they are stored: cls (n, D) or None, patch codes and scale as `codec.Encoded`; normalised tokens.

    A set that samples its tokens has (n, T, …) for (n, H, W, …), and their places (n, T) in `position`.
    """

    cls: NDArray[np.floating] | None
    patch: NDArray[np.generic]
    scale: NDArray[np.float16] | None
    position: Positions | None = None


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
        "statistics": {"method": statistics.method, "digest": statistics.digest, "count": statistics.count, **sampling},
        "layout": layout.identity(),
    }


class FeatureReader:
    """One feature set of a store: rows of normalised tokens, checked on every read; safe to use from several threads."""

    def __init__(self, objects: Objects, key: str, views: ViewSet, identity: dict[str, Any]) -> None:
        self.key, self.name, self.views, self.identity = key, key.split("@")[0], views, identity
        self.digest = digest(identity)
        with parsing(f"features/{key}/identity.json"):
            self.layout = FeatureLayout.from_identity(identity["layout"])
            specs = self.layout.specs(views)
            if identity["views"] != views.digest:
                raise ValueError("it names other views")
            normalised = identity["statistics"]
        self.codec, self.grid = self.layout.codec, self.layout.grid
        self.cls_dim, self.patch_dim = self.layout.cls_dim, self.layout.patch_dim
        self.group = ShardedGroup(objects, f"features/{key}", self.digest, specs, self._check_views)
        self.rows, self.shards = self.group.rows, self.group.shards
        self.statistics = read_statistics(objects, f"features/{key}", normalised)
        check_metadata(objects, f"features/{key}", features_metadata(identity, specs, self.statistics))
        self._objects = objects

    def __repr__(self) -> str:
        return f"FeatureReader({self.key!r}, {self.rows} rows, {self.codec}, grid {self.grid[0]}×{self.grid[1]})"

    @classmethod
    def create(cls, objects: Objects, name: str, views: ViewSet, identity: dict[str, Any], statistics: Statistics) -> "FeatureReader":
        """Return the feature set of this identity, made when the store does not have it yet."""
        key = f"{check_name('feature set', name)}@{short(digest(identity))}"
        files = features_metadata(identity, FeatureLayout.from_identity(identity["layout"]).specs(views), statistics)
        create_set(objects, f"features/{key}", "features", identity, files)
        return cls(objects, key, views, identity)

    def _check_views(self, record: Record) -> None:
        """Refuse tokens of other images or of other views than those that stand beside them now; raise `CacheDamaged`."""
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
        """Return the shards that have no record yet, in order."""
        missing: list[int] = np.flatnonzero(~self.group.committed_mask()).tolist()
        return missing

    def failed_rows(self) -> NDArray[np.int64]:
        """Return the rows of images that failed, in order; they have no tokens."""
        rows: list[int] = []
        views_per_image = self.views.views_per_image
        for record in self.group.records(sorted({*self.group.uncompacted(), *self.group.ledgers.totals()[1]})):
            if record.failed:
                first, last = self.views.shard_images(record.shard)
                for place, image_id in enumerate(self.views.dataset.ids(first, last), start=first):
                    if image_id in record.failed:
                        rows += range(place * views_per_image, (place + 1) * views_per_image)
        return np.array(rows, np.int64)

    def empty(self, count: int) -> TokenRows:
        """Uninitialised memory for `count` rows, to be given to `read` as `out`."""
        arrays = {spec.name: np.empty((count, *spec.shape[1:]), spec.dtype) for spec in self.group.specs.values()}
        return TokenRows(arrays.get("cls"), arrays["patch"], arrays.get("patch_scale"), arrays.get("patch_position"))

    def rows_of(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Return the rows of images by id: all views of the first, then all of the next; raise `BadInput` for an unknown id."""
        views = self.views.views_per_image
        rows: NDArray[np.int64] = (self.views.dataset.index_of(ids)[:, None] * views + np.arange(views)).reshape(-1)
        return rows

    def dataset(self) -> ImageDataset:
        """Return the images whose tokens these are: ids, labels, sizes, pixels."""
        return self.views.dataset

    def read(self, which: Selection, out: TokenRows | None = None, *, check: bool = True, threads: int | None = None) -> TokenRows:
        """Return the given rows, or all views of the images of the given ids, in their order, into `out` when given.

        Rows and ids may come as an array, a list or a range (`selection`). Large reads take several threads, at most `threads`. Raises
        `BadInput` for rows outside and unknown ids, `CacheDamaged` naming the shard for damage.
        """
        asked = rows_or_ids(which)
        rows = only_rows(self.rows_of(asked) if isinstance(asked, list) else asked, self.rows, self.key)
        target = self.empty(len(rows)) if out is None else out
        arrays = _named(target)
        self.group.read(rows, [spec for spec in self.group.specs if spec in arrays], arrays, check=check, threads=threads)
        return target

    def prefetch(self, rows: NDArray[np.int64]) -> None:
        """Say which rows will be read soon: from a remote store with a shard cache their shards are fetched in the background."""
        self.group.prefetch(rows, self.group.specs)

    def read_cls(self, rows: NDArray[Any] | Sequence[int]) -> NDArray[np.floating]:
        """Class tokens (n, D) alone; raise `BadInput` when the teacher has none, and for rows outside."""
        if self.cls_dim is None:
            raise BadInput(f"{self.key} has no class tokens: its teacher has none")
        chosen = only_rows(rows, self.rows, self.key)
        out = np.empty((len(chosen), self.cls_dim), self.group.specs["cls"].dtype)
        self.group.read(chosen, ["cls"], {"cls": out})
        return out

    def decode(self, tokens: TokenRows, out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Normalised patch tokens (n, H, W, D), or (n, T, D) of a sampled set, fp32 from stored rows, into `out` when given."""
        return decode(tokens.patch, tokens.scale, self.codec, out)

    def draw_positions(self, shard: int) -> Positions | None:
        """Return the places (n, T) of the tokens that a shard stores of each view, drawn anew; None when it stores all."""
        if self.layout.tokens_per_view is None:
            return None
        ids, views = self.views.dataset.ids(*self.views.shard_images(shard)), self.views
        return draw_positions(views.spec.seed, ids, views.views_per_image, self.grid[0] * self.grid[1], self.layout.tokens_per_view)

    def encode(self, cls_nD: NDArray[np.float32] | None, patch: NDArray[np.float32], position_nT: Positions | None = None) -> TokenRows:
        """Return the stored form of n rows of normalised fp32 tokens; what is not finite stays so and is refused at the commit.

        `patch` is (n, H, W, D), or for a sampled set the tokens (n, T, D) that stand at `position_nT`.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            cls = None if cls_nD is None else cls_nD.astype(self.group.specs["cls"].dtype, copy=False)
            return TokenRows(cls, *encode(patch, self.codec), position_nT)

    def commit_shard(self, shard: int, tokens: TokenRows, failed: Mapping[str, str], views_record: str) -> Record:
        """Publish one shard of encoded tokens; rows of the images in `failed` (id → reason) are left out.

        Raise `BadInput` naming the image when a token is not finite: no reader could train on it.
        """
        return self.group.publish(*self._checked(shard, tokens, failed, views_record))

    def repair_shard(self, shard: int, tokens: TokenRows, failed: Mapping[str, str], views_record: str) -> Record:
        """Make a damaged shard whole in its place, from its tokens computed anew (`healing`); return its record.

        Raise as `commit_shard`, and `CacheMismatch` where what is whole of it is not what these tokens say.
        """
        record, arrays, present = self._checked(shard, tokens, failed, views_record)
        standing = readable_record(self.group, shard)
        ours = standing is None or (
            standing.image_ids_sha256 == record.image_ids_sha256 and standing.views_record in ("", record.views_record)
        )
        healed = repair_shard(self.group, record, arrays, present, trust=ours)
        healed.write_to(self.group)
        return healed.record

    def _checked(
        self, shard: int, tokens: TokenRows, failed: Mapping[str, str], views_record: str
    ) -> tuple[Record, dict[str, NDArray[Any]], NDArray[np.bool_]]:
        """Return a shard's record without its objects, its arrays, and which rows exist."""
        first, last = self.views.shard_images(shard)
        ids = self.views.dataset.ids(first, last)
        present = np.repeat([image_id not in failed for image_id in ids], self.views.views_per_image)
        arrays = _named(tokens)
        if tokens.position is not None and (row := first_bad_row(tokens.position, self.grid[0] * self.grid[1])) is not None:
            raise BadInput(f"shard {shard} of {self.key}: the token places of row {row} do not ascend within its grid")
        for name, values in arrays.items():
            check_out(self.group.specs[name], values, len(present))
            bad = first_nonfinite(values, present)
            if bad is not None:
                image_id = ids[bad // self.views.views_per_image]
                raise BadInput(f"image {image_id}: its {name} is not finite as {values.dtype}; leave the image out as failed")
        return Record(self.digest, shard, len(present), ids_digest(ids), {}, dict(failed), views_record), arrays, present

    def teacher_files(self) -> list[TeacherFile]:
        """Where the file of a FILE.py:FUNCTION teacher lay whenever it was extracted from."""
        return noted_teacher_files(self._objects, self.identity["teacher"])

    def stored_bytes(self) -> int:
        """Return bytes of the committed shards' objects, from their records."""
        return self.group.stored_bytes()

    def open_zarr(self) -> Any:
        """Return the set as a read-only zarr-python group, for notebooks; it checks inner checksums but not our records."""
        import zarr

        return zarr.open_group(f"{self._objects.url.rstrip('/')}/features/{self.key}", mode="r")


def _named(tokens: TokenRows) -> dict[str, NDArray[Any]]:
    """Return the arrays by their names in the group."""
    every = {"cls": tokens.cls, "patch": tokens.patch, "patch_scale": tokens.scale, "patch_position": tokens.position}
    return {name: array for name, array in every.items() if array is not None}


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
    """Attributes of one array of the statistics, for people who come through Zarr."""
    tokens, kind = name.split("_")
    meaning = {"mean": "mean", "std": "standard deviation, floored", "matrix": "PHI-S matrix W: normalised = W (x − mean)"}[kind]
    units = "1 / the teacher's own unit" if kind == "matrix" else "the teacher's own"
    return {"long_name": f"{meaning}, of {'class' if tokens == 'cls' else 'patch'} tokens", "units": units}


def read_statistics(objects: Objects, prefix: str, described: Mapping[str, Any]) -> Statistics:
    """Return the statistics that lie in a feature set, checked against what its identity says of them; raise `CacheDamaged`."""
    names = objects.names(f"{prefix}/statistics")
    arrays: dict[str, NDArray[np.float32]] = {}
    for name in ("cls_mean", "cls_std", "patch_mean", "patch_std", "cls_matrix", "patch_matrix"):
        if name in names:
            where = small_key(f"{prefix}/statistics/{name}", 2 if name.endswith("matrix") else 1)
            try:
                arrays[name] = parse_small_array(objects.read(where, MAX_IDENTITY_BYTES), where)
            except FileNotFoundError as error:
                raise CacheDamaged(f"{where} is missing; run `eupe-pipeline features repair`") from error
    try:
        statistics = Statistics.from_arrays(arrays, described["count"])
        matches = statistics.digest == described["digest"]
    except (KeyError, TypeError, ValueError) as error:
        raise CacheDamaged(f"{prefix}/statistics are not whole ({error}); run `eupe-pipeline features repair`") from error
    if not matches:
        raise CacheDamaged(f"{prefix}/statistics are not those that the identity names; run `eupe-pipeline features repair`")
    return statistics
