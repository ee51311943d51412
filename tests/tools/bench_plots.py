"""Draws line plots as SVG, for light and dark pages. Part of bench.py."""

import dataclasses
import math

WIDTH, HEIGHT = 760, 380
LEFT, RIGHT, TOP, BOTTOM = 64, 24, 72, 52
# The background is painted too: inside of an image, the scheme is that of the system, which may differ from the page's.
STYLE = """
  svg { --back: #ffffff; --text: #1f2328; --soft: #59636e; --grid: #d1d9e0; --s0: #0969da; --s1: #bc4c00; --s2: #1a7f37; --s3: #8250df; }
  @media (prefers-color-scheme: dark) {
    svg { --back: #0d1117; --text: #f0f6fc; --soft: #9198a1; --grid: #30363d; --s0: #58a6ff; --s1: #f0883e; --s2: #3fb950; --s3: #a371f7; }
  }
  text { font: 13px -apple-system, "Segoe UI", "Noto Sans", Helvetica, Arial, sans-serif; fill: var(--soft); }
  .title { font-size: 16px; font-weight: 600; fill: var(--text); }
  .value { font-size: 12px; fill: var(--text); }
  .back { fill: var(--back); } .grid { stroke: var(--grid); } .line { fill: none; stroke-width: 2.5; stroke-linejoin: round; }
"""


@dataclasses.dataclass
class Series:
    """A line: its name, and its points (x, y) by x."""

    name: str
    points: list


def nice(highest):
    """Returns the distance of about five grid lines up to `highest`: 1, 2 or 5 times a power of ten."""
    rough = highest / 5
    power = 10 ** math.floor(math.log10(rough))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= rough)


def number(value):
    return f"{value:,.0f}" if value >= 10 or value == 0 else f"{value:.2g}"


def escape(text):
    return text.replace("&", "&amp;").replace("<", "&lt;")


def plot(path, title, x_name, y_name, series):
    """Writes a plot with a logarithmic x axis and a y axis from zero. x must be positive."""
    every = [point for line in series for point in line.points]
    low, high = (math.log10(edge(x for x, _ in every)) for edge in (min, max))
    step = nice(max(y for _, y in every) * 1.08)
    top = step * math.ceil(max(y for _, y in every) * 1.08 / step)
    at_x = lambda x: LEFT + 20 + (math.log10(x) - low) / ((high - low) or 1) * (WIDTH - LEFT - RIGHT - 40)
    at_y = lambda y: HEIGHT - BOTTOM - y / top * (HEIGHT - TOP - BOTTOM)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img">',
        f"<title>{escape(title)}</title><style>{STYLE}</style>",
        f'<rect class="back" width="{WIDTH}" height="{HEIGHT}" rx="6"/>',
        f'<text class="title" x="{LEFT}" y="28">{escape(title)}</text>',
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 12}" text-anchor="middle">{escape(x_name)}</text>',
    ]
    for n in range(round(top / step) + 1):
        y = at_y(n * step)
        out.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{number(n * step)}</text>')
    for x in sorted({x for x, _ in every}):
        out.append(f'<text x="{at_x(x):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{number(x)}</text>')
    out.append(f'<text x="{LEFT}" y="50">{escape(y_name)}</text>')
    widths = [34 + 8 * len(line.name) for line in series]
    for n, line in enumerate(series):
        colour, legend = f"var(--s{n})", WIDTH - RIGHT - sum(widths[n:])
        out.append(f'<circle cx="{legend + 20}" cy="45.5" r="5" style="fill: {colour}"/>')
        out.append(f'<text x="{legend + 30}" y="50">{escape(line.name)}</text>')
        path_data = " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in line.points)
        out.append(f'<polyline class="line" style="stroke: {colour}" points="{path_data}"/>')
        for x, y in line.points:
            out.append(f'<circle cx="{at_x(x):.1f}" cy="{at_y(y):.1f}" r="4" style="fill: {colour}"/>')
            # The labels of the upper line are above it, those of the others below.
            above = all(y >= other for peer in series for at, other in peer.points if at == x)
            out.append(f'<text class="value" x="{at_x(x):.1f}" y="{at_y(y) + (-10 if above else 20):.1f}" text-anchor="middle">{number(y)}</text>')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*out, "</svg>", ""]))
