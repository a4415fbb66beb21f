"""The notebooks run as they are written, on real photos with a real teacher, and what they print is what they show."""

import re
from pathlib import Path
from typing import Any

import pytest
from eupe_pipeline.storage.core.cache_home import weights_folder

from tools.notebooks import load, run

from .pipeline.distillation.conftest import cifar as cifar  # a fixture
from .pipeline.distillation.conftest import write_photos

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
NAMES = ("look-into-a-cache", "a-training-loop-of-your-own")


def printed(notebook: dict[str, Any]) -> list[str]:
    return [
        "".join(output["text"]) for cell in notebook["cells"] for output in cell.get("outputs", []) if output["output_type"] == "stream"
    ]


@pytest.fixture
def photos(cifar: list[tuple[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with thirty photos, in which the notebooks are started."""
    if not (weights_folder() / "efficientnet-lite0.safetensors").is_file():
        pytest.skip("`eupe-pipeline demo --fetch-only` brings the teacher's weights")
    write_photos(tmp_path / "photos", cifar[:30])
    monkeypatch.chdir(tmp_path)


def test_there_are_two() -> None:
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(NAMES)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("photos")
def test_a_notebook_runs_and_prints_what_it_shows(name: str) -> None:
    shown = load(FOLDER / f"{name}.ipynb")
    ran = load(FOLDER / f"{name}.ipynb")
    names = run(ran, name)
    assert printed(ran)[0] == printed(shown)[0] == "60 views, 0 shards missing\n"
    assert len(printed(ran)) == len(printed(shown)), "run `python tools/notebooks.py` on it and commit its outputs"
    if name == "look-into-a-cache":
        assert printed(ran)[-1] == "no damage\n"
        assert names["same_class"] > 0.6, "by chance half: the photos here have two classes"
    else:
        assert names["losses"][-1] < 0.7 * names["losses"][0]


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_committed_with_its_outputs_and_without_paths_of_a_machine(name: str) -> None:
    notebook = load(FOLDER / f"{name}.ipynb")
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert not re.search(r"/(home|root|work|tmp)/", (FOLDER / f"{name}.ipynb").read_text())


@pytest.mark.long
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("photos")
def test_a_notebook_runs_in_jupyters_own_kernel(name: str) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    nbclient.NotebookClient(nbformat.read(FOLDER / f"{name}.ipynb", as_version=4), timeout=200).execute()
