"""The commands; the only home of click."""
