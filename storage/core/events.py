"""What long work tells while it runs: one plain dict an event, given to the function that the caller brought.

`event` names the kind ("progress", "note", "warning", "already", …), the other keys are its values, JSON-able. The command line shows
events as a progress bar or, with --json, as lines; a notebook may pass any function, or none.
"""

from collections.abc import Callable
from typing import Any

Event = dict[str, Any]
OnEvent = Callable[[Event], None]


def ignore_event(event: Event) -> None:
    """Do nothing with an event; the default where nobody listens."""
