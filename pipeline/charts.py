"""Line charts as inline SVG text: no library, no script, colours from the page's CSS variables so that dark and light both work.

A chart is drawn at a fixed view box and scales with its column. Long curves are averaged into at most MOST_POINTS bins (the mean keeps
the level; single spikes are softened, which the page says). Limits: linear axes, finite values only (others leave a gap).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

MOST_POINTS = 240
WIDTH, HEIGHT = 560, 260
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 14, 32
SERIES_COLOURS = 8  # CSS variables --s1 … --s8 of the page


@dataclass(frozen=True)
class Series:
    """One curve: (x, y) points in ascending x."""

    label: str
    points: list[tuple[float, float]]

    @property
    def last(self) -> float:
        """The last value, averaged over the final 2 % of the curve."""
        tail = self.points[-max(1, len(self.points) // 50) :]
        return sum(y for _, y in tail) / len(tail)


def binned(points: Sequence[tuple[float, float]], most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """Return at most `most` points, each the mean of a run of neighbours; points that are not finite are left out."""
    finite = [(x, y) for x, y in points if math.isfinite(y)]
    size = -(-len(finite) // most)
    groups = [finite[start : start + size] for start in range(0, len(finite), size or 1)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Return round values from within [low, high], about `about` of them."""
    rough = (high - low) / max(1, about)
    if rough <= 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def label(value: float) -> str:
    """Return an axis label: thousands as k, no trailing zeros."""
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{value:g}"


def extent(values: Sequence[float], *, from_zero: bool) -> tuple[float, float]:
    """Return the axis range of the values, never empty."""
    low, high = min(values), max(values)
    low = min(0.0, low) if from_zero else low
    return (low, high) if high > low else (low, low + 1.0)


def line_chart(series: Sequence[Series], *, title: str, x_label: str = "step") -> str:
    """Return the SVG of the curves; an empty string when no curve has a finite point."""
    curves = [(one.label, binned(one.points)) for one in series]
    xs = [x for _, points in curves for x, _ in points]
    ys = [y for _, points in curves for _, y in points]
    if not xs:
        return ""
    (x0, x1), (y0, y1) = extent(xs, from_zero=False), extent(ys, from_zero=True)

    def at(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - (y - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM),
        )

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>']
    for y in ticks(y0, y1):
        row = at(x0, y)[1]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{row:.1f}" y2="{row:.1f}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{row + 4:.1f}" text-anchor="end">{label(y)}</text>')
    parts += [f'<text x="{at(x, y0)[0]:.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{label(x)}</text>' for x in ticks(x0, x1)]
    parts.append(f'<text class="axis" x="{WIDTH - RIGHT}" y="{HEIGHT - BOTTOM - 6}" text-anchor="end">{escape(x_label)}</text>')
    parts += [curve(n, name, [at(x, y) for x, y in points]) for n, (name, points) in enumerate(curves) if points]
    return "".join(parts) + "</svg>"


def curve(number: int, name: str, points: Sequence[tuple[float, float]]) -> str:
    """Return one curve with its name as tooltip; `number` picks its colour."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    colour = f"var(--s{number % SERIES_COLOURS + 1})"
    x, y = points[-1]
    return (
        f'<g style="color:{colour}"><title>{escape(name)}</title><polyline class="curve" points="{path}"/>'
        f'<circle class="end" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/></g>'
    )
