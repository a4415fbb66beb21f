"""Examine identity, metadata, statistics and canaries of views and features: files that follow from each other, or carry a digest.
by a digest."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import CacheDamaged, EupeError
from ..core.identity import digest, short
from ..features.canaries import MAX_CANARY_BYTES, parse_canary
from ..features.features import FeatureReader, features_metadata, read_statistics
from ..features.layout import FeatureLayout
from ..features.statistics import Statistics
from ..images.dataset import ImageDataset
from ..objects.content_addressed import MAX_IDENTITY_BYTES, parse_identity
from ..objects.damaged_files import read_or_flaw, replace_verified, set_aside, undo_bit_flip
from ..shards.zarr_format import parse_small_array, small_key
from ..store import MAX_STATISTICS_BYTES, canary_key, pack_kept_statistics, parse_kept_statistics, statistics_key
from ..views.view_set import ViewSet, views_metadata
from .examiner import Examiner, equals
from .lost_identities import lost_features_identity, lost_views_identity

_SAMPLE_KEYS = ({"views", "seed"}, {"batches", "batch_size", "seed"})


def examine_identity(examiner: Examiner, kind: str, key: str, lost: Callable[[], bytes | None]) -> dict[str, Any] | None:
    """Return the identity of a view set or feature set, None where it is lost."""
    prefix = f"{kind}/{key}"
    check = partial(parse_identity, prefix=prefix, kind=kind)

    def candidates() -> Iterator[tuple[bytes | None, str]]:
        yield lost(), "what other files of the store say of it"

    prune_hint = f". A set that nobody wants goes with {examiner.command('features', 'prune', key)}" if kind == "features" else ""

    def advice() -> str:
        return (
            "run the same `eupe-pipeline extract-features` again that made it, with the same options: it writes this identity anew and "
            f"takes over every shard that is there; then {examiner.repair}" + prune_hint
        )

    data = examiner.check_file("identity", f"{prefix}/identity.json", check, candidates(), advice, MAX_IDENTITY_BYTES)
    return None if data is None else parse_identity(data, prefix, kind)


def lost_views(examiner: Examiner, key: str, datasets: list[ImageDataset]) -> bytes | None:
    """Return a reconstructed identity of views, or None."""
    return lost_views_identity(examiner.objects, key, datasets)


def lost_features(examiner: Examiner, key: str) -> bytes | None:
    """Return a reconstructed identity of features, or None."""
    return lost_features_identity(examiner.objects, key, [statistics for _, statistics in _readable_statistics(examiner)])


def examine_views(examiner: Examiner, key: str, identity: dict[str, Any], dataset: ImageDataset) -> ViewSet | None:
    """Examine the metadata of a view set; return the set."""
    try:
        files = views_metadata(identity)
    except (KeyError, TypeError, ValueError, EupeError):
        files = {}
    _examine_metadata(examiner, f"views/{key}", files)
    return ViewSet(examiner.objects, key, dataset, identity)


def _examine_metadata(examiner: Examiner, prefix: str, files: dict[str, bytes]) -> None:
    for name, expected in files.items():
        where = f"{prefix}/{name}"
        kind = "statistics" if name.startswith("statistics/") and not name.endswith("zarr.json") else "metadata"
        source = "identity.json" if prefix.startswith("views/") else "identity.json and the statistics"
        examiner.check_file(kind, where, equals(expected, where), [(expected, source)], lambda: "", len(expected))  # type: ignore[arg-type]  # one of two


def examine_features(examiner: Examiner, key: str, identity: dict[str, Any], views: ViewSet) -> FeatureReader | None:
    """Examine metadata, statistics and canary of a feature set; return the set, None where its statistics are lost."""
    prefix = f"features/{key}"
    specs = FeatureLayout.from_identity(identity["layout"]).specs(views)
    statistics = _find_statistics(examiner, prefix, identity["statistics"])
    if statistics is None:
        where = f"{prefix}/statistics"
        prune = examiner.command("features", "prune", key)
        text = (
            "these are lost, and without them its tokens cannot be brought back to the teacher's own: restore them from a copy of the "
            f"store (`features cp` makes one), or run {prune} and the same `eupe-pipeline extract-features` again"
        )
        examiner.add_finding("statistics", where, "are not those that its identity names, and no copy is left", "", text)
        return None
    _examine_metadata(examiner, prefix, features_metadata(identity, specs, statistics))
    reader = FeatureReader(examiner.objects, key, views, identity)
    _examine_stored_statistics(examiner, reader)
    _examine_canary(examiner, reader)
    return reader


def _find_statistics(examiner: Examiner, prefix: str, described: dict[str, Any]) -> Statistics | None:
    with contextlib.suppress(EupeError, FileNotFoundError):
        return read_statistics(examiner.objects, prefix, described)
    for candidate in _candidate_statistics(examiner, prefix, described):
        if candidate.digest == described["digest"] and candidate.count == described["count"]:
            return candidate
    return None


def _candidate_statistics(examiner: Examiner, prefix: str, described: dict[str, Any]) -> Iterator[Statistics]:
    """Yield statistics stored apart from the sets, those of other sets, and this set's own with a flipped bit undone."""
    yield from (statistics for _, (_, statistics) in _readable_statistics(examiner))
    for key in examiner.store.list_features():
        with contextlib.suppress(EupeError, FileNotFoundError):
            yield read_statistics(examiner.objects, f"features/{key}", described)
    arrays: dict[str, NDArray[np.float32]] = {}
    for name in examiner.objects.names(f"{prefix}/statistics"):
        where = small_key(f"{prefix}/statistics/{name}", 2 if name.endswith("matrix") else 1)
        data, _ = read_or_flaw(examiner.objects, where, MAX_IDENTITY_BYTES)
        intact = data if _parses(data, where) else undo_bit_flip(data, partial(parse_small_array, where=where))
        if intact is not None:
            arrays[name] = parse_small_array(intact, where)
    with contextlib.suppress(KeyError, ValueError, TypeError):
        yield Statistics.from_arrays(arrays, described["count"])


