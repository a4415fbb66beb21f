"""Draw charts as inline HTML and SVG: no library, no script, colours from the page's CSS variables so that dark and light both work.

Only the lines are SVG, stretched to their frame with strokes of one width; the labels are text of the page beside it, so that they are as
large on a phone as on a desk. Long curves are averaged into at most MOST_POINTS bins (the mean keeps the level; single spikes are
softened, which the page says). Limits: linear axes, finite values only (others leave a gap).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

MOST_POINTS = 240
SPAN = 1000  # the view box's side; stretched to the frame
SERIES_COLOURS = 8  # CSS variables --s1 … --s8 of the page
FEW_POINTS = 12  # up to here each point is drawn


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


@dataclass(frozen=True)
class Axes:
    """What a chart's axes are called, with units; whether y begins at 0, and an end of y that must be seen."""

    title: str
    x: str = "step"
    y: str = ""
    from_zero: bool = True
    y_top: float | None = None


@dataclass(frozen=True)
class Frame:
    """The ranges that a chart shows and y's ticks; `across` and `up` are shares of its width and height."""

    x: tuple[float, float]
    y: tuple[float, float]
    y_ticks: list[float]

    def across(self, x: float) -> float:
        """Return where x lies, 0 left and 1 right."""
        return (x - self.x[0]) / (self.x[1] - self.x[0])

    def up(self, y: float) -> float:
        """Return where y lies, 0 at the bottom and 1 at the top."""
        return (y - self.y[0]) / (self.y[1] - self.y[0])


