"""The errors that we raise on purpose, one class by who must act.

`BadInput` is the user's to mend, `CacheMismatch` says that a cache is not the one that was asked for, `CacheDamaged` that bytes are not
those that were committed, `StoreUnavailable` that the disk or the network refused. Each is a builtin as well, so that callers who know
nothing of us still catch the right thing. A message says what happened, what we got and expected, where, and what to do next.
"""

import difflib
import shlex
from collections.abc import Iterable


class EupeError(Exception):
    """Any error that this package raises on purpose; its text is written for the user."""


class BadInput(EupeError, ValueError):
    """The command, the recipe or the data must change before this can work."""


class CacheMismatch(BadInput):
    """The store holds something else than what was asked for; the text names each field that differs."""


class CacheDamaged(EupeError, OSError):
    """Bytes in the store are not the ones that its records describe; the text names the shard."""


class StoreUnavailable(EupeError, OSError):
    """The disk, the permission or the network refused; the text says what is needed."""


class Interrupted(EupeError):
    """Stopped by the user or the scheduler, with the state kept: the same command goes on from there."""


def unknown_name(kind: str, got: str, known: Iterable[str]) -> BadInput:
    """The error for a name that is not in a list of choices: names the nearest one and lists them all."""
    names = sorted(set(known))
    said = {name.split("@")[0]: name for name in reversed(names)}  # nobody types a digest from memory
    nearest = difflib.get_close_matches(got, names, n=1, cutoff=0.5) or difflib.get_close_matches(got, said, n=1, cutoff=0.5)
    guess = f"; did you mean {said.get(nearest[0], nearest[0])!r}?" if nearest else "."
    return BadInput(f"unknown {kind} {got!r}{guess} Known: {', '.join(names) or 'none yet'}")


def command(*words: str, store: str) -> str:
    """A command line on a store, quoted so that it can be run as it stands."""
    return f"`eupe-pipeline {shlex.join([*words, '--store', store])}`"
