"""The whole walk on a few real photos with the real teachers, by the demonstration's own code and by the commands a user types."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.jobs.ray_session import ray_session
from eupe_pipeline.pipeline.commands.main import main
from eupe_pipeline.pipeline.demo.demo import run_demo
from eupe_pipeline.pipeline.demo.fetch import CIFAR10
from eupe_pipeline.storage.core.cache_home import downloads_folder, weights_folder

RECIPE = """
[data]
train_images = 96
test_images = 40

[extract]
teachers = ["efficientnet-lite0", "keras-resnet50"]
teacher_sizes_px = { efficientnet-lite0 = 64, keras-resnet50 = 64 }
views_per_image = 2
images_per_shard = 32
statistics_batches = 2
batch_size = 16
proxy_size_px = 32
"""
STAGE = """
[stage{stage}]
precision = "fp32"
[stage{stage}.student]
architecture = "vit-mini"
sizes_px = {sizes}
[stage{stage}.teacher]
source = "{source}"
sizes_px = {teacher_sizes}
[stage{stage}.adapter]
width = 32
[stage{stage}.optimizer]
learning_rate = 1e-3
[stage{stage}.run]
steps = 6
batch_size = 16
checkpoint_every = 3
log_every = 2
"""


def needs_demo_files() -> None:
    wanted = [
        downloads_folder() / CIFAR10.filename,
        *(weights_folder() / f"{name}.safetensors" for name in ("efficientnet-lite0", "keras-resnet50")),
    ]
    missing = [str(path) for path in wanted if not path.is_file()]
    if missing:
        pytest.skip(f"`eupe-pipeline demo --fetch-only` brings {', '.join(missing)}")


@pytest.fixture(scope="module")
def tiny_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    needs_demo_files()
    live = {"sizes": "[24, 32, 40]", "source": "live", "teacher_sizes": "[24, 32, 40]"}
    cached = {"sizes": "[32]", "source": "cached", "teacher_sizes": "[]"}
    text = RECIPE + "".join(STAGE.format(stage=stage, **(live if stage == 3 else cached)) for stage in (1, 2, 3))
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def one_worker() -> Iterator[None]:
    """A Ray of one CPU that every run of the demonstration finds: each worker imports torch anew."""
    with ray_session(cpus=1):
        yield


@pytest.fixture(scope="module")
def demo(tiny_recipe: Path, one_worker: None) -> tuple[Path, dict[str, Any]]:
    out = tiny_recipe.parent / "demo"
    return out, run_demo(out, str(out / "store"), lambda event: None, recipe=str(tiny_recipe))


def percentages(entry: dict[str, Any]) -> list[float]:
    return [entry["paper"], *entry["official"].values()]


@pytest.mark.filterwarnings("default")
def test_the_demonstration_leaves_a_report_and_every_promised_number(demo: tuple[Path, dict[str, Any]]) -> None:
    out, results = demo
    assert json.loads((out / "results.json").read_text()) == results
    knn = results["knn"]
    assert set(knn) == {"random", "stage2", "stage3", "proxy", "teachers"}
    assert set(knn["teachers"]) == {"efficientnet-lite0", "keras-resnet50"}
    for entry in (*(knn[name] for name in ("random", "stage2", "stage3", "proxy")), *knn["teachers"].values()):
        assert all(0 <= percent <= 100 for feature in ("cls", "mean_patch") for percent in percentages(entry[feature]))
        assert (entry["train_images"], entry["test_images"]) == (96, 40)
    trained = {"train proxy, stage 1", "train vit-mini, stage 2", "train vit-mini, stage 3"}
    assert trained | {"extract teachers", "extract proxy"} <= set(results["steps"])
    assert all(step["seconds"] > 0 and step["rows_per_s"] > 0 for step in results["steps"].values())
    assert len(results["feature_sets"]) == 3
    assert all(entry["live_s"] > entry["cached_s"] > 0 for entry in results["live"].values())
    page = (out / "report.html").read_text()
    assert "data:image/png" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


@pytest.mark.filterwarnings("default")
def test_a_finished_demonstration_does_no_work_again(demo: tuple[Path, dict[str, Any]], tiny_recipe: Path) -> None:
    out, results = demo
    events: list[Mapping[str, Any]] = []
    again = run_demo(out, str(out / "store"), events.append, recipe=str(tiny_recipe))
    assert {name: step for name, step in again["steps"].items() if name.startswith(("train", "extract"))} == {
        name: step for name, step in results["steps"].items() if name.startswith(("train", "extract"))
    }
    assert again["knn"]["stage2"]["cls"] == results["knn"]["stage2"]["cls"]
    assert not [event for event in events if event["event"] == "step"]


def command(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """The result of a command that must succeed."""
    assert main([*words, "--json"]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return result


@pytest.mark.filterwarnings("default")
def test_the_commands_of_the_quick_start_walk_from_images_to_a_student(
    demo: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, store = demo[0] / "data" / "train-96", str(tmp_path / "store")
    assert command(capsys, "index", str(images), "--store", store, "--name", "photos")["images"] == 96
    extract = ["extract-features", "--store", store, "--data", "photos", "--views", "2", "--statistics-batches", "2", "--workers", "0"]
    teachers = ["--teacher", "efficientnet-lite0", "--teacher-size", "efficientnet-lite0=64"]
    assert command(capsys, *extract, *teachers, "--dry-run")["shards_missing"] == 1
    assert command(capsys, *extract, *teachers)["views_done"] == 192
    assert command(capsys, *extract, *teachers)["views_done"] == 0
    small = [
        "--set",
        "student.architecture='vit-mini'",
        "--set",
        "student.sizes_px=[32]",
        "--set",
        "run.steps=2",
        "--set",
        "run.batch_size=8",
        "--set",
        "views.photometric=none",
    ]
    train = ["train", "--store", store, "--data", "photos", *small]
    one = command(capsys, *train, "--stage", "1", "--features", "efficientnet-lite0", "--out", str(tmp_path / "proxy"))
    assert one["steps"] == 2
    command(capsys, *extract, "--teacher", str(tmp_path / "proxy"))
    two = command(capsys, *train, "--stage", "2", "--features", "proxy", "--out", str(tmp_path / "student"))
    assert two["already"] is False
    command(capsys, "index", str(demo[0] / "data" / "test-40"), "--store", store, "--name", "unseen")
    knn = command(capsys, "evaluate", "knn", str(tmp_path / "student"), "--store", store, "--train", "photos", "--test", "unseen")
    assert (knn["train_images"], knn["test_images"]) == (96, 40)
    listed = command(capsys, "features", "ls", "--store", store)
    assert {key.split("@")[0] for key in listed["features"]} == {"efficientnet-lite0", "proxy", "student-pooled"}
    assert command(capsys, "features", "verify", "efficientnet-lite0", "--store", store)
    assert command(capsys, "report", str(tmp_path / "student"), "--out", str(tmp_path / "report.html"))["bytes"] > 1000


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["extract-features", "--data", "photos", "--teacher", "dinov9"], "unknown teacher 'dinov9'"),
        (["extract-features", "--data", "photos", "--teacher", "dinov3-h+"], "the weights of teacher dinov3-h+ are missing"),
        (["extract-features", "--data", "cats", "--teacher", "efficientnet-lite0"], "cats"),
        (["train", "--stage", "2", "--data", "cifar10", "--features", "dinov3-h+", "--out", "run"], "dinov3-h+"),
        (
            ["train", "--stage", "2", "--data", "cifar10", "--features", "proxy", "--set", "run.stepz=3", "--out", "run"],
            "run.steps",
        ),
    ],
)
def test_a_newcomers_mistakes_are_explained_and_end_with_status_2(
    demo: tuple[Path, dict[str, Any]], words: list[str], text: str, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    words = ["cifar10" if word == "photos" else word for word in words]
    assert main([*words, "--store", str(demo[0] / "store")]) == 2
    assert text in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_store_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["features", "ls", "--store", str(tmp_path)]) == 2
    assert main(["index", str(tmp_path), "--store", str(tmp_path), "--name", "photos"]) == 2
    assert "is not a feature store" in capsys.readouterr().err
