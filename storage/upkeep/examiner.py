"""Who goes through a store's files: keeps what was found, and puts right what follows from other bytes of the store.

`verify` examines a store behind `DryRunObjects`: what can be made again is made in memory, so that the examination goes on below it.
`repair` examines the store itself, and may read images (`images`); what it makes is proved by a digest before it is put in place. Large
objects are put in place only where `acting`.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import chain
from typing import NamedTuple

from ..core.errors import CacheDamaged, command
from ..core.events import OnEvent, ignore_event
from ..features.features import FeatureReader
from ..objects.damaged_files import Check, read_and_check, read_or_flaw, replace_verified, undo_bit_flip
from ..shards.healing import Healed
from ..shards.shards import ShardedGroup
from ..store import FeatureStore
from .findings import Finding, Kind

_MOST_IN_VAIN = 64  # some seconds each
ITSELF = "what is left of it: one bit was flipped"


class ToExtract(NamedTuple):
    """A shard that only its teacher can make whole, and its finding."""

    reader: FeatureReader
    shard: int
    finding: Finding


class Examiner:
    """The findings so far, and how a file is judged and mended."""

    def __init__(
        self,
        store: FeatureStore,
        key: str | None,
        *,
        images: bool,
        acting: bool,
        part: tuple[int, int] = (1, 1),
        on_event: OnEvent = ignore_event,
    ) -> None:
        self.store, self.objects = store, store.objects
        self.images, self.acting, self.part, self.on_event = images, acting, part, on_event
        self.findings: list[Finding] = []
        self.to_extract: list[ToExtract] = []
        self.canaries: dict[str, tuple[FeatureReader, Finding]] = {}
        self._in_vain = 0
        self.repair = f"run {command('features', 'repair', *([] if key is None else [key]), store=self.url)}"

    @property
    def url(self) -> str:
        """Where the store lies."""
        return self.objects.url

    def command(self, *words: str) -> str:
        """Return a command on this store, in words that can be run."""
        return command(*words, store=self.url)

    def found(
        self, kind: Kind, where: str, what: str, source: str, way_out: str = "", shard: int | None = None, *, unfinished: bool = False
    ) -> Finding:
        """Note a finding; one with a source and no way out is mended here, or will be by `repair`."""
        mended = self.acting and bool(source) and not way_out
        one = Finding(kind, where, what, source, "" if mended else way_out or self.repair, shard, mended, unfinished)
        self.findings.append(one)
        return one

    def file(
        self, kind: Kind, where: str, check: Check, made: Iterable[tuple[bytes | None, str]], otherwise: Callable[[], str],
        limit_bytes: int | None = None,
    ) -> bytes | None:  # fmt: skip
        """Return a file's right bytes, as they are or made again; None where they are lost, and `otherwise` says what helps.

        `made` gives what the file may follow from, in words, best first.
        """
        data, flaw = read_and_check(self.objects, where, check, limit_bytes)
        if not flaw:
            return data
        for candidate, source in chain([(self.undo_bit_flip(data, check), ITSELF)], made):  # `made` last: it may cost a walk over images
            if candidate is not None and _passes(check, candidate):
                if read_or_flaw(self.objects, where)[0] != candidate:  # a walk over images has put it there already
                    replace_verified(self.objects, where, candidate)
                self.found(kind, where, flaw, source)
                return candidate
        self.found(kind, where, flaw, "", otherwise())
        return None

    def undo_bit_flip(self, data: bytes | None, check: Check) -> bytes | None:
        """Return the version without a flipped bit, if that is what is wrong; not tried for ever where thousands are damaged otherwise."""
        found = undo_bit_flip(data, check) if self._in_vain < _MOST_IN_VAIN else None
        self._in_vain += bool(data) and found is None
        return found

    def heal(self, group: ShardedGroup, healed: Healed) -> None:
        """Put a shard's objects in place, where that is what the examination is for."""
        if self.acting:
            healed.put_in_place(group)

    def settle(self, one: Finding, mended: bool, way_out: str = "", source: str | None = None) -> None:
        """Replace a finding by what came of it."""
        place = next(n for n, other in enumerate(self.findings) if other is one)
        self.findings[place] = replace(one, mended=mended, way_out=way_out, source=one.source if source is None else source)


def _passes(check: Check, data: bytes) -> bool:
    try:
        check(data)
    except CacheDamaged:
        return False
    return True


def equals(wanted: bytes, where: str) -> Check:
    """Return a check for a file whose bytes follow from others."""

    def check(data: bytes) -> None:
        if data != wanted:
            raise CacheDamaged(f"{where} is not what it follows from")

    return check
