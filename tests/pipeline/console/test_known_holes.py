"""Libraries with known holes are refused before anything is done; ranges, pins and the document say the same versions."""

import importlib.metadata
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from eupe_pipeline.pipeline.commands.main import main
from eupe_pipeline.pipeline.console.doctor import traps
from eupe_pipeline.pipeline.console.known_holes import ACCEPTED, HOLES, as_numbers, installed_holes, refuse_known_holes
from eupe_pipeline.storage.core.errors import BadInput

CHECKOUT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def looked_anew() -> Iterator[None]:
    refuse_known_holes.cache_clear()
    yield
    refuse_known_holes.cache_clear()


@pytest.fixture
def have(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make some libraries seem to be installed in other versions; None: absent."""
    true = importlib.metadata.version

    def change(**versions: str | None) -> None:
        def version(name: str) -> str:
            if name not in versions:
                return true(name)
            here = versions[name]
            if here is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return here

        monkeypatch.setattr(importlib.metadata, "version", version)

    return change


def test_what_is_installed_here_has_no_known_hole() -> None:
    assert installed_holes() == {}
    refuse_known_holes()


@pytest.mark.parametrize(
    ("older", "newer"),
    [("2.9.1", "2.10.0"), ("5.3.0rc1", "5.3.0"), ("5.3.0.dev0", "5.3"), ("2.10.0a0+git1", "2.10.0"), ("9.5", "12.1.1"), ("x", "0.0.1")],
)
def test_versions_compare_as_numbers_and_pre_releases_come_before(older: str, newer: str) -> None:
    assert as_numbers(older) < as_numbers(newer)


@pytest.mark.parametrize(("one", "other"), [("2.10", "2.10.0"), ("2.10.0+cu130", "2.10.0"), ("v1.21.0", "1.21.0")])
def test_builds_and_zeros_do_not_matter(one: str, other: str) -> None:
    assert as_numbers(one) == as_numbers(other)


def test_every_command_refuses_and_says_what_to_install(
    have: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    have(torch="2.9.1+cu128", ray="2.40.0", onnx=None)
    for words in (
        ["index", str(tmp_path), "--store", str(tmp_path / "s"), "--name", "x"],
        ["features", "ls", "--store", "s"],
        ["recipe", "ls"],
    ):
        refuse_known_holes.cache_clear()
        assert main(words) == 2
        said = capsys.readouterr().err
        assert "torch 2.9.1+cu128 has a known hole (CVE-2026-24747, CVE-2025-32434)" in said
        assert "pip install 'torch>=2.10.0' 'ray>=2.54.0'" in said
        assert "onnx" not in said
    assert not (tmp_path / "s").exists()


def test_help_and_doctor_still_answer_and_doctor_lists_it(have: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    have(transformers="5.2.0")
    assert main(["--help"]) == 0
    assert main(["train", "--help"]) == 0
    assert "transformers 5.2.0 has a known hole (CVE-2026-4372)" in "\n".join(traps())


def test_functions_from_python_refuse_as_well_and_errors_can_still_be_imported(have: Callable[..., None]) -> None:
    from eupe_pipeline import pipeline

    have(pillow="11.3.0")
    with pytest.raises(BadInput, match=r"pillow 11\.3\.0 has a known hole"):
        _ = pipeline.index
    assert pipeline.BadInput is BadInput


def test_a_version_that_somebody_else_mended_is_accepted_by_name_alone(have: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    have(torch="2.9.1", urllib3="2.6.0")
    monkeypatch.setenv(ACCEPTED, "Torch, other")
    with pytest.raises(BadInput, match=r"^urllib3 2\.6\.0 has a known hole.*EUPE_PIPELINE_ACCEPT_OLD=urllib3$"):
        refuse_known_holes()
    monkeypatch.setenv(ACCEPTED, "torch,urllib3")
    refuse_known_holes()


def test_ranges_and_pins_allow_no_version_with_a_known_hole() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    least = [(match[1], match[2]) for text in wanted if (match := re.match(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)", text))]
    ranged = {name.lower() for name, _ in least}
    assert set(HOLES) <= ranged
    assert [f"{name}>={version}" for name, version in least if name.lower() in HOLES
            and as_numbers(version) < as_numbers(HOLES[name.lower()].fixed_in)] == []  # fmt: skip
    pins = dict(line.split("==") for line in (CHECKOUT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert all(as_numbers(pins[name]) >= as_numbers(hole.fixed_in) for name, hole in HOLES.items())


def test_the_document_has_the_same_table() -> None:
    text = (CHECKOUT / "docs" / "security.md").read_text()
    rows = re.findall(r"^\| `([\w-]+)` \| ([\d.]+) \| (.+?) \| (.+?) \|", text, re.MULTILINE)
    assert {name: (version, advisory, reach) for name, version, advisory, reach in rows} == {
        name: tuple(hole) for name, hole in HOLES.items()
    }
