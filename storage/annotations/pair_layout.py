"""Hold a folder of keypoint pairs against SPair-71k's layout and counts, a folder of labelled pictures against ImageNet's.

SPair-71k has 53,340 pairs to train, 5,384 to validate and 12,234 to test, of 18 categories, over 1,800 pictures. ImageNet-1k has 1,000
classes, 1,281,167 and 50,000 pictures; it is known by more than 500 folders named as WordNet does (n01440764).
"""

import re
from collections import Counter
from pathlib import Path

from ..core.errors import BadInput
from ..sources.folder_source import list_folder
from ..sources.image_kinds import IMAGE_ENDINGS, ending_of
from ..sources.source_items import is_hidden
from .layout_report import LayoutReport, empty_files
from .spair import read_pair

SPAIR_PAIRS = {"trn": 53_340, "val": 5_384, "test": 12_234}
SPAIR_PICTURES = 1_800
SPAIR_CATEGORIES = frozenset({
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "dog", "horse", "motorbike", "person",
    "pottedplant", "sheep", "train", "tvmonitor",
})  # fmt: skip
IMAGENET_PICTURES = {"train": 1_281_167, "test": 50_000}
IMAGENET_CLASSES, _LOOKS_LIKE_IMAGENET = 1_000, 500
_SPAIR_SOURCE = "unpack SPair-71k.tar.gz again and give its folder SPair-71k"
_WORDNET = re.compile(r"n\d{8}")


def correspondence_layout(root: Path, split: str) -> LayoutReport:
    """Return what a split of SPair-71k lacks, or of a set in its layout whose categories are others."""
    report, annotations, pictures = LayoutReport("keypoint pairs", str(root)), root / "PairAnnotation", root / "JPEGImages"
    for folder in (annotations / split, pictures):
        if not folder.is_dir():
            report.lacks(
                f"the folder {folder}", f"{_SPAIR_SOURCE}; {annotations.name}/{split}/*.json and {pictures.name}/<category>/ are read"
            )
    files = sorted((annotations / split).glob("*.json"))
    categories, wanted, broken = Counter[str](), set[Path](), []
    for path in files:
        try:
            pair = read_pair(root, path)
        except BadInput as error:
            broken.append(f"{path.name} ({error})")
            continue
        categories[pair.category] += 1
        wanted |= {pair.source, pair.target}
    official = not files or categories.keys() <= SPAIR_CATEGORIES
    report.dataset = "SPair-71k" if official else report.dataset
    report.count(f"{split} pairs", len(files), SPAIR_PAIRS[split] if official else None, _SPAIR_SOURCE)
    report.count("categories", len(categories), len(SPAIR_CATEGORIES) if official else None, _SPAIR_SOURCE)
    report.files("annotations cannot be read", broken, _SPAIR_SOURCE)
    present = {path for path in wanted if path.is_file()}
    report.found["pictures of the pairs"] = len(present)
    report.files("pictures that pairs name are not there", (str(path) for path in wanted - present), _SPAIR_SOURCE)
    report.files("pictures are empty files", empty_files(root, {str(path) for path in present}), _SPAIR_SOURCE)
    return report


def class_folders(report: LayoutReport, folder: Path, split: str) -> set[str]:
    """Add what a folder with a folder a class lacks; return its classes."""
    if not folder.is_dir():
        report.lacks(f"the folder {folder}", "give a folder that holds a folder a class")
        return set()
    by_class, classes = dict[str, list[str]](), {entry.name for entry in folder.iterdir() if entry.is_dir() and not is_hidden(entry.name)}
    for path in list_folder(str(folder)):
        if ending_of(path) in IMAGE_ENDINGS and not is_hidden(path):
            by_class.setdefault(path.rpartition("/")[0].partition("/")[0], []).append(path)
    loose = by_class.pop("", [])
    sort = "sort them into a folder a class (ImageNet's validation pictures come unsorted)"
    report.files(f"pictures of {split} lie in no class's folder", loose, sort)
    report.files(f"classes of {split} hold no picture", classes - by_class.keys(), "add their pictures, or take the folders away")
    pictures = [path for paths in by_class.values() for path in paths]
    if sum(bool(_WORDNET.fullmatch(name)) for name in classes) > _LOOKS_LIKE_IMAGENET:
        report.dataset, source = "ImageNet-1k", "unpack ImageNet-1k (ILSVRC2012) again"
        report.count(f"{split} classes", len(by_class), IMAGENET_CLASSES, source)
        report.count(f"{split} pictures", len(pictures), IMAGENET_PICTURES[split], source)
    else:
        report.count(f"{split} classes", len(by_class), None, f"put a folder a class into {folder}")
        report.count(f"{split} pictures", len(pictures), None, "add pictures")
    report.files(f"pictures of {split} are empty files", empty_files(folder, pictures), "copy them again")
    if len(by_class) == 1:
        report.lacks(f"{folder} holds one class only, so every answer is right", "give two classes or more")
    return classes
