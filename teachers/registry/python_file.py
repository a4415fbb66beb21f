"""A teacher of the user's own: `FILE.py:FUNCTION` is run and returns a module with its description (`encoders.own_encoder`).

Its identity is the sha256 of the source, the function's name, the sha256 of the weights, and the declared preprocessing: a changed source
is another teacher, whose tokens go to another feature set. Without a weight file the weights are those of the module that the function
makes, under torch's seed 0, by the sha256 of its tensors; a function that makes others each time is refused. What none of this sees (a
module that the source imports, a library's version) the canary sees.

The file travels alone, as bytes, with the orders to workers: what it imports must be installed there. A module that only lies beside it is
refused, because it is in no identity and on no other machine. It is the user's code and is run with the user's rights: by the command, for
the widths of its tokens, and by every worker.
"""

import ast
import hashlib
import importlib.abc
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ...storage.core.errors import BadInput
from ...storage.core.identity import digest, file_sha256
from ...storage.views.input_size import SizePx
from ..encoders.architectures import Options
from ..encoders.own_encoder import OwnEncoder, OwnTeacher
from .own_tokens import measure
from .spec import PythonSource, TeacherSpec

PYTHON_FILE = "python-file"  # `name` in the architecture's record
_MODULES = "the module's"  # what stands for a weight file where there is none
_EXAMPLE = "expected FILE.py:FUNCTION, such as my_teacher.py:build"


def names_python_file(name: str) -> bool:
    """Return whether a teacher's name is FILE.py or FILE.py:FUNCTION."""
    return name.endswith(".py") or ".py:" in name


def python_file_at(name: str) -> str:
    """Return the same with the file's absolute path."""
    file, colon, function = name.rpartition(":") if not name.endswith(".py") else (name, "", "")
    return f"{Path(file).expanduser().absolute()}{colon}{function}"


def read_source(name: str) -> PythonSource:
    """Return the file's bytes and the function's name, nothing run; raise `BadInput` for what is not FILE.py:FUNCTION or not there."""
    file, _, function = name.rpartition(":")
    if not file.endswith(".py") or not function.isidentifier():
        raise BadInput(f"{name!r} names no function of a Python file; {_EXAMPLE}")
    path = Path(file).expanduser().absolute()
    try:
        return PythonSource(path, path.read_bytes(), function)
    except OSError as error:
        raise BadInput(f"the teacher {name} cannot be read: {error.strerror} ({path}); {_EXAMPLE}") from error


def source_sha256(source: PythonSource) -> str:
    """Return the sha256 of the file's bytes."""
    return hashlib.sha256(source.code).hexdigest()


def resolve_python_file(name: str, weights: Path | None, *, size_px: SizePx | None, precision: str, constants: str) -> TeacherSpec:
    """Run the function, give its module two pictures at the wanted size, and return the teacher that the tokens describe.

    Raise `BadInput` for a file that cannot be imported, a function that is missing or fails, and tokens of another shape than declared,
    or that are no numbers.
    """
    source = read_source(name)
    own = _called(source, weights)
    measured = measure(name, own, size_px, constants, lambda error: _one_line(error, source.path))
    architecture: Options = {
        "name": PYTHON_FILE, "function": source.function, "source_sha256": source_sha256(source),
        "weights": _MODULES if weights is None else "folder" if weights.is_dir() else "file",
        "cls": own.cls, "width": measured.width, "stride_px": own.stride_px,
    }  # fmt: skip
    sha256 = tensors_sha256(own.module) if weights is None else _weights_sha256(weights, name)
    return TeacherSpec(
        own.name, architecture, weights or source.path, sha256, measured.preprocessing, own.cls, measured.cls_dim, measured.width,
        measured.grid, precision, source,
    )  # fmt: skip


def load_python_file(spec: TeacherSpec) -> OwnEncoder:
    """Run the function of a resolved teacher again; raise `BadInput` when source, weights or declaration changed."""
    source, architecture = spec.source, spec.architecture
    assert source is not None
    if source_sha256(source) != architecture["source_sha256"]:
        raise BadInput(f"the source of teacher {spec.name} is not the one that was resolved; resolve the teacher again")
    weights = None if architecture["weights"] == _MODULES else spec.weights_path
    if weights is not None and (sha256 := _weights_sha256(weights, spec.name)) != spec.weights_sha256:
        raise BadInput(
            f"the weights of {spec.name} changed since they were resolved: {weights} has sha256 {sha256[:12]}…, expected "
            f"{spec.weights_sha256[:12]}…; resolve the teacher again, or put the former file back"
        )
    own = _called(source, weights)
    if weights is None and tensors_sha256(own.module) != spec.weights_sha256:
        raise BadInput(
            f"{source.function} of {source.path} makes a module with other weights each time, so the teacher {spec.name} would not be one; "
            "read them from the file that --weights gives it, or draw them by torch's generator alone"
        )
    declared = (own.cls, own.stride_px, own.name)
    if declared != (spec.cls, architecture["stride_px"], spec.name):
        raise BadInput(f"{source.function} of {source.path} declares another teacher than when it was resolved: {declared}")
    return OwnEncoder(own, architecture, spec.patch_dim)


