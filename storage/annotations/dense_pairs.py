"""Pictures with a value for every pixel: classes for segmentation, metres for depth; where they lie and how they are read.

    ROOT/images/{training,train}/**.jpg      ROOT/{annotations,masks,labels}/{training,train}/**.png      ADE20k's layout
    ROOT/images/{validation,val,test}/…      …                                                            (any split name of the three)
    ROOT/images/**                           ROOT/{annotations,masks,labels}/**      no splits: a fifth of the pictures, by id, is held out
    ROOT/{images,rgb}/SPLIT/…                ROOT/{depth,depths}/SPLIT/…             depth in the same way
    ROOT/nyu_train.txt  nyu_test.txt         NYUv2: a line a picture, `RGB DEPTH FOCAL`, paths below ROOT, ROOT/sync or ROOT/nyu

A target has its picture's name. Masks are images with one channel (palette, 8 or 16 bits) whose values are the classes; depth is a 16-bit
PNG in units of 1/`per_metre` m, 0 for nothing measured, or a `.npy` in metres. The digest of a split covers every byte of it. A dataset is
known by what it holds and never by its folder's name, which people change: ADE20k by its list of classes or its pictures' names, NYUv2 by
its lists of files.
"""

import hashlib
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core.errors import BadInput
from ..sources.decode import BadImage, Pixels, decode_image, stored_values
from ..sources.folder_source import list_folder
from ..sources.image_kinds import IMAGE_ENDINGS, ending_of
from ..sources.source_items import is_hidden

SPLITS: dict[str, tuple[str, ...]] = {"train": ("training", "train"), "val": ("validation", "val", "test")}
PICTURES, CLASSES, DEPTHS = ("images", "rgb"), ("annotations", "masks", "labels"), ("depth", "depths")
NYU_PREFIXES = ("", "sync", "nyu", "nyu2_train", "nyu2_test")
NYU_LISTS = {"train": "nyu_train.txt", "val": "nyu_test.txt"}
_HELD_OUT = 5
NYU_PER_METRE = 1000.0
ADE20K_CLASSES = 150
ADE20K_LIST, ADE20K_PICTURE = "objectInfo150.txt", re.compile(r"ADE_(train|val|test)_\d{8}")


class Pair(NamedTuple):
    """A picture and the file with the targets of its pixels."""

    id: str
    picture: Path
    target: Path


def segmentation_pairs(root: Path, split: str) -> list[Pair]:
    """Return the pairs of a split ("train" or "val") in order of ids; raise `BadInput` with the expected layout when there are none."""
    return _pairs_in_folders(root, split, CLASSES, (".png", *IMAGE_ENDINGS))


def is_ade20k(root: Path, pairs: Sequence[Pair]) -> bool:
    """Return whether these are ADE20k's 150 classes: its list of them is in `root`, or every picture has one of its names."""
    return (root / ADE20K_LIST).is_file() or all(ADE20K_PICTURE.fullmatch(Path(pair.id).stem) for pair in pairs)


def is_nyu(root: Path) -> bool:
    """Return whether NYUv2's list of training files is in `root`."""
    return (root / NYU_LISTS["train"]).is_file()


def depth_pairs(root: Path, split: str) -> list[Pair]:
    """Return depth pairs as `segmentation_pairs` does, also from NYUv2's lists of files."""
    listed = root / NYU_LISTS[split]
    return _pairs_in_list(root, listed) if listed.is_file() else _pairs_in_folders(root, split, DEPTHS, (".png", ".npy"))


def _first_folder(root: Path, names: Sequence[str], what: str) -> Path:
    for name in names:
        if (root / name).is_dir():
            return root / name
    raise BadInput(f"{root} has no folder {' or '.join(names)} with the {what}; docs/evaluations.md shows the layouts")


def _pairs_in_folders(root: Path, split: str, names: Sequence[str], endings: Sequence[str]) -> list[Pair]:
    pictures, targets = _first_folder(root, PICTURES, "pictures"), _first_folder(root, names, "targets")
    split_names = [name for name in SPLITS[split] if (pictures / name).is_dir()]
    has_no_splits = not any((pictures / name).is_dir() for several in SPLITS.values() for name in several)
    if not has_no_splits and not split_names:
        raise BadInput(f"{pictures} has no folder {' or '.join(SPLITS[split])}")
    base = pictures if has_no_splits else pictures / split_names[0]
    files = sorted(base / path for path in list_folder(str(base)) if ending_of(path) in IMAGE_ENDINGS and not is_hidden(path))
    if has_no_splits:
        files = [path for path in files if (_hash(path.relative_to(base).as_posix()) % _HELD_OUT == 0) == (split == "val")]
    pairs = [_pair(path, path.relative_to(pictures), targets, endings) for path in files]
    if not pairs:
        raise BadInput(f"no picture was found in {base} for the split {split}")
    return pairs


