"""Several users on one store, each a real process with its own user number, groups and umask: docs/several-users.md, row by row."""

import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from eupe_pipeline.storage.core.errors import BadInput, StoreUnavailable
from eupe_pipeline.storage.core.process import has_ended
from eupe_pipeline.storage.objects.objects import LocalObjects
from eupe_pipeline.storage.objects.remote import RemoteObjects
from eupe_pipeline.storage.objects.shard_cache import CachedObjects
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.upkeep.maintenance import prune, verify

from .made_up_store import Made, build, everything, files, reopen, same
from .users import ANNA, BEN, CHECKOUT, LAB, Users, users

__all__ = ["users"]

BEGIN = """
import sys
from pathlib import Path
from tests.storage.made_up_store import commit, plan
made = plan(Path(sys.argv[1]), images=8)
commit(made, 0)
made.store.objects.create("large/one", [b"x" * 100])
print(made.features.key)
"""
FINISH = """
import sys
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.upkeep.leases import Lease
from eupe_pipeline.storage.upkeep.maintenance import verify
from tests.storage.made_up_store import write_missing
store = FeatureStore.open(sys.argv[1])
with Lease(store.objects, sys.argv[2], "ben"):
    write_missing(sys.argv[1], sys.argv[2], 1)
store.objects.duplicate("large/one", "large/two", b"x" * 100)
print(verify(store.features(sys.argv[2])))
"""
READ = """
import sys
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.upkeep.maintenance import verify
features = FeatureStore.open(sys.argv[1]).features(sys.argv[2])
print(verify(features), features.read(range(8)).patch.sum())
"""
PRUNE = """
import sys
from eupe_pipeline.storage.store import FeatureStore
from eupe_pipeline.storage.upkeep.maintenance import prune
store = FeatureStore.open(sys.argv[1])
print(len(prune(store, sys.argv[2], dry_run=False)), store.list_features())
"""


def begun(users: Users, umask: int, mode: int = 0o2775) -> tuple[Path, str]:
    """Anna's store with one of two shards: its folder and the feature set's key."""
    root = users.shared("lab", mode)
    done = users.run(ANNA, BEGIN, root, umask=umask)
    assert not done.returncode, done.stderr
    return root / "store", done.stdout.strip()


def test_every_row_of_the_page_names_tests_that_are_there() -> None:
    text = (CHECKOUT / "docs" / "several-users.md").read_text()
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| ")][1:]
    named = [re.findall(r"`(test_\w+)`", tests) for _, _, tests in rows]
    assert len(rows) > 15
    assert all(named)
    defined = {
        name for file in (CHECKOUT / "tests").rglob("test_*.py") for name in re.findall(r"^def (test_\w+)\(", file.read_text(), re.M)
    }
    assert {name for tests in named for name in tests} <= defined
    assert "chmod 2775" in text  # what `Users.shared` does
    assert "umask 002" in text  # what `Users.run` has


def test_umask_002_and_a_setgid_folder_keep_a_store_writable_by_its_group(users: Users, tmp_path: Path) -> None:
    store, key = begun(users, 0o002)
    finished = users.run(BEN, FINISH, store, key)
    assert (finished.returncode, finished.stdout) == (0, "[]\n"), finished.stderr
    for path in (store, *store.rglob("*")):
        status = path.stat()
        assert status.st_gid == LAB, path
        assert status.st_mode & (0o2070 if path.is_dir() else 0o060) == (0o2070 if path.is_dir() else 0o060), path
    assert (store / "large" / "one").stat().st_nlink == 2  # Ben may link Anna's file because he may write it
    whole = build(tmp_path, images=8)
    assert same(everything(whole), everything(reopen(whole._replace(store=FeatureStore.open(str(store))))))
    pruned = users.run(ANNA, PRUNE, store, key)
    assert (pruned.returncode, pruned.stdout.split()[1:]) == (0, ["[]"]), pruned.stderr


def test_umask_022_lets_others_read_and_says_whose_the_store_is_when_they_write(users: Users) -> None:
    store, key = begun(users, 0o022, 0o2755)
    assert users.run(BEN, READ, store, key).stdout.startswith("[] ")
    refused = users.run(BEN, FINISH, store, key)
    assert refused.returncode == 1
    last = refused.stderr.strip().splitlines()[-1]
    assert "StoreUnavailable" in last
    assert f"belongs to uid {ANNA}, group gid {LAB}, with mode drwxr-sr-x, and this process is uid {BEN}" in last
    assert "chmod -R g+rwX" in last
    assert not [path for path in files(store) if path.stat().st_uid == BEN]


