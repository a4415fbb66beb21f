"""Files with teachers of one's own: the example of docs/own-teacher.md, and variations of it."""

import re
from pathlib import Path

DOC = Path(__file__).parents[2] / "docs" / "own-teacher.md"


def example() -> str:
    """The first program of the page, as its reader would copy it."""
    found = re.search(r"```python\n(.*?)```", DOC.read_text(), re.DOTALL)
    assert found is not None
    return found[1]


def own_file(folder: Path, *changes: tuple[str, str], name: str = "my_teacher.py") -> str:
    """FILE.py:build of the example with some text replaced, each of which must be there."""
    source = example()
    for old, new in changes:
        assert old in source, old
        source = source.replace(old, new)
    (folder / name).write_text(source)
    return f"{folder / name}:build"