def _pair(picture: Path, relative: Path, targets: Path, endings: Sequence[str]) -> Pair:
    for ending in endings:
        target = (targets / relative).with_suffix(ending)
        if target.is_file():
            return Pair(relative.as_posix(), picture, target)
    raise BadInput(f"{picture} has no target: {(targets / relative).with_suffix(endings[0])} is not there")


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")


def _pairs_in_list(root: Path, listed: Path) -> list[Pair]:
    """Return the lines whose depth is not `None`, in the file's order."""
    rows = [line.split() for line in listed.read_text().splitlines() if line.strip()]
    rows = [row for row in rows if len(row) >= 2 and row[1] != "None"]
    if not rows:
        raise BadInput(f"{listed} lists no picture; its lines are `RGB DEPTH FOCAL`")
    for prefix in NYU_PREFIXES:
        if (root / prefix / rows[0][0].lstrip("/")).is_file():
            return [Pair(row[0].lstrip("/"), *(root / prefix / path.lstrip("/") for path in row[:2])) for row in rows]
    raise BadInput(f"the first picture of {listed}, {rows[0][0]}, is not below {root} nor its folders {', '.join(NYU_PREFIXES[1:])}")


def picture_digests(pairs: Sequence[Pair]) -> list[bytes]:
    """Return the sha256 of each picture's bytes."""
    return [hashlib.sha256(_bytes(pair.picture)).digest() for pair in pairs]


def pairs_digest(pairs: Sequence[Pair], pictures: Sequence[bytes] | None = None) -> str:
    """Return the sha256 over ids and contents of pictures and targets; `pictures` are the pictures' digests, where known."""
    hasher = hashlib.sha256()
    for pair, picture in zip(pairs, pictures or picture_digests(pairs), strict=True):
        hasher.update(pair.id.encode() + b"\0" + picture + hashlib.sha256(_bytes(pair.target)).digest())
    return hasher.hexdigest()


def read_picture(path: Path) -> Pixels:
    """Return a picture as (H, W, 3) uint8 RGB; raise `BadImage` naming the file."""
    return decode_image(_bytes(path), where=str(path))


def read_classes(path: Path) -> NDArray[np.int64]:
    """Return the class of each pixel (H, W) as stored; raise `BadImage` for a picture with colours."""
    values = _raw(path)
    if values.ndim != 2:
        raise BadImage(f"{path}: a mask has one channel of class numbers, this has {values.shape[2]}; convert its colours to numbers")
    return values.astype(np.int64)


class MaskValues(NamedTuple):
    """The values in the masks of a split."""

    pixels: dict[int, int]
    """Pixels by value, over all masks."""
    example: dict[int, Path]
    """The first mask with each value."""


def mask_values(pairs: Sequence[Pair], threads: int) -> MaskValues:
    """Return every value in the masks of a split; each mask is decoded once. Raise `BadImage`."""
    pixels, example = dict[int, int](), dict[int, Path]()
    with ThreadPoolExecutor(threads, thread_name_prefix="masks") as pool:
        for pair, (values, counts) in zip(pairs, pool.map(lambda pair: _counted(read_classes(pair.target)), pairs), strict=True):
            for value, count in zip(values.tolist(), counts.tolist(), strict=True):
                pixels[value] = pixels.get(value, 0) + count
                example.setdefault(value, pair.target)
    return MaskValues(pixels, example)


def _counted(mask: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the values in a mask of 8 or 16 bits, and the number of pixels with each."""
    counts = np.bincount(mask.ravel())
    values = np.flatnonzero(counts)
    return values, counts[values]


def read_depth(path: Path, per_metre: float = NYU_PER_METRE) -> NDArray[np.float32]:
    """Return metres (H, W), 0 where nothing was measured; PNGs hold metres × `per_metre`. Raise `BadImage`."""
    metres = _stored_metres(path, per_metre)
    if metres.min(initial=0.0) < 0:  # its logarithm is none: the head would learn NaN
        raise BadImage(f"{path}: depth of {metres.min():.6g} m; where nothing was measured it is 0, never negative")
    return metres


def _stored_metres(path: Path, per_metre: float) -> NDArray[np.float32]:
    if path.suffix.lower() != ".npy":
        values = _raw(path)
        if values.ndim != 2:
            raise BadImage(f"{path}: depth has one channel, this has {values.shape[2]}")
        return values.astype(np.float32) / np.float32(per_metre)
    try:
        metres = np.load(path)
    except (OSError, ValueError) as error:
        raise BadImage(f"{path}: not an array of numbers ({error})") from error
    if metres.ndim != 2 or metres.dtype.kind not in "fiu":
        raise BadImage(f"{path}: expected metres (H, W), got {metres.dtype} {metres.shape}")
    plain: NDArray[np.float32] = np.nan_to_num(metres.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    return plain


def _raw(path: Path) -> NDArray[np.generic]:
    """Return the stored numbers, no palette applied."""
    return stored_values(_bytes(path), where=str(path))


def _bytes(path: Path) -> bytes:
    if path.exists() and not path.is_file():  # a pipe would wait for its writer
        raise BadInput(f"{path} cannot be read (it is no regular file)")
    try:
        return path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error})") from error
