"""Weights in several safetensors files beside an index, as large models are published:

    model.safetensors.index.json         {"weight_map": {tensor: file, …}}
    model-00001-of-00002.safetensors …   the files, in the same folder

Wherever a weight file is named, its index may be named in its place. The index says which tensor is in which file and is held to that: a
file that is not there, a tensor that its file lacks, one in a file that the index puts elsewhere and one that it does not mention are
errors, since each would mean other weights than were published. The sha256 of the whole covers the index and every file.
"""

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from safetensors import safe_open

from ...storage.core.errors import BadInput
from ...storage.core.identity import digest, file_sha256

INDEX_SUFFIX = ".safetensors.index.json"
_MAX_NAMES = 5


def is_index(path: Path) -> bool:
    """Return whether a path is named like the index of several weight files."""
    return path.name.endswith(INDEX_SUFFIX)


def weights_in(folder: Path, stem: str = "model") -> Path:
    """Return `STEM.safetensors` of a folder or its index, whichever is there (the first when none is); raise `BadInput` for both."""
    single, index = folder / f"{stem}.safetensors", folder / f"{stem}{INDEX_SUFFIX}"
    if single.is_file() and index.is_file():
        raise BadInput(f"{folder} holds {single.name} and {index.name}, which may differ; name the one that is meant, or remove the other")
    return index if index.is_file() else single


def weight_names(index: Path) -> list[str]:
    """Return the names of the weight files of an index, in order; raise `BadInput` for an index that is none."""
    return sorted(set(_weight_map(index).values()))


def weight_files(path: Path) -> list[Path]:
    """Return the files that hold the tensors: the path itself, or those that an index names, in order.

    Raise `BadInput` for an index that is none, and for files that are not there.
    """
    if not is_index(path):
        return [path]
    names = weight_names(path)
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing:
        raise BadInput(
            f"{path} names {len(names)} weight files, of which {listed('are not beside it', missing)}: a download that did not end? "
            f"Put them into {path.parent}"
        )
    return [path.parent / name for name in names]


def weights_sha256(path: Path) -> str:
    """Return the sha256 of a weight file's bytes, or of an index and all its files together; raises as `weight_files` does."""
    if not is_index(path):
        return file_sha256(path)
    parts = {file.name: file_sha256(file) for file in weight_files(path)}
    return digest([file_sha256(path), parts])


def check_index(path: Path) -> None:
    """Raise `BadInput` unless each tensor is in the file that the index names, and in no other; headers are read, no weights."""
    place = _weight_map(path)
    files_of: dict[str, list[str]] = {}
    for file in weight_files(path):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is no mapping
                files_of.setdefault(name, []).append(file.name)
    several = [f"{name}: {' and '.join(files)}" for name, files in files_of.items() if len(files) > 1]
    absent = [f"{name}: {file}" for name, file in place.items() if file not in files_of.get(name, [])]
    unlisted = [f"{name}: {files[0]}" for name, files in files_of.items() if name not in place]
    faults = [
        listed(what, names)
        for what, names in (
            ("tensors are in several files", several), ("are not in the file that it names", absent),
            ("are in a file and not in the index", unlisted),
        ) if names
    ]  # fmt: skip
    if faults:
        raise BadInput(f"{path} and its weight files disagree: {'; '.join(faults)}. Fetch the index and all its files again")


def listed(what: str, names: Sequence[str]) -> str:
    """Return how many there are, what is said of them, and the first few."""
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return f"{len(names)} {what} ({', '.join(sorted(names)[:_MAX_NAMES])}{more})"


def _weight_map(path: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(path.read_text())["weight_map"]
        place = {str(name): str(file) for name, file in weight_map.items()}
    except FileNotFoundError as error:
        raise BadInput(f"the weight file {path} is not there") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{path} is not the index of a checkpoint in several files ({error!r}): it lacks a weight_map") from error
    outside = sorted({file for file in place.values() if PurePosixPath(file).name != file or file in ("", "..")})
    if outside or not place:
        raise BadInput(f"{path} names {outside[0] if outside else 'no weight file'!r}; an index names files beside it")
    return place
