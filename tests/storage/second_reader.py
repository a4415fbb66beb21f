"""A second implementation of docs/store-format.md: nothing of ours is imported, every sentence that a reader needs is followed.

It exists to find out whether the document is enough (test_second_reader.py compares it with our reader), reads a whole set into memory
and raises AssertionError where the document says "damage".
"""

import base64
import hashlib
import json
import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
import xxhash
from crc32c import crc32c
from numpy.typing import NDArray

NONE = 2**64 - 1
Json = dict[str, Any]
Array = NDArray[Any]


class Set(NamedTuple):
    """What a feature set holds: rows in order, NaN or zero where an image failed."""

    identity: Json
    ids: list[str]
    sizes_hw: list[tuple[int, int]]
    view_identity: Json
    views: dict[str, Array]
    tokens: dict[str, Array]  # "patch" and "patch.N" decoded to fp32, "cls", "patch_position"
    failed: list[int]
    statistics: dict[str, Array]


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest(value: Any) -> str:
    return hashlib.sha256(canonical(value)).hexdigest()


def parsed(data: bytes) -> Json:
    value: Json = json.loads(data)
    assert canonical(value) == data
    return value


def by_digest(folder: Path, full: str) -> Path:
    (found,) = [path for path in folder.iterdir() if path.name.endswith(f"@{full[:12]}")]
    return found


def identity_of(folder: Path) -> tuple[Json, str]:
    described = parsed((folder / "identity.json").read_bytes())
    assert described["kind"] == folder.parent.name
    assert digest(described["identity"]) == described["digest"]
    assert folder.name.endswith("@" + described["digest"][:12])
    return described["identity"], described["digest"]


def read_dataset(folder: Path) -> tuple[Json, list[Json]]:
    described = parsed((folder / "identity.json").read_bytes())
    claimed = described.pop("file_digest")
    assert digest(described) == claimed
    rows: list[Json] = []
    for number, sha256 in enumerate(described["index_sha256"]):
        part = folder / (f"index.{number}.parquet" if number else "index.parquet")
        assert hashlib.sha256(part.read_bytes()).hexdigest() == sha256
        rows += pq.read_table(part).to_pylist()
    content = hashlib.sha256()
    for row in rows:
        content.update(f"{row['id']}\0{row['sha256'].hex()}\0{row['height']}\0{row['width']}\0{row['label']}\n".encode())
    assert content.hexdigest() == described["content_sha256"]
    assert hashlib.sha256("\0".join([content.hexdigest(), *described["labels"]]).encode()).hexdigest() == described["digest"]
    return described, rows


def record_bytes(group: Path, shard: int) -> bytes | None:
    own = group / f"commits/{shard:06d}.json"
    if own.exists():
        return own.read_bytes()
    ledger = group / f"ledgers/{shard // 65_536:06d}.parquet"
    if not ledger.exists() or (group / f"discarded/{shard:06d}").exists():
        return None
    place = pq.read_table(ledger).to_pylist()[shard % 65_536]
    return ledger.with_suffix(".records").read_bytes()[place["offset"] : place["offset"] + place["length"]]


def read_record(group: Path, group_digest: str, shard: int, ids: list[str]) -> Json | None:
    data = record_bytes(group, shard)
    if data is None:
        return None
    record = parsed(data)
    claimed = record.pop("digest")
    assert digest(record) == claimed
    assert (record["format"], record["group"], record["shard"]) == (1, group_digest, shard)
    hasher = hashlib.sha256()
    for image_id in ids:
        hasher.update(struct.pack("<I", len(image_id.encode())) + image_id.encode())
    assert hasher.hexdigest() == record["image_ids_sha256"]
    return {**record, "digest": claimed}


