"""timm, imported without torch's compiler: a start of a command or a worker takes 0.9 s less of processor time.

torchvision (for its RoI align) and timm (for its NaFlex ViTs) import `torch._dynamo`, and with it sympy, FSDP and DTensor, only to decorate
functions that no encoder of ours calls. While both are imported here, the first gets its one name from a stand-in that imports the compiler
when it is called, the second torch's own late form of the decorator; both mean the same as before. What asks the stand-in for anything else
gets the real module. Every module of this folder that imports timm calls `import_timm` first; it looks after torchvision's operators too.
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

_COMPILER, _WANTED = "torch._dynamo", "torch._dynamo.utils"


def import_timm() -> None:
    """Import timm, and torchvision with it, once; without the compiler unless somebody has imported that already."""
    torchvision_guard.install()
    if "timm" in sys.modules:
        return
    with contextlib.ExitStack() as stack:
        if _COMPILER not in sys.modules:
            stack.enter_context(_stand_in())
            stack.enter_context(_late_disable())
        stack.enter_context(_no_collections())
        importlib.import_module("timm")


@contextlib.contextmanager
def _stand_in() -> Iterator[None]:
    """In the place of `torch._dynamo.utils`: `is_compile_supported`, which imports the real module when it is called."""
    module = ModuleType(_WANTED)

    def real() -> ModuleType:
        if sys.modules.get(_WANTED) is module:
            del sys.modules[_WANTED]
        return importlib.import_module(_WANTED)

    def is_compile_supported(device_type: str) -> bool:
        return bool(real().is_compile_supported(device_type))

    def other(name: str) -> Any:
        if name.startswith("__"):  # of a module that has no file, which `inspect` asks each module for
            raise AttributeError(name)
        return getattr(real(), name)

    module.__dict__.update(is_compile_supported=is_compile_supported, __getattr__=other)
    sys.modules[_WANTED] = module
    try:
        yield
    finally:
        if sys.modules.get(_WANTED) is module:
            del sys.modules[_WANTED]


@contextlib.contextmanager
def _late_disable() -> Iterator[None]:
    """`torch.compiler.disable` in torch's own late form, which imports the compiler at a function's first call."""
    eager = torch.compiler.disable

    def late(fn: Callable[..., Any] | None = None, recursive: bool = True, *, reason: str | None = None) -> Any:
        return _disable_dynamo(fn, recursive)

    torch.compiler.disable = late
    try:
        yield
    finally:
        torch.compiler.disable = eager


@contextlib.contextmanager
def _no_collections() -> Iterator[None]:
    """No garbage collection meanwhile: imports make hundreds of thousands of objects that stay, and it looks at them again and again."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
