"""Run the notebooks of docs/notebooks and keep what they print in them, as the site shows it.

A notebook is a JSON file; its cells are Python that runs in one namespace, in order, in the folder where this is started. What a cell
prints and the value of its last line are its outputs, pictures (PIL) as PNG. No kernel is needed: what runs here runs in Jupyter.

    .venv/bin/python tools/notebooks.py docs/notebooks/NAME.ipynb      # run it here and write its outputs into it
"""

import ast
import base64
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any


def load(path: Path) -> dict[str, Any]:
    """Return a notebook; its cells' sources are lists of lines."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _shown(value: Any) -> dict[str, Any]:
    """Return a value as a notebook shows the last line of a cell."""
    data: dict[str, Any] = {"text/plain": repr(value).splitlines(keepends=True)}
    if hasattr(value, "_repr_png_"):
        data = {"image/png": base64.b64encode(value._repr_png_()).decode(), "text/plain": ["a picture"]}
    return {"output_type": "execute_result", "data": data, "metadata": {}}


def run_cell(source: str, names: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """Return the outputs of a cell that is run in `names`; raises what the cell raises."""
    tree = ast.parse(source, where)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed, value = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, where, "exec"), names)  # noqa: S102 - our own notebooks
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), where, "eval"), names)
    outputs: list[dict[str, Any]] = []
    if text := printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)})
    return outputs + ([_shown(value)] if value is not None else [])


def run(notebook: dict[str, Any], name: str) -> dict[str, Any]:
    """Run all code cells, note their outputs in the notebook, and return the names that they left."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(cell for cell in notebook["cells"] if cell["cell_type"] == "code"):
        cell["outputs"] = run_cell("".join(cell["source"]), names, f"{name}, cell {number + 1}")
        cell["execution_count"] = number + 1
        for output in cell["outputs"]:
            if output["output_type"] == "execute_result":
                output["execution_count"] = number + 1
    return names


def as_page(path: Path, pictures: Path) -> str:
    """Return a notebook as Markdown, with its outputs; its pictures are written into a folder beside the page."""
    parts = []
    pictures.mkdir(parents=True, exist_ok=True)
    for number, cell in enumerate(load(path)["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{path.stem}-{number}.png"
                (pictures / name).write_bytes(base64.b64decode(data["image/png"]))
                parts.append(f"![what the cell above shows]({name})")
            else:
                parts.append("```text\n" + "".join(output.get("text") or data["text/plain"]).rstrip() + "\n```")
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Run each notebook that is named and write its outputs into it."""
    for name in sys.argv[1:]:
        path = Path(name)
        notebook = load(path)
        run(notebook, path.name)
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