def binned(points: Sequence[tuple[float, float]], most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """Return at most `most` points, each the mean of a run of neighbours; points that are not finite are left out."""
    finite = [(x, y) for x, y in points if math.isfinite(y)]
    size = -(-len(finite) // most)
    groups = [finite[start : start + size] for start in range(0, len(finite), size or 1)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]


def tick_step(low: float, high: float, about: int = 5) -> float:
    """Return a round distance that divides [low, high] into about `about` parts."""
    rough = (high - low) / max(1, about)
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)


def ticks(low: float, high: float, step: float = 0.0) -> list[float]:
    """Return round values from within [low, high], `step` apart or about five of them."""
    if high <= low:
        return [low]
    step = step or tick_step(low, high)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def label(value: float) -> str:
    """Return an axis label: thousands as k, millions as M, no trailing zeros."""
    for unit, size in (("M", 1e6), ("k", 1e4)):
        if abs(value) >= size:
            return f"{value / (1e6 if unit == 'M' else 1e3):g}{unit}"
    return f"{value:g}"


def extent(values: Sequence[float], *, from_zero: bool) -> tuple[float, float]:
    """Return the axis range of the values, never empty."""
    low, high = min(values), max(values)
    low = min(0.0, low) if from_zero else low
    return (low, high) if high - low > 1e-9 * max(1.0, abs(high)) else (low, low + 1.0)


def framing(x: tuple[float, float], low: float, high: float) -> Frame:
    """Return the frame whose y range is widened to its ticks, so that the lowest and the highest line are labelled."""
    step = tick_step(low, high)
    y = round(math.floor(low / step + 1e-9) * step, 12), round(math.ceil(high / step - 1e-9) * step, 12)
    return Frame(x, y, ticks(*y, step))


def line_chart(series: Sequence[Series], axes: Axes, *, shaded: bool = False) -> str:
    """Return the chart of the curves, with `shaded` the area between the first two; an empty string when none has a finite point."""
    curves = [(curve_series.label, binned(curve_series.points)) for curve_series in series]
    xs = [x for _, points in curves for x, _ in points]
    ys = [y for _, points in curves for _, y in points]
    if not xs:
        return ""
    y0, y1 = extent(ys, from_zero=axes.from_zero)
    frame = framing(extent(xs, from_zero=True), y0, max(y1, axes.y_top or y1))
    placed = [[(frame.across(x), frame.up(y)) for x, y in points] for _, points in curves]
    drawn = [curve(n, name, points) for n, ((name, _), points) in enumerate(zip(curves, placed, strict=True)) if points]
    area = between(placed[0], placed[1]) if shaded else ""
    return framed(frame, axes, area + "".join(lines for lines, _ in drawn), "".join(dots for _, dots in drawn))


def between(upper: Sequence[tuple[float, float]], lower: Sequence[tuple[float, float]]) -> str:
    """Return the area between two curves of shares, in the third colour."""
    outline = " ".join(f"{SPAN * x:.1f},{SPAN * (1 - y):.1f}" for x, y in [*upper, *reversed(lower)])
    return f'<polygon class="between" points="{outline}"/>'


def curve(number: int, name: str, points: Sequence[tuple[float, float]]) -> tuple[str, str]:
    """Return one curve of shares (SVG, with its name as tooltip) and its dots (HTML); `number` picks its colour."""
    path = " ".join(f"{SPAN * x:.1f},{SPAN * (1 - y):.1f}" for x, y in points)
    colour = f"color:var(--s{number % SERIES_COLOURS + 1})"
    marked = points if len(points) <= FEW_POINTS else points[-1:]
    dots = "".join(f'<i class="dot" style="left:{100 * x:.2f}%;bottom:{100 * y:.2f}%;{colour}"></i>' for x, y in marked)
    return f'<g style="{colour}"><title>{escape(name)}</title><polyline class="curve" points="{path}"/></g>', dots


def histogram(counts: Sequence[int], edges: Sequence[float], axes: Axes) -> str:
    """Return the chart of counts between edges (one more than counts); an empty string when nothing was counted."""
    if not any(counts):
        return ""
    frame = framing((edges[0], edges[-1]), 0.0, max(counts))
    bars = []
    for count, left, right in zip(counts, edges, edges[1:], strict=False):
        x, width, height = SPAN * frame.across(left), SPAN * frame.across(right) - SPAN * frame.across(left), SPAN * frame.up(count)
        tooltip = f"<title>{label(round(left, 4))} to {label(round(right, 4))}: {count:,}</title>"
        bars.append(
            f'<rect class="column" x="{x:.1f}" y="{SPAN - height:.1f}" width="{0.92 * width:.1f}" height="{height:.1f}">{tooltip}</rect>'
        )
    return framed(frame, axes, "".join(bars), "")


def framed(frame: Frame, axes: Axes, lines: str, dots: str) -> str:
    """Return the figure around SVG `lines` and HTML `dots`: grid, labels, the axes' names."""
    y_ticks, x_ticks = frame.y_ticks, ticks(*frame.x)
    grid = "".join(f'<line class="grid" x1="0" x2="{SPAN}" y1="{(y := SPAN * (1 - frame.up(t))):.1f}" y2="{y:.1f}"/>' for t in y_ticks)
    texts = "".join(f'<span class="y" style="bottom:{100 * frame.up(tick):.2f}%">{label(tick)}</span>' for tick in y_ticks)
    texts += "".join(x_text(frame.across(tick), label(tick)) for tick in x_ticks)
    widest = max(len(label(tick)) for tick in y_ticks)
    return (
        f'<figure class="chart" role="img" aria-label="{escape(axes.title)}" style="--widest:{widest}">'
        f'<figcaption>{escape(axes.y)}</figcaption><div class="plot"><svg viewBox="0 0 {SPAN} {SPAN}" preserveAspectRatio="none">'
        f"<title>{escape(axes.title)}</title>{grid}{lines}</svg>{dots}{texts}</div><small>{escape(axes.x)}</small></figure>"
    )


def x_text(share: float, text: str) -> str:
    """Return a label under the frame, centred on its position but kept inside at both ends."""
    end = " last" if share > 0.97 else ""
    return f'<span class="x{end}" style="left:{100 * share:.2f}%">{text}</span>'
