"""A view set over one dataset: drawn once, committed shard by shard, read by every teacher and student.

    views/<dataset>@<digest>/
      identity.json  zarr.json
      crop/ flip/ photometric/ pixel_digest/     one row a view: row = image index × K + k
      pixels/                                    the rendered views (rows, height, width, 3), where the spec asks for them
      commits/000412.json                        also names the images that could not be decoded

The first extraction of a shard draws its views, computes the digests of the crops' pixels and commits both; later ones read them and check
the digests. The number of images a shard belongs to the views, so that all feature sets over them have the same shard boundaries. Pixels
are raw: lossless codecs save half of their bytes and are read some fifty times slower (docs/decisions/0012).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import BadInput
from ..core.identity import digest, ids_digest, short
from ..core.lru_cache import LruCache
from ..core.selection import only_rows
from ..images.dataset import ImageDataset
from ..images.versions import REMOVED
from ..objects.content_addressed import check_metadata, create_set, is_key, parsing
from ..objects.objects import Objects
from ..shards.commit import Record
from ..shards.shards import ShardedGroup
from ..shards.zarr_format import ArraySpec, group_metadata
from ..sources.decode import Pixels, decoder_identity, orientation_of
from .input_size import as_size, size_hw
from .photometric import COLUMNS, UNITS
from .renderers import PILLOW, Renderer, identity_parts
from .view_spec import DIGEST_BYTES, PHOTOMETRIC_PARAMETERS, Views, ViewSpec, draw, empty_views

DEFAULT_IMAGES_PER_SHARD = 128
PIXELS = "pixels"
_KEPT_SHARDS = 256


def views_identity(dataset: ImageDataset, spec: ViewSpec, images_per_shard: int, renderer: Renderer = PILLOW) -> dict[str, Any]:
    """Return everything that decides a view set; of Pillow's renderer it says nothing, as identities of before."""
    if not 1 <= images_per_shard <= 1 << 20:
        raise BadInput(f"images per shard must be between 1 and {1 << 20:,}, got {images_per_shard}")
    parts = identity_parts(renderer)
    return {
        "format": 1,
        "dataset": dataset.digest,
        "images": len(dataset),
        "views": spec.identity(),
        "decoder": {**decoder_identity(dataset.orientation), **parts.in_decoder},
        "images_per_shard": images_per_shard,
        **parts.beside,
    }


def _specs(identity: Mapping[str, Any]) -> list[ArraySpec]:
    views_per_image = identity["views"]["views_per_image"]
    rows, shard_rows = identity["images"] * views_per_image, identity["images_per_shard"] * views_per_image
    arrays: list[tuple[str, int, type[np.generic], str, dict[str, Any]]] = [
        ("crop", 4, np.int32, "top_left_height_width", {"long_name": "box of the view", "units": "source pixels"}),
        ("flip", 1, np.bool_, "mirrored", {"long_name": "mirrored after the resize", "units": "1"}),
        (
            "photometric",
            PHOTOMETRIC_PARAMETERS,
            np.float32,
            "parameter",
            {"long_name": "distortion after the resize, zero where there is none", "columns": list(COLUMNS), "units": UNITS},
        ),
        (
            "pixel_digest",
            DIGEST_BYTES,
            np.uint8,
            "byte",
            {"long_name": "digest of the crop", "units": "1", "method": "xxh3_128 of (shape, uint8 RGB) before any resize"},
        ),
    ]
    specs = [
        ArraySpec(name, (rows, width), np.dtype(dtype), shard_rows, shard_rows, ("view", axis), attributes)
        for name, width, dtype, axis, attributes in arrays
    ]
    stored = identity["views"].get("pixels")
    return specs if stored is None else [*specs, _pixels_spec(rows, shard_rows, identity["views"])]


def _pixels_spec(rows: int, shard_rows: int, views: Mapping[str, Any]) -> ArraySpec:
    stored, axes = views["pixels"], ("view", "y", "x", "colour")
    padding = f", padded to the input ({views['pad_position']}, {views['pad_rgb']})" if "pad_rgb" in views else ""
    described = {
        "long_name": "pixels of the view",
        "units": "sRGB levels from 0 to 255",
        "colours": ["red", "green", "blue"],
        "method": f"crop, antialiased {stored['interpolation']} resize, flip{padding}; never distorted",
    }
    return ArraySpec(PIXELS, (rows, *size_hw(as_size(stored["size_px"])), 3), np.dtype(np.uint8), shard_rows, 1, axes, described)


