"""Build the sdist from what the checkout holds, and the wheel from the sdist, as an index does it (`make package`).

Both are built in folders of their own, because setuptools takes along what an earlier build left: a file that was deleted since stays in
`build/` and in the list of sources, and would be published. Nothing is downloaded: the setuptools of this environment builds.

    .venv/bin/python tools/package.py [--out dist]
"""

import argparse
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]
SOURCES = ("pipeline", "jobs", "student", "teachers", "storage", "pyproject.toml", "README.md", "LICENSE")
_HOOK = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"


def copy_sources(checkout: Path, folder: Path) -> Path:
    """Copy what a package is built from into a folder, and return that."""
    for name in SOURCES:
        source = checkout / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, folder / name)
    return folder


def build(hook: str, tree: Path, out: Path) -> Path:
    """Return the file that setuptools' `build_sdist` or `build_wheel` makes of a tree; raises SystemExit with all that it said."""
    out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", _HOOK, hook, str(out.resolve())]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{hook} failed in {tree}:\n{done.stdout}{done.stderr}")
    return out / done.stdout.splitlines()[-1]


def package(checkout: Path, out: Path) -> tuple[Path, Path]:
    """Return the sdist, and the wheel that was built from the unpacked sdist."""
    with tempfile.TemporaryDirectory() as scratch:
        tree, unpacked = Path(scratch) / "tree", Path(scratch) / "unpacked"
        tree.mkdir()
        sdist = build("build_sdist", copy_sources(checkout, tree), out)
        with tarfile.open(sdist) as archive:
            archive.extractall(unpacked, filter="data")
        return sdist, build("build_wheel", next(unpacked.iterdir()), out)


def main() -> None:
    """Read the command line and build."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, default=Path("dist"))
    for path in package(CHECKOUT, parser.parse_args().out):
        print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
