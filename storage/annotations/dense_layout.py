"""Hold a folder of pictures and masks or depth against its layout, and ADE20k and NYUv2 against their published counts.

The layouts are those of `dense_pairs`. ADE20k is known by its list of classes or its pictures' names, NYUv2 by its lists of files. Counts:
ADE20k 20,210 and 2,000 pictures; NYUv2 24,231 and 654 lines, those of BTS' lists, which the official EUPE code takes.
"""

from collections.abc import Sequence
from pathlib import Path

from ..sources.folder_source import list_folder
from ..sources.image_kinds import IMAGE_ENDINGS, ending_of
from ..sources.source_items import is_hidden
from .dense_pairs import ADE20K_LIST, ADE20K_PICTURE, CLASSES, DEPTHS, NYU_LISTS, NYU_PREFIXES, PICTURES, SPLITS
from .layout_report import LayoutReport, empty_files

ADE20K_PICTURES = {"train": 20_210, "val": 2_000}
NYU_PICTURES = {"train": 24_231, "val": 654}
_TRIED = 50  # the folder in which most of so many listed pictures lie is that of all
_ADE20K_SOURCE = "unpack ADEChallengeData2016.zip again and give its folder ADEChallengeData2016"
_NYU_SOURCE = "take NYUv2 as BTS or BinsFormer prepare it (the official EUPE repository's README says where)"


def segmentation_layout(root: Path) -> LayoutReport:
    """Return what a folder of pictures and masks lacks."""
    report = LayoutReport("pictures and masks", str(root))
    folders = _folders(report, root, CLASSES, "masks")
    if folders is None:
        return report
    pictures = _listed(folders[0], IMAGE_ENDINGS)
    known = (root / ADE20K_LIST).is_file() or (bool(pictures) and all(ADE20K_PICTURE.fullmatch(Path(name).stem) for name in pictures))
    if known:
        report.dataset = "ADE20k"
        for split, count in ADE20K_PICTURES.items():
            _ade20k_split(report, folders, split, count)
    else:
        _own_splits(report, folders, (".png", *IMAGE_ENDINGS), "masks")
    return report


def depth_layout(root: Path) -> LayoutReport:
    """Return what a folder of pictures and depth lacks, or NYUv2's."""
    lists = {split: root / name for split, name in NYU_LISTS.items()}
    if any(path.is_file() for path in lists.values()) or (root.is_dir() and not any((root / name).is_dir() for name in PICTURES)):
        report = LayoutReport("NYUv2", str(root))
        for split, path in lists.items():
            _nyu_split(report, root, path, split)
        return report
    report = LayoutReport("pictures and depth", str(root))
    if (folders := _folders(report, root, DEPTHS, "depth")) is not None:
        _own_splits(report, folders, (".png", ".npy"), "depth maps")
    return report


def _folders(report: LayoutReport, root: Path, names: Sequence[str], what: str) -> tuple[Path, Path] | None:
    """Return the folders of pictures and targets, None where one is missing."""
    if not root.is_dir():
        report.lacks(f"the folder {root}", "give the dataset's folder")
        return None
    found = []
    for several, which in ((PICTURES, "pictures"), (names, what)):
        present = [root / name for name in several if (root / name).is_dir()]
        if not present:
            report.lacks(f"{root} has no folder {' or '.join(several)} with the {which}", "give the folder that holds it; "
                         "the layouts stand in docs/evaluations.md")  # fmt: skip
        found += present[:1]
    return (found[0], found[1]) if len(found) == 2 else None


def _listed(folder: Path, endings: Sequence[str]) -> set[str]:
    """Return the files with these endings below a folder; empty where there is none."""
    if not folder.is_dir():
        return set()
    return {path for path in list_folder(str(folder)) if ending_of(path) in endings and not is_hidden(path)}


def _split_folder(folder: Path, split: str) -> Path:
    return next((folder / name for name in SPLITS[split] if (folder / name).is_dir()), folder / SPLITS[split][0])


