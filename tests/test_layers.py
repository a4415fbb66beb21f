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
    ("storage/a.py", "from ..teachers.tokens import Tokens", "storage imports teachers, which stands above it"),
    ("storage/a.py", "from .. import jobs", "storage imports jobs, which stands above it"),
    ("teachers/a.py", "from ..student.losses import total", "teachers imports student"),
    ("student/a.py", "def f() -> None:\n    from ..jobs.train import train", "student imports jobs"),
    ("jobs/a.py", "from ..pipeline.report import write_report", "jobs imports pipeline"),
    ("jobs/inner/a.py", "from ...pipeline.report import write_report", "jobs imports pipeline"),
    ("jobs/a.py", "from ...other import x", "leaves the package"),
    ("jobs/a.py", "from eupe_pipeline.storage.store import FeatureStore", "imported absolutely"),
    ("jobs/a.py", "import eupe_pipeline.storage.store", "imported absolutely"),
    ("jobs/a.py", "import click", "click is imported outside of pipeline/commands/main.py"),
    ("pipeline/reports/report.py", "import click", "click is imported outside of pipeline/commands/main.py"),
    ("student/a.py", "import ray.train", "ray is imported outside of jobs/"),
    ("student/a.py", "import timm", "timm is imported outside of teachers/"),
    ("jobs/a.py", "from transformers import AutoModel", "transformers is imported outside of teachers/"),
    ("pipeline/a.py", "from torchvision.transforms import v2", "torchvision is imported outside of teachers/"),
    ("jobs/a.py", "import zarr", "zarr is imported outside of storage/"),
    ("jobs/a.py", "import fsspec.core", "fsspec is imported outside of storage/"),
    ("storage/a.py", "import torch.nn as nn", "torch is imported outside of"),
    ("pipeline/a.py", "import onnxruntime", "onnxruntime is imported outside of student/"),
    ("teachers/a.py", "def f() -> None:\n    import executorch.runtime", "executorch is imported outside of student/"),
    ("student/a.py", "import pickle", "pickle is imported outside of nowhere"),
    ("student/a.py", "import torch\nx = torch.load('a.pt')", "torch.load without weights_only=True"),
    ("student/a.py", "import torch\nx = torch.load('a.pt', weights_only=False)", "torch.load without weights_only=True"),
    ("storage/a.py", "import numpy as np\nx = np.load('a.npy', allow_pickle=True)", "allow_pickle"),
    ("storage/utils.py", "x = 1", "`utils` names none"),
])  # fmt: skip
def test_a_breach_is_found_and_named_with_file_and_reason(tmp_path: Path, where: str, line: str, why: str) -> None:
    done = house(tmp_path, where, line)
    assert done.returncode == 1
    assert f"{where}:" in done.stdout
    assert why in done.stdout


@pytest.mark.parametrize(("where", "line"), [
    ("pipeline/a.py", "from ..storage.store import FeatureStore"),
    ("pipeline/a.py", "from ..jobs import train"),
    ("pipeline/commands/main.py", "import click"),
    ("jobs/a.py", "import ray\nimport torch"),
    ("teachers/a.py", "import timm\nimport torchvision\nimport transformers"),
    ("storage/a.py", "import fsspec\nimport zarr\nfrom .identity import digest"),
    ("storage/inner/a.py", "from ..identity import digest\nfrom .b import c"),
    ("teachers/a.py", "import torch\nx = torch.load('a.pt', weights_only=True)"),
    ("student/a.py", "import raycast_like_name"),
])  # fmt: skip
def test_what_is_allowed_is_not_found(tmp_path: Path, where: str, line: str) -> None:
    done = house(tmp_path, where, line)
    assert done.returncode == 0, done.stdout
