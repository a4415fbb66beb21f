"""Run the fault tests and print what they did: a row a fault, and the three figures (`make test-faults`).

The tests write every trial's outcome to a log (tests/fault_log.py); the table is made from that log alone, and kept in
docs/results/faults.json. A row without a trial is shown as such. Arguments go to pytest: `-m fault` adds the long ones.

    python tools/fault_table.py [PYTEST ARGUMENT ...]
"""

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

WANTED_TRIALS = 2_700
RESULTS = Path("docs/results/faults.json")
FAULTS: dict[int, tuple[str, int]] = {
    1: ("one bit flipped anywhere", 500),
    2: ("SIGKILL of 1-4 writers, read, resume, compare", 20),
    3: ("an object deleted, emptied, cut, grown", 200),
    4: ("shards swapped, copied over, renamed", 60),
    5: ("4 processes on one plan", 20),
    6: ("Ray: actor killed, out of memory, node lost", 10),
    7: ("SIGTERM to extractor and trainer", 10),
    8: ("disk full at each write", 40),
    9: ("order of write, fsync, link, fsync folder, record", 1),
    10: ("S3: errors, resets, cut and slow replies", 100),
    11: ("S3: conditional create whose reply is lost", 50),
    12: ("stale listings", 50),
    13: ("resume of training at any step", 96),
    14: ("misaligned features", 20),
    15: ("dataset changed under the cache", 70),
    16: ("teacher, views, codec or version changed", 1),
    17: ("teacher loaded wrongly", 1),
    18: ("NaN, Inf, 65,520, zero and constant tokens", 50),
    19: ("hostile checkpoints and weights", 30),
    20: ("hostile zarr.json, identity, records, Parquet", 300),
    21: ("hostile tar members", 25),
    22: ("image bombs and broken images", 540),
    23: ("Ray's ports", 4),
    24: ("prune under readers, killed in the middle", 200),
    25: ("the store as a state machine", 200),
    26: ("repair", 100),
    27: ("secrets in URLs and environment", 10),
}


def read_log(path: Path) -> dict[int, Counter[str]]:
    """The summed outcomes of each fault."""
    sums: dict[int, Counter[str]] = {}
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        sums.setdefault(int(entry.pop("fault")), Counter()).update(entry)
    return sums


def print_table(sums: dict[int, Counter[str]]) -> None:
    """A row a fault: trials (and how many are wanted), silent, detected, healed, right."""
    print(f"{'#':>2}  {'fault':52} {'trials':>7} {'wanted':>7} {'silent':>7} {'lost':>5} {'detected':>9} {'healed':>7} {'right':>6}")
    for number, (name, wanted) in FAULTS.items():
        found = sums.get(number, Counter())
        counts = (found["trials"], wanted, found["silent"], found["lost"], found["detected"], found["healed"], found["right"])
        widths = (7, 7, 7, 5, 9, 7, 6)
        print(f"{number:>2}  {name:52} " + " ".join(f"{count:>{width},}" for count, width in zip(counts, widths, strict=True)))


def main() -> int:
    """Run, print, keep; returns pytest's status."""
    arguments = sys.argv[1:] or ["-m", "fault and not long"]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "faults.jsonl"
        log.touch()
        command = [sys.executable, "-m", "pytest", "-q", *arguments]
        status = subprocess.run(command, env={**os.environ, "EUPE_FAULT_LOG": str(log)}, check=False).returncode
        sums = read_log(log)
    print_table(sums)
    totals = {name: sum(found[name] for found in sums.values()) for name in ("trials", "silent", "lost")}
    for name, target in (("trials", f">={WANTED_TRIALS}"), ("silent", "0"), ("lost", "0")):
        print(f"RESULT faults.{name} {totals[name]} {target}")
    rows = {str(number): {"fault": FAULTS[number][0], "wanted": FAULTS[number][1], **found} for number, found in sorted(sums.items())}
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(
        json.dumps({"command": f"python tools/fault_table.py {' '.join(arguments)}", **totals, "rows": rows}, indent=1) + "\n"
    )
    return status


if __name__ == "__main__":
    sys.exit(main())
