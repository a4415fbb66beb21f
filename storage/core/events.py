"""Progress events of long-running work: each is a plain dict, passed to a callback.

The key `event` names the kind ("progress", "note", "warning", "already", …); the other keys are its values, all JSON-able. The command line
shows events as a progress bar or, with --json, as lines; a notebook may pass any function, or none.
"""

from collections.abc import Callable
from typing import Any

Event = dict[str, Any]
OnEvent = Callable[[Event], None]


def ignore_event(event: Event) -> None:
    """Do nothing; the default callback."""
