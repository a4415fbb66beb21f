"""What a run logs: `metrics.jsonl`, one JSON object a logged step, and the same numbers as TensorBoard's events.

A run that goes on from a checkpoint computes the steps after it once more. Their lines and events are cut off first, so that no step
stands twice for whoever reads the files; a TensorBoard that is open meanwhile is told to forget them (`purge_step`).
"""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from tensorboard.compat.proto.event_pb2 import Event
from torch.utils.tensorboard import SummaryWriter

from ...storage.objects.atomic_files import translate_os_errors, write_atomically
from .metric_lines import numbers

_LENGTH = struct.Struct("<Q4x")  # an event's bytes and their checksum, which is not ours to judge
_CHECKSUM_BYTES = 4


class Metrics:
    """`metrics.jsonl` and TensorBoard's events; what was logged after `resumed_from` is dropped first."""

    def __init__(self, out: Path, resumed_from: int) -> None:
        path, events = out / "metrics.jsonl", out / "tensorboard"
        kept = [line for line in read_metrics(out) if line["step"] <= resumed_from]
        write_atomically(path, "".join(f"{json.dumps(line)}\n" for line in kept).encode())
        self._file = path.open("a", buffering=1)
        has_events = truncate_events(events, resumed_from)
        self._board = SummaryWriter(str(events), purge_step=resumed_from + 1 if has_events else None)

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one line, and its numbers as events."""
        with translate_os_errors(Path(self._file.name), len(line) * 32):
            self._file.write(f"{json.dumps(line)}\n")
        for tag, value in numbers(line):
            self._board.add_scalar(tag, value, line["step"])

    def close(self) -> None:
        """Flush and close both files."""
        self._file.close()
        self._board.close()


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """Return the logged steps of a run, in order; a last line that a crash cut short is left out."""
    path = out / "metrics.jsonl"
    lines = []
    for text in path.read_text().splitlines() if path.is_file() else []:
        try:
            lines.append(dict(json.loads(text)))
        except ValueError:
            break
    return lines


def truncate_events(folder: Path, last_step: int) -> bool:
    """Cut TensorBoard's files before their first numbers of a step after `last_step`; return whether there were any files."""
    paths = list(folder.glob("events.out.tfevents.*"))
    for path in paths:
        with path.open("r+b") as file:
            file.truncate(_length_until(file, last_step))
    return bool(paths)


def _length_until(file: IO[bytes], last_step: int) -> int:
    """Return the length in bytes of the events that stay; an event that a kill left half written does not."""
    end = 0
    while len(head := file.read(_LENGTH.size)) == _LENGTH.size:
        (length,) = _LENGTH.unpack(head)
        data = file.read(length)
        if len(data) < length or len(file.read(_CHECKSUM_BYTES)) < _CHECKSUM_BYTES:
            break
        event = Event.FromString(data)
        if event.HasField("summary") and event.step > last_step:
            break
        end = file.tell()
    return end
