"""The house rules hold in the source, and the checker that says so finds each kind of breach."""

import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
CHECKER = CHECKOUT / "tools" / "layers.py"


def check(checkout: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(CHECKER), str(checkout)], capture_output=True, text=True, check=False)


def house(folder: Path, where: str, line: str) -> subprocess.CompletedProcess[str]:
    path = folder / where
    path.parent.mkdir(parents=True)
    path.write_text(f'"""A file."""\n\n{line}\n')
    return check(folder)


def test_the_source_keeps_every_rule() -> None:
    done = check(CHECKOUT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(("where", "line", "why"), [
    ("storage/core/a.py", "from ...teachers.tokens import Tokens", "storage imports teachers, which stands above it"),
    ("storage/core/a.py", "from ... import jobs", "storage imports jobs, which stands above it"),
    ("teachers/encoders/a.py", "from ...student.losses import total", "teachers imports student"),
    ("student/model/a.py", "def f() -> None:\n    from ...jobs.training.train import train", "student imports jobs"),
    ("jobs/runs/a.py", "from ...pipeline.report import write_report", "jobs imports pipeline"),
    ("jobs/runs/inner/a.py", "from ....pipeline.report import write_report", "jobs imports pipeline"),
    ("jobs/runs/a.py", "from ....other import x", "leaves the package"),
    ("jobs/runs/a.py", "from eupe_pipeline.storage.store import FeatureStore", "imported absolutely"),
    ("jobs/runs/a.py", "import eupe_pipeline.storage.store", "imported absolutely"),
    ("jobs/runs/a.py", "import click", "click is imported outside of pipeline/commands/"),
    ("pipeline/reports/report.py", "import click", "click is imported outside of pipeline/commands/"),
    ("student/model/a.py", "import ray.train", "ray is imported outside of jobs/"),
    ("student/model/a.py", "import timm", "timm is imported outside of teachers/"),
    ("student/export/lineage.py", "import huggingface_hub", "huggingface_hub is imported outside of teachers/ and student/export"),
    ("jobs/runs/a.py", "from transformers import AutoModel", "transformers is imported outside of teachers/"),
    ("pipeline/reports/a.py", "from torchvision.transforms import v2", "torchvision is imported outside of teachers/"),
    ("jobs/runs/a.py", "import zarr", "zarr is imported outside of storage/"),
    ("jobs/runs/a.py", "import fsspec.core", "fsspec is imported outside of storage/"),
    ("storage/core/a.py", "import torch.nn as nn", "torch is imported outside of"),
    ("pipeline/reports/a.py", "import onnxruntime", "onnxruntime is imported outside of student/ and teachers/runtime/onnx_graph"),
    ("teachers/encoders/a.py", "def f() -> None:\n    import executorch.runtime", "executorch is imported outside of student/"),
    ("student/model/a.py", "import pickle", "pickle is imported outside of nowhere"),
    ("student/model/a.py", "import torch\nx = torch.load('a.pt')", "torch.load without weights_only=True"),
    ("student/model/a.py", "import torch\nx = torch.load('a.pt', weights_only=False)", "torch.load without weights_only=True"),
    ("storage/core/a.py", "import numpy as np\nx = np.load('a.npy', allow_pickle=True)", "allow_pickle"),
    ("storage/core/utils.py", "x = 1", "`utils` names none"),
    ("storage/core/a.py", "from ..features.codec import CODECS", "storage/core imports storage/features, which stands above it"),
    ("storage/core/a.py", "from ..features import codec", "storage/core imports storage/features, which stands above it"),
    ("storage/core/a.py", "from .. import store", "storage/core imports storage/store, which stands above it"),
    ("jobs/extraction/a.py", "def f() -> None:\n    from ..training.train import train", "jobs/extraction imports jobs/training"),
    ("storage/a.py", "x = 1", "storage/a is no wing"),
    ("storage/attic/a.py", "x = 1", "storage/attic is no wing"),
    ("storage/core/a.py", "x = 1\n" * 400, "403 lines, a file has at most 400"),
])  # fmt: skip
def test_a_breach_is_found_and_named_with_file_and_reason(tmp_path: Path, where: str, line: str, why: str) -> None:
    done = house(tmp_path, where, line)
    assert done.returncode == 1
    assert f"{where}:" in done.stdout
    assert why in done.stdout


@pytest.mark.parametrize(("where", "line"), [
    ("pipeline/reports/a.py", "from ...storage.store import FeatureStore"),
    ("pipeline/reports/a.py", "from ...jobs import train"),
    ("pipeline/commands/main.py", "import click"),
    ("jobs/runs/a.py", "import ray\nimport torch"),
    ("teachers/encoders/a.py", "import timm\nimport torchvision\nimport transformers"),
    ("storage/core/a.py", "import fsspec\nimport zarr\nfrom .identity import digest"),
    ("storage/core/inner/a.py", "from ..identity import digest\nfrom .b import c"),
    ("storage/features/a.py", "from ..core.identity import digest\nfrom .. import core"),
    ("storage/store.py", "from .features.features import FeatureReader"),
    ("teachers/encoders/a.py", "import torch\nx = torch.load('a.pt', weights_only=True)"),
    ("student/export/model_card.py", "from huggingface_hub import ModelCard"),
    ("student/model/a.py", "import raycast_like_name"),
])  # fmt: skip
def test_what_is_allowed_is_not_found(tmp_path: Path, where: str, line: str) -> None:
    done = house(tmp_path, where, line)
    assert done.returncode == 0, done.stdout


def test_files_that_import_one_another_in_a_circle_are_named(tmp_path: Path) -> None:
    wing = tmp_path / "storage" / "core"
    wing.mkdir(parents=True)
    (wing / "a.py").write_text("from .b import B\n")
    (wing / "b.py").write_text("def f() -> None:\n    from . import c\n")
    (wing / "c.py").write_text("from ..core.a import A\n")
    done = check(tmp_path)
    assert done.returncode == 1
    assert "in a circle" in done.stdout
    assert all(f"storage/core/{name}.py" in done.stdout for name in "abc")


def test_a_wing_of_fifteen_files_is_too_large(tmp_path: Path) -> None:
    wing = tmp_path / "storage" / "core"
    wing.mkdir(parents=True)
    (wing / "__init__.py").write_text("")
    for number in range(14):
        (wing / f"file_{number}.py").write_text("")
    assert check(tmp_path).returncode == 0
    (wing / "one_more.py").write_text("")
    assert "15 files" in check(tmp_path).stdout
