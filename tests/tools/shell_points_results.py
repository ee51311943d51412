"""Points of shell_points.py on results, their formats, interruption and errors."""

import json
import pathlib
import re
import time

from shell_points_typing import SOON_SECONDS, script
from shell_sessions import ANSWER_SECONDS, Seen, best, code, plain, point
from shell_terminal import COLOUR, CTRL_C, Gone

# A query that ends in hours only, in each shell.
ENDLESS = "select count(*) from changes a, changes b, changes c where a.value < b.value and b.value < c.value;"
ERROR_LINES_MAX, ERROR_CHARS_MAX = 8, 480


@point("With NO_COLOR the shell writes no colours: in its input line, a result and an error")
def obeys_no_color(shell):
    with shell.open(NO_COLOR="1") as session:
        session.ask("select 'text' as a, 1 as b;")
        session.ask("select nowhere;")
        found = COLOUR.findall(session.since(0))
        return Seen(not found, f"{len(found)} colour sequences" if found else "none")


@point("A result of ten columns fits into 80 columns: no line of it is broken")
def fits_width(shell):
    with shell.open() as session:
        place = session.mark()
        session.ask("select * from current_state limit 5;")
        lines = session.printed(place)
        widest = max((width(line) for line in lines), default=0)
        return Seen(len(lines) >= 5 and widest <= 80, f"widest line: {widest} columns")


def width(line):
    import wcwidth

    return max(wcwidth.wcswidth(line.rstrip()), 0)


@point("A value of 1,000 characters does not break the table: the column after it stays in view")
def cuts_values(shell):
    with shell.open() as session:
        lines = session.ask("select repeat('x', 1000) as long, 4248 as beside;")
        row = next((line for line in lines if re.search(r"\b4248\b", line)), "")
        whole = re.search(r"x{3}.*\b4248\b", row) and not any(line.startswith("x" * 70) for line in lines)
        return Seen(bool(whole), f"{len(lines)} lines" + ("" if whole else ", the value is broken over them"))


@point("A result of 14,000 rows does not flood the screen: it is cut with its count, or goes to a pager")
def cuts_rows(shell):
    home = shell.home()
    pager = script(home, "pager", "wc -l > /dev/null; echo PAGED")
    with shell.open(home, PAGER=pager) as session:
        session.raw_only = True
        place = session.mark()
        session.type_raw("select sync_count, key from changes;")
        try:
            session.wait(lambda t: t.prompts(place), ANSWER_SECONDS)
        except Gone:
            return Seen(False, "no prompt came back")
        text = plain(session.since(place))
        lines, paged = text.count("\n"), "PAGED" in text
        counted = re.search(rf"\b({shell.rows}|{shell.rows:,})\b", text)
        if paged:
            return Seen(True, "to the pager")
        return Seen(lines <= 120 and bool(counted), f"{lines} lines, {'with' if counted else 'without'} the count")


@point("A command prints all rows of such a result")
def prints_all(shell):
    word, query = shell.word("all rows"), "select sync_count, key from changes;"
    with shell.open() as session:
        session.raw_only = True
        # The command prints the result before again, or holds for the next one.
        for text in (query, word, query):
            place = session.mark()
            session.type_raw(text)
            if not session.waits(lambda t: t.prompts(place), ANSWER_SECONDS):
                return Seen(False, f"no prompt came back after {text}")
            output = plain(session.since(place))
            lines = output.count("\n")
            if text == word and re.search(r"\berror\b|\bno (such )?command\b|invalid", output, re.IGNORECASE):
                return Seen(False, code(output))
            if text == word and lines >= shell.rows:
                break
        return Seen(lines >= shell.rows, f"{code(word)}: {lines} lines")


@point("A command shows rows in the vertical form, a line for each column")
def shows_vertical(shell):
    with shell.open() as session:
        session.ask(shell.word("vertical"))
        lines = session.ask("select 4249 as one, 'two' as two;")
        one = next((n for n, line in enumerate(lines) if re.search(r"\bone\b.*\b4249\b", line)), None)
        two = next((n for n, line in enumerate(lines) if re.search(r"\btwo\b.*\btwo\b", line)), None)
        held = one is not None and two is not None and two > one
        return Seen(held, code(shell.word("vertical") if held else lines))


@point("A command sends results through $PAGER")
def pages(shell):
    word, home = shell.word("pager on"), shell.home()
    pager = script(home, "pager", "echo PAGED $(wc -l)")
    with shell.open(home, PAGER=pager) as session:
        session.ask(word)
        session.enter("select key from changes limit 200;")
        held = session.shows(r"PAGED \d+")
        return Seen(held, code(word) if held else "the pager was not started")


@point("NULL and the empty string look different")
def tells_null(shell):
    with shell.open() as session:
        first = session.ask("select null as v;")
        second = session.ask("select '' as v;")
        # Times differ by their digits, which are no sign of either.
        first, second = (["".join(c for c in line if not c.isdigit()).strip() for line in lines] for lines in (first, second))
        differ = first != second
        return Seen(differ, f"null: {code(cell(first))}")


def cell(lines):
    return next((line.strip(" |│") for line in lines if re.search(r"null|NULL", line)), "")


