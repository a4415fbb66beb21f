"""A real S3 server that fails at random under a whole store, replies that get lost, listings, and secrets (FAULTS 10, 11, 12, 27)."""

import contextlib
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from eupe_pipeline.storage.core.errors import BadInput, EupeError, StoreUnavailable
from eupe_pipeline.storage.objects import remote
from eupe_pipeline.storage.objects.objects import open_objects
from eupe_pipeline.storage.objects.remote import TRIES, RemoteObjects
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.upkeep.copying import copy_features

from ..fault_log import Trials
from .faulty_s3 import SECRETS, Fault, FaultyServer
from .made_up_store import Made, build, files, plan, tokens

pytestmark = pytest.mark.fault


@pytest.fixture
def s3(server: FaultyServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[FaultyServer, str]]:
    monkeypatch.setattr(remote, "_MIN_WAIT_S", 0.001)
    server.faults.clear()
    yield server, f"s3://bucket/{uuid.uuid4().hex}"
    server.faults.clear()


def on_s3(local: Made, url: str) -> Made:
    """The local plan in a new store on S3, opened there."""
    copy_features(local.store, local.features.key, FeatureStore.create(url))
    store = FeatureStore.open(url)
    features = store.features(local.features.key)
    return Made(store, features.views.dataset, features.views, features)


def random_faults(random: np.random.Generator, size: int) -> list[Fault]:
    """More in a row than are survived in one of four cases, else one or two."""
    count = 10 * TRIES if random.random() < 0.25 else int(random.integers(1, 3))
    kinds = [
        Fault(status=503),
        Fault(status=500, code=b"InternalError"),
        Fault(status=429, code=b"TooManyRequests"),
        Fault(reset=True),
        Fault(keep=int(random.integers(size))),
        Fault(lose_reply=True),
    ]
    return [kinds[random.integers(len(kinds))] for _ in range(count)]


@pytest.mark.parametrize("times", [70, pytest.param(930, marks=[pytest.mark.long, pytest.mark.timeout(3600)])])
def test_reading_under_random_faults_is_right_or_our_error(s3: tuple[FaultyServer, str], tmp_path: Path, times: int) -> None:
    server, url = s3
    made, random = on_s3(build(tmp_path, images=16), url), np.random.default_rng(times)
    with Trials(10) as trials:
        for _ in range(times):
            row = int(random.integers(32))
            made.features.group.forget(row // 8)
            server.fail("GET", *random_faults(random, 400))
            found = None
            with contextlib.suppress(StoreUnavailable):
                found = made.features.read(np.array([row])).patch
            assert found is None or found.tobytes() == tokens(made.features, row // 8).patch[row % 8].tobytes()
            trials.note("detected" if found is None else "recovered")
            server.faults.clear()


def test_a_stall_ends_and_bytes_one_at_a_time_are_enough(s3: tuple[FaultyServer, str]) -> None:
    server, url = s3
    objects = RemoteObjects(url)
    data = os.urandom(300)
    with Trials(10) as trials:
        for fault in (Fault(stall_s=0.3), Fault(trickle=True)):
            assert objects.create(f"x{fault.trickle}", [data])
            server.fail("GET", fault)
            assert objects.read(f"x{fault.trickle}") == data
            trials.note("recovered")


def test_lost_replies_make_no_false_conflict_and_every_commit_is_listed_at_once(s3: tuple[FaultyServer, str], tmp_path: Path) -> None:
    """One process lists while another commits, and a reply is lost at any of the four puts of a shard."""
    server, url = s3
    local = plan(tmp_path, images=200)
    writer, reader = on_s3(local, url), FeatureStore.open(url).features(local.features.key)
    with Trials(11) as lost, Trials(12) as listed:
        for shard in range(50):
            assert reader.missing_shards() == list(range(shard, 50))
            server.fail("PUT", *[None] * (shard % 4), Fault(lose_reply=True))
            written = writer.features.commit_shard(shard, tokens(writer.features, shard), {}, "")
            assert server.faults == []
            assert reader.group.record(shard) == written
            ends = [0, 7]  # a row costs a request an array
            found = reader.read(8 * shard + np.array(ends)).patch
            assert found.tobytes() == tokens(local.features, shard).patch[ends].tobytes()
            lost.note("recovered")
            listed.note("right")


def test_another_writers_object_is_no_success_when_the_reply_is_lost(s3: tuple[FaultyServer, str], tmp_path: Path) -> None:
    """The put did not arrive, somebody else's did: the commit compares, and refuses what is not its own."""
    _, url = s3
    writer = on_s3(plan(tmp_path, images=16), url)
    key = f"features/{writer.features.key}/{writer.features.group.specs['patch'].key(0)}"
    writer.store.objects.create(key, [os.urandom(4000)])
    with Trials(11) as trials:
        with pytest.raises(EupeError, match=r"patch/c\.0\.0\.0\.0 is damaged"):
            writer.features.commit_shard(0, tokens(writer.features, 0), {}, "")
        assert writer.features.missing_shards() == [0, 1, 2, 3]
        trials.note("detected")


HOSTILE_URLS = [
    "s3://AKIAPLANTED9F3A:planted-secret-77aa@bucket/x",
    "s3://planted-secret-77aa@bucket/x",
    "https://user:planted-secret-77aa@localhost:1/store",
    "ftp://user:planted-secret-77aa@localhost:1/store",
    "s3://bucket/x?X-Amz-Credential=AKIAPLANTED9F3A&X-Amz-Signature=planted-secret-77aa",
    "s3://bucket/x?aws_secret_access_key=planted-secret-77aa",
    "gs://planted-secret-77aa@bucket/x",
]


def holds_a_secret(text: str) -> bool:
    return any(secret in text for secret in SECRETS.values())


@pytest.mark.parametrize("url", HOSTILE_URLS)
def test_a_url_with_a_secret_is_refused_without_repeating_it(s3: tuple[FaultyServer, str], url: str) -> None:
    with Trials(27) as trials:
        with pytest.raises(BadInput) as raised:
            open_objects(url)
        assert not holds_a_secret(str(raised.value))
        trials.note("detected")


def test_no_secret_of_the_environment_is_in_a_store_an_error_or_the_output(s3: tuple[FaultyServer, str], tmp_path: Path) -> None:
    server, url = s3
    with Trials(27) as trials:
        made = on_s3(build(tmp_path / "local", images=4), url)
        back = FeatureStore.create(str(tmp_path / "back"))
        copy_features(made.store, made.features.key, back)
        assert not [path for path in files(tmp_path / "back") if holds_a_secret(path.read_bytes().decode("latin-1"))]
        trials.note("right")
        for fault in (Fault(status=403, code=b"InvalidAccessKeyId"), Fault(status=400, code=b"SignatureDoesNotMatch")):
            server.fail("GET", *[fault] * TRIES)
            with pytest.raises(StoreUnavailable) as raised:
                made.store.objects.read("x")
            assert not holds_a_secret(f"{raised.value}")
            server.faults.clear()
        trials.note("right")
    with Trials(27) as trials:
        script = f"from eupe_pipeline.storage.store import FeatureStore; FeatureStore.open({url + '/none'!r})"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert "is not a feature store" in done.stderr
        assert not holds_a_secret(done.stdout + done.stderr)
        trials.note("right")
