"""Warn of a second feature set of one teacher's name over the same views by other weights or another source file.

That is allowed, because teachers get new versions. A flipped bit in a weight file is another teacher, too, and would begin another set
beside the right one.
"""

from collections.abc import Mapping
from typing import Any

from ...storage.core.errors import EupeError
from ...storage.core.events import OnEvent
from ...storage.store import FeatureStore
from ...storage.views.view_set import ViewSet
from ...teachers.registry.spec import TeacherSpec


def other_weights(store: FeatureStore, views: ViewSet, specs: Mapping[str, TeacherSpec], on_event: OnEvent) -> dict[str, dict[str, str]]:
    """Return by teacher the sets of its name over these views by other weights or another source, with their sha256; warns of each."""
    other_keys: dict[str, dict[str, str]] = {}
    for key in store.list_features():
        spec = specs.get(key.partition("@")[0])
        if spec is None:
            continue
        try:
            identity = store.features_identity(key)
            recorded, now = _told(identity["teacher"]), _told(spec.identity())
        except (EupeError, KeyError, TypeError, AttributeError):  # `features verify` says so
            continue
        if identity.get("views") != views.digest or recorded == now:
            continue
        what = "weights" if recorded[0] == now[0] else "source"
        theirs, ours = (recorded[1], now[1]) if what == "weights" else (recorded[0], now[0])
        other_keys.setdefault(spec.name, {})[key] = str(theirs)
        by, file = ("other weights", "its weight file") if what == "weights" else ("another source", "its file")
        on_event(
            {"event": "warning", "text": f"{key} holds tokens of {spec.name} over the same views by {by}: sha256 {theirs} there, "
             f"{ours} now. If {spec.name} did not change, {file} did: fetch it again and prune the new set"}
        )  # fmt: skip
    return other_keys


def _told(teacher: Mapping[str, Any]) -> tuple[str | None, str]:
    """sha256 of the source, where the teacher is a Python file of the user's, and of the weights."""
    return teacher.get("architecture", {}).get("source_sha256"), str(teacher["weights_sha256"])
