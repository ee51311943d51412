"""Draws a session of synclake-query as SVG: shell_picture.py PROGRAMS OUT.svg [--lake LAKE]

The session is real: the shell runs in a pseudo-terminal, and what its screen shows at the end becomes the picture. Without
`--lake`, a lake is made by `synclake simulate`, `ingest` and `refresh`. The same programs give the same picture, except for
times that the shell prints.
"""

import argparse
import pathlib
import tempfile

import shell_sessions
from shell_sessions import ABSENT_SECONDS
from shell_terminal import TAB

COLUMNS, LINES = 80, 24
CELL_WIDTH, LINE_HEIGHT, MARGIN, BAR = 9.0, 20, 16, 34
TITLE = "synclake-query: a result, an error that names the column, and completion of values"
# What is typed: statements that run, and a statement that is left in the line, with Tab.
STATEMENTS = [
    "select dataset_name, count(*) as keys, max(sync_count) as syncs from current_state group by 1 order by 2 desc limit 4;",
    "select datset_name from changes;",
]
LEFT = "select key, value from current_state where dataset_name = '"
LIGHTS = ["red", "brown", "green"]
# The 16 colours of a terminal under pyte's names, for light and dark pages.
COLOURS = {
    "black": ("#24292f", "#6e7681"), "red": ("#cf222e", "#ff7b72"),
    "green": ("#116329", "#7ee787"), "brown": ("#953800", "#e3b341"),
    "blue": ("#0550ae", "#79c0ff"), "magenta": ("#8250df", "#d2a8ff"),
    "cyan": ("#1b7c83", "#76e3ea"), "white": ("#57606a", "#b1bac4"),
    "brightblack": ("#6e7781", "#8b949e"), "brightred": ("#a40e26", "#ffa198"),
    "brightgreen": ("#1a7f37", "#56d364"), "brightbrown": ("#7d4e00", "#f2cc60"),
    "brightblue": ("#0969da", "#a5d6ff"), "brightmagenta": ("#6639ba", "#e2c5ff"),
    "brightcyan": ("#3192aa", "#b3f0ff"), "brightwhite": ("#24292f", "#ffffff"),
}
SCHEME = {"back": ("#f6f8fa", "#0d1117"), "bar": ("#d0d7de", "#21262d"), "default": ("#1f2328", "#e6edf3")}


def style():
    """Returns the style sheet. An image follows the scheme of the system, so the background is painted too."""
    names = {**SCHEME, **COLOURS}
    light, dark = ("; ".join(f"--{name}: {pair[n]}" for name, pair in names.items()) for n in (0, 1))
    fills = "\n".join(f"  .{name} {{ fill: var(--{name}); }}" for name in names)
    return f"""
  svg {{ {light} }}
  @media (prefers-color-scheme: dark) {{ svg {{ {dark} }} }}
  text {{ font: 15px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }}
  .b {{ font-weight: 700; }} .i {{ font-style: italic; }} .u {{ text-decoration: underline; }}
{fills}
"""


def runs(line, columns):
    """Yields the column, the text and the look of each run of cells of one look; blanks at the end are left out."""
    cells = [line[x] for x in range(columns)]
    last = max((x for x, cell in enumerate(cells) if cell.data.strip() or cell.reverse or cell.bg != "default"), default=-1)
    begin = 0
    for x in range(1, last + 2):
        if x > last or look(cells[x]) != look(cells[begin]):
            yield begin, x, "".join(cell.data for cell in cells[begin:x]), cells[begin]
            begin = x


def look(cell):
    return cell.fg, cell.bg, cell.bold, cell.italics, cell.underscore, cell.reverse


def escape(text):
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def fill(colour, cell=None):
    """Returns the attributes of a colour, which has a name or is given by its parts, and of the look of a cell."""
    looks = [name for name, is_on in (("b", cell.bold), ("i", cell.italics), ("u", cell.underscore)) if is_on] if cell else []
    has_name = colour in COLOURS or colour in SCHEME
    classes = " ".join([colour, *looks] if has_name else looks)
    return " ".join([f'class="{classes}"'] * bool(classes) + [f'fill="#{colour}"'] * (not has_name))


def draw(screen, title):
    """Returns the screen as SVG."""
    width, height = screen.columns * CELL_WIDTH + 2 * MARGIN, screen.lines * LINE_HEIGHT + 2 * MARGIN + BAR
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" xml:space="preserve" viewBox="0 0 {width:g} {height:g}" '
        f'width="{width:g}" height="{height:g}" role="img">',
        f"<title>{escape(title)}</title><style>{style()}</style>",
        f'<rect class="back" width="{width:g}" height="{height:g}" rx="8"/>',
        f'<path class="bar" d="M0 {BAR}V8a8 8 0 0 1 8-8H{width - 8:g}a8 8 0 0 1 8 8V{BAR}z"/>',
        *(f'<circle class="{name}" cx="{20 + 20 * n}" cy="{BAR / 2:g}" r="6"/>' for n, name in enumerate(LIGHTS)),
    ]
    for y in range(screen.lines):
        top = BAR + MARGIN + y * LINE_HEIGHT
        for begin, end, text, cell in runs(screen.buffer[y], screen.columns):
            front, back = (cell.fg, cell.bg) if not cell.reverse else ("back" if cell.bg == "default" else cell.bg, cell.fg)
            x, wide = MARGIN + begin * CELL_WIDTH, (end - begin) * CELL_WIDTH
            if cell.reverse or back != "default":
                out.append(f'<rect {fill(back)} x="{x:g}" y="{top}" width="{wide:g}" height="{LINE_HEIGHT}"/>')
            if text.strip():
                out.append(f'<text {fill(front, cell)} x="{x:g}" y="{top + 15}" textLength="{wide:g}">{escape(text)}</text>')
    cursor = screen.cursor
    x, top = MARGIN + cursor.x * CELL_WIDTH, BAR + MARGIN + cursor.y * LINE_HEIGHT
    out.append(f'<rect class="default" opacity="0.5" x="{x:g}" y="{top}" width="{CELL_WIDTH:g}" height="{LINE_HEIGHT}"/>')
    return "\n".join([*out, "</svg>", ""])


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("programs", type=pathlib.Path)
    options.add_argument("out", type=pathlib.Path)
    options.add_argument("--lake", type=pathlib.Path)
    asked = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="synclake-picture-") as folder:
        folder = pathlib.Path(folder)
        if asked.lake:
            (folder / "lake").symlink_to(asked.lake.resolve())
        else:
            shell_sessions.make_lake(asked.programs.resolve(), folder)
        # A relative name of the lake keeps the folder of this run out of the picture.
        shell = shell_sessions.synclake_shell(asked.programs.resolve(), folder, "lake")
        with shell.open(folder, columns=COLUMNS, lines=LINES) as session:
            for statement in STATEMENTS:
                session.ask(statement)
            session.type(LEFT)
            before = session.mark()
            session.send(TAB + TAB)
            if not session.waits(lambda t: b"profile" in t.since(before), ABSENT_SECONDS):
                raise SystemExit(f"error: Tab offers no dataset; the screen shows:\n{session.shown()}")
            asked.out.write_text(draw(session.screen, TITLE))


if __name__ == "__main__":
    main()
