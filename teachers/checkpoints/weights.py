"""Weight files at rest: where they are looked for, how they are written, and a load that accepts nothing less than all.

The run-time format is safetensors alone: it holds tensors and can run no code. A `.pth` or `.pt` passes an explicit
conversion first (`convert.py`). A load is strict both ways: a missing key would leave a random tensor in a "frozen" teacher,
an unexpected key means another architecture. The price of strictness is that a file with extra heads must be trimmed first.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ...storage.core.errors import BadInput
from ...storage.objects.atomic_files import make_folder, write_atomically

_MAX_NAMES = 5


def save_weights(tensors: Mapping[str, Tensor], out: Path) -> None:
    """Write a safetensors file atomically; equal tensors give equal bytes."""
    make_folder(out.parent)
    write_atomically(out, save({name: tensor.detach().contiguous() for name, tensor in tensors.items()}))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return all tensors of a safetensors file, on the CPU; raise `BadInput` when it is absent or not one."""
    with _safetensors(path):
        return load_file(path)


def check_format(path: Path) -> None:
    """Read the header alone; raise `BadInput` when the file is absent or no safetensors file, before any work is spent on it."""
    with _safetensors(path), safe_open(path, "pt"):
        pass


@contextlib.contextmanager
def _safetensors(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise BadInput(f"the weight file {path} is not there") from error
    except (SafetensorError, OSError) as error:
        raise BadInput(
            f"{path} is not a safetensors file ({error}); a PyTorch checkpoint (.pth, .pt) must be converted first: "
            f"`eupe-pipeline convert-weights {path} --out {path.with_suffix('.safetensors')}`"
        ) from error


def _listed(what: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return f"{len(names)} {what} ({', '.join(sorted(names)[:_MAX_NAMES])}{more})"


def load_strictly(module: nn.Module, path: Path) -> None:
    """Copy a file's tensors into `module`; raise `BadInput` naming every mismatch, and then change nothing."""
    file_tensors, module_tensors = read_weights(path), module.state_dict()
    faults_by_kind = {
        "missing": [name for name in module_tensors if name not in file_tensors],
        "unexpected": [name for name in file_tensors if name not in module_tensors],
        "of another shape": [
            name for name in file_tensors if name in module_tensors and file_tensors[name].shape != module_tensors[name].shape
        ],
    }
    if any(faults_by_kind.values()):
        faults = "; ".join(_listed(what, names) for what, names in faults_by_kind.items() if names)
        raise BadInput(
            f"{path} does not fit this architecture: {faults}. Nothing was loaded: "
            "a teacher with partly random weights is refused. Give the file that belongs to the architecture."
        )
    module.load_state_dict(file_tensors, strict=True)
