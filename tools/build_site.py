"""Build the documents as one static site in build/site; a warning, a link to nowhere or a missing anchor fails.

The pages are the Markdown files as they lie in the checkout, readable there without this. What a site needs beside them is made here: the
menu (the sections of docs/index.md; a page that none of them lists is put under "More"), the reference of the public modules (from their
docstrings, by autodoc) and the notebooks as pages. All of it is laid out in build/site-source, with the paths of the checkout, so that a
link means the same in both; a file of the source that a page links to comes along as a download.

    .venv/bin/python -m tools.build_site [--external]

--external also asks the servers of all links to other sites (by Sphinx's linkcheck), which needs the network.
"""

import argparse
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .notebooks import as_page
from .site_links import broken_links
from .site_reference import plain_docstring, reference_pages

CHECKOUT = Path(__file__).resolve().parents[1]
PAGES_BESIDE_DOCS = ("CHANGELOG.md", "CONTRIBUTING.md", "README.md")
HOME = "docs/index"
REFERENCE = "Reference of the public modules"  # a line of the index that is a link in the site alone, where that page exists
LINK = re.compile(r"\]\(([^)\s#]+)(#[^)\s]*)?\)")


def markdown_files(checkout: Path) -> list[Path]:
    """Return the pages, relative to the checkout."""
    inside = sorted(path.relative_to(checkout) for path in (checkout / "docs").rglob("*.md"))
    return [*(Path(name) for name in PAGES_BESIDE_DOCS), *inside]


def menu(index: str) -> list[tuple[str, list[str]]]:
    """Return (caption, pages relative to docs/) of each section of docs/index.md, in its order."""
    sections = re.split(r"^## (.+)$", index, flags=re.MULTILINE)[1:]
    return [
        (caption, [target for target, _ in LINK.findall(body) if target.endswith((".md", ".ipynb"))])
        for caption, body in zip(sections[::2], sections[1::2], strict=True)
    ]


def with_reference(index: str) -> str:
    """Return the index with its line about the reference as a link."""
    return index.replace(REFERENCE, f"[{REFERENCE}](reference/README.md)")


def toctrees(sections: list[tuple[str, list[str]]], further: list[str]) -> str:
    """Return the hidden tables of contents that make the site's menu."""
    more = [("More", further)] if further else []
    parts = []
    for caption, pages in [*sections, *more]:
        names = "\n".join(re.sub(r"\.(md|ipynb)$", "", page) for page in pages)
        parts.append(f"```{{toctree}}\n:hidden:\n:caption: {caption}\n:maxdepth: 1\n\n{names}\n```\n")
    return "\n".join(parts)


def children(page: str, pages: list[str]) -> list[str]:
    """Return the pages of a folder's README.md, which is their index; of other pages none."""
    folder, _, name = page.rpartition("/")
    return [other for other in pages if name == "README.md" and folder and other.startswith(f"{folder}/") and other != page]


def linked_files(text: str, page: Path, checkout: Path) -> Iterator[Path]:
    """Yield the files and folders of the checkout, relative to it, that a page links to and that are no pages."""
    for target, _ in LINK.findall(text):
        if re.match(r"[a-z]+:", target) or target.endswith((".md", ".ipynb")):
            continue
        found = (checkout / page.parent / target).resolve()
        if found.exists() and found.is_relative_to(checkout):
            yield found.relative_to(checkout)


def for_the_site(text: str, page: Path, checkout: Path) -> str:
    """Return a page with links to notebooks and folders led to the pages that stand for them."""

    def led(match: re.Match[str]) -> str:
        target, anchor = match[1], match[2] or ""
        folder = checkout / page.parent / target
        if re.match(r"[a-z]+:", target):
            return match[0]
        if folder.is_dir():
            return f"]({target.rstrip('/')}/README.md{anchor})"
        return f"]({re.sub(r'[.]ipynb$', '.md', target)}{anchor})"

    return LINK.sub(led, text)


