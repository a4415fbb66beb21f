"""The pages of the reference: one for each public module, its names and signatures by autodoc, its texts from the docstrings.

Our docstrings are plain text with backticks, as an editor shows them. `plain_docstring` hands them to autodoc, which reads
reStructuredText: what that would take for markup is escaped, an indented tree or example becomes a literal block.
"""

import importlib
import re
from typing import Any

PUBLIC = {
    "pipeline": ("eupe_pipeline.pipeline", "Every command as a function, with its request; what stands here is frozen by a test."),
    "own-teacher": ("eupe_pipeline.teachers.encoders.own_encoder", "What the file of a teacher of your own returns."),
    "teacher-rows": ("eupe_pipeline.teachers.registry.table", "The row of a named teacher."),
    "student-rows": ("eupe_pipeline.teachers.encoders.build", "The row of a student family."),
    "export-rows": ("eupe_pipeline.student.export.formats", "The row of an export format."),
    "teacher-contract": ("eupe_pipeline.teachers.registry.contract", "The tests that every teacher runs."),
    "export-contract": ("eupe_pipeline.student.export.contract", "The tests that every export format runs."),
    "codec-contract": ("eupe_pipeline.student.data.codec_contract", "The tests that every codec runs."),
    "source-contract": ("eupe_pipeline.storage.sources.source_contract", "The tests that every container of images runs."),
}


def public_names(module: str) -> list[str]:
    """Return the names that a module offers: its `__all__`, or the classes and functions that it defines."""
    found = importlib.import_module(module)
    offered = getattr(found, "__all__", None)
    if offered is not None:
        return sorted(offered, key=str.lower)
    defined = [name for name, value in vars(found).items() if getattr(value, "__module__", None) == module]
    return sorted((name for name in defined if not name.startswith("_")), key=str.lower)


def _directive(module: str, name: str) -> str:
    """Return autodoc's directive for a name; what is neither a class nor a function is shown as data."""
    value = getattr(importlib.import_module(module), name)
    kind = "autoclass" if isinstance(value, type) else "autofunction" if callable(value) else "autodata"
    members = "   :members:\n" if kind == "autoclass" else "   :no-value:\n" if kind == "autodata" else ""
    return f"## {name}\n\n```{{eval-rst}}\n.. {kind}:: {module}.{name}\n{members}```\n"


def reference_pages() -> dict[str, str]:
    """Return {file name: Markdown} of the reference, README.md being its index."""
    index = ["# Reference of the public modules\n", "From the docstrings; [how they are used](../api.md).\n"]
    pages = {}
    for page, (module, what) in PUBLIC.items():
        index.append(f"- [`{module}`]({page}.md): {what}")
        pages[f"{page}.md"] = f"# {module}\n\n{what}\n\n" + "\n".join(_directive(module, name) for name in public_names(module))
    return {"README.md": "\n".join(index) + "\n", **pages}


def _escaped(line: str) -> str:
    """Return a line with backticks as reStructuredText's literals and everything else as text."""
    parts = re.split(r"`([^`]+)`", line)
    return "".join(f"\\ ``{part}``\\ " if n % 2 else re.sub(r"([\\*|_`])", r"\\\1", part) for n, part in enumerate(parts))


def rewritten(lines: list[str]) -> list[str]:
    """Return a docstring's lines as reStructuredText: paragraphs, and indented ones as they stand."""
    paragraphs = [part.splitlines() for part in re.split(r"\n\s*\n", "\n".join(lines).strip("\n"))]
    out: list[str] = []
    for paragraph in paragraphs:
        if any(line.startswith(" ") for line in paragraph):
            out += ["::", "", *(f"   {line}" for line in paragraph), ""]
        else:
            out += [*(_escaped(line) for line in paragraph), ""]
    return out


def plain_docstring(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Rewrite a docstring in place, as autodoc's event asks."""
    del app, what, name, obj, options
    lines[:] = rewritten(lines)
