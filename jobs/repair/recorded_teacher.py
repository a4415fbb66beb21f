"""Build a teacher again from what a feature set recorded of it: for repair, fidelity, live targets and `--on-miss compute`.

What the user may choose at an extraction (input size, constants, precision, random weights for a trial) is taken from the record and not
asked for again. What makes it another model (architecture, weights, class token, widths, grid) must be found again as it was, or the
teacher is refused with each such field named. Where the weights lie is in no identity: by the set's name in the weights folder, or in the
location that the caller names, a run's URL included.
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
from ...teachers.registry.registry import TEACHERS, TIMM_PREFIX, resolve_teacher
from ...teachers.registry.spec import RANDOM_WEIGHTS, TeacherSpec
from ..runs.run_source import local_run


def recorded_teacher(reader: FeatureReader, name_or_run: str | None = None, weights: Path | None = None) -> TeacherSpec:
    """Return the teacher that made a feature set, found by the set's name or by `name_or_run`; raises `CacheMismatch`, `BadInput`."""
    asked, recorded = name_or_run or reader.name, reader.identity["teacher"]
    local_name = str(local_run(asked)) if is_url(asked) else asked
    try:
        spec = _as_recorded(recorded, local_name, weights)
    except KeyError as error:
        raise CacheMismatch(f"the identity of {reader.key} does not say the {error} of its teacher, which cannot be built again") from error
    if lines := differing_fields(spec.identity(), recorded):
        raise CacheMismatch(f"{asked} is not the teacher that made {reader.key}: {'; '.join(lines)}")
    return spec


def _as_recorded(recorded: Mapping[str, Any], name: str, weights: Path | None) -> TeacherSpec:
    prep, at_random = Preprocessing.from_dict(recorded["preprocessing"]), recorded["weights_sha256"] == RANDOM_WEIGHTS
    spec = resolve_teacher(name, weights=weights, precision=recorded["precision"], allow_random_weights=at_random)
    if at_random and weights is None and (name in TEACHERS or name.startswith(TIMM_PREFIX)):
        spec = replace(spec, weights_sha256=RANDOM_WEIGHTS)  # also where its weights have come since
    try:
        return replace(spec, preprocessing=replace(prep, size_px=spec.preprocessing.size_px)).at_size(prep.size_px)
    except BadInput as error:
        raise CacheMismatch(f"preprocessing.size_px of the feature set does not fit: {error}") from error
