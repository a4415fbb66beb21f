"""The store as a state machine against a dict, in a folder, in memory and on S3; and prune at any moment (FAULTS 24, 25)."""

import os
import uuid
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import fsspec
import numpy as np
import pytest
from eupe_pipeline.storage.core.errors import BadInput, EupeError
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.upkeep.leases import Lease
from eupe_pipeline.storage.upkeep.maintenance import prune, verify
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from ..fault_log import Trials
from .made_up_store import Made, build, files, tokens

pytestmark = pytest.mark.fault
SHARDS = 3
QUICK = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None


@cache
def template() -> dict[str, bytes]:
    """Every file of a complete store of three shards; the images are read once and not needed again."""
    with TemporaryDirectory(dir=QUICK) as folder:
        made = build(Path(folder), images=4 * SHARDS, codec="int8")
        return {str(path.relative_to(made.folder)): path.read_bytes() for path in files(made.folder)}


def features_key() -> str:
    return next(name.split("/")[1] for name in template() if name.startswith("features/"))


def fill(url: str) -> Made:
    """A new store with everything but the shards of the feature set."""
    store = FeatureStore.create(url)
    for name, data in sorted(template().items(), key=lambda item: item[0].endswith("identity.json")):
        if name.startswith("features/") and ("/commits/" in name or "/c." in name) and "/statistics/" not in name:
            continue
        store.objects.create(name, [data])
    return opened(url)


def opened(url: str) -> Made:
    store = FeatureStore.open(url)
    features = store.features(features_key())
    return Made(store, features.views.dataset, features.views, features)


