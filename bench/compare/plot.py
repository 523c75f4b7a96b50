"""The ratios as bars, in SVG. Pure."""

from html import escape

WIDTH, LABEL, VALUE, LINE, BAR, TOP = 960, 430, 110, 26, 7, 64
STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1f2328; }
  .title { font-weight: 600; font-size: 15px; }
  .quiet { fill: #59636e; }
  .back { fill: #ffffff; }
  .own { fill: #0969da; }
  .other { fill: #8c959f; }
  .share { fill-opacity: 0.55; }
  .even { stroke: #59636e; stroke-dasharray: 3 3; }
  .goal { stroke: #cf222e; stroke-width: 2; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; }
    .quiet { fill: #9198a1; }
    .back { fill: #0d1117; }
    .own { fill: #4493f8; }
    .other { fill: #656c76; }
    .even { stroke: #9198a1; }
    .goal { stroke: #ff7b72; }
  }
"""


def scale_end(bars):
    """The right end of the axis: room for the longest bar, and for a ratio of one."""
    longest = max([1.0, *(ratio for bar in bars for ratio in bar["ratios"])])
    return min(longest, 3.0) * 1.05


def bar_lines(bar, y, end):
    span = WIDTH - LABEL - VALUE
    kind = "own" if bar["own"] else "other"
    middle = y + LINE / 2
    lines = [f'<text x="{LABEL - 8}" y="{middle + 4:.1f}" text-anchor="end">{escape(bar["label"])}</text>']
    for way, ratio, top in zip(("share", "beats"), bar["ratios"], (middle - BAR - 1, middle + 1)):
        length = span * min(max(ratio, 0.0), end) / end
        lines.append(f'<rect class="{kind} {way}" x="{LABEL}" y="{top:.1f}" width="{length:.1f}" height="{BAR}" rx="2"/>')
    if bar["goal"] is not None and bar["goal"] <= end:
        at = LABEL + span * bar["goal"] / end
        lines.append(f'<line class="goal" x1="{at:.1f}" x2="{at:.1f}" y1="{y + 2}" y2="{y + LINE - 2}"/>')
    told = " / ".join(f"{ratio:.2f}" for ratio in bar["ratios"])
    lines.append(f'<text x="{WIDTH - VALUE + 12}" y="{middle + 4:.1f}">{told}</text>')
    return lines


def svg(title, subtitle, bars):
    """`bars`: label, ratios by share and by beats, goal or None, and own (whether the gateway's)."""
    end = scale_end(bars)
    height = TOP + LINE * len(bars) + 16
    even = LABEL + (WIDTH - LABEL - VALUE) / end
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
             f'role="img" aria-label="{escape(title)}">', f"<style>{STYLE}</style>",
             f'<rect class="back" width="{WIDTH}" height="{height}"/>',
             f'<text class="title" x="12" y="24">{escape(title)}</text>',
             f'<text class="quiet" x="12" y="44">{escape(subtitle)}</text>',
             f'<line class="even" x1="{even:.1f}" x2="{even:.1f}" y1="{TOP - 6}" y2="{height - 10}"/>',
             f'<text class="quiet" x="{even:.1f}" y="{TOP - 10}" text-anchor="middle">1</text>']
    for number, bar in enumerate(bars):
        lines += bar_lines(bar, TOP + LINE * number, end)
    return "\n".join([*lines, "</svg>", ""])
