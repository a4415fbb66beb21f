"""Weight files at rest: where they are looked for, how they are written, and a load that accepts nothing less than all.

The run-time format is safetensors alone: it holds tensors and can run no code. A `.pth` or `.pt` passes an explicit
conversion first (`convert.py`). A load is strict both ways: a missing key would leave a random tensor in a "frozen" teacher,
an unexpected key means another architecture. The price of strictness is that a file with extra heads must be trimmed first. Weights in
several files are named by their index (`sharded`).
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ...storage.core.errors import BadInput
from ...storage.objects.atomic_files import make_folder, write_atomically
from .sharded import check_index, is_index, listed, weight_files

Tensors = dict[str, Tensor]


def save_weights(tensors: Mapping[str, Tensor], out: Path) -> None:
    """Write a safetensors file atomically; equal tensors give equal bytes."""
    make_folder(out.parent)
    write_atomically(out, save({name: tensor.detach().contiguous() for name, tensor in tensors.items()}))


def read_weights(path: Path, wanted: Callable[[str], bool] | None = None) -> Tensors:
    """Return the tensors of a safetensors file, or of the files of an index, on the CPU: all, or those whose names are `wanted`.

    Raise `BadInput` for what is absent or not one.
    """
    if is_index(path):
        check_format(path)
    tensors: Tensors = {}
    for file in weight_files(path):
        with _safetensors(file):
            if wanted is None:
                tensors |= load_file(file)
                continue
            with safe_open(file, "pt") as opened:
                tensors |= {name: opened.get_tensor(name) for name in opened.keys() if wanted(name)}  # noqa: SIM118 - it is no mapping
    return tensors


def shapes_in(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor by its name, from the headers alone; raise `BadInput` as `read_weights` does."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in weight_files(path):
        with _safetensors(file), safe_open(file, "pt") as opened:
            shapes |= {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118 - it is no mapping
    return shapes


def check_format(path: Path) -> None:
    """Read the headers alone; raise `BadInput` when a file is absent or no safetensors file, before any work is spent on it."""
    for file in weight_files(path):
        with _safetensors(file), safe_open(file, "pt"):
            pass
    if is_index(path):
        check_index(path)


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


def load_strictly(module: nn.Module, path: Path, from_published: Callable[[Tensors], Tensors] = dict) -> None:
    """Copy a file's tensors into `module`; raise `BadInput` naming every mismatch, and then change nothing.

    `from_published` turns the tensors of a file into those of the module, where a publisher has other names for them.
    """
    file_tensors, module_tensors = from_published(read_weights(path)), module.state_dict()
    faults_by_kind = {
        "missing": [name for name in module_tensors if name not in file_tensors],
        "unexpected": [name for name in file_tensors if name not in module_tensors],
        "of another shape": [
            name for name in file_tensors if name in module_tensors and file_tensors[name].shape != module_tensors[name].shape
        ],
    }
    if any(faults_by_kind.values()):
        faults = "; ".join(listed(what, names) for what, names in faults_by_kind.items() if names)
        raise BadInput(
            f"{path} does not fit this architecture: {faults}. Nothing was loaded: "
            "a teacher with partly random weights is refused. Give the file that belongs to the architecture."
        )
    module.load_state_dict(file_tensors, strict=True)
