"""The terms that a student will be bound by, composed before anything is computed: of each teacher, through runs, and of the start.

A teacher that is a run has the terms of whatever shaped that run (`student.export.lineage`, which the model cards use as well). What a
teacher's name does not say is noted in the store beside its tokens, so that a training finds it there although run and weights are gone.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...storage.core.errors import StoreUnavailable
from ...storage.core.events import OnEvent
from ...storage.core.identity import file_sha256
from ...storage.features.features import FeatureReader
from ...storage.features.teacher_terms import note_terms, noted_terms
from ...storage.objects.objects import Objects
from ...student.export.lineage import part_of, run_title, terms_above
from ...teachers.checkpoints.hub import HUB_PREFIX
from ...teachers.registry.known_weights import known_by_digest
from ...teachers.registry.licences import (
    TermsByName,
    as_record,
    merged,
    refuse_stray,
    terms_from_record,
    terms_of_recorded,
    through,
    with_declared,
    without,
)
from ...teachers.registry.resolve import BACKBONE_FILE, MODEL_FILE, absolute_name
from ...teachers.registry.spec import RANDOM_WEIGHTS, TeacherSpec
from ...teachers.registry.table import TEACHERS, UNKNOWN, Terms, sentence
from .run_source import local_run


def terms_of_teacher(name: str, spec: TeacherSpec | None = None, weights: Path | None = None) -> dict[str, Terms]:
    """Return the terms of a teacher as it is asked for: by its name or its run's folder, with the `weights` that were given for it.

    Weights of a named teacher are the published ones where the weights folder or the hub's repository of the row has them, and where their
    sha256 is that of a published file.
    """
    run = Path(name) if (Path(name) / MODEL_FILE).is_file() else None
    shown = spec.name if spec is not None else name if run is None else run_title(run)
    if spec is not None and spec.weights_sha256 == RANDOM_WEIGHTS:
        return {}
    if run is None and spec is not None and (known := known_by_digest(spec.weights_sha256)) is not None:
        return {shown: known.terms}
    if run is not None:
        of_file = UNKNOWN._replace(source="the file that was given with --weights")
        return terms_of_run(run, shown) if weights is None else {shown: of_file}
    if name not in TEACHERS or name != shown:
        return {shown: UNKNOWN}
    row, address = TEACHERS[name], str(weights)
    repository = address.removeprefix(HUB_PREFIX).partition("@")[0] if address.startswith(HUB_PREFIX) else None
    if weights is None or (repository is not None and f"huggingface.co/{repository} " in f"{row.source} "):
        return {name: row.terms}
    published = f"the file that was given with --weights; if it is the published one, its licence is {row.terms.licence}"
    return {name: UNKNOWN._replace(source=published)}


def terms_of_run(run: Path, shown: str | None = None, proxy: Path | None = None) -> dict[str, Terms]:
    """Return the terms of whatever shaped a run's model; unknown for a model of which nothing is recorded."""
    above = terms_above(run, proxy)
    return above if above or part_of(run) == "initial" else {shown or run_title(run): UNKNOWN}


def terms_of_request(
    objects: Objects, asked: Sequence[tuple[str, Path | None]], specs: Sequence[TeacherSpec], declared: Mapping[str, str]
) -> dict[str, dict[str, Terms]]:
    """Return the terms of each teacher of an extraction, by the teacher's name; `asked` has their names as given and their weight files.

    What the store has noted of the same weights counts as well. Raise BadInput for declarations of nothing that is asked for.
    """
    by_teacher, used = dict[str, dict[str, Terms]](), set[str]()
    shown = {absolute_name(name): spec.name for (name, _), spec in zip(asked, specs, strict=True)}
    by_shown = {shown.get(absolute_name(name), name): text for name, text in declared.items()}
    for (name, weights), spec in zip(asked, specs, strict=True):
        notes = [terms_from_record(note) for note in noted_terms(objects, spec.identity())]
        known = terms_by_name({spec.name: _together(spec.name, [terms_of_teacher(name, spec, weights), *notes])})
        declared_here, here = with_declared(known, by_shown)
        by_teacher[spec.name] = {without(above, spec.name): row for above, row in declared_here.items()}
        used |= here
    refuse_stray(by_shown, used, terms_by_name(by_teacher))
    return by_teacher


def _together(teacher: str, several: Sequence[TermsByName]) -> dict[str, Terms]:
    """Return the terms that several sources have for a teacher; that one of them knows nothing of it is no term."""
    known = merged(*several)
    if len(known) > 1 and teacher in known and known[teacher].non_commercial is None:
        del known[teacher]
    return known


def terms_by_name(by_teacher: Mapping[str, TermsByName]) -> dict[str, Terms]:
    """Return the terms of several teachers by who they bind for."""
    return merged(*({through(above, name): row for above, row in terms.items()} for name, terms in by_teacher.items()))


def record_unlisted_terms(objects: Objects, by_teacher: Mapping[str, TermsByName], specs: Iterable[TeacherSpec], on_event: OnEvent) -> None:
    """Note in the store what the teachers' names do not say; a store that cannot be written gives a warning."""
    for spec in specs:
        terms = by_teacher[spec.name]
        random = spec.weights_sha256 == RANDOM_WEIGHTS
        if random or terms == {spec.name: terms_of_recorded(spec.name, spec.identity())}:
            continue
        try:
            note_terms(objects, spec.identity(), as_record(terms))
        except StoreUnavailable as error:
            text = f"the terms of {spec.name} could not be noted in the store, and a training will not find them there: {error}"
            on_event({"event": "warning", "text": text})


def terms_of_set(reader: FeatureReader, live: Iterable[Path] = ()) -> dict[str, Terms]:
    """Return the terms behind a feature set: as noted in its store, through the run among `live` that made it, or by its name."""
    name, teacher = reader.name, reader.identity["teacher"]
    if teacher.get("weights_sha256") == RANDOM_WEIGHTS:
        return {}
    if notes := [terms_from_record(note) for note in reader.teacher_terms()]:
        return terms_by_name({name: _together(name, notes)})
    for run in live:
        if (run / BACKBONE_FILE).is_file() and file_sha256(run / BACKBONE_FILE) == teacher.get("weights_sha256"):
            return terms_by_name({name: terms_of_run(run, name)})
    return {name: terms_of_recorded(name, teacher)}


def terms_of_start(start: str, proxy: Path | None = None) -> dict[str, Terms]:
    """Return the terms of the weights that a student begins with; {} for random ones, and for a run without a model."""
    if not start:
        return {}
    run = local_run(start)
    return terms_of_run(run, proxy=proxy) if (run / MODEL_FILE).is_file() else {}


def report_terms(terms: TermsByName, on_event: OnEvent) -> None:
    """Report who binds the student to what, a note each."""
    for number, (name, row) in enumerate(terms.items(), start=1):
        text = f"licence of {sentence(name, row)}"  # an extraction's events all have a stage and a count
        on_event({"event": "note", "stage": "licences", "done": number, "total": len(terms), "text": text})


def terms_field(terms: TermsByName) -> dict[str, Any]:
    """Return {"terms": …} for a result."""
    return {"terms": as_record(terms)}
