"""Import timm without torch's compiler: starting a command or a worker takes 0.9 s less of processor time.

torchvision (for its RoI align) and timm (for its NaFlex ViTs) import `torch._dynamo`, and with it sympy, FSDP and DTensor, only to decorate
functions that no encoder of ours calls. While both are imported here, `torch._dynamo.utils` is replaced by a module that imports the real
one on first use, and `torch.compiler.disable` by torch's own lazy form of the decorator; both behave as before. Every module of this room
that imports timm calls `import_timm` first; it also installs `torchvision_guard`.
"""

import contextlib
import gc
import importlib
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
from torch._compile import _disable_dynamo

from . import torchvision_guard

_DYNAMO, _DYNAMO_UTILS = "torch._dynamo", "torch._dynamo.utils"


def import_timm() -> None:
    """Import timm, and torchvision with it, once; without the compiler unless that is imported already."""
    torchvision_guard.install()
    if "timm" in sys.modules:
        return
    with contextlib.ExitStack() as stack:
        if _DYNAMO not in sys.modules:
            stack.enter_context(_lazy_dynamo_utils())
            stack.enter_context(_lazy_compiler_disable())
        stack.enter_context(_gc_paused())
        importlib.import_module("timm")


@contextlib.contextmanager
def _lazy_dynamo_utils() -> Iterator[None]:
    """Replace `torch._dynamo.utils` inside the block by a module that imports the real one when it is used."""
    module = ModuleType(_DYNAMO_UTILS)

    def real() -> ModuleType:
        if sys.modules.get(_DYNAMO_UTILS) is module:
            del sys.modules[_DYNAMO_UTILS]
        return importlib.import_module(_DYNAMO_UTILS)

    def is_compile_supported(device_type: str) -> bool:
        return bool(real().is_compile_supported(device_type))

    def other(name: str) -> Any:
        if name.startswith("__"):  # of a module that has no file, which `inspect` asks each module for
            raise AttributeError(name)
        return getattr(real(), name)

    module.__dict__.update(is_compile_supported=is_compile_supported, __getattr__=other)
    sys.modules[_DYNAMO_UTILS] = module
    try:
        yield
    finally:
        if sys.modules.get(_DYNAMO_UTILS) is module:
            del sys.modules[_DYNAMO_UTILS]


@contextlib.contextmanager
def _lazy_compiler_disable() -> Iterator[None]:
    """Replace `torch.compiler.disable` inside the block by torch's lazy form, which imports the compiler at the first call."""
    eager = torch.compiler.disable

    def lazy(fn: Callable[..., Any] | None = None, recursive: bool = True, *, reason: str | None = None) -> Any:
        return _disable_dynamo(fn, recursive)

    torch.compiler.disable = lazy
    try:
        yield
    finally:
        torch.compiler.disable = eager


@contextlib.contextmanager
def _gc_paused() -> Iterator[None]:
    """Pause garbage collection: imports create hundreds of thousands of lasting objects, which it would scan again and again."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
