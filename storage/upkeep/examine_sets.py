"""Identity, metadata and statistics of views and features; kept statistics and canaries: files that follow from each other, or are guarded
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
from ..objects.mending import held, put, set_aside, unflipped
from ..shards.zarr_format import parse_small_array, small_key
from ..store import MAX_STATISTICS_BYTES, canary_key, pack_kept_statistics, parse_kept_statistics, statistics_key
from ..views.view_set import ViewSet, views_metadata
from .examiner import Examiner, equals
from .lost_identities import lost_features_identity, lost_views_identity

_MEASURED = {"batches", "batch_size", "seed"}


def examine_identity(examiner: Examiner, kind: str, key: str, lost: Callable[[], bytes | None]) -> dict[str, Any] | None:
    """The identity of a set of views or features, None where it is lost."""
    prefix = f"{kind}/{key}"
    check = partial(parse_identity, prefix=prefix, kind=kind)

    def made() -> Iterator[tuple[bytes | None, str]]:
        yield lost(), "what other files of the store say of it"

    unwanted = f". A set that nobody wants goes with {examiner.command('features', 'prune', key)}" if kind == "features" else ""

    def otherwise() -> str:
        return (
            "run the same `eupe-pipeline extract-features` again that made it, with the same options: it writes this identity anew and "
            f"takes over every shard that is there; then {examiner.repair}" + unwanted
        )

    data = examiner.file("identity", f"{prefix}/identity.json", check, made(), otherwise, MAX_IDENTITY_BYTES)
    return None if data is None else parse_identity(data, prefix, kind)


def lost_views(examiner: Examiner, key: str, datasets: list[ImageDataset]) -> bytes | None:
    """A guess at a lost identity of views."""
    return lost_views_identity(examiner.objects, key, datasets)


def lost_features(examiner: Examiner, key: str) -> bytes | None:
    """A guess at a lost identity of features."""
    return lost_features_identity(examiner.objects, key, [found for _, found in _kept(examiner)])


def examine_views(examiner: Examiner, key: str, identity: dict[str, Any], dataset: ImageDataset) -> ViewSet | None:
    """The metadata of a set of views; the set, None where it cannot be opened."""
    try:
        files = views_metadata(identity)
    except (KeyError, TypeError, ValueError, EupeError):
        files = {}
    _examine_metadata(examiner, f"views/{key}", files)
    return ViewSet(examiner.objects, key, dataset, identity)


def _examine_metadata(examiner: Examiner, prefix: str, files: dict[str, bytes]) -> None:
    for name, wanted in files.items():
        where = f"{prefix}/{name}"
        kind = "statistics" if name.startswith("statistics/") and not name.endswith("zarr.json") else "metadata"
        source = "identity.json" if prefix.startswith("views/") else "identity.json and the statistics"
        examiner.file(kind, where, equals(wanted, where), [(wanted, source)], lambda: "", len(wanted))  # type: ignore[arg-type]  # one of two


def examine_features(examiner: Examiner, key: str, identity: dict[str, Any], views: ViewSet) -> FeatureReader | None:
    """Metadata and statistics of a feature set, those kept beside it, its canary; the set, None where its statistics are lost."""
    prefix = f"features/{key}"
    specs = FeatureLayout.from_identity(identity["layout"]).specs(views)
    statistics = _statistics(examiner, prefix, identity["statistics"])
    if statistics is None:
        where = f"{prefix}/statistics"
        prune = examiner.command("features", "prune", key)
        text = (
            "these are lost, and without them its tokens cannot be brought back to the teacher's own: restore them from a copy of the "
            f"store (`features cp` makes one), or run {prune} and the same `eupe-pipeline extract-features` again"
        )
        examiner.found("statistics", where, "are not those that its identity names, and no copy is left", "", text)
        return None
    _examine_metadata(examiner, prefix, features_metadata(identity, specs, statistics))
    reader = FeatureReader(examiner.objects, key, views, identity)
    _examine_kept(examiner, reader)
    _examine_canary(examiner, reader)
    return reader


def _statistics(examiner: Examiner, prefix: str, described: dict[str, Any]) -> Statistics | None:
    with contextlib.suppress(EupeError, FileNotFoundError):
        return read_statistics(examiner.objects, prefix, described)
    for candidate in _other_statistics(examiner, prefix, described):
        if candidate.digest == described["digest"] and candidate.count == described["count"]:
            return candidate
    return None


def _other_statistics(examiner: Examiner, prefix: str, described: dict[str, Any]) -> Iterator[Statistics]:
    """Those kept beside the sets, those of other sets, and what one flipped bit is undone of."""
    yield from (statistics for _, (_, statistics) in _kept(examiner))
    for key in examiner.store.list_features():
        with contextlib.suppress(EupeError, FileNotFoundError):
            yield read_statistics(examiner.objects, f"features/{key}", described)
    arrays: dict[str, NDArray[np.float32]] = {}
    for name in examiner.objects.names(f"{prefix}/statistics"):
        where = small_key(f"{prefix}/statistics/{name}", 2 if name.endswith("matrix") else 1)
        data, _ = held(examiner.objects, where, MAX_IDENTITY_BYTES)
        whole = data if _parses(data, where) else unflipped(data, partial(parse_small_array, where=where))
        if whole is not None:
            arrays[name] = parse_small_array(whole, where)
    with contextlib.suppress(KeyError, ValueError, TypeError):
        yield Statistics.from_arrays(arrays, described["count"])


def _parses(data: bytes | None, where: str) -> bool:
    try:
        return data is not None and parse_small_array(data, where) is not None
    except CacheDamaged:
        return False


def _kept(examiner: Examiner) -> Iterator[tuple[str, tuple[dict[str, Any], Statistics]]]:
    """The kept statistics that can be read, by their key."""
    for name in examiner.objects.names("statistics"):
        with contextlib.suppress(EupeError, FileNotFoundError):
            yield f"statistics/{name}", examiner.store.read_statistics(f"statistics/{name}")


def kept_of(reader: FeatureReader) -> tuple[str, bytes] | None:
    """Where a set's statistics are kept under what they were measured on, and the file; None for those that were never measured so."""
    described = {name: value for name, value in reader.identity["statistics"].items() if name not in ("method", "digest", "count")}
    if described.keys() != _MEASURED:
        return None
    recorded = reader.statistics.normalisation.recorded
    measured_on = {"teacher": reader.identity["teacher"], "views": reader.views.digest, "sample": described, **recorded}
    return statistics_key(reader.name, measured_on), pack_kept_statistics(measured_on, reader.statistics)


