"""A teacher's canary as stored: its tokens of eight fixed images, in canonical JSON with a digest of itself.

    canaries/<digest of the teacher's identity>.json

`jobs` computes and compares canaries; this file defines their format.
"""

import base64
import json
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ..core.errors import CacheDamaged
from ..core.identity import canonical_json, digest

MAX_CANARY_BYTES = 16 << 20


def pack_canary(features: Mapping[str, NDArray[np.float32]]) -> bytes:
    """Return the file content for a canary's tokens."""
    arrays = {
        name: {"shape": list(values.shape), "float32": base64.b64encode(values.astype("<f4").tobytes()).decode()}
        for name, values in features.items()
    }
    return canonical_json({"format": 1, "arrays": arrays, "digest": digest(arrays)})


def parse_canary(data: bytes, where: str) -> dict[str, NDArray[np.float32]]:
    """Return a canary's tokens by name; raise `CacheDamaged` for an altered file."""
    try:
        body = json.loads(data)
        if body["digest"] != digest(body["arrays"]) or body["format"] != 1 or canonical_json(body) != data:
            raise ValueError("its own digest differs")
        return {
            name: np.frombuffer(base64.b64decode(array["float32"]), "<f4").astype(np.float32).reshape(array["shape"])
            for name, array in body["arrays"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CacheDamaged(
            f"{where} is damaged ({error}); run `eupe-pipeline features repair`, or remove it, and the next extraction records it again"
        ) from error
