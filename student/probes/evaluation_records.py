"""Results of evaluations beside the model that they are about, each under the digest of everything that decides it.

    FOLDER/evaluations/<evaluation>-<digest12>.json      {"evaluation", "protocol", "results", "seconds", "versions"}

The protocol holds what the numbers depend on: what the model is, digests of the data, sizes, seeds, splits, layers. Asking for the same
protocol again finds the file and computes nothing; another value anywhere is another file, so that numbers of different protocols never
overwrite each other. A record is written at once or not at all. The limit: a change of this code's arithmetic does not change the digest;
the versions of torch and of this package stand in the record for people.
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...storage.core.errors import BadInput, CacheDamaged, StoreUnavailable
from ...storage.core.identity import digest, json_bytes, short
from ...storage.objects.atomic_files import make_folder, write_atomically
from ..model.versions import versions
from .knn_names import rename_record_protocols

FOLDER = "evaluations"
PARTIAL = ".partial.json"  # what an evaluation has done so far


def record_path(folder: Path, evaluation: str, protocol: Mapping[str, Any]) -> Path:
    """Return where the record of a protocol is kept, whether it exists or not."""
    return folder / FOLDER / f"{evaluation}-{short(digest(_plain(protocol)))}.json"


def find_record(folder: Path, evaluation: str, protocol: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the record of this protocol, None when it has not been evaluated; raises `CacheDamaged` for an unreadable one."""
    path = record_path(folder, evaluation, protocol)
    return _read(path) if path.is_file() else None


def write_record(folder: Path, evaluation: str, protocol: Mapping[str, Any], results: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Write a record and return it; raises `BadInput` for figures that are not finite."""
    path = record_path(folder, evaluation, protocol)
    record = {
        "evaluation": evaluation,
        "protocol": _plain(protocol),
        "results": json.loads(to_strict_json(results, evaluation)),
        "seconds": round(seconds, 3),
        "versions": versions(),
    }
    make_folder(path.parent)
    write_atomically(path, json_bytes(record, indent=1, allow_nan=False))
    return record


def write_partial(path: Path, data: Callable[[], bytes], on_event: Callable[[dict[str, Any]], None]) -> None:
    """Write what an evaluation has computed so far; where that fails, warn and go on: an interruption then costs it."""
    try:
        make_folder(path.parent)
        write_atomically(path, data())
    except StoreUnavailable as error:
        on_event({"event": "warning", "text": f"progress is not kept, so that an interrupted evaluation begins anew: {error}"})


def to_strict_json(figures: Mapping[str, Any], evaluation: str) -> bytes:
    """Return figures as JSON; raises `BadInput` that names the first one that is not finite."""
    try:
        return json.dumps(figures, allow_nan=False).encode()
    except ValueError as error:
        name = next(iter(_not_finite(figures)), "a figure")
        raise BadInput(
            f"{evaluation}: {name} is not a number, so nothing was measured and nothing is kept; look at the labels and the weights"
        ) from error


def _not_finite(value: Any, name: str = "") -> list[str]:
    """Return the dotted names of NaN and infinite numbers."""
    if isinstance(value, Mapping):
        return [dotted for key, item in value.items() for dotted in _not_finite(item, f"{name}.{key}".lstrip("."))]
    if isinstance(value, list | tuple):
        return [dotted for index, item in enumerate(value) for dotted in _not_finite(item, f"{name}.{index}")]
    return [name] if isinstance(value, float) and not math.isfinite(value) else []


def list_records(folder: Path) -> list[dict[str, Any]]:
    """Return every record of a model's folder, by file name; [] when it was never evaluated."""
    return [rename_record_protocols(_read(path)) for path in sorted((folder / FOLDER).glob("*.json")) if not path.name.endswith(PARTIAL)]


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(value))
    return plain


def _read(path: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(path.read_text())
        if not {"evaluation", "protocol", "results"} <= record.keys():
            raise ValueError("it lacks evaluation, protocol or results")
    except (OSError, ValueError, AttributeError) as error:
        raise CacheDamaged(f"{path} is not the record of an evaluation ({error}); remove it and evaluate again") from error
    return record
