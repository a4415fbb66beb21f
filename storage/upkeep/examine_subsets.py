"""The files of recorded subsets: an identity guarded by the digest in its name, and bits guarded by the identity.

Nothing else of a store says which images stay. A small file in which one bit was flipped is put right; of anything else, `features curate`
with the same options writes it again, or `features prune` takes it away.
"""

from functools import partial

from ..core.errors import CacheDamaged
from ..images.subsets import BITS, KIND, bits_file, check_bits
from ..objects.content_addressed import MAX_IDENTITY_BYTES, damage, parse_identity
from .examiner import Examiner


def examine_subset(examiner: Examiner, key: str, datasets: set[str]) -> None:
    """Judge one subset; `datasets`: digests of those that can be opened."""
    prefix = f"subsets/{key}"
    where = f"{prefix}/identity.json"
    prune = examiner.command("features", "prune", key)
    again = f"run the `eupe-pipeline features curate` that made it again, with the same options; or, where nobody wants it, {prune}"
    data = examiner.file("identity", where, partial(_check_identity, prefix=prefix), [], lambda: again, MAX_IDENTITY_BYTES)
    if data is None:
        return
    identity = parse_identity(data, prefix, KIND)
    bits, made_by = f"{prefix}/{BITS}", f"{again} (it was made by {identity['chosen_by']})"
    examiner.file("subset", bits, partial(check_bits, identity=identity, where=bits), [], lambda: made_by, bits_file(identity)[0])
    if identity["dataset"] not in datasets:
        text = "cannot be used without its dataset, which is not in the store or damaged"
        examiner.found("subset", prefix, text, "", f"index the images again (`eupe-pipeline index`); or, where nobody wants it, {prune}")


def _check_identity(data: bytes, prefix: str) -> None:
    identity = parse_identity(data, prefix, KIND)
    with damage(f"{prefix}/identity.json"):
        bits_file(identity)
        if not isinstance(identity["dataset"], str) or not isinstance(identity["chosen_by"], dict):
            raise CacheDamaged(f"{prefix}/identity.json describes no subset")