def test_umask_077_is_refused_by_every_command_with_owner_and_mode(users: Users) -> None:
    store, key = begun(users, 0o077, 0o2700)
    for words in (["features", "ls"], ["features", "verify"], ["features", "prune", key], ["index", CHECKOUT / "docs", "--name", "x"]):
        refused = users.run(BEN, "eupe-pipeline", *words, "--store", store)
        assert refused.returncode == 2, (words, refused.stdout, refused.stderr)
        assert "Traceback" not in refused.stderr
        assert f"belongs to uid {ANNA}, group gid {LAB}, with mode drwx--S---" in " ".join(refused.stderr.split()), refused.stderr


def test_only_the_group_may_read_a_store_of_mode_750(users: Users) -> None:
    store, key = begun(users, 0o027, 0o2750)
    assert users.run(BEN, READ, store, key).stdout.startswith("[] ")
    refused = users.run(BEN, READ, store, key, groups=())
    assert refused.returncode == 1
    assert f"with mode drwxr-s---, and this process is uid {BEN}" in refused.stderr


def test_a_user_who_may_only_read_is_shown_verifies_and_copies_a_store(users: Users) -> None:
    store, key = begun(users, 0o022, 0o2755)
    own = users.shared("own", 0o755, BEN)
    before = {path: path.stat().st_mtime_ns for path in (store, *store.rglob("*"))}
    for words in (
        ["features", "ls"],
        ["features", "show", key],
        ["features", "verify", key],
        ["features", "cp", key, "--to", own / "copy"],
    ):
        done = users.run(BEN, "eupe-pipeline", *words, "--store", store)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
    assert {path: path.stat().st_mtime_ns for path in (store, *store.rglob("*"))} == before
    assert users.run(BEN, READ, own / "copy", key).stdout.startswith("[] ")


def test_a_shard_cache_of_two_users_is_shared(users: Users) -> None:
    folder = users.shared("cache")
    lock = f"""
from pathlib import Path
from eupe_pipeline.storage.objects.remote import RemoteObjects
from eupe_pipeline.storage.objects.shard_cache import CachedObjects
from eupe_pipeline.storage.objects.remote import RemoteObjects
with CachedObjects(RemoteObjects("memory://x"), Path({str(folder)!r}))._locked("ab"):
    print("held")
"""
    for umask in (0o002, 0o022):
        for user in (ANNA, BEN):
            done = users.run(user, lock, umask=umask)
            assert done.stdout == "held\n", done.stderr
        next(folder.glob(".lock-*")).unlink()


HIDDEN = 'mount -t proc -o hidepid=2 proc /proc && exec "$@"'


def test_a_process_that_proc_hides_from_other_users_counts_as_alive(users: Users) -> None:
    given = "import json, sys; from eupe_pipeline.storage.core.process import has_ended, this_process; "
    hold, judge = given + "print(json.dumps(this_process()), flush=True); input()", given + "print(has_ended(json.loads(sys.argv[1])))"
    hidden = ["unshare", "-m", "sh", "-c", HIDDEN, "sh"]
    if subprocess.run([*hidden, "true"], check=False, capture_output=True).returncode:
        pytest.skip("/proc cannot be mounted here")
    enter, users._enter = users._enter, [*users._enter, *hidden]
    words = users.command(ANNA, [sys.executable, "-c", hold])
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=CHECKOUT) as holder:
        assert holder.stdout is not None
        process = holder.stdout.readline()
        alive = users.run(BEN, judge, process)
        assert alive.stdout == "False\n", alive.stderr
        holder.communicate("\n")
    assert users.run(BEN, judge, process).stdout == "True\n"
    users._enter = enter
    assert not has_ended({})


# Moved and linked stores: of one user.


