"""Every command block of the documents is run, here or by a test that it names, or says why not; each line's options exist at least."""

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import click
import pytest
from eupe_pipeline.pipeline.commands.main import main
from eupe_pipeline.pipeline.distillation import scaling
from eupe_pipeline.storage.core.cache_home import weights_folder

from .document_blocks import ALL, CHECKOUT, Block, command_lines, command_of
from .pipeline.distillation.conftest import cifar as cifar  # fixtures
from .pipeline.distillation.conftest import write_photos
from .storage.conftest import s3_server as s3_server
from .storage.conftest import server as server

TINY = ("--set", "student.architecture='vit-mini'", "--set", "student.sizes_px=[16]", "--set", "run.steps=2", "--set", "run.batch_size=4")
MINI = (*TINY[:2], "--set", "student.sizes_px=[32]", *TINY[4:])


class World(NamedTuple):
    """How a page's commands are made small: words that stand for others (of one command: "COMMAND WORD"), and more words by command."""

    words: Mapping[str, str] = {}
    more: Mapping[str, tuple[str, ...]] = {}
    left_out: tuple[str, ...] = ()
    """Beginnings of commands that are run elsewhere."""
    real: bool = False
    """With the demonstration's teacher rather than a random one."""


SMALL = {"extract-features": ("--workers", "0"), "distill": ("--workers", "0")}
TEACHER = {"efficientnet-lite0": "teacher", "eupe_vitt16": "vit-mini", "STORE": "store", "URL": "store"}
WORLDS = {
    "damage.md": World(TEACHER),
    "cluster.md": World(),
    "recipes.md": World(),
    "curation.md": World(
        {"dinov3-h+": "tiny-int8", "extract-features dinov3-h+": "teacher", "int4": "int8"},
        {**SMALL, "train": ("--recipe", "demo", "--set", "views.photometric=none", *TINY), "extract-features": ("--workers", "0")},
    ),
    "own-teacher.md": World({"STORE": "store", "RECIPE": "demo", "RUN": "run"}, {**SMALL, "train": MINI}),
    "licences.md": World({"STORE": "store"}, SMALL),
}
LONG = {
    "budget.md": World({**TEACHER, "24": "4", "int4": "int8"}, SMALL),
    "quickstart.md": World(
        {"~/photos": "photos", "~/test-photos": "test-photos"},
        {
            "extract-features": ("--workers", "0"), "train": MINI, "evaluate": ("--device", "cpu"), "plan": (), "pictures": (),
        },
        left_out=("demo",), real=True,
    ),
    "s3.md": World(
        {"~/photos": "photos", "efficientnet-lite0": "teacher"},
        {"extract-features": ("--workers", "0"), "train": ("--set", "views.photometric=none", *TINY)},
    ),
}  # fmt: skip
HERE = [block for block in ALL if not block.said]


def parse(words: list[str]) -> None:
    """Raise what click raises for a line: unknown options, missing values, choices and ranges; files need not be there."""
    command, rest = command_of(words)
    context = click.Context(command, info_name=command.name)
    shown, rest = "…" in rest, [word for word in rest if word != "…"]
    with_values, _, _ = command.make_parser(context).parse_args(list(rest))
    for parameter in command.get_params(context):
        value, convert = with_values.get(str(parameter.name)), cast(Any, parameter.type).convert
        if isinstance(parameter.type, (click.Choice, click.IntRange, click.FloatRange)) and isinstance(value, (str, list, tuple)):
            for one in [value] if isinstance(value, str) else value:
                convert(one, parameter, context)
        absent = value is None or value is getattr(click.core, "UNSET", None) or value in ([], ())
        assert shown or not (parameter.required and absent), f"{parameter.opts[0]} is missing"


@pytest.mark.parametrize("block", ALL, ids=lambda block: block.name)
def test_every_line_of_a_block_is_a_command_with_these_options_and_choices(block: Block) -> None:
    for words in command_lines(block):
        parse(words)


@pytest.mark.parametrize(
    "words", ["index x --stor y", "export RUN --format tiff --out x", "plan --data x --teacher y", "train --stage 4 …", "indx"]
)
def test_a_line_that_click_would_refuse_is_found(words: str) -> None:
    with pytest.raises((click.ClickException, AssertionError)):
        parse(words.split())


