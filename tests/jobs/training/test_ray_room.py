"""A cluster without a free CPU: said after seconds with what is asked and what is there, and waited for within a bound."""

from dataclasses import replace
from typing import Any

import pytest
from eupe_pipeline.jobs.extraction import pool
from eupe_pipeline.jobs.extraction.extract import extract_features
from eupe_pipeline.jobs.ray_session import ray_session
from eupe_pipeline.jobs.training import rank_group
from eupe_pipeline.jobs.training.options import TrainOptions
from eupe_pipeline.jobs.training.ranks import train_on_workers
from eupe_pipeline.storage.core.errors import BadInput

from .test_train import RECIPE


class Holder:
    def there(self) -> bool:
        return True


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (pool, rank_group):
        monkeypatch.setattr(module, "SAY_AFTER_S", 0.5)
        monkeypatch.setattr(module, "GIVE_UP_AFTER_S", 2.0)


def hold(ray: Any, cpus: int) -> Any:
    holder = ray.remote(Holder).options(num_cpus=cpus).remote()
    assert ray.get(holder.there.remote())
    return holder


@pytest.mark.long
def test_workers_and_ranks_without_room_say_what_they_ask_for_and_give_up(
    photos: Any, tiny_store: Any, tmp_path: Any, short_waits: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, options, _ = photos
    one_worker = replace(options, workers=1)
    said: list[str] = []

    def listen(event: Any) -> None:
        said.extend([event["text"]] if event["event"] == "warning" else [])

    with ray_session(None, 2) as ray:
        holder = hold(ray, 2)
        text = r"no room for a worker: each asks for 1 CPU on one node, and 0 of 2 CPU free on all nodes together"
        with pytest.raises(BadInput, match=text + r"; none came free in 2 s"):
            extract_features(replace(one_worker, store=store.url), listen)
        assert len(said) == 1
        assert "waiting for 2 s at most" in said[0]
        two_ranks = TrainOptions(RECIPE, tiny_store.store.url, ("tiny-teacher",), tmp_path / "run", "photos", workers=2)
        with pytest.raises(BadInput, match=r"no room for one of 2 ranks: each asks for 1 CPU on one node, and 0 of 2 CPU free"):
            train_on_workers(two_ranks, listen)
        assert len(said) == 2
        monkeypatch.setattr(pool, "GIVE_UP_AFTER_S", 120.0)
        waited: list[str] = []

        def make_room(event: Any) -> None:
            if event["event"] == "warning" and "no room" in event["text"]:
                waited.append(event["text"])
                ray.kill(holder)

        assert extract_features(replace(one_worker, store=store.url), make_room)["shards_missing"] == 0
        assert len(waited) == 1
