"""The canary of each teacher in the store: the first worker records eight images' tokens, each later one must agree.

    STORE/canaries/<digest of the teacher's identity>.json      created exclusively, never changed

The identity says which teacher was meant; the canary shows which one runs. It catches what no hash of weights can: another library version
that computes differently, a broken device, a teacher that was built wrongly. The price is one forward over eight images for each worker.
"""

import base64
import json

import numpy as np

from ..storage.errors import CacheDamaged, CacheMismatch
from ..storage.identity import canonical_json, digest
from ..storage.store import FeatureStore, canary_key
from ..teachers.canary import Features, canary, compare
from ..teachers.teacher import Teacher

_MAX_BYTES = 16 << 20


def check_canary(store: FeatureStore, teacher: Teacher) -> float:
    """The least cosine of this teacher's canary tokens to the recorded ones, which are recorded now when there are none.

    Raises `CacheMismatch` when it is not the teacher that the store knows, or gives tokens that are no numbers.
    """
    key, now = canary_key(teacher.spec.identity()), canary(teacher)
    try:
        recorded = _read(store, key)
    except FileNotFoundError:
        compare(now, now)  # refuses NaN and zeros before they become the record
        store.objects.create(key, [_pack(now)])
        recorded = _read(store, key)
    try:
        return compare(recorded, now)
    except CacheMismatch as error:
        raise CacheMismatch(f"{teacher.spec.name}: {error} (recorded in {store.url}/{key})") from error


def _pack(features: Features) -> bytes:
    arrays = {
        name: {"shape": list(values.shape), "float32": base64.b64encode(values.astype("<f4").tobytes()).decode()}
        for name, values in features.items()
    }
    return canonical_json({"format": 1, "arrays": arrays, "digest": digest(arrays)})


def _read(store: FeatureStore, key: str) -> Features:
    data = store.objects.read(key, _MAX_BYTES)
    try:
        body = json.loads(data)
        if body["digest"] != digest(body["arrays"]):
            raise ValueError("its own digest differs")
        return {
            name: np.frombuffer(base64.b64decode(array["float32"]), "<f4").astype(np.float32).reshape(array["shape"])
            for name, array in body["arrays"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CacheDamaged(f"{store.url}/{key} is damaged ({error}); remove it, and the next extraction records it again") from error
