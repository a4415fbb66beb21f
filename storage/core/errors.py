"""The exceptions that this package raises on purpose, one class for each party that can act on it.

`BadInput` is for the user to correct, `CacheMismatch` means that the store holds something other than what was requested, `CacheDamaged`
that bytes differ from those that were committed, `StoreUnavailable` that the disk or the network failed. Each also derives from a builtin
exception, so that callers need not import ours. A message says what happened, what was found and expected, where, and what to do next.
"""

import difflib
import shlex
from collections.abc import Iterable


class EupeError(Exception):
    """Any error that this package raises on purpose; its text is written for the user."""


class BadInput(EupeError, ValueError):
    """The command, the recipe or the data must change before this can work."""


class CacheMismatch(BadInput):
    """The store holds something other than what was requested; the text names each field that differs."""


class CacheDamaged(EupeError, OSError):
    """Bytes in the store differ from what its records describe; the text names the shard."""


class StoreUnavailable(EupeError, OSError):
    """The disk, its permissions or the network failed; the text says what is needed."""


class Interrupted(EupeError):
    """The run was stopped by the user or the scheduler and its state saved: the same command resumes it."""


def unknown_name(kind: str, got: str, known: Iterable[str]) -> BadInput:
    """Return the error for a name that is not in a list of choices; its text names the nearest one and lists them all."""
    names = sorted(set(known))
    full_names = {name.split("@")[0]: name for name in reversed(names)}  # nobody types a digest from memory
    nearest = difflib.get_close_matches(got, names, n=1, cutoff=0.5) or difflib.get_close_matches(got, full_names, n=1, cutoff=0.5)
    guess = f"; did you mean {full_names.get(nearest[0], nearest[0])!r}?" if nearest else "."
    return BadInput(f"unknown {kind} {got!r}{guess} Known: {', '.join(names) or 'none yet'}")


def command(*words: str, store: str) -> str:
    """Return an `eupe-pipeline` command on a store, quoted for the shell."""
    return f"`eupe-pipeline {shlex.join([*words, '--store', store])}`"