@point("A value with control characters cannot steer the terminal")
def escapes_controls(shell):
    with shell.open() as session:
        place = session.mark()
        session.ask("select chr(27) || ']0;owned' || chr(7) as v;")
        came = b"\x1b]0;owned" in session.since(place)
        return Seen(not came, "the control sequence reaches the terminal" if came else "escaped")


@point("The time of a statement is shown unasked")
def times(shell):
    with shell.open() as session:
        lines = session.ask("select count(*) from changes;")
        found = [line for line in lines if re.search(r"\d+([.,]\d+)? ?(ms|s|sec|seconds)\b", line)]
        return Seen(bool(found), code(found[0]) if found else "no time")


@point("A query of some seconds shows how far it is")
def shows_progress(shell):
    with shell.open() as session:
        place = session.mark()
        session.enter("select count(*) from changes a, changes b where a.value < b.value and a.key > b.key;")
        progress = re.compile(r"\d+ ?%|\d[\d,.]* (rows|files|[KMG]i?B)\b[^\n]*(read|scanned|so far)|read[^\n]*\d")
        try:
            session.wait(lambda t: progress.search(plain(t.since(place))), 8)
        except Gone:
            return Seen(False, "nothing is shown meanwhile")
        return Seen(True, code(progress.search(plain(session.since(place))).group()))


@point("Ctrl-C in a query brings the prompt back within a second")
def stops_query(shell):
    return best(3, lambda: stops(shell))


def stops(shell):
    with shell.open() as session:
        session.enter(ENDLESS)
        if session.waits(session.__class__.ready, 1.0):
            return Seen(False, f"the query ended: {code(session.shown()[-70:])}")
        return stopped(session, lambda t: t.ready())


@point("Ctrl-C while a result is printed brings the prompt back within a second")
def stops_printing(shell):
    return best(3, lambda: stops_output(shell))


def stops_output(shell):
    with shell.open() as session:
        session.ask(shell.word("all rows"))
        session.raw_only = True
        place = session.mark()
        session.type_raw("select a.key, a.value from changes a, (select key from changes limit 40) b;")
        flows = lambda t: t.mark() - place > 1 << 20
        session.wait(lambda t: flows(t) or t.prompts(place), ANSWER_SECONDS)
        if not flows(session) and shell.word("all rows"):
            # The command prints the result before again.
            session.type_raw(shell.word("all rows"))
        if not session.waits(flows, ANSWER_SECONDS):
            return Seen(False, f"only {session.mark() - place} bytes were printed")
        stop = session.mark()
        return stopped(session, lambda t: t.prompts(stop))


def stopped(session, prompts):
    began = time.monotonic()
    session.send(CTRL_C)
    try:
        session.wait(prompts, 5.0)
    except Gone:
        return Seen(False, f"exit code {session.status}" if session.status is not None else "not within 5 s")
    took = time.monotonic() - began
    return Seen(took <= SOON_SECONDS, f"{took:.2f} s")


def failed(shell, statement):
    with shell.open() as session:
        return session.ask(statement)


@point("An error marks its place in the statement with a caret")
def marks_place(shell):
    lines = failed(shell, "select key from changes where kez = 'score';")
    caret = next((line for line in lines if line.strip() == "^" or line.rstrip().endswith("^")), None)
    return Seen(caret is not None, code(lines[-3:]) if caret is None else f"below column {caret.index('^') + 1}")


@point("For a misspelt column the error names the right one")
def suggests_column(shell):
    lines = failed(shell, "select datset_name from changes;")
    return suggested(lines, "dataset_name")


@point("For a misspelt table the error names the right one")
def suggests_table(shell):
    return suggested(failed(shell, "select * from current_stat;"), "current_state")


def suggested(lines, name):
    text = "".join(lines)
    found = re.search(rf"(mean|hint|candidate|perhaps|similar)[^\n]*\b{name}\b", text, re.IGNORECASE)
    return Seen(bool(found), code(found.group()) if found else "no suggestion")


@point(f"The error for an unknown column has at most {ERROR_LINES_MAX} lines on 80 columns")
def errors_are_short(shell):
    lines = [line for line in failed(shell, "select nosuchcolumn from changes;") if line.strip()]
    return Seen(0 < len(lines) <= ERROR_LINES_MAX, f"{len(lines)} lines")


@point("CSV, JSON, Markdown and Parquet are each written by an option or a statement")
def writes_formats(shell):
    missing, query = [], "select 1 as a, 'x' as b"
    checks = {
        "csv": lambda text: text.replace('"', "").split() == ["a,b", "1,x"],
        "json": lambda text: json.loads(text) == [{"a": 1, "b": "x"}],
        "markdown": lambda text: re.search(r"\|\s*a\s*\|\s*b\s*\|", text) and re.search(r"\|[-: ]+\|[-: ]+\|", text),
    }
    for name, check in checks.items():
        word = shell.word(name)
        if not word or not holds(check, shell.batch([*word.split(), "-c", query]).stdout):
            missing.append(name)
    file = pathlib.Path(shell.home()) / "out.parquet"
    options, statement = shell.word("parquet", file=file), shell.word("parquet sql", query=query, file=file)
    if options or statement:
        shell.batch([*(options or "").split(), "-c", statement or query])
    if not file.exists() or file.read_bytes()[:4] != b"PAR1":
        missing.append("parquet")
    return Seen(not missing, f"without {', '.join(missing)}" if missing else "all four")


def holds(check, text):
    try:
        return bool(check(text))
    except ValueError:
        return False