def _parses(data: bytes | None, where: str) -> bool:
    try:
        return data is not None and parse_small_array(data, where) is not None
    except CacheDamaged:
        return False


def _readable_statistics(examiner: Examiner) -> Iterator[tuple[str, tuple[dict[str, Any], Statistics]]]:
    """Yield the readable stored statistics with their keys."""
    for name in examiner.objects.names("statistics"):
        with contextlib.suppress(EupeError, FileNotFoundError):
            yield f"statistics/{name}", examiner.store.read_statistics(f"statistics/{name}")


def stored_statistics_of(reader: FeatureReader) -> tuple[str, bytes] | None:
    """Return key and content of the file that stores a set's measured statistics; None for statistics that were not measured."""
    described = {name: value for name, value in reader.identity["statistics"].items() if name not in ("method", "digest", "count")}
    if described.keys() not in _SAMPLE_KEYS:
        return None
    recorded = reader.statistics.normalisation.recorded
    measured_on = {"teacher": reader.identity["teacher"], "views": reader.views.digest, "sample": described, **recorded}
    return statistics_key(reader.name, measured_on), pack_kept_statistics(measured_on, reader.statistics)


def _examine_stored_statistics(examiner: Examiner, reader: FeatureReader) -> None:
    """Examine the stored statistics of a set; another intact measurement under the same key is left alone (`features cp` may leave one)."""
    stored = stored_statistics_of(reader)
    if stored is not None:
        where, content = stored
        check = partial(_check_stored_statistics, where=where)
        if read_or_flaw(examiner.objects, where, MAX_STATISTICS_BYTES)[1] == "is missing":  # only another extraction would look for it
            replace_verified(examiner.objects, where, content)
            examiner.add_finding("statistics", where, "is missing", f"the statistics of features/{reader.key}", unfinished=True)
        examiner.check_file(
            "statistics", where, check, [(content, f"the statistics of features/{reader.key}")], lambda: "", MAX_STATISTICS_BYTES
        )


def _check_stored_statistics(data: bytes, where: str) -> None:
    measured_on, _ = parse_kept_statistics(data, where)
    if where.rpartition("@")[2] != f"{short(digest(measured_on))}.json":
        raise CacheDamaged(f"{where} was measured on something else; was a file copied or renamed?")


def _examine_canary(examiner: Examiner, reader: FeatureReader) -> None:
    """Examine a teacher's canary. A missing one is no damage, the next worker records it; pooled sets have none."""
    where = canary_key(reader.identity["teacher"])
    if where in examiner.canaries or "pooled" in reader.identity["statistics"]:
        return
    if read_or_flaw(examiner.objects, where, MAX_CANARY_BYTES)[1] == "is missing":
        finding = examiner.add_finding("canary", where, "is missing", "its teacher", examiner.repair, unfinished=True)
        examiner.canaries[where] = (reader, finding)
    elif examiner.check_file("canary", where, partial(parse_canary, where=where), [], lambda: examiner.repair, MAX_CANARY_BYTES) is None:
        finding = examiner.findings[-1]
        examiner.update_finding(finding, repaired=False, way_out=examiner.repair, source="its teacher")
        examiner.canaries[where] = (reader, examiner.findings[-1])


def examine_strays(examiner: Examiner) -> None:
    """Move damaged statistics and canaries aside that belong to no known set; the next extraction makes them again."""
    examined = {finding.where for finding in examiner.findings}
    for folder, check, limit in (
        ("statistics", _check_stored_statistics, MAX_STATISTICS_BYTES),
        ("canaries", parse_canary, MAX_CANARY_BYTES),
    ):
        for name in examiner.objects.names(folder):
            where = f"{folder}/{name}"
            if where in examined:
                continue
            kind = "statistics" if folder == "statistics" else "canary"
            if examiner.check_file(kind, where, partial(check, where=where), [], lambda: "", limit) is None:  # type: ignore[arg-type]
                finding, text = examiner.findings[-1], "nothing in the store needs it, and the next extraction makes it anew"
                if examiner.may_write:
                    set_aside(examiner.objects, where)
                    examiner.update_finding(finding, repaired=True, source=f"nothing: it was set aside; {text}")
                else:
                    examiner.update_finding(finding, repaired=False, way_out=f"{text}, once it is set aside: {examiner.repair}")
