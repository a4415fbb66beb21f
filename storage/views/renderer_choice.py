"""Which renderer an extraction's views have: that of the views that the store holds already, else the fast one.

Another renderer is another set of views, and every token over them would be computed anew. So an extraction that goes on, a second teacher
and a dataset that grew find the views of before, whatever rendered them; only what begins anew takes the fast renderer.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from ..core.choices import RendererName
from ..core.errors import CacheDamaged
from ..core.events import OnEvent, ignore_event
from ..core.identity import digest, short
from ..images import fast_jpeg
from ..images.dataset import ImageDataset
from ..objects.content_addressed import is_key, read_identity
from ..objects.objects import Objects
from .renderers import PILLOW, Renderer, fast, on_nvjpeg
from .view_set import views_identity
from .view_spec import ViewSpec


def choose_renderer(
    objects: Objects, dataset: ImageDataset, spec: ViewSpec, images_per_shard: int, wanted: RendererName = "auto",
    on_event: OnEvent = ignore_event,
) -> Renderer:  # fmt: skip
    """Return the renderer that is wanted; for `auto` that of the store's views of this kind, of an earlier version's, or the fast one."""
    if wanted == "pillow":
        return PILLOW
    if wanted == "nvjpeg":
        return on_nvjpeg()
    ours = fast()
    if wanted == "auto":
        for key, renderer in _found(objects, dataset, spec, images_per_shard, ours):
            if renderer != ours:
                text = f"views are rendered as those of {key} are ({renderer.text}); --renderer fast begins a set of its own"
                on_event({"event": "note", "text": text})
            return renderer
    if ours.jpeg is None:
        text = f"{fast_jpeg.LIBRARY} is not installed: Pillow decodes JPEGs, slower (pip install {fast_jpeg.LIBRARY})"
        on_event({"event": "note", "text": text})
    return ours


def _found(
    objects: Objects, dataset: ImageDataset, spec: ViewSpec, images_per_shard: int, ours: Renderer
) -> Iterator[tuple[str, Renderer]]:
    """Yield views of this kind that the store holds and this machine can render, the nearest first."""
    keys = [name for name in objects.names("views") if is_key(name)]
    for renderer in (ours, PILLOW):
        suffix = f"@{short(digest(views_identity(dataset, spec, images_per_shard, renderer)))}"
        yield from ((key, renderer) for key in keys if key.endswith(suffix))
    known = {key: identity for key in keys if key.partition("@")[0] == dataset.name for identity in _identities(objects, key)}
    plain = views_identity(dataset, spec, images_per_shard)
    for version in (dataset.digest, *(earlier.digest for earlier in reversed(dataset.earlier))):
        for key, identity in known.items():
            if identity["dataset"] == version and _without_renderer(identity) == _without_renderer(plain):
                renderer = Renderer.of(identity)
                if not renderer.flaw():
                    yield key, renderer


def _identities(objects: Objects, key: str) -> Iterator[dict[str, Any]]:
    """Yield the identity of a set of views; nothing of a damaged one."""
    try:
        yield read_identity(objects, f"views/{key}", "views")
    except CacheDamaged:
        return


def _without_renderer(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides views beside their renderer, the dataset's version and how it is turned, which differ with the version."""
    decoder = {name: value for name, value in identity["decoder"].items() if name not in ("jpeg", "orientation")}
    varying = ("dataset", "images", "resizer", "decoder")
    return {**{name: value for name, value in identity.items() if name not in varying}, "decoder": decoder}
