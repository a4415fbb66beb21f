"""The pages in a real browser: on a phone and a desk, dark and light, without an error, without a fetch, without sideways scrolling."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eupe_pipeline.pipeline.pictures.neighbours import example_queries, galleries
from eupe_pipeline.pipeline.pictures.pca import PcaPicture
from eupe_pipeline.pipeline.pictures.similarity import similarity_pictures
from eupe_pipeline.pipeline.reports.cache_page import write_cache_page
from eupe_pipeline.pipeline.reports.report import Contents, write_report
from eupe_pipeline.pipeline.reports.store_health import health

from ..chromium import Chromium, chromium, find_chromium

PROGRAM = find_chromium()
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed here")
MakeRun = Callable[..., Path]
# what reaches beyond the screen without a scrolling card around it
STICKING_OUT = """[...document.body.querySelectorAll('*')].filter(one => one.getBoundingClientRect().right > innerWidth + 1
  && !one.closest('.scroll, .map')).map(one => one.outerHTML.slice(0, 120))"""
BROKEN = "[...document.images].filter(one => !one.complete || !one.naturalWidth).length"
SMALLEST_PX = """Math.min(...[...document.querySelectorAll('main *')].filter(one => one.innerText)
  .map(one => parseFloat(getComputedStyle(one).fontSize)))"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    assert PROGRAM is not None
    with chromium(PROGRAM, tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture
def whole(results: dict[str, Any], made_run: MakeRun, drawn: list[PcaPicture], tiny_store: Any, tmp_path: Path) -> Path:
    """A page with every section, and with long names."""
    reader, gaps = tiny_store.features(), tiny_store.features("tiny-gaps")
    long_name = "timm:vit_huge_plus_patch16_dinov3.lvd1689m"
    runs = [made_run("stage1", teachers=(long_name, "keras-resnet50")), made_run("a-run-with-quite-a-long-name-of-its-own")]
    evaluated(runs[0])
    random = np.random.default_rng(0)
    photos = [one.label for one in drawn[:2]], [one.image for one in drawn[:2]]
    tokens = {name: random.normal(0, 1, (2, grid, grid, 8)).astype(np.float32) for name, grid in ((long_name, 14), ("student", 7))}
    near = {one.key: galleries(one, example_queries(one), 8, lambda event: None) for one in (reader, gaps)}
    state = [health(one, lambda event: None) for one in (reader, gaps)]
    notes = ("No neighbours by x@0123456789ab: image 0 is not at /a/folder/whose/name/is/long/and/without/any/space/in/it/at/all any more",)
    write_report(Contents(runs, results, drawn, similarity_pictures(*photos, tokens), near, state, notes), tmp_path / "report.html")
    return tmp_path / "report.html"


def evaluated(run: Path) -> None:
    """Put every kind of evaluation into a run, after training and during it."""
    (run / "evaluations").mkdir()
    figures = {"knn": {"cls": {"paper": 41.0}}, "linear": {"top1": 50.0}, "zero-shot": {"top1": 20.0}, "segmentation": {"miou": 31.2}}
    for name, results in {**figures, "depth": {"rmse": 0.71}, "correspondence": {"pck": 22.5}, "a-new-one": {"score": 1}}.items():
        record = {"evaluation": name, "protocol": {"test": {"dataset": "pets@0123456789ab", "sample": 1000}}, "results": results}
        (run / "evaluations" / f"{name}-1.json").write_text(json.dumps(record))
    with (run / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps({"step": step, "knn": {"cls": {"paper": step / 10}}}) + "\n" for step in (100, 200, 400))


@pytest.fixture
def bare(made_run: MakeRun, tmp_path: Path) -> Path:
    """A page about a run that has logged nothing yet."""
    run = made_run("new", steps=1)
    (run / "metrics.jsonl").unlink()
    write_report(Contents([run]), tmp_path / "bare.html")
    return tmp_path / "bare.html"


@pytest.fixture
def cache(tiny_store: Any, tmp_path: Path) -> Path:
    """The page of a feature set."""
    write_cache_page(tiny_store.features("tiny-gaps"), tmp_path / "cache.html", lambda event: None)
    return tmp_path / "cache.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width_px", [390, 1440])
@pytest.mark.parametrize("page", ["whole", "bare", "cache"])
def test_a_page_fits_the_screen_and_the_browser_has_nothing_to_complain_of(
    browser: Chromium, request: pytest.FixtureRequest, page: str, width_px: int, scheme: str
) -> None:
    path: Path = request.getfixturevalue(page)
    browser.show(path, width_px, scheme)
    browser.value("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert browser.complaints() == []
    assert browser.fetched() == [path.as_uri()]
    assert browser.value("[innerWidth, document.documentElement.scrollWidth]") == [width_px, width_px]
    assert browser.value(STICKING_OUT) == []
    assert browser.value(BROKEN) == 0
    assert browser.value(SMALLEST_PX) >= 12
    background = browser.value("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(247, 247, 245)", "dark": "rgb(17, 19, 23)"}[scheme]
    shot = browser.picture()
    assert shot.startswith(b"\x89PNG")
    if folder := os.environ.get("EUPE_SCREENSHOTS"):  # for people who want to look
        Path(folder, f"{page}-{width_px}-{scheme}.png").write_bytes(shot)


def test_choosing_a_patch_moves_every_map_to_it_without_a_script(browser: Chromium, whole: Path) -> None:
    browser.show(whole, 1440, "light")
    assert browser.value("document.scripts.length") == 0
    place = """(() => { const map = document.querySelectorAll('.similar .map')[%d], tiles = map.querySelector('img');
      return [-tiles.offsetLeft / map.clientWidth, -tiles.offsetTop / map.clientHeight].map(Math.round) })()"""
    browser.value('document.querySelector(\'.similar [data-r="2"][data-c="5"]\').click()')
    assert [browser.value(place % n) for n in range(2)] == [[5, 2], [5, 2]]
    browser.value('document.querySelector(\'.similar [data-r="6"][data-c="0"]\').click()')
    assert [browser.value(place % n) for n in range(2)] == [[0, 6], [0, 6]]
    tile = "(map => map.querySelector('img').clientWidth / map.clientWidth)(document.querySelector('.similar .map'))"
    assert browser.value(tile) == pytest.approx(7, abs=0.05)