def test_a_store_is_the_same_by_every_path_and_after_a_move(
    copied: Callable[[], Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = copied()
    wanted = everything(made)
    link = tmp_path / "link"
    link.symlink_to(made.folder)
    (tmp_path / "relative").symlink_to(made.folder.name)
    monkeypatch.chdir(tmp_path)
    for url in (link, tmp_path / "relative", "relative", f"./{made.folder.name}", f"file://{link}"):
        assert same(everything(reopen(made._replace(store=FeatureStore.open(str(url))))), wanted)
    link.unlink()
    moved = made.folder.rename(tmp_path / "elsewhere")
    assert same(everything(reopen(made._replace(store=FeatureStore.open(str(moved))))), wanted)


def test_a_set_that_lies_elsewhere_behind_a_link_is_read_verified_and_pruned(copied: Callable[[], Made], tmp_path: Path) -> None:
    made = copied()
    wanted, key, disk = everything(made), made.features.key, tmp_path / "other-disk"
    shutil.move(made.folder / "features" / key, disk)
    (made.folder / "features" / key).symlink_to(disk)
    linked = reopen(made)
    assert same(everything(linked), wanted)
    assert verify(linked.features) == []
    prune(linked.store, key, dry_run=False)
    assert FeatureStore.open(made.store.url).list_features() == []
    assert files(disk) == []
    assert not os.path.lexists(made.folder / "features" / key)


# File systems that lack what local disks have, as a library that stands before the system's shows them.

SHIM = Path(__file__).parent / "lacking_file_system.c"
ON_SHIM = """
import sys
from pathlib import Path
from eupe_pipeline.storage.upkeep.maintenance import verify
from tests.storage.made_up_store import build
made = build(Path(sys.argv[1]), images=8)
made.store.objects.create("large", [bytes(9 << 20)])
print(verify(made.features), made.store.objects.size("large"))
"""


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library, compiled."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("no C compiler")
    library = tmp_path_factory.mktemp("shim") / "lacking.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, SHIM, "-ldl"], check=True)
    return library


def on_shim(shim: Path, lacking: str, program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "LD_PRELOAD": str(shim), "LACKING": lacking, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-c", program, str(folder)]
    return subprocess.run(words, cwd=CHECKOUT, env=environment, check=False, capture_output=True, text=True, timeout=300)


@pytest.mark.fault(35, "recovered")
@pytest.mark.parametrize("lacking", ["link", "link flock direct"])
def test_without_hard_links_locks_or_direct_writes_the_same_store_is_made(
    lacking: str, shim: Path, quick_disk: Path, tmp_path: Path
) -> None:
    done = on_shim(shim, lacking, ON_SHIM, quick_disk)
    assert (done.returncode, done.stdout) == (0, f"[] {9 << 20}\n"), done.stderr
    whole = build(tmp_path, images=8)
    assert same(everything(whole), everything(reopen(whole._replace(store=FeatureStore.open(str(quick_disk / "store"))))))
    assert all(path.stat().st_nlink == 1 for path in files(quick_disk / "store"))


@pytest.mark.fault(35, "detected")
def test_without_hard_links_and_exclusive_rename_writing_is_refused_and_nothing_is_left(shim: Path, quick_disk: Path) -> None:
    done = on_shim(shim, "link renameat2", ON_SHIM, quick_disk)
    assert done.returncode == 1
    assert "this file system has neither hard links" in done.stderr.strip().splitlines()[-1]
    assert "Name another place, such as a local disk, NFS or s3://" in done.stderr
    assert not files(quick_disk / "store") if (quick_disk / "store").exists() else True


@pytest.mark.fault(35, "detected")
def test_where_an_open_file_cannot_be_replaced_the_refusal_says_so_and_keeps_the_old_one(shim: Path, quick_disk: Path) -> None:
    program = """
import sys
from pathlib import Path
from eupe_pipeline.storage.objects.atomic_files import write_atomically
path = Path(sys.argv[1]) / "file"
path.write_bytes(b"old")
write_atomically(path, b"new")
"""
    done = on_shim(shim, "over", program, quick_disk)
    assert "does not replace or remove a file that somebody has open" in done.stderr.strip().splitlines()[-1]
    assert [path.read_bytes() for path in files(quick_disk)] == [b"old"]


@pytest.mark.fault(35, "right")
def test_a_link_whose_reply_was_lost_counts_as_made(shim: Path, quick_disk: Path) -> None:
    program = """
import sys
from pathlib import Path
from eupe_pipeline.storage.objects.atomic_files import create_exclusively
print([create_exclusively(Path(sys.argv[1]) / "file", [text]) for text in (b"first", b"second")])
"""
    done = on_shim(shim, "reply", program, quick_disk)
    assert done.stdout == "[True, False]\n", done.stderr
    assert [path.read_bytes() for path in files(quick_disk)] == [b"first"]


def test_the_shard_cache_works_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with CachedObjects(RemoteObjects("memory://x"), tmp_path)._locked("ab"):
        assert True


# Stores of other versions.


def test_a_store_of_a_newer_version_is_refused_with_both_formats(copied: Callable[[], Made]) -> None:
    made = copied()
    marker = made.folder / "eupe-store.json"
    marker.write_bytes(marker.read_bytes().replace(b'"format":1', b'"format":2'))
    with pytest.raises(BadInput, match="is a store of format 2, this version reads format 1"):
        FeatureStore.open(made.store.url)


def test_a_file_in_the_place_of_a_folder_on_the_way_is_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises((BadInput, StoreUnavailable)):
        LocalObjects(tmp_path / "file" / "store").create("a", [b"x"])
