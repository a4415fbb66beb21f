"""Examine the files of recorded subsets: an identity verified by the digest in its name, and bits verified by the identity.

No other file of a store says which images stay. A small file with one flipped bit is repaired; for other damage `features curate` with the
same options writes the subset again, or `features prune` removes it.
"""

from functools import partial

from ..core.errors import CacheDamaged
from ..images.subsets import BITS, KIND, bits_file, check_bits
from ..objects.content_addressed import MAX_IDENTITY_BYTES, parse_identity, parsing
from .examiner import Examiner


def examine_subset(examiner: Examiner, key: str, datasets: set[str]) -> None:
    """Examine one subset; `datasets`: digests of those that can be opened."""
    prefix = f"subsets/{key}"
    where = f"{prefix}/identity.json"
    prune = examiner.command("features", "prune", key)
    again = f"run the `eupe-pipeline features curate` that made it again, with the same options; or, where nobody wants it, {prune}"
    data = examiner.check_file("identity", where, partial(_check_identity, prefix=prefix), [], lambda: again, MAX_IDENTITY_BYTES)
    if data is None:
        return
    identity = parse_identity(data, prefix, KIND)
    bits, made_by = f"{prefix}/{BITS}", f"{again} (it was made by {identity['chosen_by']})"
    examiner.check_file("subset", bits, partial(check_bits, identity=identity, where=bits), [], lambda: made_by, bits_file(identity)[0])
    if identity["dataset"] not in datasets:
        text = "cannot be used without its dataset, which is not in the store or damaged"
        examiner.add_finding(
            "subset", prefix, text, "", f"index the images again (`eupe-pipeline index`); or, where nobody wants it, {prune}"
        )


def _check_identity(data: bytes, prefix: str) -> None:
    identity = parse_identity(data, prefix, KIND)
    with parsing(f"{prefix}/identity.json"):
        bits_file(identity)
        if not isinstance(identity["dataset"], str) or not isinstance(identity["chosen_by"], dict):
            raise CacheDamaged(f"{prefix}/identity.json describes no subset")
