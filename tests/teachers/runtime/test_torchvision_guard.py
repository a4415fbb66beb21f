import subprocess
import sys

import pytest
import torch
from eupe_pipeline.teachers.runtime import torchvision_guard


def run(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_timm_imports_and_builds_after_the_guard_in_a_fresh_process() -> None:
    script = (
        "from eupe_pipeline.teachers.runtime import torchvision_guard as g; g.install(); g.install()\n"
        "import timm, torchvision.transforms.v2\n"
        "print(sum(p.numel() for p in timm.create_model('test_vit').parameters()))"
    )
    assert int(run(script)) > 100_000


def test_a_declared_operator_has_no_kernel_and_says_so() -> None:
    if not torchvision_guard.install():
        pytest.skip("torchvision's real operators load here")
    with pytest.raises(NotImplementedError, match="torchvision::nms"):
        torch.ops.torchvision.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)


def test_without_the_guard_this_machine_would_fail_exactly_when_the_guard_is_active() -> None:
    script = "try:\n    import torchvision\n    print('imports')\nexcept RuntimeError as e:\n    print(e)"
    expected = "operator torchvision::nms does not exist" if torchvision_guard.install() else "imports"
    assert run(script).strip() == expected


def test_it_declares_the_twelve_operators_that_torchvision_registers_on() -> None:
    names = {schema.split("(")[0] for schema in torchvision_guard.SCHEMAS}
    assert len(names) == len(torchvision_guard.SCHEMAS) == 12
    assert sum(name.endswith("_backward") for name in names) == 5


def test_where_the_real_operators_load_nothing_is_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision_guard, "_declared", [])
    monkeypatch.setattr(torchvision_guard, "_real_operators_load", lambda: True)
    assert torchvision_guard.install() is False
    assert "load" in torchvision_guard.status()


def test_without_torchvision_the_status_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(torchvision_guard, "_declared", [])
    assert torchvision_guard._real_operators_load() is False
    assert torchvision_guard.install() is False
    assert "pip install timm" in torchvision_guard.status()


def test_the_status_of_this_machine_is_one_line_with_a_remedy_when_one_is_needed() -> None:
    status = torchvision_guard.status()
    assert "\n" not in status
    assert ("pip install" in status) == torchvision_guard.install()
