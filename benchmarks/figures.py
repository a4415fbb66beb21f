"""Interleaved rounds, medians, RESULT lines and a JSON file: what every benchmark here has in common."""

import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

Targets = Mapping[str, tuple[str, float]]


def machine() -> dict[str, Any]:
    """Return what the figures were measured on."""
    with open("/proc/cpuinfo") as file:
        model = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), platform.machine())
    return {"cpu": model, "cores": os.cpu_count(), "python": platform.python_version(), "load_before": os.getloadavg()[0]}


def interleave(
    contestants: Mapping[str, Callable[[int], object]],
    rounds: int,
    warm_up: int = 1,
    pause_s: float = 0.0,
    before: Callable[[int], object] = lambda number: None,
) -> dict[str, list[float]]:
    """Return the seconds of each contestant a round: every round runs all, in an order drawn anew; warm-up is left out.

    `before` tidies up before each round and is not timed.
    """
    random = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(-warm_up, rounds):
        before(number)
        for name in random.permutation(list(contestants)).tolist():
            time.sleep(pause_s)  # disks with a burst budget would else pass one contestant's debt on to the next
            start = time.perf_counter()
            contestants[name](number)
            if number >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """Return the median of each contestant's rounds."""
    return {name: float(np.median(values)) for name, values in seconds.items() if values}


def report(results: Mapping[str, float], targets: Targets, details: Mapping[str, Any], to: Path) -> None:
    """Print `RESULT name value target` a figure, and keep everything in a JSON file."""
    for name, value in results.items():
        sign, wanted = targets.get(name, ("", float("nan")))
        print(f"RESULT {name} {value:.6g} {sign}{wanted:g}" if sign else f"RESULT {name} {value:.6g} -")
    to.parent.mkdir(parents=True, exist_ok=True)
    rows = {name: {"value": value, "target": "".join(map(str, targets.get(name, ("-",))))} for name, value in results.items()}
    to.write_text(json.dumps({"machine": machine(), "figures": rows, **details}, indent=1) + "\n")
