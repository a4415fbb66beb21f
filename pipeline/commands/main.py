"""The program `eupe-pipeline`: run one command, and turn what the user can correct into one line and an exit status.

Nothing heavy is imported before a command runs (torch, ray and timm cost seconds; `--help` has 0.3 s). Results go to stdout, progress to
stderr; with --json every event and then the result are JSON lines on stdout. Exit status: 0 done, 1 a check found damage, 2 the
user can fix it (bad input, a store that is not there, a full disk, Ctrl-C: what was done is kept, the same command goes on), 3 done, but
the result could not be written to standard output.
"""

import errno
import sys
from collections.abc import Sequence

import click

from ...storage.core.errors import EupeError
from ...storage.core.stop_signals import interrupt_on_stop
from ..console.streams import lasting_streams
from . import (  # noqa: F401 - each adds its commands
    cluster,
    demo,
    distill,
    evaluate,
    evaluate_vlm,
    export,
    extract,
    features,
    pictures,
    runs,
    train,
)
from .group import cli

__all__ = ["cli", "main"]

EXTRAS = {**dict.fromkeys(("onnx", "onnxruntime", "onnxscript"), "eupe-pipeline[export]"), "executorch": "eupe-pipeline[executorch]"}


STOPPED = "stopped; everything finished so far is kept, the same command goes on from there"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status, and never raise what the user can correct."""
    with lasting_streams() as output:
        interrupt_on_stop()  # a scheduler's stop and a closed terminal keep state as Ctrl-C does
        status = _status(arguments)
        output.flush()
        if status == 0 and output.lost is not None and output.lost.errno != errno.EPIPE:  # `| head` has read what it wanted
            print(f"eupe-pipeline: done, but the result could not be written to standard output ({output.lost.strerror})", file=sys.stderr)
            return 3
        return status


def _status(arguments: Sequence[str] | None) -> int:
    try:
        status = cli.main(arguments, prog_name="eupe-pipeline", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except click.ClickException as error:
        error.show(sys.stderr)
        return error.exit_code
    except (click.exceptions.Abort, KeyboardInterrupt):
        print(f"eupe-pipeline: {STOPPED}", file=sys.stderr)
    except EupeError as error:
        print(f"eupe-pipeline: {error}", file=sys.stderr)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package == __package__.partition(".")[0]:
            raise
        requirement = EXTRAS.get(package, package)
        print(f"eupe-pipeline: this needs the package {package}, which is not installed; run: pip install '{requirement}'", file=sys.stderr)
    except MemoryError as error:
        print(f"eupe-pipeline: out of memory ({error}); take a smaller --size or --batch-size, or fewer workers", file=sys.stderr)
    except UnicodeEncodeError as error:
        name = ascii(error.object)
        print(f"eupe-pipeline: {name} has bytes that are not UTF-8, which cannot be recorded here; rename it", file=sys.stderr)
    return 2