@pytest.mark.parametrize("block", ALL, ids=lambda block: block.name)
def test_every_block_is_run_or_says_why_not(block: Block) -> None:
    page = block.page.name
    if block.said == "run by":
        test = CHECKOUT / block.why
        assert test.is_file(), block.why
        assert page in test.read_text(), f"{block.why} does not read {page}"
    elif block.said == "not run":
        assert len(block.why.split()) >= 3, "a reason has some words"
    else:
        assert page in WORLDS or page in LONG, f"{block.name} is neither run by a test nor says why not (tests/document_blocks.py)"
        assert all(line.startswith("eupe-pipeline ") for line in block.lines), "what is run here are commands of ours"


@pytest.fixture
def world(tiny_store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Lay out what a page's commands start from, in the folder where they are run."""

    def lay_out(page: str) -> None:
        shutil.copytree(tiny_store.teacher_run.parent / "images", tmp_path / "photos")
        shutil.copytree(tiny_store.teacher_run, tmp_path / "teacher")
        if page != "s3.md":
            shutil.copytree(tiny_store.store.url, tmp_path / "store")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(scaling, "LEAST_STEPS", 4)
        monkeypatch.setattr(scaling, "_MOST_EPOCHS", 3.0)
        for source in ("own-teacher.md", page):
            for language, text in re.findall(r"```(python|toml)\n(.*?)```", (CHECKOUT / "docs" / source).read_text(), re.DOTALL):
                if source == "own-teacher.md" and language == "python":
                    (tmp_path / "my_teacher.py").write_text(text)
                elif named := re.match(r"# ([\w-]+\.toml)\n", text):
                    (tmp_path / named[1]).write_text(text)

    return lay_out


def run_page(page: str, small: World) -> int:
    """Run the page's blocks in their order; returns how many commands there were."""
    count = 0
    for words in [words for block in HERE if block.page.name == page for words in command_lines(block)]:
        if words[0] in small.left_out:
            continue
        words = [small.words.get(f"{words[0]} {word}", small.words.get(word, word)) for word in words] + list(small.more.get(words[0], ()))
        assert main(words) == 0, words
        count += 1
    return count


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("page", WORLDS)
def test_the_blocks_of_a_page_run_in_their_order(page: str, world: Callable[[str], None]) -> None:
    world(page)
    assert run_page(page, WORLDS[page]) > 0


@pytest.mark.long
@pytest.mark.filterwarnings("default")
def test_the_commands_about_a_budget_run(world: Callable[[str], None]) -> None:
    world("budget.md")
    assert run_page("budget.md", LONG["budget.md"]) == 5
    assert not Path("runs/first").exists(), "a dry run"
    assert Path("runs/second/report.html").is_file()


@pytest.mark.long
@pytest.mark.filterwarnings("default")
def test_the_commands_for_s3_run_on_an_s3_server(server: Any, world: Callable[[str], None]) -> None:
    world("s3.md")
    assert run_page("s3.md", LONG["s3.md"]) == 5
    assert (Path("store") / "eupe-store.json").is_file()


@pytest.mark.long
@pytest.mark.filterwarnings("default")
def test_the_quick_start_runs_with_real_teachers(cifar: list[tuple[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (weights_folder() / "keras-resnet50.safetensors").is_file():
        pytest.skip("`eupe-pipeline demo --fetch-only` brings the teachers' weights")
    write_photos(tmp_path / "photos", cifar[:24])
    write_photos(tmp_path / "test-photos", cifar[24:44])
    shutil.copy(next((tmp_path / "photos").rglob("*.png")), tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    assert run_page("quickstart.md", LONG["quickstart.md"]) == 12
    assert (tmp_path / "report.html").is_file()
    assert (tmp_path / "pca.png").is_file()


def test_the_bytes_of_a_view_are_those_that_the_page_on_budgets_says() -> None:
    from eupe_pipeline.storage.features.layout import FeatureLayout
    from eupe_pipeline.teachers.registry.table import TEACHERS

    row = r"^\| `([\w+.-]+)` \| (\d+) × (\d+) × (\d+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \|$"
    rows = re.findall(row, (CHECKOUT / "docs" / "budget.md").read_text(), re.MULTILINE)
    assert len(rows) == 6
    for name, height, width, channels, *told in rows:
        assert name in TEACHERS
        cls_dim = None if name == "sam-h" else int(channels)
        layouts = [FeatureLayout(cls_dim, int(channels), (int(height), int(width)), codec) for codec in ("fp32", "fp16", "int8", "int4")]
        assert [layout.view_bytes for layout in layouts] == [int(text.replace(",", "")) for text in told], name