def read_object(group: Path, record: Json, array: str, dtype: str, row_shape: tuple[int, ...], shard_rows: int, chunk_rows: int) -> Array:
    entry = record["objects"][array]
    assert entry["key"] == f"{array}/c.{record['shard']}" + ".0" * len(row_shape)
    data = (group / entry["key"]).read_bytes()
    assert (len(data), xxhash.xxh3_128_hexdigest(data)) == (entry["bytes"], entry["xxh3_128"])
    chunks = shard_rows // chunk_rows
    index, stored = data[-16 * chunks - 4 : -4], int.from_bytes(data[-4:], "little")
    assert crc32c(index) == stored == entry["index_crc32c"]
    hashes = np.frombuffer(base64.b64decode(entry["chunk_xxh3_64"]), "<u8")
    assert len(hashes) == chunks
    rows = np.full((shard_rows, *row_shape), np.nan if np.dtype(dtype).kind == "f" else 0, dtype)
    for number, (offset, length) in enumerate(np.frombuffer(index, "<u8").reshape(-1, 2).tolist()):
        if offset == NONE:
            assert (length, hashes[number]) == (NONE, 0)
            continue
        chunk = data[offset : offset + length - 4]
        assert crc32c(chunk) == int.from_bytes(data[offset + length - 4 : offset + length], "little")
        assert xxhash.xxh3_64_intdigest(chunk) == hashes[number]
        rows[number * chunk_rows : (number + 1) * chunk_rows] = np.frombuffer(chunk, dtype).reshape(chunk_rows, *row_shape)
    return rows[: record["rows"]]


def read_statistics(folder: Path, described: Json) -> dict[str, Array]:
    found: dict[str, Array] = {}
    for kind, wanted in {"": described["digest"], **described.get("layers", {})}.items():
        found |= read_statistics_of(folder, kind, wanted, described["count"])
    assert sorted(found) == sorted(path.name for path in folder.iterdir() if path.is_dir())
    return found


def read_statistics_of(folder: Path, layer: str, wanted: str, count: int) -> dict[str, Array]:
    """The statistics of the final tokens ("") or of one layer."""
    found: dict[str, Array] = {}
    hasher = hashlib.sha256(str(count).encode())
    names = ("cls", "patch") if not layer else (f"patch.{layer}",)
    for path in sorted(path for path in folder.iterdir() if path.is_dir() and path.name.split("_")[0] in names):
        data = (path / ("c.0.0" if path.name.endswith("_matrix") else "c.0")).read_bytes()
        assert crc32c(data[:-4]) == int.from_bytes(data[-4:], "little")
        hasher.update(path.name.replace(f"patch.{layer}", "patch").encode() + data[:-4])
        values = np.frombuffer(data[:-4], "<f4")
        found[path.name] = values.reshape(math.isqrt(values.size), -1) if path.name.endswith("_matrix") else values
    assert hasher.hexdigest() == wanted
    return found