class Machine(RuleBasedStateMachine):
    """Rules do to the store what processes and disks do; `model` says which shards stand, and which of them are damaged."""

    root = "memory://"
    examples = 0

    @initialize()
    def begin(self) -> None:
        type(self).examples += 1
        self.url = f"{self.root}/{uuid.uuid4().hex}"
        self.made = fill(self.url)
        self.committed: set[int] = set()
        self.damaged: set[int] = set()

    def teardown(self) -> None:
        filesystem, path = fsspec.url_to_fs(self.url)
        filesystem.rm(path, recursive=True)

    def key(self, shard: int, name: str = "patch") -> str:
        return f"features/{features_key()}/{self.made.features.group.specs[name].key(shard)}"

    @rule(shard=st.integers(0, SHARDS - 1), rounding=st.sampled_from([0.0, 1e-3]))
    def write(self, shard: int, rounding: float) -> None:
        """Also twice, and then by a machine whose rounding differs: what stands stays."""
        if shard not in self.damaged:
            views = self.made.views.group.record(shard)
            assert views is not None
            found = tokens(self.made.features, shard, rounding if shard in self.committed else 0.0)
            self.made.features.commit_shard(shard, found, {}, views.digest)
            self.committed.add(shard)

    @rule(shard=st.integers(0, SHARDS - 1))
    def write_half(self, shard: int) -> None:
        """A writer that dies between its objects and its record."""
        if shard not in self.committed:
            group = self.made.features.group
            found = tokens(self.made.features, shard)
            group._publish_array(group.specs["patch"], shard, found.patch, np.ones(8, np.bool_))

    @rule(shard=st.integers(0, SHARDS - 1))
    def read(self, shard: int) -> None:
        rows = np.arange(8 * shard, 8 * shard + 8)
        if shard in self.committed and shard not in self.damaged:
            assert self.made.features.read(rows).patch.tobytes() == tokens(self.made.features, shard).patch.tobytes()
            return
        with pytest.raises(EupeError, match=f"shard {shard} "):
            opened(self.url).features.read(rows)

    @rule(shard=st.integers(0, SHARDS - 1), place=st.integers(0, 10_000), how=st.sampled_from(["flip", "cut", "delete"]))
    def damage(self, shard: int, place: int, how: str) -> None:
        if shard in self.committed and shard not in self.damaged:
            data = bytearray(self.made.store.objects.read(self.key(shard)))
            row_bytes = self.made.features.empty(1).patch.nbytes + 4
            place = place % 8 * row_bytes + place % (row_bytes - 4)  # within a row, not within the checksum that stands beside it
            data[place] ^= 1
            self.made.store.objects.remove(self.key(shard))
            if how != "delete":
                self.made.store.objects.create(self.key(shard), [bytes(data) if how == "flip" else bytes(data[: len(data) // 2])])
            self.damaged.add(shard)

    @rule()
    def reopen(self) -> None:
        self.made = opened(self.url)
        assert self.made.features.missing_shards() == sorted(set(range(SHARDS)) - self.committed)

    @rule()
    def heal(self) -> None:
        found = verify(opened(self.url).features)
        assert {damage.shard for damage in found} == self.damaged
        for shard in sorted(self.damaged):
            views = self.made.views.group.record(shard)
            assert views is not None
            self.made.features.repair_shard(shard, tokens(self.made.features, shard), {}, views.digest)
        self.damaged.clear()

    @rule()
    def resume(self) -> None:
        for shard in self.made.features.missing_shards():
            self.write(shard, 0.0)
        assert self.made.features.complete

    @rule(dry_run=st.booleans())
    def prune(self, dry_run: bool) -> None:
        going = prune(self.made.store, features_key(), dry_run=True)
        if not dry_run:
            assert prune(self.made.store, features_key(), dry_run=False) == going
            with pytest.raises(BadInput):
                self.made.store.features(features_key())
            self.made = fill_again(self.made)
            self.committed.clear()
            self.damaged.clear()


def fill_again(made: Made) -> Made:
    """The feature set planned anew after a prune."""
    for name, data in sorted(template().items(), key=lambda item: item[0].endswith("identity.json")):
        if name.startswith("features/") and "/commits/" not in name and ("/c." not in name or "/statistics/" in name):
            made.store.objects.create(name, [data])
    return opened(made.store.url)


def run(root: str, examples: int, steps: int = 12) -> None:
    machine: type[Machine] = type("Machine", (Machine,), {"root": root, "examples": 0})
    quiet = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    with Trials(25) as trials:
        run_state_machine_as_test(machine, settings=quiet)
        trials.note("right", machine.examples)


@pytest.mark.parametrize("examples", [80, pytest.param(400, marks=pytest.mark.long)])
def test_a_folder_behaves_like_a_dict(quick_disk: Path, examples: int) -> None:
    run(str(quick_disk), examples)


@pytest.mark.parametrize("examples", [120, pytest.param(500, marks=pytest.mark.long)])
def test_memory_behaves_like_a_dict(examples: int) -> None:
    run("memory://machine", examples)


@pytest.mark.parametrize(("examples", "steps"), [(4, 6), pytest.param(100, 8, marks=[pytest.mark.long, pytest.mark.timeout(3600)])])
@pytest.mark.usefixtures("server")
def test_s3_behaves_like_a_dict(examples: int, steps: int) -> None:
    run("s3://bucket/machine", examples, steps)


class Killed(BaseException):
    """A prune that dies."""


def killed_prune(made: Made, removals: int, now: list[float]) -> None:
    """Prune until `removals` objects are gone."""
    real, left = made.store.objects.remove, iter(range(removals))

    def remove(key: str) -> None:
        if next(left, None) is None:
            raise Killed
        real(key)

    with mock.patch.object(made.store.objects, "remove", remove):
        prune(made.store, made.features.key, dry_run=False, clock=lambda: now[0])


@pytest.mark.parametrize("walks", [200, pytest.param(1000, marks=pytest.mark.long)])
def test_no_prune_at_any_moment_takes_a_shard_from_a_reader(walks: int) -> None:
    """50 random steps a walk: readers come, read, renew, go or die; prunes start, are refused, are killed, run to their end."""
    with Trials(24) as trials:
        for walk in range(walks):
            trials.note(walk_once(np.random.default_rng(walk)))
        assert trials.counts["recovered"] > walks // 10


def walk_once(random: np.random.Generator) -> str:
    """'recovered' when the set went and was complete again afterwards, else 'right'."""
    filesystem = fsspec.filesystem("memory")
    for name, data in template().items():
        filesystem.pipe_file(f"/walk/{name}", data)
    made, now, leases, gone = opened("memory://walk"), [1000.0], list[tuple[Lease, float]](), False
    for _ in range(50):
        leases = [(lease, until) for lease, until in leases if until > now[0]]
        step = random.integers(6)
        if step == 0 and not gone:
            leases.append((Lease(made.store.objects, made.features.key, "run", 60, lambda: now[0]), now[0] + 60))
        elif step == 1 and leases:
            leases.pop(random.integers(len(leases)))[0].release()
        elif step == 2:
            now[0] += int(random.integers(1, 40))
        elif step == 3 and leases:
            row = int(random.integers(8 * SHARDS))
            found = opened("memory://walk").features.read(np.array([row])).patch
            assert found.tobytes() == tokens(made.features, row // 8).patch[row % 8].tobytes(), "a leased row is lost"
        elif step >= 4 and random.random() < 0.3:
            gone = prune_somehow(made, bool(leases), gone, int(random.integers(0, 40)), now)
    if gone:
        with pytest.raises(EupeError):
            opened("memory://walk")
    filesystem.rm("/walk", recursive=True)
    return "recovered" if gone else "right"


def prune_somehow(made: Made, leased: bool, gone: bool, removals: int, now: list[float]) -> bool:
    """One prune, perhaps killed; returns whether the set is gone now."""
    if leased and not gone:
        with pytest.raises(BadInput, match="is being read by"):
            killed_prune(made, removals, now)
        return False
    try:
        killed_prune(made, removals, now)
    except Killed:
        return gone or removals > 0
    except BadInput:
        assert gone
    return True
