"""Points of shell_points.py on starting, leaving, typing, history and completion."""

import os
import pathlib
import re
import stat

from shell_sessions import ABSENT_SECONDS, Seen, best, code, plain, point
from shell_terminal import CTRL_C, CTRL_D, CTRL_R, ENTER, TAB, UP, Gone

# Limit for what an analyst takes for immediate.
SOON_SECONDS = 1.0
PASTE, PASTE_END = "\x1b[200~", "\x1b[201~"


@point("The prompt is there within a second of the start")
def starts_soon(shell):
    def start():
        with shell.open() as session:
            return Seen(session.started <= SOON_SECONDS, f"{session.started:.2f} s")

    return best(3, start)


@point("`exit`, `exit;`, `quit`, `quit;` and Ctrl-D each leave the shell")
def leaves(shell):
    stayed = []
    for word in ("exit", "exit;", "quit", "quit;", CTRL_D):
        with shell.open() as session:
            session.send(word) if word == CTRL_D else session.enter(word)
            if session.ended(ABSENT_SECONDS) is None:
                stayed.append("Ctrl-D" if word == CTRL_D else f"`{word}`")
    return Seen(not stayed, f"does not leave: {', '.join(stayed)}" if stayed else "all five leave")


@point("`help` and `help;` each print the commands")
def helps(shell):
    silent = []
    for word in ("help", "help;"):
        with shell.open() as session:
            place = session.mark()
            session.enter(word)
            # Every shell's help names the command that leaves.
            if not session.waits(lambda t: shell.word("leave") in plain(t.since(place)), ABSENT_SECONDS):
                silent.append(f"`{word}`")
    return Seen(not silent, f"no help: {', '.join(silent)}" if silent else "both do")


@point("Up in a new session brings the last statement of the session before")
def keeps_history(shell):
    home = shell.home()
    with shell.open(home) as session:
        session.ask("select 4243 as kept;")
        session.enter(shell.word("leave"))
        session.ended()
    with shell.open(home) as session:
        for _ in range(3):
            # What left the session before may be the last entry.
            session.send(UP)
            if session.shows(r"select 4243 as kept"):
                return Seen(True, "it comes back")
        return Seen(False, f"shown: {code(session.line())}")


@point("Ctrl-R and a few letters find a statement of the history")
def searches_history(shell):
    with shell.open() as session:
        session.ask("select 4244 as sought;")
        session.ask("select 1 as other;")
        place = session.mark()
        session.send(CTRL_R)
        session.send("sought")
        found = re.compile(r"select 4244 as sou")
        try:
            session.wait(lambda t: t.mark() > place and found.search(bottom(t)), ABSENT_SECONDS)
        except Gone:
            return Seen(False, f"shown: {code(bottom(session))}")
        return Seen(True, "found")


def bottom(session):
    """Returns the line of the cursor and the one below it, where a search is shown."""
    y = session.screen.cursor.y
    return "\n".join(session.rows()[y : y + 2])


@point("Up brings a statement of three lines back as one, and Enter runs it")
def edits_lines(shell):
    with shell.open() as session:
        for line in ("select 40 +", "2"):
            session.type(line)
            y = session.screen.cursor.y
            session.send(ENTER)
            session.wait(lambda t: t.screen.cursor.y > y and not t.ready())
        session.ask("as answer;")
        top = session.screen.cursor.y
        session.send(UP)
        try:
            session.wait(lambda t: re.search(r"select 40 \+\s[\s\S]*as answer", "\n".join(t.rows()[top:])), ABSENT_SECONDS)
        except Gone:
            return Seen(False, f"Up shows {code(session.line())}")
        session.send(ENTER)
        # The first result is on the screen already; the second one makes it two.
        try:
            session.wait(lambda t: t.ready() and sum(bool(re.search(r"\b42\b", row)) for row in t.rows()) == 2, ABSENT_SECONDS)
        except Gone:
            return Seen(False, f"shown after Enter: {code(session.shown()[-70:])}")
        return Seen(True, "the whole statement, which runs again")


@point("Up in an unfinished statement goes to its line above")
def edits_above(shell):
    with shell.open() as session:
        session.type("select 1 as a,")
        first = session.screen.cursor.y
        session.send(ENTER)
        session.wait(lambda t: t.screen.cursor.y > first)
        session.type("2 as b")
        session.send(UP)
        held = session.waits(lambda t: t.screen.cursor.y == first and "1 as a," in t.rows()[first], ABSENT_SECONDS)
        return Seen(held, "the cursor is there" if held else f"shown: {code(session.line())}")