def stored_types(layout: Json) -> dict[str, tuple[str, tuple[int, ...], int]]:
    """Array → element type, shape of a row, rows a chunk at most."""
    dim, codec, sampled = layout["patch_dim"], layout["codec"], layout["tokens"] == "sampled"
    tokens = (layout["tokens_per_view"],) if sampled else tuple(layout["grid"])
    groups = dim // 128 if dim % 128 == 0 else 1
    codes = {"fp32": ("<f4", dim), "fp16": ("<f2", dim), "int8": ("i1", dim), "int4": ("u1", dim // 2)}[codec]
    arrays: dict[str, tuple[str, tuple[int, ...], int]] = {"patch": (codes[0], (*tokens, codes[1]), 1)}
    if codec in ("int8", "int4"):
        arrays["patch_scale"] = ("<f2", (*tokens, groups) if codec == "int8" else (*tokens, dim // 64, 2), 1)
    if sampled:
        arrays["patch_position"] = ("<u2", tokens, 8)
    for layer in layout.get("layers", []):
        arrays |= {f"patch.{layer}{end}": arrays[f"patch{end}"] for end in ("", "_scale") if f"patch{end}" in arrays}
    if layout["cls_dim"] is not None:
        arrays["cls"] = ("<f4" if codec == "fp32" else "<f2", (layout["cls_dim"],), 8)
    return arrays


def decoded(codec: str, codes: Array, scale: Array | None) -> Array:
    if scale is None:
        return codes.astype(np.float32)
    wide = scale.astype(np.float32)
    if codec == "int8":
        parts = codes.astype(np.float32).reshape(*wide.shape, -1) / np.float32(127)
        return np.asarray(wide[..., None] * parts * np.abs(parts)).reshape(codes.shape)
    steps = np.stack([codes & 15, codes >> 4], axis=-1).astype(np.float32).reshape(*wide.shape[:-1], 64)
    return np.asarray(wide[..., 1, None] + steps * wide[..., 0, None]).reshape(*codes.shape[:-1], -1)


def read_set(store: Path, key: str) -> Set:
    """A whole feature set with its views and images."""
    group = store / "features" / key
    identity, own = identity_of(group)
    view_group = by_digest(store / "views", identity["views"])
    view_identity, of_views = identity_of(view_group)
    described, images = read_dataset(by_digest(store / "datasets", view_identity["dataset"]))
    assert (described["digest"], described["images"]) == (view_identity["dataset"], view_identity["images"])
    ids, k, a_shard = [row["id"] for row in images], view_identity["views"]["views_per_image"], view_identity["images_per_shard"]
    drawn: dict[str, tuple[str, tuple[int, ...]]] = {
        "crop": ("<i4", (4,)),
        "flip": ("?", (1,)),
        "photometric": ("<f4", (8,)),
        "pixel_digest": ("u1", (16,)),
    }
    arrays, parts, failed = stored_types(identity["layout"]), dict[str, list[Array]](), []
    for shard in range(-(-len(ids) // a_shard)):
        here = ids[shard * a_shard : (shard + 1) * a_shard]
        views, record = read_record(view_group, of_views, shard, here), read_record(group, own, shard, here)
        assert views is not None
        assert record is not None
        assert record["views_record"] in ("", views["digest"])
        for name, (dtype, shape) in drawn.items():
            parts.setdefault(name, []).append(read_object(view_group, views, name, dtype, shape, a_shard * k, a_shard * k))
        for name, (dtype, shape, most) in arrays.items():
            rows = read_object(group, record, name, dtype, shape, a_shard * k, math.gcd(a_shard * k, most))
            parts.setdefault(name, []).append(rows)
        failed += [(shard * a_shard + n) * k + v for n, image_id in enumerate(here) if image_id in record["failed"] for v in range(k)]
    whole = {name: np.concatenate(pieces) for name, pieces in parts.items()}
    tokens: dict[str, Array] = {name: whole[name] for name in ("cls", "patch_position") if name in whole}
    for name in ("patch", *(f"patch.{layer}" for layer in identity["layout"].get("layers", []))):
        tokens[name] = decoded(identity["layout"]["codec"], whole[name], whole.get(f"{name}_scale"))
    sizes = [(row["height"], row["width"]) for row in images]
    found = read_statistics(group / "statistics", identity["statistics"])
    return Set(identity, ids, sizes, view_identity, {name: whole[name] for name in drawn}, tokens, failed, found)


def own_tokens(found: Set, patch: Array) -> Array:
    """The teacher's own patch tokens from normalised ones."""
    mean = found.statistics["patch_mean"]
    if found.identity["statistics"]["method"] == "mean and std":
        return np.asarray(patch * found.statistics["patch_std"] + mean)
    matrix = found.statistics["patch_matrix"].astype(np.float64)
    return np.asarray(patch @ (len(matrix) / np.square(matrix).sum() * matrix.T).T + mean)


def words(text: str, count: int) -> Array:
    key = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")
    return np.asarray(np.random.Philox(key=key).random_raw(count), np.uint64)


def redraw(views: Json, image_id: str, k: int, height: int, width: int) -> tuple[tuple[int, int, int, int] | None, bool]:
    """Crop (None when none of the ten attempts fits) and flip of a view, drawn from the document's rule."""
    u = [(int(word) >> 11) * 2.0**-53 for word in words(f"{views['seed']}\0{k}\0{image_id}", 41)]
    (s0, s1), (r0, r1), flip = views["scale"], views["ratio"], u[40] < views["flip_probability"]
    for n in range(10):
        area, ratio = height * width * (s0 + (s1 - s0) * u[4 * n]), math.exp(math.log(r0) + (math.log(r1) - math.log(r0)) * u[4 * n + 1])
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return (math.floor(u[4 * n + 2] * (height - h + 1)), math.floor(u[4 * n + 3] * (width - w + 1)), h, w), flip
    return None, flip


def redraw_positions(views: Json, layout: Json, image_id: str, k: int, has_image: Sequence[bool] | None = None) -> list[int]:
    """The places of the tokens that a sampled set keeps of a view; `has_image`: which cells have any of a letterboxed one."""
    drawn = words(f"positions\0{views.get('seed', 0)}\0{k}\0{image_id}", math.prod(layout["grid"]))
    is_padding = [False] * len(drawn) if has_image is None else [not seen for seen in has_image]
    order = sorted(range(len(drawn)), key=lambda place: (is_padding[place], int(drawn[place]), place))
    return sorted(order[: layout["tokens_per_view"]])
