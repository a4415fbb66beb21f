"""The documents tell the truth: links lead somewhere, commands and options exist, the README's lines run, the tour names every folder."""

import re
import shlex
from pathlib import Path

import click
import pytest
from eupe_pipeline.pipeline.commands.main import main

from .document_blocks import command_of

CHECKOUT = Path(__file__).parents[1]
DOCUMENTS = sorted([*CHECKOUT.glob("*.md"), *(CHECKOUT / "docs").rglob("*.md")])
ROOMS = ("pipeline", "jobs", "student", "teachers", "storage")
SMALL = ["--set", "student.architecture='vit-mini'", "--set", "student.sizes_px=[32]", "--set", "run.steps=2", "--set", "run.batch_size=4"]


def name_of(path: Path) -> str:
    return path.relative_to(CHECKOUT).as_posix()


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as they are made on GitHub."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def command_lines(path: Path) -> list[list[str]]:
    """The words behind `eupe-pipeline` of each line of a document that is a command, comments left out."""
    lines = re.findall(r"^    eupe-pipeline (.+)$", path.read_text(), re.MULTILINE)
    split = [shlex.split(line.replace("…", ""), comments=True) for line in lines]
    return [half for words in split for half in halves(words)]


def halves(words: list[str]) -> list[list[str]]:
    """The words before a `--` and the command behind it, which is one of its own."""
    return [words] if "--" not in words else [words[: words.index("--")], words[words.index("--") + 1 :]]


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_link_of_a_document_leads_to_a_file_and_to_a_heading_in_it(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)", path.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.exists(), f"{path.name} links to {target}"
        assert file.is_relative_to(CHECKOUT)
        assert not anchor or anchor in anchors(file), f"{path.name} links to {target}"


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if command_lines(path)], ids=name_of)
def test_every_command_of_a_document_is_a_command_with_these_options(path: Path) -> None:
    for line in command_lines(path):
        command, words = command_of(line)
        known = {option for parameter in command.get_params(click.Context(command)) for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, " ".join(line)


def test_the_documents_show_the_whole_walk() -> None:
    shown = {line[0] for path in DOCUMENTS for line in command_lines(path)}
    assert {"index", "plan", "extract-features", "train", "evaluate", "features", "pictures", "report", "export", "import-weights"} <= shown
    in_readme = {line[0] for line in command_lines(CHECKOUT / "README.md")}
    assert in_readme == {"demo", "distill", "index", "extract-features", "train", "export"}


@pytest.mark.filterwarnings("default")
def test_the_lines_of_the_readme_run_as_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from eupe_pipeline.pipeline.distillation import scaling
    from eupe_pipeline.storage.core.cache_home import weights_folder
    from PIL import Image

    monkeypatch.setattr(scaling, "LEAST_STEPS", 4)
    monkeypatch.setattr(scaling, "_MOST_EPOCHS", 3.0)

    if not (weights_folder() / "efficientnet-lite0.safetensors").is_file():
        pytest.skip("`eupe-pipeline demo --fetch-only` brings the weights")
    for label in ("cat", "dog"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for number in range(4):
            Image.effect_noise((80, 64), 40 + number).convert("RGB").save(tmp_path / "photos" / label / f"{number}.jpg")
    monkeypatch.chdir(tmp_path)
    extracting = ["--workers", "0", "--teacher-size", "efficientnet-lite0=64"]
    for words in command_lines(CHECKOUT / "README.md"):
        if words[0] == "demo":
            continue  # fetches from the network; `make test` runs it first
        words = [word.replace("~", str(tmp_path)) for word in words]
        words = ["vit-mini" if word == "eupe_vitt16" else word for word in words]
        words += {"distill": ["--workers", "0"], "extract-features": extracting, "train": SMALL}.get(words[0], [])
        assert main(words) == 0, words
    assert {path.name for path in (tmp_path / "export" / "timm").iterdir()} >= {"model.safetensors", "config.json", "usage.py", "README.md"}


def test_the_readme_fits_on_a_screen() -> None:
    assert len((CHECKOUT / "README.md").read_text().splitlines()) <= 80


def test_the_tour_names_every_folder_of_the_house() -> None:
    tour = (CHECKOUT / "CONTRIBUTING.md").read_text().split("```")[1]
    named: dict[str, set[str]] = {}
    for line in tour.strip().splitlines():
        indent, folder = re.match(r"( *)(\w+)/ +\S", line).groups()  # type: ignore[union-attr]
        if not indent:
            room = folder
        named.setdefault(room, set()).update([folder] if indent else [])
    assert tuple(name for name in named if name in ROOMS) == ROOMS
    for room in ROOMS:
        wings = {path.parent.name for path in (CHECKOUT / room).glob("*/__init__.py")}
        assert wings <= named[room], room


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if "decisions" not in path.parts], ids=name_of)
def test_every_python_file_and_module_that_a_document_names_exists(path: Path) -> None:
    text = path.read_text()
    files = {name for name in re.findall(r"[\w./-]+\.py\b", text) if "/" in name}
    assert {name for name in files if not (CHECKOUT / name).is_file() and not (path.parent / name).is_file()} == set()
    for dotted in re.findall(rf"`((?:{'|'.join(ROOMS)})\.\w+(?:\.\w+)+)`", text):
        parts = dotted.split(".")
        files_of_it = [CHECKOUT.joinpath(*parts[:n]).with_suffix(".py") for n in range(2, len(parts) + 1)]
        (file,) = [file for file in files_of_it if file.is_file()] or pytest.fail(f"{dotted} is no module")
        rest = parts[len(file.relative_to(CHECKOUT).parts) :]
        assert not rest or re.search(rf"^(class|def) {rest[0]}\b|^{rest[0]}\b", file.read_text(), re.MULTILINE), dotted


def test_every_file_that_contributors_are_sent_to_exists() -> None:
    text = (CHECKOUT / "CONTRIBUTING.md").read_text()
    named = re.findall(r"`((?:[\w-]+/)+[\w-]+\.(?:py|md))`", text)
    assert {"tools/layers.py", "tests/fault_log.py", "docs/store-format.md"} <= set(named)
    assert [name for name in named if not (CHECKOUT / name).is_file()] == []
