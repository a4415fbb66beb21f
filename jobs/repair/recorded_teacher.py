"""Build a teacher again from what a feature set recorded of it: for repair, fidelity, live targets and `--on-miss compute`.

What the user may choose at an extraction (input size, constants, precision, random weights for a trial) is taken from the record and not
asked for again. What makes it another model (architecture, weights, class token, widths, grid) must be found again as it was, or the
teacher is refused with each such field named. Where the weights lie is in no identity: by the set's name in the weights folder, or in the
place that the caller names, a run's URL included. A teacher of the user's own (FILE.py:FUNCTION, FILE.onnx) is looked for where it lay
when it was extracted; nothing of a file is run unless it is the recorded one by its sha256.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...storage.core.errors import BadInput, CacheMismatch
from ...storage.core.identity import differing_fields
from ...storage.core.urls import is_url
from ...storage.features.features import FeatureReader
from ...teachers.encoders.preprocessing import Preprocessing
from ...teachers.registry.onnx_file import ONNX_FILE, names_onnx_file, recorded_onnx_file
from ...teachers.registry.python_file import PYTHON_FILE, names_python_file, refuse_other_source
from ...teachers.registry.resolve import TIMM_PREFIX, resolve_teacher
from ...teachers.registry.spec import RANDOM_WEIGHTS, TeacherSpec
from ...teachers.registry.table import TEACHERS
from ..runs.run_source import local_run


def recorded_teacher(reader: FeatureReader, name_or_run: str | None = None, weights: Path | None = None) -> TeacherSpec:
    """Return the teacher that made a feature set, found by the set's name or by `name_or_run`; raises `CacheMismatch`, `BadInput`."""
    name, recorded = name_or_run or reader.name, reader.identity["teacher"]
    local_name = str(local_run(name)) if is_url(name) else name
    file_name = None if local_name in (reader.name, reader.key) else local_name
    try:
        if recorded["architecture"]["name"] == ONNX_FILE:
            return _onnx_file(reader, file_name)
        if recorded["architecture"]["name"] == PYTHON_FILE:
            local_name, weights = _python_file(reader, file_name, weights)
        spec = _as_recorded(recorded, local_name, weights)
    except KeyError as error:
        raise CacheMismatch(f"the identity of {reader.key} does not say the {error} of its teacher, which cannot be built again") from error
    if lines := differing_fields(spec.identity(), recorded):
        raise CacheMismatch(f"{name} is not the teacher that made {reader.key}: {'; '.join(lines)}")
    return spec


def _python_file(reader: FeatureReader, name: str | None, weights: Path | None) -> tuple[str, Path | None]:
    """Return (FILE.py:FUNCTION, weights) of the user's own teacher: given, or where it lay; raises `CacheMismatch` for another file."""
    architecture, noted = reader.identity["teacher"]["architecture"], reader.teacher_files()
    candidates = [f"{known.file}:{known.function}" for known in noted] if name is None else [name]
    refused = f"its file is noted nowhere in the store; give it: --teacher FILE.py:{architecture['function']}"
    for candidate in candidates:
        try:
            if name is not None and not names_python_file(name):
                raise BadInput(f"{name} is no FILE.py:FUNCTION")
            refuse_other_source(candidate, architecture)
        except BadInput as error:
            refused = f"{error}. Where it lies elsewhere now, say --teacher FILE.py:{architecture['function']}"
            continue
        existing = [known.weights for known in noted if known.weights is not None and known.weights.exists()]
        return candidate, weights or next(iter(existing), None)
    raise CacheMismatch(f"{reader.key} was made by a teacher of a Python file: {refused}")


def _onnx_file(reader: FeatureReader, name: str | None) -> TeacherSpec:
    """Return the teacher of the recorded identity from FILE.onnx: given, or where it lay; raises `CacheMismatch` for another file."""
    candidates = [str(known.file) for known in reader.teacher_files()] if name is None else [name]
    refused = "its file is noted nowhere in the store; give it: --teacher FILE.onnx"
    for candidate in candidates:
        try:
            if not names_onnx_file(candidate):
                raise BadInput(f"{candidate} is no FILE.onnx")
            return recorded_onnx_file(Path(candidate).expanduser().absolute(), reader.name, reader.identity["teacher"])
        except BadInput as error:
            refused = f"{error}. Where it lies elsewhere now, say --teacher FILE.onnx"
    raise CacheMismatch(f"{reader.key} was made by a teacher of an ONNX file: {refused}")


def _as_recorded(recorded: Mapping[str, Any], name: str, weights: Path | None) -> TeacherSpec:
    prep, at_random = Preprocessing.from_dict(recorded["preprocessing"]), recorded["weights_sha256"] == RANDOM_WEIGHTS
    spec = resolve_teacher(name, weights=weights, precision=recorded["precision"], allow_random_weights=at_random)
    if at_random and weights is None and (name in TEACHERS or name.startswith(TIMM_PREFIX)):
        spec = replace(spec, weights_sha256=RANDOM_WEIGHTS)  # also where its weights have come since
    try:
        return replace(spec, preprocessing=replace(prep, size_px=spec.preprocessing.size_px)).at_size(prep.size_px)
    except BadInput as error:
        raise CacheMismatch(f"preprocessing.size_px of the feature set does not fit: {error}") from error