@point("Ctrl-C drops a half-typed statement, and the next one runs")
def drops_line(shell):
    with shell.open() as session:
        session.type("select 1 from")
        session.send(CTRL_C)
        try:
            session.wait(session.__class__.ready, ABSENT_SECONDS)
        except Gone:
            return Seen(False, f"shown: {code(session.line())}, exit code {session.status}")
        lines = session.ask("select 4245 as next;")
        return Seen(any("4245" in line for line in lines), "the next statement ran")


@point("Three statements that are pasted at once all run")
def pastes(shell):
    text = "select 11 + 4200 as a;\nselect 12 + 4200 as b;\nselect 13 + 4200 as c;\n"
    with shell.open() as session:
        # A terminal marks what is pasted only if the program has asked for it.
        marked = b"\x1b[?2004h" in session.since(0)
        session.send(f"{PASTE}{text}{PASTE_END}" if marked else text)
        if not session.shows(r"\b4213\b"):
            session.send(ENTER)
        found = [n for n in (4211, 4212, 4213) if session.shows(rf"\b{n}\b")]
        return Seen(len(found) == 3, f"{len(found)} of 3 results")


@point("A command opens the statement in $EDITOR and runs what was saved")
def opens_editor(shell):
    word = shell.word("edit")
    if not word:
        return Seen(False, "no such command")
    home = shell.home()
    editor = script(home, "editor", "echo 'select 4200 + 46 as edited;' > \"$1\"")
    with shell.open(home, EDITOR=editor, VISUAL=editor) as session:
        session.ask("select 1;")
        session.enter(word)
        if not session.shows(r"\b4246\b"):
            # The statement may come back into the input line, for a last look.
            session.send(ENTER)
        ran = session.shows(r"\b4246\b")
        return Seen(ran, code(word) if ran else f"shown: {code(session.shown()[-70:])}")


def script(folder, name, text):
    path = pathlib.Path(folder) / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    os.chmod(path, path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def completes(shell, typed, wanted):
    """Types a text and Tab, once or twice; the answer is whether `wanted` is then shown."""
    with shell.open() as session:
        session.type(typed)
        for _ in range(2):
            session.send(TAB)
            if session.shows(wanted):
                completed = re.search(wanted, session.line(), re.IGNORECASE)
                return Seen(True, "completed" if completed else "in a list")
        return Seen(False, "nothing fitting is offered")


@point("Tab after `sel` completes to `select`")
def completes_keyword(shell):
    return completes(shell, "sel", r"\bselect\b")


@point("Tab after `select * from curr` offers the table `current_state`")
def completes_table(shell):
    return completes(shell, "select * from curr", r"\bcurrent_state\b")


@point("Tab after `… from changes where data` offers the column `dataset_name`")
def completes_column(shell):
    return completes(shell, "select * from changes where data", r"\bdataset_name\b")


@point("Tab after `select regexp_rep` offers the function `regexp_replace`")
def completes_function(shell):
    return completes(shell, "select regexp_rep", r"\bregexp_replace\b")


@point("Tab after the first letters of a shell command completes it")
def completes_command(shell):
    return completes(shell, shell.word("command prefix"), re.escape(shell.word("command")) + r"\b")


@point("Tab after `where dataset_name = 'prof` offers the value `profile`")
def completes_value(shell):
    return completes(shell, "select * from changes where dataset_name = 'prof", r"\bprofile\b")


@point("Tab completes the name of a file for the command that reads it")
def completes_file(shell):
    home = shell.home()
    (pathlib.Path(home) / "morning_report.sql").write_text("select 1;\n")
    with shell.open(home) as session:
        session.type(shell.word("include", file="morning_"))
        session.send(TAB)
        offered = session.shows(r"morning_report\.sql")
        return Seen(offered, "completed" if offered else "not offered")


@point("Keywords, text and numbers have colours while they are typed")
def highlights(shell):
    with shell.open() as session:
        session.type("select 'text' as a, 4247 as b")
        typed = lambda t: t.colours(t.screen.cursor.y, len(shell.prompt))
        try:
            session.wait(lambda t: len(typed(t)) >= 2, ABSENT_SECONDS)
        except Gone:
            return Seen(False, f"colours: {', '.join(sorted(typed(session))) or 'none'}")
        return Seen(True, f"colours: {', '.join(sorted(typed(session)))}")
