"""The lock has the pins of constraints.txt and no other, each with the sha256 of its files."""

import re
from pathlib import Path
from typing import Any

from tools.ci_lock import lock, pin_of, pinned

CHECKOUT = Path(__file__).parents[1]


def a_file(name: str, version: str, digest: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "version": version}, "download_info": {"url": "…", "archive_info": {"hashes": {"sha256": digest}}}}


def test_the_lock_has_every_pin_with_its_hashes_and_no_other_line() -> None:
    text = (CHECKOUT / "requirements-ci.lock").read_text()
    entries = re.findall(r"^(\S+==\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", text, re.MULTILINE)
    assert sorted(pin for pin, _ in entries) == sorted(pinned(CHECKOUT)), "run `make ci-lock` after `make pins`"
    assert text == text.splitlines()[0] + "\n" + "".join(f"{pin}{hashes}\n" for pin, hashes in entries)


def test_a_build_of_its_own_is_the_same_pin_with_a_hash_more() -> None:
    files = [a_file("Torch", "2.13.0+cpu", "b" * 64), a_file("torch", "2.13.0", "a" * 64), a_file("ruamel.yaml_x", "1", "c" * 64)]
    assert pin_of(files[0]) == "torch==2.13.0"
    assert lock(files).splitlines()[1:] == [
        "ruamel-yaml-x==1 \\",
        f"    --hash=sha256:{'c' * 64}",
        "torch==2.13.0 \\",
        f"    --hash=sha256:{'a' * 64} \\",
        f"    --hash=sha256:{'b' * 64}",
    ]


def test_the_target_installs_nothing_without_its_hash() -> None:
    recipe = re.search(r"^venv-locked:.*\n((?:\t.+\n)+)", (CHECKOUT / "Makefile").read_text(), re.MULTILINE)
    assert recipe is not None
    assert "--require-hashes --no-deps -r requirements-ci.lock" in recipe[1]
