"""Run the fault tests and print what they did: a row a fault, and the figures (`make test-faults`, `make test-long`).

The tests write every trial's outcome to a log (tests/fault_log.py); the table is made from that log alone, and kept in
docs/results/faults.json. A row without a trial is shown as such, and one with fewer than are wanted makes the status 1. With --long every
test runs, the long ones too, against the second figures, and the table goes to docs/results/faults-long.json. The log stays in build/:
with --resume tests that passed are not run again, neither after a stop nor after one failed, and the result names every commit that took
part. Other arguments go to pytest.

    python tools/fault_table.py [--long] [--resume] [PYTEST ARGUMENT ...]
"""

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

CHECKOUT = Path(__file__).parents[1]
sys.path.insert(0, str(CHECKOUT))  # tests/ is in no package
from tests.fault_log import last_lines  # noqa: E402

sys.path.remove(str(CHECKOUT))

RESULTS, LOGS = Path("docs/results"), Path("build")
FAULTS: dict[int, tuple[str, int, int]] = {  # name, trials in `make test-faults`, trials with --long
    1: ("one bit flipped anywhere", 500, 5_000),
    2: ("SIGKILL of 1-4 writers, read, resume, compare", 20, 500),
    3: ("an object deleted, emptied, cut, grown", 200, 1_000),
    4: ("shards swapped, copied over, renamed", 60, 60),
    5: ("4 processes on one plan", 20, 200),
    6: ("Ray: actor killed, out of memory, node lost", 10, 100),
    7: ("SIGTERM to extractor and trainer", 10, 100),
    8: ("disk full at each write", 40, 40),
    9: ("order of write, fsync, link, fsync folder, record", 1, 1),
    10: ("S3: errors, resets, cut and slow replies", 100, 1_000),
    11: ("S3: conditional create whose reply is lost", 50, 50),
    12: ("stale listings", 50, 50),
    13: ("resume of training at any step", 96, 480),
    14: ("misaligned features", 20, 20),
    15: ("dataset changed under the cache", 70, 70),
    16: ("teacher, views, codec or version changed", 1, 1),
    17: ("teacher loaded wrongly", 1, 1),
    18: ("NaN, Inf, 65,520, zero and constant tokens", 50, 50),
    19: ("hostile checkpoints and weights", 30, 30),
    20: ("hostile zarr.json, identity, records, Parquet", 300, 20_000),
    21: ("hostile tar members", 25, 25),
    22: ("image bombs and broken images", 540, 20_040),
    23: ("Ray's ports", 4, 4),
    24: ("prune under readers, killed in the middle", 200, 200),
    25: ("the store as a state machine", 200, 1_000),
    26: ("repair", 100, 100),
    27: ("secrets in URLs and environment", 10, 10),
    28: ("tar: headers flipped, zeroed, cut; joined; labels", 200, 2_000),
    29: ("folders: links, pipes, permission, endings, names", 60, 60),
    30: ("Parquet: types of labels, class names, row groups", 60, 60),
    31: ("HTTP and S3 sources: refusals, cuts, names", 60, 60),
    33: ("evaluation: sentinels, no labels, one class, leaks", 40, 40),
    34: ("each file of a store × each damage: a way out", 240, 630),
    35: ("several hosts: wrong clocks, no links, no locks", 30, 30),
    32: ("resume: other order, paths, precision, teachers", 60, 60),
}


def sum_faults(lines: list[dict[str, Any]]) -> dict[int, Counter[str]]:
    """The summed outcomes of each fault."""
    sums: dict[int, Counter[str]] = {}
    for line in lines:
        if "fault" in line:
            counts = {name: count for name, count in line.items() if name not in ("test", "fault")}
            sums.setdefault(line["fault"], Counter()).update(counts)
    return sums


def print_table(sums: dict[int, Counter[str]], long: bool) -> None:
    """A row a fault: trials (and how many are wanted), silent, lost, advice in a circle, detected, recovered, right."""
    heads = f"{'trials':>7} {'wanted':>7} {'silent':>7} {'lost':>5} {'circles':>7} {'detected':>9} {'recovered':>9} {'right':>6}"
    print(f"{'#':>2}  {'fault':52} {heads}")
    for number, (name, *wanted) in FAULTS.items():
        found = sums.get(number, Counter())
        counts = (
            found["trials"],
            wanted[long],
            found["silent"],
            found["lost"],
            found["circle"],
            found["detected"],
            found["recovered"],
            found["right"],
        )
        widths = (7, 7, 7, 5, 7, 9, 9, 6)
        print(f"{number:>2}  {name:52} " + " ".join(f"{count:>{width},}" for count, width in zip(counts, widths, strict=True)))


def run_tests(log: Path, arguments: list[str]) -> int:
    """pytest's status; tests that passed in the log are not run again (tests/conftest.py)."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False).stdout.strip()
    gone_on_with = log.stat().st_size > 0
    with log.open("a") as file:
        file.write("\n" * gone_on_with + json.dumps({"commit": commit}) + "\n")  # the last line may have been cut
    command = [sys.executable, "-m", "pytest", "-q", *arguments]
    status = subprocess.run(command, env={**os.environ, "EUPE_FAULT_LOG": str(log.absolute())}, check=False).returncode
    return 0 if gone_on_with and status == pytest.ExitCode.NO_TESTS_COLLECTED else status


def main() -> int:
    """Run, print, keep; returns pytest's status, or 1 when a row has fewer trials than are wanted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--long", action="store_true", help="Every test, also the long ones.")
    parser.add_argument("--resume", action="store_true", help="Go on with the log of the last run.")
    options, given = parser.parse_known_args()
    long, resume = options.long, options.resume
    log = LOGS / f"faults{'-long' * long}.jsonl"
    log.parent.mkdir(exist_ok=True)
    log.open("a" if resume else "w").close()
    status = run_tests(log, given or ([] if long else ["-m", "fault and not long"]))
    lines = last_lines(log)
    sums = sum_faults(lines)
    print_table(sums, long)
    wanted = {number: figures[long] for number, (_, *figures) in FAULTS.items()}
    totals = {name: sum(found[name] for found in sums.values()) for name in ("trials", "silent", "lost")}
    totals["circles"] = sum(found["circle"] for found in sums.values())
    totals["short"] = sum(sums.get(number, Counter())["trials"] < figure for number, figure in wanted.items())
    for name, target in (("trials", f">={sum(wanted.values())}"), ("silent", "0"), ("lost", "0"), ("circles", "0"), ("short", "0")):
        print(f"RESULT faults{'_long' * long}.{name} {totals[name]} {target}")
    rows = {str(number): {"fault": FAULTS[number][0], "wanted": wanted[number], **found} for number, found in sorted(sums.items())}
    result = {
        "command": " ".join(["python tools/fault_table.py", *["--long"] * long, *given]),
        "commits": list(dict.fromkeys(line["commit"] for line in lines if "commit" in line)),
        "seconds": round(sum(line.get("seconds", 0) for line in lines)),
    }
    kept = RESULTS / f"faults{'-long' * long}.json"
    if sums:  # nothing was even collected: the last results stay
        kept.write_text(json.dumps({**result, **totals, "rows": rows}, indent=1) + "\n")
    return status or int(totals["short"] > 0)


if __name__ == "__main__":
    sys.exit(main())
