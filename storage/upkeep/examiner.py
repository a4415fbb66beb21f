"""The examiner: collects findings about a store's files, and repairs files that follow from other bytes of the store.

`verify` examines a store through `DryRunObjects`: files that can be rebuilt are rebuilt in memory, so that the examination goes on with
what depends on them. `repair` examines the store itself, and may read images (`images`); what it rebuilds is checked against a digest
before it is written. Objects of shards are written only where `may_write`.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import chain
from typing import NamedTuple

from ..core.errors import CacheDamaged, command
from ..core.events import OnEvent, ignore_event
from ..features.features import FeatureReader
from ..objects.damaged_files import Check, read_and_check, read_or_flaw, replace_verified, undo_bit_flip
from ..shards.shard_repair import RepairedShard
from ..shards.shards import ShardedGroup
from ..store import FeatureStore
from .findings import Finding, Kind

_MAX_FAILED_ATTEMPTS = 64  # some seconds each
ITSELF = "what is left of it: one bit was flipped"


class ToExtract(NamedTuple):
    """A shard that only its teacher can repair, and its finding."""

    reader: FeatureReader
    shard: int
    finding: Finding


class Examiner:
    """The findings so far, and how a file is checked and repaired."""

    def __init__(
        self,
        store: FeatureStore,
        key: str | None,
        *,
        images: bool,
        may_write: bool,
        part: tuple[int, int] = (1, 1),
        on_event: OnEvent = ignore_event,
    ) -> None:
        self.store, self.objects = store, store.objects
        self.images, self.may_write, self.part, self.on_event = images, may_write, part, on_event
        self.findings: list[Finding] = []
        self.to_extract: list[ToExtract] = []
        self.canaries: dict[str, tuple[FeatureReader, Finding]] = {}
        self._failed_attempts = 0
        self.repair = f"run {command('features', 'repair', *([] if key is None else [key]), store=self.url)}"

    @property
    def url(self) -> str:
        """Where the store lies."""
        return self.objects.url

    def command(self, *words: str) -> str:
        """Return a command on this store, quoted for the shell."""
        return command(*words, store=self.url)

    def add_finding(
        self, kind: Kind, where: str, what: str, source: str, way_out: str = "", shard: int | None = None, *, unfinished: bool = False
    ) -> Finding:
        """Add a finding; one with a source and without a way out is repaired here, or will be by `repair`."""
        repaired = self.may_write and bool(source) and not way_out
        finding = Finding(kind, where, what, source, "" if repaired else way_out or self.repair, shard, repaired, unfinished)
        self.findings.append(finding)
        return finding

    def check_file(
        self, kind: Kind, where: str, check: Check, candidates: Iterable[tuple[bytes | None, str]], advice: Callable[[], str],
        limit_bytes: int | None = None,
    ) -> bytes | None:  # fmt: skip
        """Return a file's correct bytes, as stored or rebuilt; None where they are lost, with `advice()` in the finding.

        `candidates` yields rebuilt bytes, each with their source in words, best first.
        """
        data, flaw = read_and_check(self.objects, where, check, limit_bytes)
        if not flaw:
            return data
        for candidate, source in chain(
            [(self.undo_bit_flip(data, check), ITSELF)], candidates
        ):  # `made` last: it may cost a walk over images
            if candidate is not None and _is_valid(check, candidate):
                if read_or_flaw(self.objects, where)[0] != candidate:  # a walk over images has put it there already
                    replace_verified(self.objects, where, candidate)
                self.add_finding(kind, where, flaw, source)
                return candidate
        self.add_finding(kind, where, flaw, "", advice())
        return None

    def undo_bit_flip(self, data: bytes | None, check: Check) -> bytes | None:
        """Return the file without its flipped bit, if that is the damage; given up after many failures, which take seconds each."""
        corrected = undo_bit_flip(data, check) if self._failed_attempts < _MAX_FAILED_ATTEMPTS else None
        self._failed_attempts += bool(data) and corrected is None
        return corrected

    def write_repaired(self, group: ShardedGroup, repaired: RepairedShard) -> None:
        """Write a repaired shard, unless this examination only looks."""
        if self.may_write:
            repaired.write_to(group)

    def update_finding(self, finding: Finding, repaired: bool, way_out: str = "", source: str | None = None) -> None:
        """Replace a finding by its outcome."""
        position = next(n for n, other in enumerate(self.findings) if other is finding)
        self.findings[position] = replace(finding, repaired=repaired, way_out=way_out, source=finding.source if source is None else source)


def _is_valid(check: Check, data: bytes) -> bool:
    try:
        check(data)
    except CacheDamaged:
        return False
    return True


def equals(expected: bytes, where: str) -> Check:
    """Return a check for a file whose bytes follow from others."""

    def check(data: bytes) -> None:
        if data != expected:
            raise CacheDamaged(f"{where} is not what it follows from")

    return check
