"""The command line: fast help, plain errors with status 2, JSON that scripts read."""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.pipeline.commands.main import main
from eupe_pipeline.pipeline.recipes import load
from eupe_pipeline.storage.features.features import FeatureReader

Capture = pytest.CaptureFixture[str]
COMMANDS = ["index", "extract-features", "train", "evaluate", "features", "runs", "recipe", "report", "demo", "doctor"]
COMMANDS += ["pictures", "export", "import-weights", "benchmark"]


def results(capture: Capture) -> dict[str, Any]:
    """The last line of stdout as JSON."""
    found: dict[str, Any] = json.loads(capture.readouterr().out.splitlines()[-1])
    return found


def test_help_comes_in_less_than_three_tenths_of_a_second() -> None:
    took = []
    for _ in range(3):
        began = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-m", "eupe_pipeline.pipeline", "--help"], capture_output=True, text=True, check=True)
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)  # its own time: the machine may have more to do
        took.append(ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime)
    assert all(command in done.stdout for command in COMMANDS)
    assert min(took) < 0.3


def test_help_imports_nothing_heavy() -> None:
    run = "from eupe_pipeline.pipeline.commands.main import main; main(['extract-features', '--help'])"
    code = f"import sys; {run}; print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = done.stdout.rsplit("[", 1)[1]
    assert not [name for name in ("torch", "numpy", "ray", "timm", "zarr", "rich", "jinja2") if f"'{name}'" in modules]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: Capture) -> None:
    assert main([command, "--help"]) == 0
    assert "Usage: eupe-pipeline" in capsys.readouterr().out


@pytest.mark.parametrize("group", [[], *([one] for one in ("evaluate", "features", "runs", "recipe", "pictures", "benchmark"))])
def test_no_commands_line_in_a_list_is_cut_at_80_columns(group: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*group, "--help"]) == 0
    assert "..." not in capsys.readouterr().out.split("Commands:")[1]


def test_a_folder_of_photos_is_indexed_and_indexed_again_to_the_same_key(photos: Path, tmp_path: Path, capsys: Capture) -> None:
    arguments = ["index", str(photos), "--store", str(tmp_path / "store"), "--name", "pets", "--json"]
    assert main(arguments) == 0
    first = results(capsys)
    assert (first["event"], first["images"], first["labels"]) == ("result", 9, 3)
    assert main(arguments) == 0
    assert results(capsys)["dataset"] == first["dataset"]


