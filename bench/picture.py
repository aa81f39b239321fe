"""The run as one SVG picture: a panel for each figure, a bar for each gateway.

The picture has no background and takes its colours from the reader's light or dark mode.
"""

from dataclasses import dataclass
from statistics import fmean
from xml.sax.saxutils import escape

from bench.rows import ROWS, Results, Row

SERVICE = "this service"
PANELS = {
    "added latency": "Added latency, one caller (ms)",
    "… CPU s per 1000": "CPU for 1000 full answers (s)",
    "… CPU s per 1000 streams": "CPU for 1000 streams of 50 chunks (s)",
    "40 streams": "First token, 40 streams, p50 (ms)",
    "32 streams flat out": "Chunks a second, flat out",
    "idle memory": "Idle memory (MiB)",
    "cold start": "Cold start to first answer (s)",
    "installed MiB": "Installed (MiB)",
}
PANELS_A_LINE = 2
WIDTH, MARGIN = 860, 10
PANEL_WIDTH = (WIDTH - 2 * MARGIN) // PANELS_A_LINE
LABEL_WIDTH, BAR_WIDTH = 96, 230
LINE, TITLE, GAP = 20, 26, 18
LONGEST = 4.0  # a bar longer than so many times the service's is cut, and shows that it is

STYLE = """
  text { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: #1f2328 }
  .title { font-weight: 600 }
  .name { text-anchor: end }
  .bar { fill: #9aa4af }
  .own { fill: #2563c9 }
  .cut { stroke: #ffffff; stroke-width: 3 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 }
    .bar { fill: #6b7580 }
    .own { fill: #6ea8fe }
    .cut { stroke: #0d1117 }
  }
"""


@dataclass(frozen=True)
class Bar:
    name: str
    value: float


def draw(results: Results) -> str:
    """The SVG document."""
    panels = [(title, row, bars(results, row)) for title, row in _panels()]
    panels = [panel for panel in panels if panel[2]]
    height = TITLE + LINE * (len(results.columns) - 1) + GAP
    lines = -(-len(panels) // PANELS_A_LINE)
    parts = []
    for number, (title, row, found) in enumerate(panels):
        x = MARGIN + number % PANELS_A_LINE * PANEL_WIDTH
        y = MARGIN + number // PANELS_A_LINE * height
        parts.append(panel_drawing(x, y, title, row, found))
    size = f'width="{WIDTH}" height="{lines * height}" viewBox="0 0 {WIDTH} {lines * height}"'
    summary = f"The bench: {', '.join(results.columns)} side by side"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{summary}">\n'
        f"<style>{STYLE}</style>\n" + "".join(parts) + "</svg>\n"
    )


def _panels() -> list[tuple[str, Row]]:
    """Each panel's title and the row of the table that it shows."""
    chosen = []
    for start, title in PANELS.items():
        exact = [row for row in ROWS if row.name == start]
        chosen += [(title, row) for row in exact or ROWS if row.name.startswith(start)][:1]
    return chosen


def bars(results: Results, row: Row) -> list[Bar]:
    """A bar for each gateway that has the figure: the mean of its routes."""
    found = []
    for column in results.columns:
        values = [value for value in row.values(results, column) if value is not None]
        if values and column != "direct":
            found.append(Bar(column, fmean(values)))
    return found


def panel_drawing(x: int, y: int, title: str, row: Row, found: list[Bar]) -> str:
    better = "more is better" if row.more_is_better else "less is better"
    full = _full_width(found)
    head = f'<text class="title" x="{x}" y="{y + 14}">{escape(title)}, {better}</text>\n'
    return head + "".join(
        bar_drawing(x, y + TITLE + number * LINE, bar, full, row.digits)
        for number, bar in enumerate(found)
    )


def _full_width(found: list[Bar]) -> float:
    """The value of a bar of full width."""
    greatest = max(bar.value for bar in found)
    own = [bar.value for bar in found if bar.name == SERVICE]
    return min(greatest, LONGEST * own[0]) if own and own[0] > 0 else greatest


def bar_drawing(x: int, y: int, bar: Bar, full: float, digits: int) -> str:
    share = min(1.0, max(0.0, bar.value / full)) if full > 0 else 0.0
    width, left = max(1.0, share * BAR_WIDTH), x + LABEL_WIDTH
    kind = "bar own" if bar.name == SERVICE else "bar"
    drawing = (
        f'<text class="name" x="{left - 8}" y="{y + 12}">{escape(bar.name)}</text>\n'
        f'<rect class="{kind}" x="{left}" y="{y + 1}" width="{width:.1f}" height="14" rx="2"/>\n'
        f'<text x="{left + width + 6:.1f}" y="{y + 12}">{bar.value:,.{digits}f}</text>\n'
    )
    if bar.value > full * 1.001:
        end = left + width - 22
        drawing += f'<path class="cut" d="M{end:.1f} {y + 17} l8 -18 m6 0 l-8 18"/>\n'
    return drawing
