"""Device and precision: resolved with a reason, never silently another one."""

import pytest
import torch
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.teachers.runtime.devices import autocast, choose_device, choose_devices, choose_precision


def test_what_was_asked_for_is_taken() -> None:
    assert choose_device("cpu") == ("cpu", "asked for")
    assert choose_precision("fp32", "cpu") == ("fp32", "asked for")


def test_cuda_that_is_absent_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BadInput, match="no CUDA device"):
        choose_device("cuda")
    assert choose_device("auto") == ("cpu", "auto: torch sees no CUDA device")


@pytest.mark.parametrize(("flags", "value"), [({"amx_bf16": True}, "bf16"), ({"avx512_bf16": True}, "bf16"), ({"avx2": True}, "fp32")])
def test_auto_precision_on_a_cpu_follows_its_arithmetic(monkeypatch: pytest.MonkeyPatch, flags: dict[str, bool], value: str) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
    choice = choose_precision("auto", "cpu")
    assert choice.value == value
    assert choice.why.startswith("auto: the CPU has")


@pytest.mark.parametrize(("capability", "value"), [((7, 5), "fp32"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_auto_precision_on_cuda_follows_its_capability(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], value: str) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert choose_precision("auto", "cuda") == (value, f"auto: CUDA capability {capability[0]}.{capability[1]}")


def test_autocast_is_on_for_bf16_only() -> None:
    linear, x = torch.nn.Linear(4, 4), torch.randn(2, 4)
    with autocast("cpu", "bf16"):
        assert linear(x).dtype == torch.bfloat16
    with autocast("cpu", "fp32"):
        assert linear(x).dtype == torch.float32


def test_students_of_one_pass_share_the_cpu() -> None:
    assert choose_devices("cpu", 2) == [("cpu", "asked for")] * 2


def test_students_of_one_pass_take_cuda_devices_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [choice.value for choice in choose_devices("cuda", 3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert choose_devices("cuda", 1)[0].value == "cuda"