class ViewSet:
    """The committed views of a dataset; row = image index × K + k."""

    def __init__(self, objects: Objects, key: str, dataset: ImageDataset, identity: dict[str, Any]) -> None:
        self.key, self.identity = key, identity
        self.digest = digest(identity)
        with parsing(f"views/{key}/identity.json"):
            self.spec = ViewSpec.from_identity(identity["views"])
            self.views_per_image, self.images_per_shard = self.spec.views_per_image, int(identity["images_per_shard"])
            specs = _specs(identity)
            if (identity["dataset"], identity["images"]) != (dataset.digest, len(dataset)):
                raise ValueError("it names another dataset")
            self.renderer = Renderer.of(identity)
            # evaluations read an upright dataset as stored
            self.dataset = dataset.read_as(orientation_of(identity["decoder"]), self.renderer.jpeg_decoder)
        check_metadata(objects, f"views/{key}", views_metadata(identity))
        self.group = ShardedGroup(objects, f"views/{key}", self.digest, specs)
        self.rows, self.shards = self.group.rows, self.group.shards
        self._kept: LruCache[int, Views] = LruCache(_KEPT_SHARDS)

    @classmethod
    def create(
        cls, objects: Objects, dataset: ImageDataset, spec: ViewSpec, images_per_shard: int, renderer: Renderer = PILLOW
    ) -> "ViewSet":
        """Open the view set of this identity, creating it when the store does not have it, also under another name of the same images."""
        identity = views_identity(dataset, spec, images_per_shard, renderer)
        suffix = f"@{short(digest(identity))}"
        own = f"{dataset.name}{suffix}"
        others = [name for name in objects.names("views") if is_key(name) and name.endswith(suffix)]
        key = own if own in others else next(iter(others), own)
        create_set(objects, f"views/{key}", "views", identity, views_metadata(identity))
        return cls(objects, key, dataset, identity)

    def __repr__(self) -> str:
        return f"ViewSet({self.key!r}, {self.views_per_image} views of each of {len(self.dataset)} images)"

    def shard_images(self, shard: int) -> tuple[int, int]:
        """Return the images [first, last) of a shard."""
        return shard * self.images_per_shard, min((shard + 1) * self.images_per_shard, len(self.dataset))

    def draw_shard(self, shard: int) -> Views:
        """Return the views of a shard drawn anew from the spec, without pixel digests."""
        first, last = self.shard_images(shard)
        return draw(self.spec, self.dataset.ids(first, last), self.dataset.sizes_hw(first, last))

    def draw_image(self, image: int) -> Views:
        """Return the K views of one image drawn anew from the spec, without pixel digests."""
        return draw(self.spec, self.dataset.ids(image, image + 1), self.dataset.sizes_hw(image, image + 1))

    def commit_shard(self, shard: int, views: Views, failed: Mapping[str, str], pixels: Pixels | None = None) -> Record:
        """Publish a shard's views; `failed` names the images that could not be decoded (id → reason), which have no pixels.

        Raise `BadInput` when `pixels` (rows, R, R, 3) are not what the spec says is stored.
        """
        first, last = self.shard_images(shard)
        ids = self.dataset.ids(first, last)
        record = Record(self.digest, shard, len(views.crop), ids_digest(ids), {}, dict(failed))
        arrays: dict[str, NDArray[Any]] = {
            "crop": views.crop,
            "flip": views.flip[:, None],
            "photometric": views.photometric,
            "pixel_digest": views.digest,
        }
        present = dict.fromkeys(arrays, np.ones(len(views.crop), np.bool_))
        if pixels is not None:
            arrays[PIXELS] = pixels
            present[PIXELS] = np.repeat([image_id not in failed for image_id in ids], self.views_per_image)
        if arrays.keys() != self.group.specs.keys():
            raise BadInput(f"views/{self.key} stores the arrays {', '.join(self.group.specs)}, got {', '.join(arrays)}")
        return self.group.publish(record, arrays, present)

    def read_shard(self, shard: int) -> Views | None:
        """Return a shard's committed views, None when it has none yet; raise `CacheDamaged`."""
        if (kept := self._kept.get(shard)) is not None:
            return kept
        if self.group.record(shard) is None:
            return None
        first, last = self.group.shard_span(shard)
        rows = np.arange(first, last)
        small = [spec for spec in self.group.specs.values() if spec.name != PIXELS]
        out = {spec.name: np.empty((len(rows), *spec.shape[1:]), spec.dtype) for spec in small}
        self.group.read(rows, out, out)
        views = Views(out["crop"], out["flip"][:, 0], out["photometric"], out["pixel_digest"])
        self._kept.put(shard, views)
        return views

    def read(self, which: NDArray[Any] | Sequence[int]) -> Views:
        """Return the committed views of any rows, in their order; raise `BadInput` for a shard that has none yet."""
        shard_rows, rows = self.group.shard_rows, only_rows(which, self.rows, f"views/{self.key}")
        out = empty_views(len(rows))
        shards = rows // shard_rows
        for shard in np.unique(shards).tolist():
            views = self.read_shard(shard)
            if views is None:
                raise BadInput(f"shard {shard} of views/{self.key} is not committed; run extract-features to its end first")
            here = shards == shard
            local = rows[here] - shard * shard_rows
            out.crop[here], out.flip[here] = views.crop[local], views.flip[local]
            out.photometric[here], out.digest[here] = views.photometric[local], views.digest[local]
        return out

    def prefetch(self, rows: NDArray[np.int64]) -> None:
        """Announce which rows, with their pixels where there are any, will be read soon; as `FeatureReader.prefetch`."""
        self.group.prefetch(rows, self.group.specs)

    def read_pixels(self, which: NDArray[Any] | Sequence[int], out: Pixels | None = None) -> Pixels:
        """Return stored pixels (n, height, width, 3) of any rows in their order, into `out` when given: rendered, mirrored, undistorted.

        Raise `BadInput` where the views store none, `CacheDamaged` for damage and for rows of failed images.
        """
        if self.spec.pixels is None:
            raise BadInput(f"views/{self.key} store no pixels; extract-features --pixels PX makes views that do")
        rows = only_rows(which, self.rows, f"views/{self.key}")
        target = np.empty((len(rows), *self.spec.pixels.input.shape), np.uint8) if out is None else out
        self.group.read(rows, [PIXELS], {PIXELS: target})
        return target

    def stored_bytes(self) -> int:
        """Return bytes of the committed shards' objects, pixels included, from their records."""
        return self.group.stored_bytes()

    def images_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the image of each row."""
        return rows // self.views_per_image

    def renderer_of(self, image: int) -> Renderer:
        """Return what renders the views of an image."""
        return self.renderer

    def failure(self, image: int) -> str:
        """Return why an image could not be decoded when its views were committed."""
        image_id = self.dataset.row(image).id
        unknown = f"image {image_id} of {self.dataset.key} has no pixel digest in views/{self.key}"
        return self.failed_images(image // self.images_per_shard).get(image_id, unknown)

    def failed_images(self, shard: int) -> dict[str, str]:
        """Return the images of a committed shard that could not be decoded, or were removed since (id → reason)."""
        record, first = self.group.record(shard), self.shard_images(shard)[0]
        if record is None or not self.dataset.removed_count:
            return {} if record is None else record.failed
        ids = self.dataset.ids(*self.shard_images(shard))
        return {**record.failed, **{ids[n]: REMOVED for n in range(len(ids)) if self.dataset.is_removed(first + n)}}


def views_metadata(identity: Mapping[str, Any]) -> dict[str, bytes]:
    """Return every file of the set that follows from its identity."""
    arrays = {spec.name: spec.metadata() for spec in _specs(identity)}
    group = group_metadata({"kind": "eupe-pipeline views", "identity_sha256": digest(dict(identity))}, arrays)
    return {"zarr.json": group, **{f"{name}/zarr.json": data for name, data in arrays.items()}}
