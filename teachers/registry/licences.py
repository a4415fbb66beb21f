"""What the terms of teachers' weights allow: composed over all that shaped a student, declared where they are unknown, and required.

A student is bound by the terms of each teacher, through a proxy by those of the proxy's teachers, and by those of the weights that it
began with. The rows of `table` say what is known. Known means the published weights of a named teacher; any other file is unknown until
its licence is declared. Of the pictures that teacher and student are shown nothing is said here: their terms are not ours to judge.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from ...storage.core.choices import LICENCE_USES, LicenceUse
from ...storage.core.errors import BadInput, unknown_name
from .table import ROWS, TEACHERS, UNKNOWN, Terms, sentence, terms_of

TermsByName = Mapping[str, Terms]
"""By who they bind for: a teacher, `TEACHER (through PROXY)`, or what a run began with."""

ALLOWS: dict[LicenceUse, Callable[[Terms], bool]] = {"commercial": lambda terms: terms.non_commercial is False}

DECLARED = "the licence that was declared with --terms"
_FORBIDS_COMMERCE = {
    "apache-2.0": False, "mit": False, "bsd-2-clause": False, "bsd-3-clause": False, "isc": False, "unlicense": False, "cc0-1.0": False,
    "cc-by-4.0": False, "cc-by-sa-4.0": False, "cc-by-nc-4.0": True, "cc-by-nc-sa-4.0": True, "cc-by-nc-nd-4.0": True,
    "fair-noncommercial-research-license": True,
}  # fmt: skip
_IN_WORDS = re.compile(r"(commercial|non-commercial)(?::\s*(\S.*))?")
_THROUGH = " (through "


def through(above: str, teacher: str) -> str:
    """Return the name of what binds a student through a teacher: the teacher itself, or who taught it."""
    return above if above == teacher else f"{above}{_THROUGH}{teacher})"


def without(name: str, teacher: str) -> str:
    """Return who is above a teacher from the name that `through` gave."""
    return name.removesuffix(f"{_THROUGH}{teacher})")


def terms_of_recorded(name: str, teacher: Mapping[str, Any]) -> Terms:
    """Return the terms of a teacher by its name, if what is recorded of it is the model of that name; UNKNOWN otherwise.

    A run whose folder is called `dinov2-g` is not DINOv2. Records of before, without an architecture, are taken at their word.
    """
    architecture = teacher.get("architecture")
    if name in TEACHERS and architecture is not None:
        row = TEACHERS[name].architecture
        if any(architecture.get(key) != row.get(key) for key in ("name", "model")):
            return UNKNOWN
    return terms_of(name)


def as_record(terms: TermsByName) -> dict[str, dict[str, Any]]:
    """Return terms as plain data, for JSON."""
    return {name: row._asdict() for name, row in terms.items()}


def terms_from_record(record: Mapping[str, Mapping[str, Any]]) -> dict[str, Terms]:
    """Return terms from plain data."""
    return {name: Terms(str(row["licence"]), row["non_commercial"], str(row["source"])) for name, row in record.items()}


def merged(*several: TermsByName) -> dict[str, Terms]:
    """Return all of several terms; of two for one name the known one, and of two known ones the stricter."""
    known: dict[str, Terms] = {}
    for name, row in (item for terms in several for item in terms.items()):
        known[name] = row if name not in known or _strictness(row) > _strictness(known[name]) else known[name]
    return known


def _strictness(terms: Terms) -> int:
    return (None, False, True).index(terms.non_commercial)


def declared_terms(text: str) -> Terms:
    """Return the terms that a user declares: a licence by its SPDX or hub id, or `commercial` and `non-commercial` with words of one's own.

    Raise BadInput for a licence of which it is not known here what it allows.
    """
    by_id, words = _FORBIDS_COMMERCE.get(text.strip().lower()), _IN_WORDS.fullmatch(text.strip())
    if by_id is not None:
        return Terms(text.strip(), by_id, DECLARED)
    if words is not None:
        return Terms(words[2] or f"{words[1]} use", words[1] == "non-commercial", DECLARED)
    raise BadInput(
        f"--terms: what {text!r} allows is not known here; say {', '.join(_FORBIDS_COMMERCE)}, or in your own words "
        "commercial:WORDS or non-commercial:WORDS, such as --terms 'my-net=commercial:our own weights'"
    )


def check_declared(required: LicenceUse | None, declared: Mapping[str, str]) -> None:
    """Raise BadInput for an unknown use, and for declared licences of which it is not known what they allow."""
    if required is not None and required not in LICENCE_USES:
        raise unknown_name("use that a licence has to allow", required, LICENCE_USES)
    for text in declared.values():
        declared_terms(text)


def with_declared(terms: TermsByName, declared: Mapping[str, str]) -> tuple[dict[str, Terms], set[str]]:
    """Return the terms with those that were declared in the place of unknown ones, and which declarations were used.

    A declaration is for `TEACHER`, for the whole name, `TEACHER (through PROXY)`, or by `PROXY` for all above it whose terms are unknown.
    Raise BadInput for one of what is known otherwise.
    """
    known, used = dict(terms), set[str]()
    for name, text in declared.items():
        said = declared_terms(text)
        meant = [key for key in known if name in (key, key.split(_THROUGH)[0])]
        above = [key for key in known if without(key, name) != key and (known[key].non_commercial is None or known[key].source == DECLARED)]
        for key in meant + above:
            used.add(name)
            if known[key].non_commercial is not None and known[key].source != DECLARED:
                raise BadInput(f"--terms is for terms that are not known, and these are: {sentence(key, known[key])}")
            known[key] = merged({key: known[key]}, {key: said})[key]
    return known, used


def refuse_stray(declared: Mapping[str, str], used: set[str], terms: TermsByName) -> None:
    """Raise BadInput for a declaration of nothing that binds here."""
    for name in declared:
        if name not in used:
            raise BadInput(f"--terms names {name!r}, whose terms do not count here; those of these do: {', '.join(terms) or 'nobody'}")


def refuse_terms(required: LicenceUse | None, terms: TermsByName) -> None:
    """Raise BadInput that names each teacher whose terms do not allow the required use, and what would be allowed."""
    if required is None:
        return
    bad = {name: row for name, row in terms.items() if not ALLOWS[required](row)}
    if not bad:
        return
    unknown = [name for name, row in bad.items() if row.non_commercial is None]
    declare = f" Where you know the terms, declare them: --terms '{unknown[0]}=LICENCE', which is recorded." if unknown else ""
    raise BadInput(
        f"--require-licence {required}: nothing was computed, because {len(bad)} of {len(terms)} terms do not allow {required} use, as far "
        f"as is known here. {'. '.join(sentence(name, row) for name, row in bad.items())}. Allowed are, of the named teachers, "
        f"{', '.join(name for name, row in ROWS.items() if ALLOWS[required](row.terms))} with their published weights (recipe "
        f"`permissive` leaves out DINOv3 as well).{declare}"
    )
