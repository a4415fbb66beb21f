"""The canary of each teacher in the store: the first worker records eight images' tokens, each later one must agree.

    STORE/canaries/<digest of the teacher's identity>.json      created exclusively, never changed

The identity says which teacher was meant; the canary shows which one runs. It catches what no hash of weights can: another library version
that computes differently, a broken device, a teacher that was built wrongly. The price is one forward over eight images for each worker.
"""

from ...storage.core.errors import CacheMismatch
from ...storage.features.canaries import MAX_CANARY_BYTES, pack_canary, parse_canary
from ...storage.store import FeatureStore, canary_key
from ...teachers.registry.canary import Features, canary, compare
from ...teachers.registry.teacher import Teacher


def check_canary(store: FeatureStore, teacher: Teacher) -> float:
    """Return the least cosine of this teacher's canary tokens to the recorded ones, which are recorded now when there are none.

    Raises `CacheMismatch` when it is not the teacher that the store knows, or gives tokens that are no numbers.
    """
    key, now = canary_key(teacher.spec.identity()), canary(teacher)
    try:
        recorded = _read(store, key)
    except FileNotFoundError:
        compare(now, now)  # refuses NaN and zeros before they become the record
        store.objects.create(key, [pack_canary(now)])
        recorded = _read(store, key)
    try:
        return compare(recorded, now)
    except CacheMismatch as error:
        raise CacheMismatch(f"{teacher.spec.name}: {error} (recorded in {store.url}/{key})") from error


def _read(store: FeatureStore, key: str) -> Features:
    return parse_canary(store.objects.read(key, MAX_CANARY_BYTES), f"{store.url}/{key}")
