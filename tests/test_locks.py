"""The lock of CI has the pins of constraints.txt and no other, each with the sha256 of its files, torch in its CPU build."""

import re
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]


def test_the_lock_has_every_pin_with_its_hashes_and_no_other_line() -> None:
    text = (CHECKOUT / "requirements-ci.lock").read_text()
    entries = re.findall(r"^([\w.-]+)==([\w.+]+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", text, re.MULTILINE)
    assert text == text.splitlines()[0] + "\n" + "".join(f"{name}=={version}{hashes}\n" for name, version, hashes in entries)
    pinned = re.findall(r"^([\w.-]+)==(\S+)$", (CHECKOUT / "constraints.txt").read_text(), re.MULTILINE)
    assert {name: version.removesuffix("+cpu") for name, version, _ in entries} == dict(pinned), "run `make locks` after `make pins`"
    assert [name for name, version, _ in entries if "+" in version] == ["torch"]


def test_the_target_installs_nothing_without_its_hash() -> None:
    recipe = re.search(r"^venv-locked:.*\n((?:\t.+\n)+)", (CHECKOUT / "Makefile").read_text(), re.MULTILINE)
    assert recipe is not None
    assert "--require-hashes --no-deps -r requirements-ci.lock" in recipe[1]
