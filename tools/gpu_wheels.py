"""Download the wheels that a machine with torch, timm, transformers and pyarrow but without network lacks (`make gpu-wheels`).

`make gpu-check` installs them there. Versions are those of constraints.txt; the wheels are for another machine's Python, which is asked for
by number. Ray is left out: the process itself extracts and trains. Together they stay under 64 MB, so that they travel beside the tree.

    python tools/gpu_wheels.py [--python 3.12] [--out .wheels]
"""

import argparse
import subprocess
import sys
from pathlib import Path

LACKING = (
    "aiobotocore", "aioitertools", "botocore", "click", "crc32c", "donfig", "google-crc32c", "hypothesis", "jmespath", "numcodecs",
    "pytest-timeout", "s3fs", "setuptools", "simplejpeg", "sortedcontainers", "wrapt", "xxhash", "zarr",
)  # fmt: skip
MOST_BYTES = 64 * 2**20
_PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (17, 24, 26, 27, 28, 31, 34)] + ["manylinux2014_x86_64", "manylinux1_x86_64"]


def pinned(names: tuple[str, ...], constraints: str) -> list[str]:
    """Return `name==version` of each name; one that constraints.txt does not pin, such as setuptools, is taken as it comes."""
    pins = {line.partition("==")[0].lower(): line.strip() for line in constraints.splitlines() if "==" in line}
    return [pins.get(name, name) for name in names]


def download(requirements: list[str], python: str, out: Path) -> int:
    """Download into a folder, in place of what was there, and return the bytes; raises SystemExit where they are too many."""
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("*.whl"):
        old.unlink()
    platforms = [word for platform in _PLATFORMS for word in ("--platform", platform)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]
    subprocess.run([*command, "--python-version", python, "--implementation", "cp", *platforms, "-d", str(out), *requirements], check=True)
    total = sum(wheel.stat().st_size for wheel in out.glob("*.whl"))
    if total > MOST_BYTES:
        raise SystemExit(f"the wheels in {out} have {total:,} bytes, and {MOST_BYTES:,} is the most that travels; leave one out of LACKING")
    return total


def main() -> None:
    """Read the command line and download."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--python", default="3.12", help="Version of the Python there.")
    parser.add_argument("--out", type=Path, default=Path(".wheels"))
    options = parser.parse_args()
    total = download(pinned(LACKING, Path("constraints.txt").read_text()), options.python, options.out)
    print(f"{len(list(options.out.glob('*.whl')))} wheels, {total / 1e6:.1f} MB, in {options.out}")


if __name__ == "__main__":
    main()
