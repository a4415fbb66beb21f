"""Ray Train's ranks learn what one process learns, and the answers come from what they kept."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from eupe_pipeline.jobs.vlm.vlm import evaluate_vlm
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.core.events import Event
from safetensors.torch import load_file

from .rendered import Rendered, options, prepare

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray Train's own

SMALL = Rendered(("cat", "dog", "sun", "map"), 32, 0, 48, 8)


@pytest.mark.long
def test_two_ranks_of_ray_train_both_stages_as_one_process_does(tmp_path: Path) -> None:
    run = prepare(tmp_path, SMALL)
    alone = options(SMALL.write(tmp_path / "data"), run, SMALL, "pretrain.epochs=1", "instruct.epochs=2")
    shared, events = replace(alone, out=tmp_path / "shared", workers=2, keep_every=2), list[Event]()
    results, others = evaluate_vlm(alone), evaluate_vlm(shared, events.append)
    assert {event["rank"] for event in events if event["event"] == "rank"} == {0, 1}
    assert others["questions"] == results["questions"] == 8
    for file in (run / "evaluations").glob("vlm-*.safetensors"):
        kept = load_file(tmp_path / "shared" / "evaluations" / file.name)
        for name, tensor in load_file(file).items():
            torch.testing.assert_close(kept[name], tensor, atol=2e-3, rtol=1e-2, msg=name)
    assert sorted(path.name.split("-")[1] for path in (tmp_path / "shared" / "evaluations").glob("*.safetensors")) == [
        "instruct",
        "pretrain",
    ]
    assert not [path for path in (tmp_path / "shared").iterdir() if path.name.endswith(".ray")]


def test_more_ranks_than_conversations_in_a_step_are_refused_before_any_starts(tmp_path: Path) -> None:
    run = prepare(tmp_path, SMALL)
    asked = options(SMALL.write(tmp_path / "data"), run, SMALL, "instruct.batch_size=2")
    with pytest.raises(BadInput, match="a batch of 2 cannot be shared by 3 ranks"):
        evaluate_vlm(replace(asked, workers=3))
