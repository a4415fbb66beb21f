"""Shards committed in the background are the same shards, and their errors are not lost."""

from pathlib import Path

import numpy as np
import pytest
from eupe_pipeline.storage.errors import BadInput
from eupe_pipeline.storage.writer import ShardWriter

from .made_up_store import build, everything, plan, reopen, same, tokens


def test_a_stream_of_shards_gives_the_store_that_one_at_a_time_gives(tmp_path: Path) -> None:
    made, wanted = plan(tmp_path / "a"), build(tmp_path / "b")
    with ShardWriter(made.features) as writer:
        for shard in range(made.features.shards):
            made.views.commit_shard(shard, wanted.views.read(np.arange(*made.views.group.shard_span(shard))), {})
            record = made.views.group.record(shard)
            assert record is not None
            writer.submit(shard, tokens(made.features, shard), {}, record.digest)
    assert same(everything(reopen(made)), everything(wanted))


def test_the_future_gives_the_record(tmp_path: Path) -> None:
    made = plan(tmp_path)
    with ShardWriter(made.features) as writer:
        future = writer.submit(3, tokens(made.features, 3), {}, "")
    assert future.result() == made.features.group.record(3)


def test_the_error_of_one_shard_is_raised_and_the_others_stand(tmp_path: Path) -> None:
    made = plan(tmp_path)
    bad = tokens(made.features, 1)
    assert bad.scale is not None
    bad.scale[2, 0, 0] = np.nan
    writer = ShardWriter(made.features)
    writer.submit(0, tokens(made.features, 0), {}, "")
    writer.submit(1, bad, {}, "")
    with pytest.raises(BadInput, match="patch_scale is not finite"):
        writer.close()
    assert made.features.group.committed() == {0}


def test_an_error_stops_the_stream_soon(tmp_path: Path) -> None:
    made = plan(tmp_path)
    bad = tokens(made.features, 0)._replace(scale=np.full((8, 2, 3, 1), np.nan, np.float16))

    def stream() -> None:
        with ShardWriter(made.features, in_flight=1) as writer:
            for shard in range(5):
                writer.submit(shard, bad, {}, "")

    with pytest.raises(BadInput, match="not finite"):
        stream()
    assert not made.features.group.committed()
