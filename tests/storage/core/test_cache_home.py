"""Where downloads and results are kept when there is no home, or one that nobody may write to: said once, and this user's own."""

import getpass
import logging
import os
import tempfile
from pathlib import Path

import pytest
from eupe_pipeline.storage.core import cache_home as home_module
from eupe_pipeline.storage.core.cache_home import cache_home, can_be_written, expand_path, home_folder, name_user
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.objects.objects import open_objects

NOBODY = 54321  # without an entry in the user database


@pytest.fixture(autouse=True)
def afresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("EUPE_PIPELINE_HOME", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    home_module._default_home.cache_clear()


def no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", fail)


def test_a_home_that_can_be_written_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_home() == tmp_path / ".cache" / "eupe-pipeline"


def test_without_a_home_another_place_is_said_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    no_home(monkeypatch)
    with caplog.at_level(logging.WARNING):
        assert cache_home() == cache_home() == tmp_path / "temporary" / f"eupe-pipeline-{os.getuid()}"
    assert [record.getMessage().partition(",")[0] for record in caplog.records] == ["this user has no home folder"]
    assert cache_home().stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("home", ["/proc/none", "/dev/null"])
def test_a_home_that_cannot_be_written_is_as_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, home: str) -> None:
    monkeypatch.setenv("HOME", home)
    if can_be_written(Path(home)):
        pytest.skip("root may write anywhere")
    assert cache_home().parent == tmp_path / "temporary"


def test_a_folder_that_others_may_write_to_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    no_home(monkeypatch)
    other = tmp_path / "temporary" / f"eupe-pipeline-{os.getuid()}"
    other.mkdir()
    other.chmod(0o777)
    with pytest.raises(BadInput, match="set EUPE_PIPELINE_HOME"):
        cache_home()
    other.rmdir()
    (tmp_path / "elsewhere").mkdir()
    other.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadInput, match="another user"):
        cache_home()


def test_what_the_user_names_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    no_home(monkeypatch)
    monkeypatch.setenv("EUPE_PIPELINE_HOME", str(tmp_path / "mine"))
    assert cache_home() == tmp_path / "mine"


def test_a_tilde_without_a_home_is_an_error_that_the_user_can_correct(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "")
    for path in ("~no-such-user/store",):
        with pytest.raises(BadInput, match="begins with ~"):
            expand_path(path)
        with pytest.raises(BadInput, match="begins with ~"):
            open_objects(path)


def test_a_user_without_an_entry_and_without_a_home_has_a_place_and_a_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if os.getuid():
        pytest.skip("only root can be somebody else")
    for parent in (tmp_path, *(parent for parent in tmp_path.parents if parent.name.startswith(("pytest-", "popen-")))):
        parent.chmod(0o755)
    (tmp_path / "temporary").chmod(0o1777)
    for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            name_user()
            print(home_folder(), cache_home(), getpass.getuser(), sep="|", flush=True)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert f"None|{tmp_path}/temporary/eupe-pipeline-{NOBODY}|uid-{NOBODY}" in capfd.readouterr().out


def test_everything_that_is_kept_here_has_a_folder_of_its_own_in_one_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EUPE_PIPELINE_HOME", str(tmp_path / "mine"))
    folders = {
        "weights": home_module.weights_folder(), "downloads": home_module.downloads_folder(), "shards": home_module.shards_folder(),
        "runs": home_module.runs_folder(), "fetched-runs": home_module.fetched_runs_folder(),
        "evaluations": home_module.evaluations_folder(),
    }  # fmt: skip
    assert folders == {name: tmp_path / "mine" / name for name in folders}
    assert home_module.new_weights_folder() == home_module.weights_folder()
