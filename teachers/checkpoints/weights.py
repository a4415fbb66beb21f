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

_NAMED_AT_MOST = 5


def save_weights(tensors: Mapping[str, Tensor], out: Path) -> None:
    """Write a safetensors file atomically; equal tensors give equal bytes."""
    make_folder(out.parent)
    write_atomically(out, save({name: tensor.detach().contiguous() for name, tensor in tensors.items()}))


def read_weights(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU; raises BadInput when it is absent or is not one."""
    with _safetensors(path):
        return load_file(path)


def check_format(path: Path) -> None:
    """Look at the header alone; raises BadInput when the file is absent or no safetensors file, before anything is spent on it."""
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
    more = f" and {len(names) - _NAMED_AT_MOST} more" if len(names) > _NAMED_AT_MOST else ""
    return f"{len(names)} {what} ({', '.join(sorted(names)[:_NAMED_AT_MOST])}{more})"


def load_strictly(module: nn.Module, path: Path) -> None:
    """Copy a file's tensors into `module`; raises BadInput naming every kind of disagreement, and then changes nothing."""
    theirs, ours = read_weights(path), module.state_dict()
    found = {
        "missing": [name for name in ours if name not in theirs],
        "unexpected": [name for name in theirs if name not in ours],
        "of another shape": [name for name in theirs if name in ours and theirs[name].shape != ours[name].shape],
    }
    if any(found.values()):
        faults = "; ".join(_listed(what, names) for what, names in found.items() if names)
        raise BadInput(
            f"{path} does not fit this architecture: {faults}. Nothing was loaded: "
            "a teacher with partly random weights is refused. Give the file that belongs to the architecture."
        )
    module.load_state_dict(theirs, strict=True)
