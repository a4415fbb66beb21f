"""Check the house rules that no linter knows; prints each breach as `file:line: why` and exits 1.

Imports go down only: from room to room (pipeline, jobs, student, teachers, storage), and inside a room from wing to wing in the order of
`WINGS`; no files import one another in a circle. A wing has at most 14 files, a file at most 400 lines. Inside the package imports are
relative; each heavy or replaceable library lives in one place; nothing unpickles. Only the syntax tree is read, nothing is
imported, so a lazy import inside a function counts too.
Limits: `importlib.import_module` with a computed name is not seen.

    .venv/bin/python tools/layers.py [CHECKOUT]
"""

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOMS = ("pipeline", "jobs", "student", "teachers", "storage")  # from the top down

# The wings of a room, and files that stand in the room itself, from the top down: each imports only what stands below it.
WINGS = {
    "pipeline": ("__main__", "commands", "demo", "distillation", "reports", "pictures", "console", "recipes"),
    "jobs": (
        "export_run",
        "cluster",
        "hub",
        "estimates",
        "vlm",
        "training",
        "detection",
        "retrieval",
        "evaluation",
        "curation",
        "repair",
        "extraction",
        "runs",
        "ray_session",
        "ray_folders",
    ),
    "student": ("export", "heads", "language", "training", "probes", "data", "quantised", "edge", "model"),
    "teachers": ("registry", "checkpoints", "encoders", "runtime"),
    "storage": (
        "upkeep",
        "index",
        "earlier_sets",
        "store",
        "features",
        "views",
        "annotations",
        "images",
        "sources",
        "shards",
        "objects",
        "core",
    ),
}
MAX_WING_FILES, MAX_FILE_LINES = 14, 400

# library -> the places that may import it, as a path prefix inside the checkout
HOMES = {
    "click": ("pipeline/commands/",),
    "ray": ("jobs/",),
    "timm": ("teachers/",),
    "transformers": ("teachers/", "student/heads/", "student/language/"),
    "torchvision": ("teachers/", "storage/images/nvjpeg"),
    "huggingface_hub": ("teachers/", "student/export/model_card", "jobs/hub/"),
    "zarr": ("storage/",),
    "fsspec": ("storage/",),
    "s3fs": ("storage/",),
    "onnx": ("student/", "teachers/runtime/onnx_graph"),
    "onnxruntime": ("student/", "teachers/runtime/onnx_graph"),
    "openvino": ("student/",),
    "coremltools": ("student/",),
    "litert_torch": ("student/",),
    "ai_edge_litert": ("student/",),
    "executorch": ("student/",),
    "torchao": ("student/",),
    "pycocotools": ("student/heads/",),
    "scipy": (),
    "yaml": ("jobs/cluster/",),
    "wandb": ("student/training/trackers",),
    "mlflow": ("student/training/trackers",),
    "trackio": ("student/training/trackers",),
    # in storage inside functions alone
    "torch": ("pipeline/", "jobs/", "student/", "teachers/", "storage/views/torch_resize", "storage/images/nvjpeg"),
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
    top = module.split(".")[0]
    if dots == 0:
        if top == "eupe_pipeline":
            return f"`{module}` is imported absolutely; inside the package write `from ..wing.file import …`"
        allowed = HOMES.get(top)
        if allowed is not None and not any(where.startswith(prefix) for prefix in allowed):
            return f"{top} is imported outside of {' and '.join(allowed) or 'nowhere: it runs code from data'}"
        return None
    folders = where.split("/")[:-1]
    if dots > len(folders) + 1:
        return f"`{'.' * dots}{module}` leaves the package"
    target = [*folders[: len(folders) - dots + 1], *module.split(".")]
    room, wing = place(where)
    if target[0] not in ROOMS:
        return f"`{'.' * dots}{module}` leaves the package" if dots == len(folders) + 1 else None
    if ROOMS.index(target[0]) < ROOMS.index(room):
        return f"{room} imports {target[0]}, which stands above it; imports go {' -> '.join(ROOMS)}"
    wings = WINGS[room]
    if target[0] == room and len(target) > 1 and target[1] in wings and wing in wings and wings.index(target[1]) < wings.index(wing):
        return f"{room}/{wing} imports {room}/{target[1]}, which stands above it; imports go {' -> '.join(wings)}"
    return None


def place(where: str) -> tuple[str, str]:
    """Return (room, wing) of a file; a file that stands in the room itself is its own wing."""
    parts = where.removesuffix(".py").split("/")
    return parts[0], parts[1]


def circles(checkout: Path, files: list[Path]) -> Iterator[str]:
    """Yield the first circle of files that import one another, lazily or for their types alone included."""
    known = {path.relative_to(checkout).with_suffix("").as_posix() for path in files}
    graph = {}
    for path in files:
        where = path.relative_to(checkout).with_suffix("").as_posix()
        graph[where] = set(imported_files(where, ast.parse(path.read_text()), known))
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        chain = " <- ".join(f"{name}.py" for name in error.args[1])
        yield f"{error.args[1][0]}.py:1: files import one another in a circle: {chain}"


def imported_files(where: str, tree: ast.AST, known: set[str]) -> Iterator[str]:
    """Yield the files of the package that a file imports, both without `.py`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            folders = where.split("/")[:-1]
            base = "/".join([*folders[: len(folders) - node.level + 1], *(node.module or "").split(".")]).rstrip("/")
            yield from known & {base, *(f"{base}/{alias.name}" for alias in node.names)} - {where}


def sizes(checkout: Path, files: list[Path]) -> Iterator[str]:
    """Yield what has grown too large to find one's way in: wings and files."""
    wings = Counter(path.parent for path in files if path.name != "__init__.py")
    for wing, count in wings.items():
        if count > MAX_WING_FILES:
            yield f"{wing.relative_to(checkout).as_posix()}:1: {count} files, at most {MAX_WING_FILES} stand in one wing"
    for path in files:
        if (lines := path.read_text().count("\n")) > MAX_FILE_LINES:
            yield f"{path.relative_to(checkout).as_posix()}:1: {lines} lines, a file has at most {MAX_FILE_LINES}"


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
    room, wing = place(where)
    if wing not in (*WINGS[room], "__init__"):
        yield f"{where}:1: {room}/{wing} is no wing; {room} has {', '.join(WINGS[room])} (WINGS in tools/layers.py)"
    for node in ast.walk(ast.parse(path.read_text(), filename=where)):
        found = [import_breach(where, dots, module) for dots, module in imported(node)]
        found += [call_breach(node)] if isinstance(node, ast.Call) else []
        yield from (f"{where}:{getattr(node, 'lineno', 1)}: {why}" for why in found if why)


def main(checkout: Path) -> int:
    """Print every breach in the rooms; returns the exit status."""
    files = [path for room in ROOMS for path in sorted((checkout / room).rglob("*.py"))]
    found = [line for path in files for line in breaches(checkout, path)]
    found += [*sizes(checkout, files), *circles(checkout, files)]
    print(*found, sep="\n" if found else "")
    print(f"layer rules: {len(files)} files, {len(found)} breaches")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1]).resolve()))