def lay_out(checkout: Path, source: Path) -> None:
    """Write the pages, what they link to and what is generated under `source`, whatever was there."""
    shutil.rmtree(source, ignore_errors=True)
    pages = markdown_files(checkout)
    notebooks = sorted((checkout / "docs" / "notebooks").glob("*.ipynb"))
    generated = {f"docs/notebooks/{path.stem}.md": as_page(path, source / "docs" / "notebooks") for path in notebooks}
    generated |= {f"docs/reference/{name}": text for name, text in reference_pages().items()}
    texts = {page.as_posix(): (checkout / page).read_text(encoding="utf-8") for page in pages}
    for page in pages:
        for linked in linked_files(texts[page.as_posix()], page, checkout):
            if (checkout / linked).is_file():
                (source / linked).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(checkout / linked, source / linked)
    texts[f"{HOME}.md"] = with_reference(texts[f"{HOME}.md"])
    everything = [*texts, *generated]
    sections = menu(texts[f"{HOME}.md"])
    listed = {(Path("docs") / name).with_suffix(".md") for _, names in sections for name in names}
    listed = {(checkout / name).resolve().relative_to(checkout) for name in listed}
    below = {child for page in everything for child in children(page, everything)}
    further = [f"/{page}" for page in everything if Path(page) not in listed and page not in below and page != f"{HOME}.md"]
    for name, text in {**texts, **generated}.items():
        if name == f"{HOME}.md":
            text += "\n" + toctrees(sections, further)
        if below_it := children(name, everything):
            text += "\n" + toctrees([("", [f"/{child}" for child in below_it])], []).replace(":caption: \n", "")
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(for_the_site(text, Path(name), checkout), encoding="utf-8")


def settings(checkout: Path) -> dict[str, Any]:
    """Return Sphinx's settings."""
    import tomllib

    project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {
        "project": project["name"],
        "version": project["version"],
        "release": project["version"],
        "root_doc": HOME,
        "extensions": ["myst_parser", "sphinx.ext.autodoc"],
        "myst_heading_anchors": 4,
        "myst_enable_extensions": [],
        "html_theme": "furo",
        "html_title": f"{project['name']} {project['version']}",
        "html_show_sourcelink": False,
        "html_copy_source": False,
        "autodoc_typehints": "signature",
        "autodoc_member_order": "bysource",
        "autodoc_preserve_defaults": True,
        "default_role": "literal",
        "suppress_warnings": ["misc.highlighting_failure"],
        "linkcheck_timeout": 20,
    }


def build(checkout: Path, builder: str, out: Path) -> int:
    """Run Sphinx on the laid-out pages; returns its exit status, 1 with a warning."""
    from sphinx.application import Sphinx

    source = checkout / "build" / "site-source"
    app = Sphinx(
        srcdir=source,
        confdir=None,
        outdir=out,
        doctreedir=checkout / "build" / "site-doctrees",
        buildername=builder,
        confoverrides=settings(checkout),
        status=None,
        warningiserror=True,
        freshenv=True,
    )
    app.connect("autodoc-process-docstring", plain_docstring)
    app.build()
    return int(app.statuscode)


def main(arguments: list[str] | None = None) -> int:
    """Build the site and check its links; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--external", action="store_true", help="Also ask the servers of links to other sites.")
    asked = parser.parse_args(arguments)
    out = CHECKOUT / "build" / "site"
    shutil.rmtree(out, ignore_errors=True)
    lay_out(CHECKOUT, CHECKOUT / "build" / "site-source")
    if status := build(CHECKOUT, "html", out):
        return status
    (out / "index.html").write_text(
        f'<!doctype html><meta http-equiv="refresh" content="0; url={HOME}.html"><a href="{HOME}.html">{HOME}</a>'
    )
    if broken := broken_links(out):
        print(*broken, sep="\n", file=sys.stderr)
        return 1
    if asked.external and (status := build(CHECKOUT, "linkcheck", CHECKOUT / "build" / "site-links")):
        return status
    print(f"{len(list(out.rglob('*.html')))} pages in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