def test_an_index_shows_readable_text_on_stdout_and_progress_on_stderr(photos: Path, tmp_path: Path, capsys: Capture) -> None:
    assert main(["index", str(photos), "--store", str(tmp_path / "store"), "--name", "pets"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("dataset: pets@")
    assert "images: 9" in out
    assert "index pets" in err


@pytest.mark.parametrize(("arguments", "says"), [
    (["index", "{tmp}/nothing", "--store", "{tmp}/store", "--name", "x"], "nothing"),
    (["index", "{tmp}/empty", "--store", "{tmp}/store", "--name", "x"], "no image was found"),
    (["index", "{tmp}/photos", "--store", "{tmp}/strangers", "--name", "x"], "is not a feature store and is not empty"),
    (["features", "ls", "--store", "{tmp}/empty"], "is not a feature store"),
    (["features", "show", "nothing", "--store", "{tmp}/store"], "is not a feature store"),
    (["recipe", "show", "eupe-stage4"], "did you mean 'eupe-stage"),
    (["recipe", "show", "demo", "--stage", "1", "--set", "run.stps=3"], "did you mean 'run.steps'"),
    (["report", "{tmp}/empty", "--out", "{tmp}/r.html"], "is not the folder of a training run"),
    (["doctor", "--folder", "{tmp}/nothing"], "is not a folder"),
    (["train", "--stage", "2", "--store", "{tmp}/store", "--data", "d", "--features", "f", "--out", "{tmp}/o", "--set", "seed=x"],
     "seed is 'x', wanted a whole number"),
    (["train", "--stage", "3", "--store", "{tmp}/store", "--data", "d", "--features", "f", "--out", "{tmp}/o"],
     "give --proxy RUN, the run whose model made"),
    (["extract-features", "--store", "{tmp}/store", "--data", "d", "--teacher", "a", "--teacher-size", "b=64"],
     "--teacher-size names 'b', which is not among the teachers"),
    (["evaluate", "knn", "m", "--store", "{tmp}/empty", "--train", "a", "--test", "b"], "is not a feature store"),
])  # fmt: skip
def test_what_the_user_can_correct_is_printed_on_stderr_with_status_two(
    arguments: list[str], says: str, photos: Path, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "strangers").mkdir()
    (tmp_path / "strangers" / "thesis.txt").write_text("mine")
    assert main([word.replace("{tmp}", str(tmp_path)) for word in arguments]) == 2
    out, err = capsys.readouterr()
    assert says in err
    assert "Traceback" not in err
    assert out == ""


@pytest.mark.parametrize(("arguments", "says"), [
    (["extract-features", "--store", "s", "--data", "d", "--teacher", "a", "--teacher-size", "a:64"], "'a:64' is not TEACHER=PX"),
    (["extract-features", "--store", "s", "--data", "d", "--teacher", "a", "--teacher-size", "a=big"],
     "is not TEACHER=PX with 1 to 8,192 px"),
    (["extract-features", "--store", "s", "--data", "d", "--teacher", "a", "--grid", "16"], "'16' is not ROWSxCOLUMNS, such as 16x16"),
    (["extract-features", "--store", "s", "--data", "d", "--teacher", "a", "--grid", "0x4"], "'0x4' is not ROWSxCOLUMNS"),
    (["extract-features", "--store", "s", "--data", "d", "--teacher", "a", "--codec", "zip"], "'zip' is not one of 'fp32', 'fp16', 'int8'"),
    (["train", "--stage", "4"], "4 is not in the range 1<=x<=3"),
    (["index", "x"], "Missing option '--store'"),
    (["idnex"], "No such command 'idnex'"),
])  # fmt: skip
def test_a_misused_option_is_status_two_and_says_how(arguments: list[str], says: str, capsys: Capture) -> None:
    assert main(arguments) == 2
    assert says in capsys.readouterr().err


def test_recipe_show_prints_key_value_and_origin(capsys: Capture) -> None:
    assert main(["recipe", "show", "eupe-stage2", "--set", "student.architecture=eupe_vits16"]) == 0
    rows = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()[1:]]
    assert ["student.architecture", "eupe_vits16", "--set"] in rows
    assert ["run.steps", "390,000", "paper"] in rows


def test_recipe_show_as_json_holds_the_exact_values_of_every_stage(capsys: Capture) -> None:
    assert main(["recipe", "show", "demo", "--json"]) == 0
    found = results(capsys)
    assert found["stage3"]["student.sizes_px"]["value"] == [48, 64, 80]
    assert found["stage2"]["optimizer.weight_decay"] == {"value": 1e-4, "origin": "paper"}


def test_a_dry_run_refuses_an_incomplete_feature_set(small_store: tuple[str, FeatureReader], tmp_path: Path, capsys: Capture) -> None:
    url, reader = small_store
    arguments = [
        "train",
        "--stage",
        "2",
        "--store",
        url,
        "--data",
        "photos",
        "--features",
        "tiny-int8",
        "--out",
        str(tmp_path / "run"),
        "--dry-run",
    ]
    assert main(arguments) == 2
    assert reader.key in capsys.readouterr().err


def test_a_dry_run_shows_what_would_be_used_and_does_nothing(tiny_store: Any, tmp_path: Path, capsys: Capture) -> None:
    arguments = ["train", "--stage", "2", "--store", tiny_store.store.url, "--data", "photos", "--features", "tiny-teacher",
                 "--out", str(tmp_path / "run"), "--set", "run.steps=7", "--dry-run", "--json",
                 "--set", "views.photometric=none"]  # fmt: skip
    assert main(arguments) == 0
    found = results(capsys)
    assert found["features"][tiny_store.features().key]["rows"] == 48
    assert found["recipe"]["run.steps"] == {"value": 7, "origin": "--set"}
    assert not (tmp_path / "run").exists()


def test_verify_ends_with_status_one_when_a_shard_is_damaged(small_store: tuple[str, FeatureReader], capsys: Capture) -> None:
    url, reader = small_store
    assert main(["features", "verify", "tiny-int8", "--store", url]) == 0
    record = reader.group.record(0)
    assert record is not None
    victim = Path(url, "features", reader.key, record.objects["patch"].key)
    victim.write_bytes(victim.read_bytes()[:-1])
    assert main(["features", "verify", "tiny-int8", "--store", url]) == 1
    assert "shard 0" in capsys.readouterr().err


def test_features_ls_names_every_set(small_store: tuple[str, FeatureReader], capsys: Capture) -> None:
    url, reader = small_store
    assert main(["features", "ls", "--store", url]) == 0
    out = capsys.readouterr().out
    assert reader.key in out
    assert "2 of 3" in out


def test_a_report_is_written_and_its_place_printed(made_run: Callable[..., Path], tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "report.html"
    assert main(["report", str(made_run("one")), str(made_run("two")), "--out", str(out), "--json"]) == 0
    assert results(capsys)["bytes"] == out.stat().st_size
    assert "<title>one, two</title>" in out.read_text()


def test_ctrl_c_says_that_everything_finished_is_kept(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def stop(**values: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(load, "list_recipes", stop)
    assert main(["recipe", "ls"]) == 2
    assert "is kept" in capsys.readouterr().err


def _heed_interrupts() -> None:
    """Undo what a shell's `&` did to these tests, and a child inherits: SIGINT is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_real_interrupt_of_a_real_process_ends_with_status_two_and_no_traceback(photos: Path, tmp_path: Path) -> None:
    for n in range(4000):
        os.link(photos / "cat" / "0.png", photos / "cat" / f"same-{n}.png")
    command = [sys.executable, "-m", "eupe_pipeline.pipeline", "index", str(photos), "--store", str(tmp_path / "store"), "--name", "pets"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=_heed_interrupts)
    assert process.stderr is not None
    assert "index pets: 1/4,009" in process.stderr.readline()  # at work for certain
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (2, "")
    assert "is kept" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(("error", "says"), [
    (ModuleNotFoundError("No module named 'onnx'", name="onnx.reference"), "run: pip install 'eupe-pipeline[export]'"),
    (ModuleNotFoundError("No module named 'sklearn'", name="sklearn"), "the package sklearn, which is not installed"),
    (MemoryError("Unable to allocate 237. TiB"), "out of memory (Unable to allocate 237. TiB); take a smaller --size"),
])  # fmt: skip
def test_a_missing_package_and_too_little_memory_are_said(
    error: Exception, says: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def fail(**values: Any) -> None:
        raise error

    monkeypatch.setattr(load, "list_recipes", fail)
    assert main(["recipe", "ls"]) == 2
    assert says in capsys.readouterr().err


def test_a_module_of_our_own_that_is_missing_is_no_word_to_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**values: Any) -> None:
        raise ModuleNotFoundError("No module named 'eupe_pipeline.gone'", name="eupe_pipeline.gone")

    monkeypatch.setattr(load, "list_recipes", fail)
    with pytest.raises(ModuleNotFoundError):
        main(["recipe", "ls"])
