"""Warn of a second feature set of one teacher's name over the same views with other weights: allowed, since teachers get new versions.

A flipped bit in a weight file is another teacher, too, and would begin another set beside the right one.
"""

from collections.abc import Mapping

from ...storage.core.errors import EupeError
from ...storage.core.events import OnEvent
from ...storage.store import FeatureStore
from ...storage.views.view_set import ViewSet
from ...teachers.registry.spec import TeacherSpec


def other_weights(store: FeatureStore, views: ViewSet, specs: Mapping[str, TeacherSpec], on_event: OnEvent) -> dict[str, dict[str, str]]:
    """Return by teacher the feature sets of its name over these views that other weights made, with their sha256; warns of each."""
    sets_by_teacher: dict[str, dict[str, str]] = {}
    for key in store.list_features():
        spec = specs.get(key.partition("@")[0])
        if spec is None:
            continue
        try:
            identity = store.features_identity(key)
            other_sha256 = str(identity["teacher"]["weights_sha256"])
        except (EupeError, KeyError, TypeError):  # `features verify` says so
            continue
        if identity.get("views") != views.digest or other_sha256 == spec.weights_sha256:
            continue
        sets_by_teacher.setdefault(spec.name, {})[key] = other_sha256
        on_event(
            {"event": "warning", "text": f"{key} holds tokens of {spec.name} over the same views by other weights: sha256 "
             f"{other_sha256} there, "
             f"{spec.weights_sha256} now. If {spec.name} did not change, its weight file did: fetch it again and prune the new set"}
        )  # fmt: skip
    return sets_by_teacher
