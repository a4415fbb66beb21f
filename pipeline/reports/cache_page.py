"""Write the HTML page of one feature set, for people who want to look at the cache before they train on it.

One self-contained file as the report is: no script, nothing fetched. Sections: sample views with their crops drawn on the photo and the
tokens beside them, norms and channels, the health of the store, the whole identity.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...storage.core.events import OnEvent
from ...storage.features.codec import CODECS
from ...storage.features.features import FeatureReader
from ...storage.objects.atomic_files import write_atomically
from ...storage.views.photometric import MODES
from ..pictures.inline_images import photo_data_uri, png_data_uri
from ..recipes.typed_tables import leaves
from .cache_sample import ShownImage, TokenFigures, figures, sample_rows, shown_images
from .charts import Axes, histogram
from .report import environment, size
from .store_health import Health, health

KINDS = {"patch": "Patch tokens", "cls": "Class token"}
BINS = 40
MOST_CHANNELS = 24


def write_cache_page(reader: FeatureReader, out: Path, on_event: OnEvent) -> None:
    """Write the page of a feature set; raises CacheDamaged for a damaged shard, StoreUnavailable where it cannot be written."""
    notes: list[str] = []
    measured = figures(reader, sample_rows(reader), on_event)
    images, state = shown_images(reader, notes), health(reader, on_event)
    page = (
        environment()
        .get_template("cache.html.j2")
        .render(
            title=reader.name,
            facts=facts(reader),
            notes=notes + view_notes(reader, images),
            tiles=tiles(state, measured),
            images=[image_section(image) for image in images],
            views_per_image=reader.views.views_per_image,
            tokens=[token_section(KINDS[kind], tokens) for kind, tokens in measured.items()],
            sampled=len(sample_rows(reader)),
            health=[state],
            identity=[(key, json.dumps(value)) for key, value in leaves(reader.identity)],
        )
    )
    write_atomically(out, page.encode(errors="backslashreplace"))


def facts(reader: FeatureReader) -> dict[str, str]:
    """Return the facts that are shown under the title."""
    spec, grid, some = reader.views.spec, reader.grid, reader.layout.tokens_per_view
    cls = f", class token {reader.cls_dim:,} wide" if reader.cls_dim else ", no class token"
    codec = f"{reader.codec} ({CODECS[reader.codec].about})"
    return {
        "Key": reader.key,
        "Tokens": f"{f'{some} of ' if some else ''}{grid[0]} × {grid[1]}, {reader.patch_dim:,} channels{cls}, {codec}",
        "Dataset": reader.views.dataset.key,
        "Views": f"{reader.views.views_per_image} an image, {spec.kind.replace('_', ' ')}",
        "Statistics": f"{reader.statistics.method} of {reader.statistics.count:,} views",
    }


def view_notes(reader: FeatureReader, images: Sequence[ShownImage]) -> list[str]:
    """Return what the sample cannot show of this set's views."""
    notes = []
    mode = MODES[reader.views.spec.photometric]
    if mode.seen_by_student and not mode.seen_by_teacher:
        notes.append("Students see these views under photometric distortion; the teacher saw them as they are shown here.")
    if images and images[0].views[0].tokens is None:
        notes.append("This set holds a sample of each view's patch tokens: no picture of a whole grid can be drawn.")
    return notes


def tiles(state: Health, measured: dict[str, TokenFigures]) -> list[tuple[str, str, str]]:
    """Return the page's first figures as (figure, what it is, compared with what)."""
    dead = sum(len(tokens.dead) for tokens in measured.values())
    channels = sum(len(tokens.frozen_std) for tokens in measured.values())
    return [
        (f"{100 * state.committed / state.shards:.0f} %", "of the shards are there", f"{state.committed:,} of {state.shards:,}"),
        (f"{state.rows:,}", "views", f"of {state.images:,} images, {state.failed:,} failed"),
        (size(state.bytes), "on disk", f"{size(state.bytes / max(1, state.rows * state.committed / state.shards))} a view"),
        *([(f"{dead:,}", "dead channels", f"of {channels:,}")] if measured else []),
    ]


def image_section(image: ShownImage) -> dict[str, Any]:
    """Return what the template shows of one image and its views."""
    return {
        "label": image.label or image.id,
        "id": image.id,
        "size": f"{image.width} × {image.height} px",
        "shape": f"{image.width}/{image.height}",
        "photo": None if image.photo is None else photo_data_uri(image.photo),
        "views": [
            {
                "number": number,
                "box": [f"{100 * share:.2f}%" for share in view.crop],
                "flip": view.flip,
                "crop": f"{round(view.crop[3] * image.width)} × {round(view.crop[2] * image.height)} px",
                "image": None if view.image is None else photo_data_uri(view.image),
                "tokens": None if view.tokens is None else png_data_uri(view.tokens),
            }
            for number, view in enumerate(image.views)
        ],
    }


def token_section(name: str, tokens: TokenFigures) -> dict[str, Any]:
    """Return what the template shows of one kind of token: its figures in words, its charts, its dead channels."""
    low, middle, high = np.percentile(tokens.norms, [1, 50, 99])
    strongest = int(tokens.frozen_std.argmax())
    return {
        "name": name,
        "facts": [
            ("median norm", f"{middle:.4g}"),
            ("1st to 99th percentile", f"{low:.4g} to {high:.4g}"),
            ("channels", f"{len(tokens.frozen_std):,}"),
            ("median deviation", f"{np.median(tokens.frozen_std):.3g}"),
            (f"the largest, channel {strongest}", f"{tokens.frozen_std[strongest]:.3g}"),
        ],
        "charts": [
            counted(tokens.norms, Axes(f"Norms of {name}", x="norm of a token", y="tokens")),
            counted(
                np.log10(np.maximum(tokens.frozen_std, 1e-9)),
                Axes(f"Deviations of {name}", x="log₁₀ of the deviation", y="channels, frozen"),
            ),
            counted(tokens.mean, Axes(f"Normalised means of {name}", x="mean once normalised: about 0", y="channels, in the sample")),
            counted(
                tokens.std, Axes(f"Normalised deviations of {name}", x="deviation once normalised: about 1", y="channels, in the sample")
            ),
        ],
        "dead": channel_list(tokens.dead),
        "silent": channel_list(tokens.silent),
    }


def counted(values: Any, axes: Axes) -> str:
    """Return the histogram of some values, its outermost thousandth drawn in the last columns."""
    low, high = np.percentile(values, [0.1, 99.9])
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.5, high + 0.5
    counts, edges = np.histogram(np.clip(values, low, high), BINS, (low, high))
    return histogram(counts.tolist(), edges.tolist(), axes)


def channel_list(channels: Sequence[int]) -> str:
    """Return channels as words: their count and the first MOST_CHANNELS; "" for none."""
    if not channels:
        return ""
    more = f" and {len(channels) - MOST_CHANNELS:,} more" if len(channels) > MOST_CHANNELS else ""
    return f"{len(channels):,}: {', '.join(map(str, channels[:MOST_CHANNELS]))}{more}"
