"""What a fresh clone relies on: pins, image, continuous integration, hooks, annotations and licence."""

import hashlib
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
ROOMS = ("pipeline", "jobs", "student", "teachers", "storage")
APACHE_2_SHA256 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"


def pins() -> dict[str, str]:
    lines = [line for line in (CHECKOUT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("==") for line in lines)


def test_every_dependency_is_pinned_to_one_version_and_to_no_place() -> None:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    names = {re.split(r"[\[<>=]", text)[0].lower().replace("_", "-") for text in wanted}
    assert names <= set(pins())
    text = (CHECKOUT / "constraints.txt").read_text().partition("\n")[2]
    assert not re.search(r"https?:|file:|@|\+|--", text)


def test_what_is_installed_here_is_what_is_pinned() -> None:
    pytest.importorskip("sphinx", reason="`make docs` installs the rest of what is pinned")
    done = subprocess.run([sys.executable, str(CHECKOUT / "tools" / "pins.py")], capture_output=True, text=True, check=True)
    installed = dict(line.split("==") for line in done.stdout.splitlines()[1:])
    pinned = pins()
    assert {name: version for name, version in installed.items() if name in pinned} == {
        name: pinned[name] for name in installed if name in pinned
    }


def test_the_dockerfile_passes_hadolint() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    assert hadolint is not None
    done = subprocess.run([hadolint, str(CHECKOUT / "docker" / "Dockerfile")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_image_holds_every_room_runs_as_an_ordinary_user_and_starts_the_command_line() -> None:
    text = (CHECKOUT / "docker" / "Dockerfile").read_text()
    assert all(f"COPY {room} /src/{room}" in text for room in ROOMS)
    assert re.search(r"^USER (?!0|root)\d+$", text, re.MULTILINE)
    assert 'ENTRYPOINT ["eupe-pipeline"]' in text
    assert text.count("--require-hashes") == 3


def test_continuous_integration_runs_the_targets_that_people_run_and_waits_for_no_input() -> None:
    path = CHECKOUT / ".ci" / "run"
    assert path.stat().st_mode & 0o111
    lines = path.read_text().splitlines()
    assert [line for line in lines if line.startswith("make")] == ["make check", "make test"]
    assert "exec </dev/null" in lines


@pytest.mark.parametrize("target", ["venv", "test", "test-long", "check", "docs", "demo", "bench-train", "study"])
def test_each_target_of_make_is_there_and_says_what_it_does(target: str) -> None:
    done = subprocess.run(["make", "-s", "help"], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert re.search(rf"^{target} +\w", done.stdout, re.MULTILINE)
    subprocess.run(["make", "-n", target], cwd=CHECKOUT, capture_output=True, check=True)


def test_the_licence_is_the_whole_apache_text() -> None:
    assert hashlib.sha256((CHECKOUT / "LICENSE").read_bytes()).hexdigest() == APACHE_2_SHA256


def test_the_hooks_before_a_commit_run_what_make_check_runs() -> None:
    hooks = re.findall(r"^ +entry: (.+)$", (CHECKOUT / ".pre-commit-config.yaml").read_text(), re.MULTILINE)
    recipe = re.search(r"^check:.*\n((?:\t.+\n)+)", (CHECKOUT / "Makefile").read_text(), re.MULTILINE)
    assert recipe is not None
    assert hooks == recipe[1].replace("$(BIN)", ".venv/bin").replace("\t", "").splitlines()


def test_every_room_is_typed_for_those_who_install_it() -> None:
    setuptools = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert "py.typed" in setuptools["package-data"]["*"]
    assert all((CHECKOUT / room / "py.typed").is_file() for room in ROOMS)


def test_the_changelog_begins_with_this_version() -> None:
    version = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["version"]
    first = re.search(r"^## (.+)$", (CHECKOUT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first is not None
    assert first[1] == version
