"""Tables of rows by name that an installed distribution may add to, by entry point.

    [project.entry-points."eupe_pipeline.teachers"]      # or .students, .exports
    my-teacher = "my_package.rows:MY_TEACHER"            # name = module:ROW

Our own rows are plain data; a plug-in's is imported when its name is looked up, so that a broken one fails the command that uses it and no
other. Two rows of one name are an error that names both, when that name is looked up: picking one of them could silently change tokens.
Whoever installs a plug-in lets it run code here, as with any package; every machine of a cluster needs it.
"""

import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from .errors import BadInput

Row = TypeVar("Row")


@lru_cache(maxsize=32)
def _entry_points(group: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Return the entry points of a group; `path` is sys.path, so that what is installed later is found."""
    return tuple(entry_points(group=group))


class Table(Mapping[str, Row], Generic[Row]):
    """Rows by name: ours, and those of the entry points of `group`, each a `row_type`; iterating gives names and imports nothing."""

    def __init__(self, kind: str, group: str, row_type: type[Row], ours: Mapping[str, Row], where: str) -> None:
        self.kind, self.group, self.ours = kind, group, ours
        self._row_type, self._where = row_type, where
        self._loaded: dict[EntryPoint, Row] = {}

    def entry_points(self, name: str | None = None) -> list[EntryPoint]:
        """Return the plug-ins' entry points, or those of one name."""
        return [entry_point for entry_point in _entry_points(self.group, tuple(sys.path)) if name in (None, entry_point.name)]

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*self.ours, *sorted(entry_point.name for entry_point in self.entry_points())]))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, name: object) -> bool:
        return name in self.ours or (isinstance(name, str) and bool(self.entry_points(name)))

    def __getitem__(self, name: str) -> Row:
        """Return a row; raise `BadInput` for a name that two have and for a plug-in that is broken, KeyError for an unknown one."""
        entries = self.entry_points(name)
        if len(entries) + (name in self.ours) > 1:
            owners = [self._where] * (name in self.ours) + [describe(entry_point) for entry_point in entries]
            raise BadInput(f"the {self.kind} {name!r} has several rows: {' and '.join(owners)}; uninstall one, or rename its entry point")
        if not entries:
            return self.ours[name]
        if entries[0] not in self._loaded:
            self._loaded[entries[0]] = self._load(entries[0])
        return self._loaded[entries[0]]

    def _load(self, entry: EntryPoint) -> Row:
        try:
            row = entry.load()
        except (Exception, SystemExit) as error:
            raise BadInput(
                f"the {self.kind} {entry.name!r} cannot be loaded from {describe(entry)}: {type(error).__name__}: {error}; "
                "repair or uninstall that plug-in"
            ) from error
        if not isinstance(row, self._row_type):
            raise BadInput(
                f"the {self.kind} {entry.name!r} of {describe(entry)} is a {type(row).__name__}, expected a row of type "
                f"{self._row_type.__module__}.{self._row_type.__name__}; repair or uninstall that plug-in"
            )
        return row

    def names_of_plugins(self) -> list[str]:
        """Return the names that plug-ins add, nothing imported."""
        return sorted({entry_point.name for entry_point in self.entry_points()})

    def plugins(self) -> dict[str, str]:
        """Return what plug-ins add: name → the distribution that brings it, or why it cannot be used."""
        owners = {}
        for entry_point in self.entry_points():
            try:
                self[entry_point.name]
                owners[entry_point.name] = describe(entry_point)
            except BadInput as error:
                owners[entry_point.name] = f"unusable: {error}"
        return owners


def describe(entry: EntryPoint) -> str:
    """Return where an entry point comes from: distribution, version and object."""
    owner = "an unknown distribution" if entry.dist is None else f"{entry.dist.name} {entry.dist.version}"
    return f"the plug-in {owner} ({entry.value})"
