"""The sha256 that a checkpoint's own name promises, by the convention of torch.hub: `NAME-73cec8be.pth` begins its sha256 with 73cec8be.

torch.hub looks when it is asked to (`check_hash`); here every such file is looked at before it is taken in, because a download that did
not end, or another file of that name, would be other weights than the ones that the name says. A name that ends in a date promises nothing.
"""

import re
from pathlib import Path

from ...storage.core.errors import BadInput

_PROMISE = re.compile(r"-([0-9a-f]{8,64})\.(?:pth\.tar|pth|pt|bin)$")
_DATE = re.compile(r"(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])")


def promised_hash(name: str) -> str | None:
    """Return the beginning of the sha256 that a file's name promises, None for a name that promises none."""
    found = _PROMISE.search(name)
    return None if found is None or _DATE.fullmatch(found[1]) else found[1]


def check_promise(path: Path, sha256: str) -> None:
    """Raise `BadInput` for a file whose name promises another sha256 than it has."""
    promised = promised_hash(path.name)
    if promised is not None and not sha256.startswith(promised):
        raise BadInput(
            f"{path} is not what its name says: by torch.hub's convention its sha256 begins with {promised}, and it is {sha256}. Fetch it "
            "again; if the digits in its name mean something else, give it another name"
        )
