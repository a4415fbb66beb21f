"""Shared foundations of the storage room: errors, identities, URLs, closed lists of choices, events."""
