"""Check the house rules that no linter knows; prints each breach as `file:line: why` and exits 1.

Imports go down only (pipeline, jobs, student, teachers, storage) and across rooms they are relative; each heavy or replaceable library
lives in one place; nothing unpickles. Only the syntax tree is read, nothing is imported, so a lazy import inside a function counts too.
Limits: `importlib.import_module` with a computed name is not seen.

    .venv/bin/python tools/layers.py [CHECKOUT]
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOMS = ("pipeline", "jobs", "student", "teachers", "storage")  # from the top down

# library -> the places that may import it, as a path prefix inside the checkout
HOMES = {
    "click": ("pipeline/commands/",),
    "ray": ("jobs/",),
    "timm": ("teachers/",),
    "transformers": ("teachers/",),
    "torchvision": ("teachers/",),
    "huggingface_hub": ("teachers/",),
    "zarr": ("storage/",),
    "fsspec": ("storage/",),
    "s3fs": ("storage/",),
    "onnx": ("student/",),
    "onnxruntime": ("student/",),
    "executorch": ("student/",),
    "torchao": ("student/",),
    "torch": ("pipeline/", "jobs/", "student/", "teachers/"),
    "pickle": (),
    "cloudpickle": (),
    "dill": (),
    "marshal": (),
    "shelve": (),
    "joblib": (),
}
HARMLESS = {("pickle", "UnpicklingError"), ("pickle", "PickleError")}  # errors that a restricted load raises; naming them runs nothing
VAGUE_NAMES = {"utils", "util", "common", "misc", "helpers"}


def imported(node: ast.AST) -> list[tuple[int, str]]:
    """Return [(dots, dotted module)] that the statement imports; dots 0 is an absolute import."""
    if isinstance(node, ast.Import):
        return [(0, alias.name) for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        if all((node.module, alias.name) in HARMLESS for alias in node.names):
            return []
        if node.module is not None:
            return [(node.level, node.module)]
        return [(node.level, alias.name) for alias in node.names]
    return []


def import_breach(where: str, dots: int, module: str) -> str | None:
    """Return why the import is not allowed in file `where` (path inside the checkout), or None."""
    room, top = where.split("/")[0], module.split(".")[0]
    depth = where.count("/")  # a file right in its room has depth 1: one dot is the room, two are the house
    if dots == 0:
        if top == "eupe_pipeline":
            return f"`{module}` is imported absolutely; across rooms write `from ..room.file import …`"
        allowed = HOMES.get(top)
        if allowed is not None and not any(where.startswith(prefix) for prefix in allowed):
            return f"{top} is imported outside of {' and '.join(allowed) or 'nowhere: it runs code from data'}"
        return None
    if dots == depth + 1 and top in ROOMS and ROOMS.index(top) < ROOMS.index(room):
        return f"{room} imports {top}, which stands above it; imports go {' -> '.join(ROOMS)}"
    if dots > depth + 1:
        return f"`{'.' * dots}{module}` leaves the package"
    return None


def says(call: ast.Call, keyword: str, value: bool) -> bool:
    """Return whether the call passes keyword=value literally."""
    given = [k.value for k in call.keywords if k.arg == keyword]
    return bool(given) and isinstance(given[0], ast.Constant) and given[0].value is value


def call_breach(call: ast.Call) -> str | None:
    """Return why the call may run code from a file, or None."""
    name = ast.unparse(call.func)
    if name == "torch.load" and not says(call, "weights_only", True):
        return "torch.load without weights_only=True runs code from the file"
    if name in ("np.load", "numpy.load") and any(k.arg == "allow_pickle" for k in call.keywords):
        return "np.load with allow_pickle: leave the argument out, the default refuses"
    return None


def breaches(checkout: Path, path: Path) -> Iterator[str]:
    """Yield each breach in one file as `file:line: why`."""
    where = path.relative_to(checkout).as_posix()
    if path.stem in VAGUE_NAMES:
        yield f"{where}:1: a file is one idea; `{path.stem}` names none"
    for node in ast.walk(ast.parse(path.read_text(), filename=where)):
        found = [import_breach(where, dots, module) for dots, module in imported(node)]
        found += [call_breach(node)] if isinstance(node, ast.Call) else []
        yield from (f"{where}:{getattr(node, 'lineno', 1)}: {why}" for why in found if why)


def main(checkout: Path) -> int:
    """Print every breach in the rooms; returns the exit status."""
    files = [path for room in ROOMS for path in sorted((checkout / room).rglob("*.py"))]
    found = [line for path in files for line in breaches(checkout, path)]
    print(*found, sep="\n" if found else "")
    print(f"layer rules: {len(files)} files, {len(found)} breaches")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1]).resolve()))
