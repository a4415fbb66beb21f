"""SPair-71k's layout: pairs of pictures of one category with keypoints that mean the same.

    ROOT/PairAnnotation/{trn,val,test}/*.json      src_imname, trg_imname, category, src_kps and trg_kps [[x, y], …],
                                                   trg_bndbox [x1, y1, x2, y2]
    ROOT/JPEGImages/<category>/<imname>

Every pair of a split is read; the digest covers the annotations' bytes and those of the pictures that they name. A sample of each category
is drawn by the pairs' names: the same everywhere, and independent of which others there are.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import BadInput


@dataclass(frozen=True)
class KeypointPair:
    """One pair: files, category, keypoints (K, 2) as x, y in each picture's own pixels, and the box of the object in the second."""

    id: str
    category: str
    source: Path
    target: Path
    source_points: NDArray[np.float64]
    target_points: NDArray[np.float64]
    target_box: tuple[float, float, float, float]

    @property
    def longer_side_px(self) -> float:
        """Longer side of the box in the second picture."""
        left, top, right, bottom = self.target_box
        return max(right - left, bottom - top)


def keypoint_pairs(root: Path, split: str = "test") -> list[KeypointPair]:
    """Return the pairs of a split in order of their files' names; raise `BadInput` that names the layout, or a broken annotation."""
    folder = root / "PairAnnotation" / split
    files = sorted(folder.glob("*.json"))
    if not files:
        raise BadInput(f"{folder} holds no annotation; expected SPair-71k: PairAnnotation/{split}/*.json and JPEGImages/<category>/")
    return [_with_pictures(read_pair(root, path), path) for path in files]


def _with_pictures(pair: KeypointPair, path: Path) -> KeypointPair:
    for picture in (pair.source, pair.target):
        if not picture.is_file():
            raise BadInput(f"{path.name} names {picture}, which is not there")
    return pair


def read_pair(root: Path, path: Path) -> KeypointPair:
    """Return the pair of an annotation, whether its pictures are there or not; raise `BadInput` for a broken one."""
    try:
        annotation: dict[str, Any] = json.loads(path.read_text())
        pictures = root / "JPEGImages" / annotation["category"]
        source, target = (np.array(annotation[key], np.float64).reshape(-1, 2) for key in ("src_kps", "trg_kps"))
        target_box = [float(value) for value in annotation["trg_bndbox"]]
        if len(source) != len(target) or not len(source) or len(target_box) != 4:
            raise ValueError("its keypoints or its box are not whole")
        if (
            not all(np.isfinite(points).all() for points in (source, target, np.array(target_box)))
            or max(target_box[2] - target_box[0], target_box[3] - target_box[1]) <= 0
        ):
            raise ValueError("a keypoint is not a number, or its box is empty: nothing could be near enough")
        files = pictures / annotation["src_imname"], pictures / annotation["trg_imname"]
        return KeypointPair(
            path.stem,
            annotation["category"],
            files[0],
            files[1],
            source,
            target,
            (target_box[0], target_box[1], target_box[2], target_box[3]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path} is not the annotation of a pair: {error!r}") from error


def sample_pairs(pairs: Sequence[KeypointPair], per_category: int) -> list[KeypointPair]:
    """Return at most `per_category` pairs of each category, those whose names have the lowest sha256, in the given order."""
    kept: set[str] = set()
    for category in {pair.category for pair in pairs}:
        names = sorted((pair.id for pair in pairs if pair.category == category), key=lambda name: hashlib.sha256(name.encode()).digest())
        kept.update(names[:per_category])
    return [pair for pair in pairs if pair.id in kept]


def pairs_digest(root: Path, split: str, pairs: Sequence[KeypointPair]) -> str:
    """Return the sha256 over the annotations and the pictures."""
    hasher = hashlib.sha256()
    for pair in pairs:
        hasher.update(hashlib.sha256((root / "PairAnnotation" / split / f"{pair.id}.json").read_bytes()).digest())
    for picture in sorted({path for pair in pairs for path in (pair.source, pair.target)}):
        hasher.update(hashlib.sha256(picture.read_bytes()).digest())
    return hasher.hexdigest()
