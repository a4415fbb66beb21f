"""COCO's layout of pictures with boxes, read as it is.

    ROOT/annotations/instances_train2017.json  instances_val2017.json      ROOT/train2017/*.jpg  ROOT/val2017/*.jpg
    ROOT/{instances_train,instances_val}.json, or in annotations/          ROOT/{train,val}/, ROOT/images/{train,val}/, or ROOT/images/

A picture's `file_name` is looked for in the folder that its annotations name (`instances_train2017` → train2017), with and without
images/ before it. Ids of pictures and categories are any numbers, with holes. Pictures without objects count: a box found there is wrong.
`bbox` is left, top, width, height in pixels. Objects with `iscrowd` are groups: nothing learns from them, and what is found inside them
counts neither as right nor as wrong. Everything is checked before anything is computed.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import BadInput

SLACK_PX = 1.0
"""How far a box may reach over its picture's edge: annotation tools round."""


@dataclass(frozen=True)
class CocoObject:
    """A box in a picture."""

    id: int
    category: int
    """Index into the categories, not COCO's id."""
    box: tuple[float, float, float, float]
    """Left, top, width, height in pixels."""
    area: float
    crowd: bool


@dataclass(frozen=True)
class CocoPicture:
    """A picture with its objects, maybe none."""

    id: int
    path: Path
    height: int
    width: int
    objects: tuple[CocoObject, ...]

    def learnt(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return boxes (n, 4: left, top, right, bottom, in pixels, inside the picture) and categories (n,) of all but crowds."""
        kept = [one for one in self.objects if not one.crowd]
        boxes = np.array([one.box for one in kept], np.float32).reshape(-1, 4)
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
        limits = np.array([self.width, self.height, self.width, self.height], np.float32)
        return np.clip(corners, 0, limits), np.array([one.category for one in kept], np.int64)


@dataclass(frozen=True)
class CocoSplit:
    """One split of a dataset."""

    file: Path
    pictures: tuple[CocoPicture, ...]
    category_ids: tuple[int, ...]
    """COCO's ids of the categories, rising."""
    names: tuple[str, ...]
    """Their names."""

    @property
    def boxes(self) -> int:
        """Return how many objects there are that are no crowds."""
        return sum(not one.crowd for picture in self.pictures for one in picture.objects)


def read_coco(root: Path, split: str) -> CocoSplit:
    """Return a split ("train" or "val"), checked; raise `BadInput` that says what is wrong where."""
    file = annotations_file(root, split)
    try:
        content: dict[str, Any] = json.loads(file.read_text())
        lists = {name: list(content[name]) for name in ("images", "annotations", "categories")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{file} is not COCO's: expected an object with the lists images, annotations, categories ({error!r})") from error
    named = sorted((_number(file, one, "id"), str(one.get("name", one["id"]))) for one in lists["categories"])
    if not named or not lists["images"]:
        raise BadInput(f"{file} lists no {'categories' if not named else 'images'}")
    _refuse_repeated(file, "categories", [number for number, _ in named])
    index_of = {number: index for index, (number, _) in enumerate(named)}
    _refuse_repeated(file, "images", [_number(file, one, "id") for one in lists["images"]])
    _refuse_repeated(file, "annotations", [_number(file, one, "id") for one in lists["annotations"]])
    objects: dict[int, list[CocoObject]] = {_number(file, one, "id"): [] for one in lists["images"]}
    sizes = {_number(file, one, "id"): one for one in lists["images"]}
    for annotation in lists["annotations"]:
        image = _number(file, annotation, "image_id")
        if image not in objects:
            raise BadInput(f"{file}: annotation {annotation['id']} is of image {image}, which is not in images")
        objects[image].append(_object(file, annotation, index_of, sizes[image]))
    folders = picture_folders(root, file)
    pictures = tuple(_picture(file, one, folders, objects[_number(file, one, "id")]) for one in lists["images"])
    return CocoSplit(file, pictures, tuple(number for number, _ in named), tuple(name for _, name in named))


def check_together(train: CocoSplit, val: CocoSplit) -> None:
    """Raise `BadInput` where the splits have other categories, or one has no box."""
    if dict(zip(train.category_ids, train.names, strict=True)) != dict(zip(val.category_ids, val.names, strict=True)):
        other = sorted({*zip(train.category_ids, train.names, strict=True)} ^ {*zip(val.category_ids, val.names, strict=True)})
        raise BadInput(f"{train.file} and {val.file} have different categories: {other[:3]}; ids and names must be the same in both")
    for split in (train, val):
        if not split.boxes:
            raise BadInput(f"{split.file} has no box that counts, so there is nothing to learn or to find")


def pictures_of(split: CocoSplit) -> list[bytes]:
    """Return the sha256 of each picture's bytes."""
    return [hashlib.sha256(picture.path.read_bytes()).digest() for picture in split.pictures]


def coco_digest(split: CocoSplit, pictures: Sequence[bytes]) -> str:
    """Return the sha256 over pictures (their digests given), objects and categories."""
    hasher = hashlib.sha256(json.dumps([split.category_ids, split.names]).encode())
    for picture, content in zip(split.pictures, pictures, strict=True):
        objects = [[one.id, one.category, *one.box, one.area, one.crowd] for one in picture.objects]
        hasher.update(json.dumps([picture.id, picture.height, picture.width, objects]).encode() + content)
    return hasher.hexdigest()


def annotations_file(root: Path, split: str) -> Path:
    """Return the file of a split's annotations; raise `BadInput` for none or several."""
    folders = [folder for folder in (root / "annotations", root) if folder.is_dir()]
    found = [path for folder in folders for path in sorted(folder.glob(f"instances_{split}*.json"))]
    if not found:
        raise BadInput(f"{root} has no instances_{split}*.json, in annotations/ or beside it; docs/evaluations.md shows the layout")
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise BadInput(f"{root} has several annotations for {split} ({names}); leave the one that counts")
    return found[0]


def picture_folders(root: Path, file: Path) -> list[Path]:
    """Return the folders that may hold the pictures of a file of annotations; raise `BadInput` for none."""
    name = file.stem.removeprefix("instances_")
    plain = name.rstrip("0123456789")
    candidates = [root / name, root / "images" / name, root / plain, root / "images" / plain, root / "images"]
    folders = [folder for folder in dict.fromkeys(candidates) if folder.is_dir()]
    if not folders:
        raise BadInput(f"{root} has no folder {name}, images/{name} or images with the pictures of {file.name}")
    return folders


def _number(file: Path, one: Any, key: str) -> int:
    value = one.get(key) if isinstance(one, dict) else None
    if not isinstance(value, int) or isinstance(value, bool):
        raise BadInput(f"{file}: {key} must be a whole number, got {value!r} in {str(one)[:120]}")
    return value


def _refuse_repeated(file: Path, what: str, numbers: list[int]) -> None:
    if repeated := [number for number, count in Counter(numbers).items() if count > 1]:
        raise BadInput(f"{file}: the id {repeated[0]} stands for several {what}")


def _object(file: Path, annotation: dict[str, Any], index_of: dict[int, int], image: dict[str, Any]) -> CocoObject:
    where, category = f"{file}: annotation {annotation['id']}", _number(file, annotation, "category_id")
    if category not in index_of:
        raise BadInput(f"{where} is of category {category}, and the categories are {', '.join(map(str, list(index_of)[:10]))}")
    try:
        left, top, width, height = (float(value) for value in annotation["bbox"])
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"{where} has no bbox of four numbers (left, top, width, height): {annotation.get('bbox')!r}") from error
    box = left, top, width, height
    if not all(np.isfinite(box)) or min(width, height) <= 0:
        raise BadInput(f"{where} has an empty box {list(box)}: left, top, width, height")
    right, bottom = left + width, top + height
    if min(left, top) < -SLACK_PX or right > _side(file, image, "width") + SLACK_PX or bottom > _side(file, image, "height") + SLACK_PX:
        raise BadInput(
            f"{where} has the box {list(box)} (left, top, width, height), outside of its picture {image.get('file_name')} of "
            f"{image['width']}×{image['height']} px"
        )
    area = float(annotation.get("area", width * height))
    return CocoObject(annotation["id"], index_of[category], box, area, bool(annotation.get("iscrowd", 0)))


def _side(file: Path, image: dict[str, Any], key: str) -> int:
    side = _number(file, image, key)
    if side < 1:
        raise BadInput(f"{file}: image {image['id']} has the {key} {side}")
    return side


def _picture(file: Path, image: dict[str, Any], folders: list[Path], objects: list[CocoObject]) -> CocoPicture:
    name = image.get("file_name")
    if not isinstance(name, str) or not name:
        raise BadInput(f"{file}: image {image['id']} has no file_name")
    path = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if path is None:
        raise BadInput(f"{file}: the picture {name} of image {image['id']} is not in {' nor in '.join(map(str, folders))}")
    return CocoPicture(image["id"], path, _side(file, image, "height"), _side(file, image, "width"), tuple(objects))
