"""Hold a folder against COCO's layout: both splits, and the published counts of train2017 and val2017.

What is wrong inside an annotation file is told one fault a split, the first (`coco.read_coco`); missing pictures are told all at once.
"""

import json
from pathlib import Path
from typing import Any

from ..core.errors import BadInput
from .coco import CocoSplit, annotations_file, check_together, picture_folders, read_coco
from .layout_report import LayoutReport, empty_files

COCO_PICTURES = {"instances_train2017": 118_287, "instances_val2017": 5_000}
_SOURCE = "unpack COCO's train2017.zip, val2017.zip and annotations_trainval2017.zip beside one another"


def coco_layout(root: Path) -> LayoutReport:
    """Return what a folder in COCO's layout lacks."""
    report = LayoutReport("COCO's layout", str(root))
    splits = [split for split in (_split(report, root, name) for name in ("train", "val")) if split is not None]
    if len(splits) == 2:
        report.found["categories"] = len(splits[1].names)
        try:
            check_together(splits[0], splits[1])
        except BadInput as error:
            report.lacks(str(error), "use annotations of one dataset for both splits")
    return report


def _split(report: LayoutReport, root: Path, name: str) -> CocoSplit | None:
    try:
        file = annotations_file(root, name)
        if (missing := _missing_pictures(root, file)) is not None:
            report.files(f"pictures of {file.name} are not there", missing, _SOURCE)
            if missing:
                return None
        split = read_coco(root, name)
    except BadInput as error:
        report.lacks(str(error), _SOURCE)
        return None
    report.count(f"{name}_pictures", len(split.pictures), COCO_PICTURES.get(file.stem), _SOURCE)
    report.found[f"{name}_boxes"] = split.boxes
    report.files(f"pictures of {name} are empty files", empty_files(root, {str(one.path.absolute()) for one in split.pictures}), _SOURCE)
    return split


def _missing_pictures(root: Path, file: Path) -> list[str] | None:
    """Return the names of listed pictures that are in no folder; None for a file that is not COCO's, which its reader tells."""
    try:
        listed: list[dict[str, Any]] = json.loads(file.read_text())["images"]
        names = [str(one["file_name"]) for one in listed]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    folders = picture_folders(root, file)
    return [name for name in names if not any((folder / name).is_file() for folder in folders)]
