"""A language model with random weights learns to read a rendered word from frozen patch tokens, and nothing from shuffled pictures."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from eupe_pipeline.jobs.extraction.extract import extract_features
from eupe_pipeline.jobs.extraction.options import ExtractOptions, TeacherRequest
from eupe_pipeline.jobs.vlm.options import VlmOptions
from eupe_pipeline.jobs.vlm.patch_tokens import CachedTokens, LiveTokens
from eupe_pipeline.jobs.vlm.stages import open_training
from eupe_pipeline.jobs.vlm.vlm import evaluate_vlm
from eupe_pipeline.pipeline.commands.main import cli
from eupe_pipeline.pipeline.reports.evaluation_table import headline, read_evaluations
from eupe_pipeline.storage.core.errors import BadInput, CacheDamaged
from eupe_pipeline.storage.core.events import Event
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.views.view_spec import ViewSpec
from safetensors.torch import load_file

from .rendered import SETTINGS, Rendered, options, prepare

SMALL = Rendered(("cat", "dog", "sun", "map"), 32, 0, 96, 40)
EPOCHS = ("pretrain.epochs=0.5", "instruct.epochs=14")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("vlm"), SMALL)


@pytest.fixture(scope="module")
def asked(run: Path) -> VlmOptions:
    return options(SMALL.write(run.parent / "data"), run, SMALL, *EPOCHS)


@pytest.fixture(scope="module")
def learnt(asked: VlmOptions) -> tuple[dict[str, Any], list[Event]]:
    events = list[Event]()
    return evaluate_vlm(asked, events.append), events


def test_a_rendered_word_is_read_from_patch_tokens(learnt: tuple[dict[str, Any], list[Event]], run: Path) -> None:
    results, events = learnt
    assert results["accuracy"] >= 90
    assert (results["questions"], results["pictures"], results["task_pictures_in_training"]) == (40, 40, 0)
    notes = [event["text"] for event in events if "bytes are written" in event.get("text", "")]
    views = 96 * 16 * 48 * 4
    assert [note.split(": ")[1].split()[0] for note in notes] == [f"{views:,}", f"{views:,}"], "center and letterbox, once each"
    lines = [json.loads(line) for line in (run / "evaluations" / results["answers"]).read_text().splitlines()]
    assert 100 * np.mean([line["answer"] == line["right"][0] for line in lines]) == results["accuracy"]


@pytest.mark.long
def test_shuffled_pictures_teach_nothing(run: Path, tmp_path: Path) -> None:
    shuffled = replace(options(SMALL.write(tmp_path, shuffled=True), run, SMALL, *EPOCHS), out=tmp_path / "out")
    assert evaluate_vlm(shuffled)["accuracy"] <= 45, "chance is 25"


def test_a_record_is_found_again_and_stands_in_reports(learnt: tuple[dict[str, Any], list[Event]], asked: VlmOptions, run: Path) -> None:
    again = evaluate_vlm(asked)
    assert (again["already"], again["accuracy"]) == (True, learnt[0]["accuracy"])
    (record,) = read_evaluations(run)
    assert record["evaluation"] == "vlm-gqa"
    assert headline(record).value == f"{learnt[0]['accuracy']:.1f} %"
    assert headline(record).data.startswith("GQA, 40 pictures, ")
    assert record["protocol"]["pretrain"]["tokens"]["view"]["kind"] == "center"
    assert record["results"]["origins"]["instruct.warmup_share"] == "paper"
    assert not list((run / "evaluations").glob("*.partial*"))


def test_another_task_takes_the_trained_model(learnt: tuple[dict[str, Any], list[Event]], asked: VlmOptions, run: Path) -> None:
    root = asked.task_data.parent / "pope"
    (root / "val2014").mkdir(parents=True)
    shown = json.loads((asked.task_data / "testdev_balanced_questions.json").read_text())
    for name in list(shown)[:4]:
        (root / "val2014" / f"{name}.jpg").write_bytes((asked.task_data / "images" / f"{name}.jpg").read_bytes())
    lines = [{"question_id": n, "image": f"{name}.jpg", "text": "Is it?", "label": "yes"} for n, name in enumerate(list(shown)[:4])]
    for subset in ("adversarial", "popular", "random"):
        (root / f"coco_pope_{subset}.json").write_text("\n".join(map(json.dumps, lines)))
    weights = {file: file.stat().st_mtime_ns for file in (run / "evaluations").glob("*.safetensors")}
    events = list[Event]()
    results = evaluate_vlm(replace(asked, task="pope", task_data=root), events.append)
    assert results["recall"] == results["accuracy"] == 100.0, "a word is no `no`"
    assert {event["stage"] for event in events if event["event"] == "progress"} == {"vlm pope"}
    assert {file: file.stat().st_mtime_ns for file in (run / "evaluations").glob("*.safetensors")} == weights


def test_a_dry_run_says_the_bytes_and_writes_nothing(asked: VlmOptions, tmp_path: Path) -> None:
    other = replace(asked, store=str(prepare(tmp_path, SMALL).parent / "store"), dry_run=True, tokens="fp16")
    before = sorted(tmp_path.rglob("*"))
    said = evaluate_vlm(other)
    assert said["bytes_of_tokens"] == 2 * 96 * 16 * 48 * 2
    assert said["steps"] == {"pretrain": 3, "instruct": 84}
    assert sorted(tmp_path.rglob("*")) == before


def test_cached_tokens_are_the_live_ones(learnt: tuple[dict[str, Any], list[Event]], asked: VlmOptions) -> None:
    names = ["part0/0.png", "part1/17.png", "part1/3.png"]
    for stage in ("pretrain", "instruct"):
        cached = open_training(asked, lambda event: None).stages[stage]
        assert cached.reader is not None
        assert cached.pictures is not None
        read = CachedTokens(cached.reader, cached.pictures, torch.device("cpu"))(names)
        computed = LiveTokens(cached.pictures, torch.device("cpu"), 2)(names)  # letterboxed views are mirrored, unless told otherwise
        torch.testing.assert_close(read, computed, atol=2e-5, rtol=1e-4)


def test_live_tokens_train_what_cached_ones_train(whole: tuple[Path, float], short: VlmOptions, tmp_path: Path) -> None:
    evaluate_vlm(replace(short, tokens="live", out=tmp_path))
    (pretrained,), (cached,) = (list((folder / "evaluations").glob("vlm-pretrain-*.safetensors")) for folder in (tmp_path, whole[0]))
    kept = load_file(cached)
    for name, tensor in load_file(pretrained).items():
        torch.testing.assert_close(tensor, kept[name], atol=1e-3, rtol=1e-2)


def test_tokens_that_an_extraction_made_of_the_same_centre_views_are_taken(asked: VlmOptions, tmp_path: Path) -> None:
    run = prepare(tmp_path, SMALL)
    here = replace(asked, model=str(run), llm=tmp_path / "llm", store=str(tmp_path / "store"), tokens="fp16")
    build_index(FeatureStore.open(tmp_path / "store").objects, str(asked.pretrain_images), "photos")
    wanted = ExtractOptions(
        str(tmp_path / "store"), "photos", (TeacherRequest(str(run)),), ViewSpec(kind="center"), codec="int8", statistics_batches=2,
        batch_size=32, workers=0, images_per_shard=32,
    )  # fmt: skip
    extract_features(wanted)
    training = open_training(here, lambda event: None)
    taken = training.stages["pretrain"]
    assert taken.reader is not None
    assert taken.pictures is not None
    assert (taken.reader.name, taken.tokens["codec"]) == ("run", "int8")
    names = ["part1/5.png", "part0/44.png"]
    read = CachedTokens(taken.reader, taken.pictures, torch.device("cpu"))(names)
    computed = LiveTokens(taken.pictures, torch.device("cpu"), 2)(names)
    assert torch.cosine_similarity(read, computed, dim=-1).min() > 0.999
    padded = training.stages["instruct"].reader
    assert padded is not None
    assert padded.name == "run-patches", "letterboxed views are others"
    fp32 = open_training(replace(here, tokens="fp32"), lambda event: None).stages["pretrain"].reader
    assert fp32 is not None
    assert fp32.name == "run-patches", "fp32 was asked for"


def test_a_disk_that_is_too_small_is_refused_before_anything_is_encoded(
    asked: VlmOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = prepare(tmp_path, SMALL)
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=1000))
    with pytest.raises(BadInput, match=r"take 294,912 bytes and .* has 1,000 free; .* --tokens live"):
        evaluate_vlm(replace(asked, model=str(run), llm=tmp_path / "llm", store=str(tmp_path / "store")))


class Stopped(Exception):
    """The process was killed here."""


def stop_at(stage: str, step: int) -> Callable[[Event], None]:
    def on_event(event: Event) -> None:
        if (event.get("stage"), event.get("done")) == (stage, step):
            raise Stopped

    return on_event


def weights_of(folder: Path) -> dict[str, Any]:
    return {file.name: load_file(file) for file in (folder / "evaluations").glob("vlm-*.safetensors")}


@pytest.fixture(scope="module")
def short(asked: VlmOptions) -> VlmOptions:
    recipe = options(asked.task_data.parent, Path(asked.model), SMALL, "pretrain.epochs=4", "instruct.epochs=4").recipe
    return replace(asked, recipe=recipe)


@pytest.fixture(scope="module")
def whole(short: VlmOptions, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    out = tmp_path_factory.mktemp("whole")
    return out, evaluate_vlm(replace(short, out=out))["accuracy"]


@pytest.mark.parametrize("stage", [pytest.param("vlm pretrain", marks=pytest.mark.long), "vlm instruct", "vlm gqa"])
def test_what_was_stopped_goes_on_to_the_same_weights_and_answers(
    short: VlmOptions, whole: tuple[Path, float], tmp_path: Path, stage: str
) -> None:
    parts = replace(short, out=tmp_path, keep_every=10)
    with pytest.raises(Stopped):
        evaluate_vlm(parts, stop_at(stage, 32 if stage == "vlm gqa" else 20))
    assert len(list((tmp_path / "evaluations").glob("*.partial.safetensors"))) == (stage != "vlm gqa")
    events = list[Event]()
    assert evaluate_vlm(parts, events.append)["accuracy"] == whole[1]
    assert stage == "vlm gqa" or [event["done"] for event in events if event.get("stage") == stage] == [24]
    one, other = weights_of(whole[0]), weights_of(tmp_path)
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[file][name]) for file, tensors in one.items() for name, tensor in tensors.items())


def test_a_state_of_another_training_is_refused(short: VlmOptions, tmp_path: Path) -> None:
    here = replace(short, out=tmp_path)
    file = open_training(here, lambda event: None).file("pretrain")
    file.parent.mkdir()
    file.with_name(f"{file.stem}.partial.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CacheDamaged, match="move it elsewhere to train that stage anew"):
        evaluate_vlm(here)


def test_pictures_that_are_missing_or_broken_are_counted_before_hours_are_spent(asked: VlmOptions, tmp_path: Path) -> None:
    root = Rendered(SMALL.words, 32, 0, 6, 2).write(tmp_path)
    here = replace(asked, out=tmp_path / "out", **{name: root / getattr(asked, name).relative_to(asked.task_data.parent) for name in (
        "task_data", "pretrain_data", "pretrain_images", "instruct_data", "instruct_images")})  # fmt: skip
    (root / "images" / "part0" / "2.png").unlink()
    with pytest.raises(BadInput, match=r"1 of 6 pictures of .*captions.json are missing: .*2.png"):
        evaluate_vlm(here)
    (root / "images" / "part0" / "2.png").write_bytes((root / "images" / "part1" / "1.png").read_bytes()[:-40] + bytes(40))
    with pytest.raises(BadInput, match=r"1 of 6|no tokens of 1 pictures|1 of 6 samples"):
        evaluate_vlm(here)
    with pytest.raises(BadInput, match="is a feature set"):
        evaluate_vlm(replace(here, model="teacher@0123"))


def test_the_command_line_reads_the_record_and_says_a_dry_run_as_json(
    learnt: tuple[dict[str, Any], list[Event]], asked: VlmOptions
) -> None:
    root = asked.task_data.parent
    words = ["evaluate", "vlm", asked.model, "--task", "gqa", "--device", "cpu", "--tokens", "fp32", "--json"]
    for name in ("task_data", "llm", "pretrain_data", "pretrain_images", "instruct_data", "instruct_images", "store"):
        words += [f"--{name.replace('_', '-')}", str(getattr(asked, name))]
    for setting in ("encoder.size_px=32", "encoder.size_px_of_patch_14=32", *SETTINGS, *EPOCHS):
        words += ["--set", setting]
    said = CliRunner().invoke(cli, words)
    assert said.exit_code == 0, said.output
    result = json.loads(said.stdout.splitlines()[-1])
    assert (result["event"], result["already"], result["accuracy"]) == ("result", True, learnt[0]["accuracy"])
    dry = json.loads(CliRunner().invoke(cli, [*words, "--dry-run"]).stdout.splitlines()[-1])
    assert (dry["dry_run"], dry["trained"], dry["bytes_of_tokens"]) == (True, True, 0)
    assert (dry["origins"]["instruct.weight_decay"], dry["origins"]["longest"]) == ("paper", "--set")
    (root / "no.json").write_text("{}")
    wrong = CliRunner().invoke(cli, [*words, "--pretrain-data", str(root / "no.json")])
    assert isinstance(wrong.exception, BadInput)
    assert "must hold a list of conversations in LLaVA's layout" in str(wrong.exception)


def test_the_command_asks_for_its_files_by_name() -> None:
    command = cli.commands["evaluate"].commands["vlm"]  # type: ignore[attr-defined]
    needed = {option.opts[0] for option in command.params if option.required}
    assert needed == {
        "model", "--task", "--task-data", "--llm", "--pretrain-data", "--pretrain-images", "--instruct-data", "--instruct-images",
    }  # fmt: skip
