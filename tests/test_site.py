"""The site: each page stands once in the menu, a link to nowhere is found, docstrings and notebooks become pages, the whole is built."""

import base64
import json
import re
from pathlib import Path
from typing import Any

from tools.build_site import for_the_site, lay_out, markdown_files, menu, toctrees, with_reference
from tools.notebooks import as_page, run
from tools.site_links import broken_links
from tools.site_reference import public_names, rewritten

CHECKOUT = Path(__file__).parents[1]
WANTED = (
    "quickstart", "sources", "own-teacher", "teachers", "licences", "budget", "s3", "recipes", "evaluations", "export", "store-format",
    "troubleshooting", "security", "decisions/README", "results/README", "reference/README", "api",
)  # fmt: skip


def test_each_page_stands_once_in_the_menu_and_nothing_that_was_asked_for_is_missing() -> None:
    listed = [page for _, pages in menu(with_reference((CHECKOUT / "docs" / "index.md").read_text())) for page in pages]
    assert len(listed) == len(set(listed))
    assert {f"{name}.md" for name in WANTED} <= set(listed)
    assert {f"notebooks/{path.name}" for path in (CHECKOUT / "docs" / "notebooks").glob("*.ipynb")} <= set(listed)


def test_a_page_that_no_section_lists_is_put_at_the_end_of_the_menu() -> None:
    made = toctrees([("Begin", ["a.md", "b/c.ipynb"])], ["/docs/d.md"])
    assert re.findall(r":caption: (.+)", made) == ["Begin", "More"]
    assert "\na\nb/c\n" in made
    assert made.index("/docs/d") > made.index("More")


def test_links_of_the_site_that_lead_nowhere_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<h1 id="one">A</h1><a href="b.html#two">b</a><a href="#one">here</a><a href="https://x.org/y">far</a>'
    )
    (tmp_path / "b.html").write_text('<h1 id="two">B</h1><img src="no.png"><a href="a.html#none">a</a><a href="c%20d.html">c</a>')
    assert broken_links(tmp_path) == [
        "b.html: no.png is not there",
        "b.html: a.html#none has no such anchor",
        "b.html: c%20d.html is not there",
    ]


def test_a_docstring_in_plain_text_keeps_its_stars_underscores_and_trees() -> None:
    lines = rewritten(["Return `a * b` of *args and name_; `c`.", "", "    a/   b", "    c/"])
    assert lines == [r"Return \ ``a * b``\  of \*args and name\_; \ ``c``\ .", "", "::", "", "       a/   b", "       c/", ""]


def test_the_reference_has_every_public_name_of_the_pipeline() -> None:
    from eupe_pipeline import pipeline

    assert set(public_names("eupe_pipeline.pipeline")) == set(pipeline.__all__)


def test_links_to_notebooks_and_folders_lead_to_their_pages(tmp_path: Path) -> None:
    (tmp_path / "docs" / "results").mkdir(parents=True)
    text = "[n](notebooks/a.ipynb) [r](results) [x](https://a.b/c.ipynb) [s](s.md#t)"
    shown = for_the_site(text, Path("docs/index.md"), tmp_path)
    assert shown == "[n](notebooks/a.md) [r](results/README.md) [x](https://a.b/c.ipynb) [s](s.md#t)"


def test_a_notebook_becomes_a_page_with_what_its_cells_print_and_show(tmp_path: Path) -> None:
    picture = {"image/png": base64.b64encode(b"png").decode(), "text/plain": ["a picture"]}
    cells: list[dict[str, Any]] = [
        {"cell_type": "markdown", "source": ["# T\n", "text"]},
        {"cell_type": "code", "source": ["x = 2\n", "print(x)\n", "x + 1"], "outputs": []},
        {"cell_type": "code", "source": ["show()"], "outputs": []},
    ]
    notebook = {"cells": cells[:2]}
    assert run(notebook, "n")["x"] == 2
    cells[2]["outputs"] = [{"output_type": "execute_result", "data": picture}]
    (tmp_path / "n.ipynb").write_text(json.dumps({"cells": cells}))
    page = as_page(tmp_path / "n.ipynb", tmp_path / "pictures")
    assert page.splitlines()[:2] == ["# T", "text"]
    assert "```text\n2\n```" in page
    assert "```text\n3\n```" in page
    assert (tmp_path / "pictures" / "n-2.png").read_bytes() == b"png"


def test_every_page_of_the_checkout_is_laid_out_with_the_files_that_it_links_to(tmp_path: Path) -> None:
    lay_out(CHECKOUT, tmp_path)
    assert all((tmp_path / page).is_file() for page in markdown_files(CHECKOUT))
    assert (tmp_path / "docs/results/bench-cli.json").is_file()
    assert (tmp_path / "docs/notebooks/look-into-a-cache.md").is_file()
    assert "autofunction:: eupe_pipeline.pipeline.train" in (tmp_path / "docs/reference/pipeline.md").read_text()