def refuse_other_source(name: str, recorded: Mapping[str, Any]) -> None:
    """Raise `BadInput` unless FILE.py:FUNCTION is the source of a recorded architecture; nothing is run."""
    source = read_source(name)
    got, wanted = (source_sha256(source), source.function), (recorded.get("source_sha256"), recorded.get("function"))
    if got != wanted:
        raise BadInput(
            f"{name} is not the teacher that was recorded: {source.function} of a file with sha256 {got[0]}, wanted {wanted[1]} of "
            f"one with {wanted[0]}; put the former file back, or extract a new feature set with this one"
        )


def tensors_sha256(module: nn.Module) -> str:
    """Return the sha256 of a module's parameters and buffers: name, type, shape and bytes of each, by name."""
    hasher = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if isinstance(tensor, Tensor):
            raw = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
            hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {raw.nbytes}\n".encode())
            hasher.update(raw.data)
    return hasher.hexdigest()


def _weights_sha256(weights: Path, name: str) -> str:
    """Return the sha256 of the file, or of all files of a folder with their names."""
    if weights.is_file():
        return file_sha256(weights)
    if not weights.is_dir():
        raise BadInput(f"the weights of teacher {name} are missing: {weights} is no file and no folder; say --weights {name}=PATH")
    return digest({path.relative_to(weights).as_posix(): file_sha256(path) for path in sorted(weights.rglob("*")) if path.is_file()})


def _called(source: PythonSource, weights: Path | None) -> OwnTeacher:
    """Return what the function returns, in eval mode on the CPU."""
    where = f"{source.path}:{source.function}"
    module = _imported(source)
    function = getattr(module, source.function, None)
    if not callable(function):
        own = [name for name, value in vars(module).items() if callable(value) and getattr(value, "__module__", "") == module.__name__]
        raise BadInput(f"{source.path} has no function {source.function!r}; it has {', '.join(own) or 'none'}")
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            own = function(weights)
    except (Exception, SystemExit) as error:
        raise BadInput(f"{where} fails with weights={weights}: {_one_line(error, source.path)}") from error
    if not isinstance(own, OwnTeacher):
        raise BadInput(f"{where} returns a {type(own).__name__}, expected an OwnTeacher ({OwnTeacher.__module__})")
    own.module.to("cpu").eval().requires_grad_(False)
    return own


class _FromBytes(importlib.abc.InspectLoader):
    """Runs a source that was read before, so that what runs is what was hashed, and leaves no compiled file behind."""

    def __init__(self, source: PythonSource) -> None:
        self._source = source

    def get_source(self, fullname: str) -> str:
        return importlib.util.decode_source(self._source.code)

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self._source.code, str(self._source.path))

    def is_package(self, fullname: str) -> bool:
        return False


def _imported(source: PythonSource) -> ModuleType:
    """Return the file as a module; each content once in a process, which is said on stderr. Raises `BadInput` with the line that failed."""
    name = f"eupe_pipeline_teacher_{source_sha256(source)[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    _refuse_modules_beside(source)
    print(f"running {source.path} (sha256 {source_sha256(source)[:12]}) as a teacher, with this user's rights", file=sys.stderr)
    spec = importlib.util.spec_from_loader(name, _FromBytes(source))
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__file__ = str(source.path)
    sys.modules[name] = module  # dataclasses and pickle look it up by name
    try:
        spec.loader.exec_module(module)  # type: ignore[union-attr]
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        hint = "; the file travels alone, what it imports must be installed" if isinstance(error, ImportError) else ""
        raise BadInput(f"{source.path} cannot be imported: {_one_line(error, source.path)}{hint}") from error
    return module


def _refuse_modules_beside(source: PythonSource) -> None:
    """Raise `BadInput` when the file imports, now or later, a module that lies in its folder and belongs to no installed package."""
    folder = source.path.parent.resolve()
    for name in dict.fromkeys(_imported_names(source)):
        if not (folder / f"{name}.py").is_file() and not (folder / name).is_dir():
            continue
        module_spec = importlib.util.find_spec(name)
        places = (
            []
            if module_spec is None
            else [module_spec.origin]
            if module_spec.origin
            else list(module_spec.submodule_search_locations or [])
        )
        elsewhere = any(not Path(place).resolve().is_relative_to(folder) for place in places)
        if not elsewhere and name not in importlib.metadata.packages_distributions():
            raise BadInput(
                f"{source.path} imports {name}, which lies beside it: the file travels alone, and its sha256 is the teacher's identity, so "
                f"a changed {name} would be taken for the same teacher. Put its code into the file, or install it as a package on each "
                "machine"
            )


def _imported_names(source: PythonSource) -> Iterator[str]:
    """Yield the top-level names of all imports in the file, those in functions, too."""
    try:
        tree = ast.parse(source.code)
    except (SyntaxError, ValueError):  # running it says so, with the line
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def _one_line(error: BaseException, path: Path) -> str:
    """Return an error of the user's code in one line, with the last line of their file that it came through."""
    lines, step = [], error.__traceback__
    while step is not None:
        lines += [step.tb_lineno] if step.tb_frame.f_code.co_filename == str(path) else []
        step = step.tb_next
    if isinstance(error, SyntaxError) and error.lineno is not None:
        lines.append(error.lineno)
    text = " ".join(str(error).split())[:400]
    return f"{type(error).__name__}: {text}" + (f" (line {lines[-1]})" if lines else "")