def _examine_kept(examiner: Examiner, reader: FeatureReader) -> None:
    """Another measurement that stands there whole is none of ours to replace (`features cp` may have met it)."""
    expected = kept_of(reader)
    if expected is not None:
        where, wanted = expected
        check = partial(_check_kept, where=where)
        if held(examiner.objects, where, MAX_STATISTICS_BYTES)[1] == "is missing":  # only another extraction would look for it
            put(examiner.objects, where, wanted)
            examiner.found("statistics", where, "is missing", f"the statistics of features/{reader.key}", unfinished=True)
        examiner.file("statistics", where, check, [(wanted, f"the statistics of features/{reader.key}")], lambda: "", MAX_STATISTICS_BYTES)


def _check_kept(data: bytes, where: str) -> None:
    measured_on, _ = parse_kept_statistics(data, where)
    if where.rpartition("@")[2] != f"{short(digest(measured_on))}.json":
        raise CacheDamaged(f"{where} was measured on something else; was a file copied or renamed?")


def _examine_canary(examiner: Examiner, reader: FeatureReader) -> None:
    """One that is not there is no damage: it goes with no feature set, and the next worker records it. Pooled sets have none."""
    where = canary_key(reader.identity["teacher"])
    if where in examiner.canaries or "pooled" in reader.identity["statistics"]:
        return
    if held(examiner.objects, where, MAX_CANARY_BYTES)[1] == "is missing":
        lost = examiner.found("canary", where, "is missing", "its teacher", examiner.repair, unfinished=True)
        examiner.canaries[where] = (reader, lost)
    elif examiner.file("canary", where, partial(parse_canary, where=where), [], lambda: examiner.repair, MAX_CANARY_BYTES) is None:
        lost = examiner.findings[-1]
        examiner.settle(lost, mended=False, way_out=examiner.repair, source="its teacher")
        examiner.canaries[where] = (reader, examiner.findings[-1])


def examine_strays(examiner: Examiner) -> None:
    """Kept statistics and canaries that no set at hand vouches for: damaged ones are set aside, the next extraction makes them anew."""
    known = {one.where for one in examiner.findings}
    for folder, check, limit in (("statistics", _check_kept, MAX_STATISTICS_BYTES), ("canaries", parse_canary, MAX_CANARY_BYTES)):
        for name in examiner.objects.names(folder):
            where = f"{folder}/{name}"
            if where in known:
                continue
            kind = "statistics" if folder == "statistics" else "canary"
            if examiner.file(kind, where, partial(check, where=where), [], lambda: "", limit) is None:  # type: ignore[arg-type]
                lost, text = examiner.findings[-1], "nothing in the store needs it, and the next extraction makes it anew"
                if examiner.acting:
                    set_aside(examiner.objects, where)
                    examiner.settle(lost, mended=True, source=f"nothing: it was set aside; {text}")
                else:
                    examiner.settle(lost, mended=False, way_out=f"{text}, once it is set aside: {examiner.repair}")
