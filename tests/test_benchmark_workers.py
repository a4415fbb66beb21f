"""Workers of a benchmark end with the process that started them, and a rerun keeps what people wrote beside its table."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARENT = """
import os, time
from benchmarks.workers import workers

if __name__ == "__main__":
    with workers(2) as pool:
        print(*{future.result() for future in [pool.submit(os.getpid) for _ in range(1)]}, flush=True)
        pool.submit(time.sleep, 600).result()
"""
TABLE = """
from pathlib import Path
import sys
from benchmarks.study_table import Row, write_table

scale = {"images": 2000, "test_images": 2000, "steps": 1000, "batch_size": 32}
write_table([Row("int8", seed, float(sys.argv[2]), 1.0, scale) for seed in (0, 1)], ["int8"], Path(sys.argv[1]))
"""


def is_alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_workers_do_not_outlive_their_parent(how: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    assert is_alive(worker)
    parent.send_signal(how)
    parent.wait(timeout=10)
    deadline = time.monotonic() + 10
    while is_alive(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_alive(worker)
    parent.stdout.close()


def test_a_rerun_writes_the_table_anew_and_keeps_what_was_written_below_it(tmp_path: Path) -> None:
    page = tmp_path / "study.md"

    def study(percent: str) -> str:
        subprocess.run([sys.executable, "-c", TABLE, str(page), percent], cwd=ROOT, check=True, timeout=60)
        return page.read_text()

    first = study("30.25")
    assert "| int8 | 30.25 |" in first
    assert "What it says" not in first
    words = "\n## What it says\n\n- **By hand**: | int8 | 30.25 | is no row.\n\n## And more\n\nwords\n"
    page.write_text(first + words)
    second = study("40.50")
    assert "| int8 | 40.50 |" in second
    assert second == first.replace("30.25", "40.50") + words
    assert study("40.50") == second