def _ade20k_split(report: LayoutReport, folders: tuple[Path, Path], split: str, count: int) -> None:
    stems = {f"ADE_{split}_{number:08d}" for number in range(1, count + 1)}
    for folder, endings, what in zip(folders, ((".jpg",), (".png",)), ("pictures", "masks"), strict=True):
        base = _split_folder(folder, split)
        files = {Path(path).stem: path for path in _listed(base, endings)}
        report.found[f"{split} {what}"] = len(files)
        missing = [f"{base / stem}{endings[0]}" for stem in stems - files.keys()]
        report.files(f"of {count:,} {what} of {split} are missing", missing, _ADE20K_SOURCE)
        report.files(f"{what} of {split} are none of ADE20k's", [files[stem] for stem in files.keys() - stems], "move them elsewhere")
        report.files(f"{what} of {split} are empty files", empty_files(base, files.values()), _ADE20K_SOURCE)


def _own_splits(report: LayoutReport, folders: tuple[Path, Path], endings: Sequence[str], what: str) -> None:
    """Check the pictures of each split, or all of a folder without splits, for targets of their names."""
    pictures, targets = folders
    present = [split for split, names in SPLITS.items() if any((pictures / name).is_dir() for name in names)]
    for split in (split for split in SPLITS if present and split not in present):
        report.lacks(
            f"{pictures} has no folder {' or '.join(SPLITS[split])}", "add it, or take the split folders away: a fifth is held out then"
        )
    all_targets = {str(Path(path).with_suffix("")): path for path in _listed(targets, endings)}
    for split in present or ["all"]:
        base = pictures if split == "all" else _split_folder(pictures, split)
        files = {str((base / path).relative_to(pictures).with_suffix("")): path for path in _listed(base, IMAGE_ENDINGS)}
        report.count(f"{split} pictures", len(files), None, f"put pictures into {base}")
        report.files(f"pictures of {split} have no {what.removesuffix('s')}", files.keys() - all_targets.keys(),
                     f"put {what} of the same names into {targets / base.relative_to(pictures)}, or move the pictures away")  # fmt: skip
        report.files(f"pictures of {split} are empty files", empty_files(base, files.values()), "copy them again")
    report.files(f"{what} are empty files", empty_files(targets, all_targets.values()), "copy them again")


def _nyu_split(report: LayoutReport, root: Path, listed: Path, split: str) -> None:
    if not listed.is_file():
        report.lacks(
            f"{listed}, the list of {split} pictures", f"{_NYU_SOURCE}; for other depth, images/ and depth/ hold pictures and maps"
        )
        return
    rows = [line.split() for line in listed.read_text(errors="replace").splitlines() if line.strip()]
    bad = [str(number) for number, row in enumerate(rows, start=1) if len(row) < 2]
    report.files(f"lines of {listed.name} are not `RGB DEPTH FOCAL`", bad, _NYU_SOURCE)
    rows = [row for row in rows if len(row) >= 2 and row[1] != "None"]
    report.count(f"{split} pictures", len(rows), NYU_PICTURES[split], _NYU_SOURCE)
    names = [[path.lstrip("/") for path in row[:2]] for row in rows]
    prefix = max(NYU_PREFIXES, key=lambda name: sum((root / name / row[0]).is_file() for row in names[:_TRIED])) if names else ""
    for index, what in enumerate(("pictures", "depth maps")):
        present = {row[index] for row in names if (root / prefix / row[index]).is_file()}
        gone = {row[index] for row in names} - present
        places = f"below {root} or its folders {', '.join(NYU_PREFIXES[1:])}"
        report.files(f"{what} of {listed.name} are not there", gone, f"put them {places}, or take their lines out of {listed.name}")
        report.files(f"{what} of {listed.name} are empty files", empty_files(root / prefix, present), "copy them again")
