"""Compares synclake-query with other shells, point by point, in a pseudo-terminal.

    python shell_points.py PROGRAMS [--shell NAME]… [--point NAME]… [--runs N] [--update]

PROGRAMS is a folder with `synclake` and `synclake-query`. Each point is one question, the same for each shell. The program
prints a line of JSON for each point and shell: whether the point holds, and what was seen. `--update` writes the table of
docs/shell.md. The exit code is 1 if a point does not hold for synclake-query, other than those of LACKING, which must not hold.

`--runs` asks each point several times; it holds if it held each time.
"""

import argparse
import contextlib
import datetime
import json
import pathlib
import platform
import re
import sys
import tempfile
import traceback

import shell_points_commands
import shell_points_results
import shell_points_typing
import shell_sessions
from shell_points_documented import POINTS as DOCUMENTED
from shell_sessions import POINTS, Seen, code
from shell_terminal import Gone

DOCUMENT = pathlib.Path(__file__).resolve().parents[2] / "docs/shell.md"
BEGIN, END = "<!-- shell:points -->\n", "<!-- /shell:points -->\n"
PARTS = [
    (shell_points_typing, "Start, typing and completion"),
    (shell_points_results, "Results, interruption and errors"),
    (shell_points_commands, "Commands, scripts and tables"),
]
MODULES = [module.__name__ for module, _ in PARTS]
# Points that do not hold for synclake-query, and why.
LACKING = {}
NAMES = ["synclake-query", "DuckDB", "psql", "datafusion-cli"]


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("programs", type=pathlib.Path)
    options.add_argument("--shell", action="append", choices=NAMES[:3], help="ask this shell only; may be repeated")
    options.add_argument("--point", action="append", choices=[name for name, _, _ in POINTS], help="ask this point only")
    options.add_argument("--runs", type=int, default=1)
    options.add_argument("--update", action="store_true", help="write the table of docs/shell.md")
    asked = options.parse_args()
    if asked.update and (asked.shell or asked.point):
        options.error("--update writes the whole table: leave out --shell and --point")
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="synclake-shells-")))
        shells = list(started(asked.programs.resolve(), folder, asked.shell or NAMES[:3], stack))
        answers = {}
        for name, _, function in sorted(POINTS, key=lambda point: MODULES.index(point[2].__module__)):
            if asked.point and name not in asked.point:
                continue
            for shell in shells:
                seen = ask(function, shell, asked.runs)
                answers[name, shell.name] = seen
                line = {"point": name, "shell": shell.name, "holds": seen.holds, "seen": seen.text}
                print(json.dumps(line, ensure_ascii=False), flush=True)
        if asked.update:
            versions = ", ".join(shell.version for shell in shells)
            DOCUMENT.write_text(updated(DOCUMENT.read_text(), table(answers, versions)))
    ours = {name: seen.holds for (name, shell), seen in answers.items() if shell == "synclake-query"}
    sys.exit(any(holds == (name in LACKING) for name, holds in ours.items()))


def started(programs, folder, names, stack):
    """Yields the shells of these names, on the same rows."""
    ours = shell_sessions.synclake_query(programs, folder)
    count = ours.batch(["--format", "csv", "-c", "select count(*) as n from changes"]).stdout
    makers = {
        "synclake-query": lambda: ours,
        "DuckDB": lambda: shell_sessions.duckdb(ours, folder),
        "psql": lambda: stack.enter_context(shell_sessions.psql(ours, folder)),
    }
    for name in names:
        shell = makers[name]()
        shell.rows = int(count.split()[-1])
        yield shell


def ask(function, shell, runs):
    """Asks a point, and takes a shell that shows nothing of what it should for one that fails it."""
    for _ in range(runs):
        try:
            seen = function(shell)
        except Gone as gone:
            where = traceback.extract_tb(gone.__traceback__)
            line = next(frame.lineno for frame in reversed(where) if frame.name == function.__name__)
            seen = Seen(False, f"line {line} waits in vain: {code(str(gone)[-70:])}")
        if not seen.holds:
            break
    return seen


def table(answers, versions):
    """Returns the table: a line for each point, a column for each shell."""
    lines, sums = [], dict.fromkeys(NAMES, 0)
    for module, title in PARTS:
        lines += ["", f"### {title}", "", f"| | {' | '.join(NAMES)} |", "|---|---|---|---|---|"]
        for name, question, function in POINTS:
            if function.__module__ != module.__name__:
                continue
            cells = []
            for shell in NAMES:
                mark, text = cell(answers, name, shell)
                sums[shell] += mark == "yes"
                cells.append(f"{mark}: {text}" if text else mark)
            lines.append(f"| {question} | {' | '.join(cells)} |")
    head = [f"| | {' | '.join(NAMES)} |", "|---|---|---|---|---|"]
    head.append(f"| points of {len(POINTS)} that hold | {' | '.join(str(sums[shell]) for shell in NAMES)} |")
    unknown = len(POINTS) - len(DOCUMENTED)
    source = f"datafusion-cli: its documentation and source, which leave {unknown} points open"
    note = f"*{datetime.date.today()}, {platform.machine()}, {versions}. {source}.*"
    return "\n".join([*head, *lines, "", note, ""])


def cell(answers, name, shell):
    """Returns `yes`, `no` or `–` for a point and a shell, and what was seen."""
    if shell == "datafusion-cli":
        holds, place, text = DOCUMENTED.get(name, (None, None, ""))
        return ("–", "") if place is None else ("yes" if holds else "no", escaped(f"{text} ({place})"))
    seen = answers[name, shell]
    return "yes" if seen.holds else "no", escaped(seen.text)


def escaped(text):
    """Returns a text as a cell of a Markdown table."""
    parts = " ".join(text.split()).replace("|", "\\|").split("`")
    # Every second part is code, where nothing else is escaped.
    parts[::2] = [re.sub(r"[\\<*_\[]", r"\\\g<0>", part) for part in parts[::2]]
    return "`".join(parts)


def updated(text, body):
    """Returns the document with the text between the markers replaced."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        sys.exit(f"error: {DOCUMENT} lacks the lines {BEGIN.strip()} and {END.strip()}")
    return before + begin + body + end + after


if __name__ == "__main__":
    main()
