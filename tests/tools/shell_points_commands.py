"""Points of shell_points.py on commands, on use by programs, and on what a shell tells of tables."""

import pathlib
import re

from shell_sessions import ABSENT_SECONDS, VIEWS, Seen, code, point
from shell_terminal import CTRL_C


def file(shell, name, text):
    path = pathlib.Path(shell.home()) / name
    path.write_text(text)
    return path


@point("A command runs the statements of a file")
def includes_file(shell):
    with shell.open() as session:
        word = shell.word("include", file=file(shell, "a.sql", "select 4200 + 50 as a;\nselect 4200 + 51 as b;\n"))
        text = "\n".join(session.ask(word))
        found = [n for n in ("4250", "4251") if n in text]
        return Seen(len(found) == 2, f"{len(found)} of 2 results")


@point("A command sends results into a file, and another ends that")
def writes_file(shell):
    path = pathlib.Path(shell.home()) / "out.txt"
    with shell.open() as session:
        session.ask(shell.word("output", file=path))
        shown = "\n".join(session.ask("select 4200 + 52 as a;"))
        session.ask(shell.word("output off"))
        after = "\n".join(session.ask("select 4200 + 53 as b;"))
    text = path.read_text() if path.exists() else ""
    held = "4252" in text and "4252" not in shown and "4253" not in text and "4253" in after
    return Seen(held, "the file has the one result" if held else f"file: {code(text)}, screen: {code(shown)}")


@point("A command repeats the last statement until Ctrl-C")
def watches(shell):
    word = shell.word("watch")
    if not word:
        return Seen(False, "no such command")
    with shell.open() as session:
        session.ask("select 4242 + 1 as ticks;")
        place = session.mark()
        session.enter(word)
        held = session.waits(lambda t: len(re.findall(rb"\b4243\b", t.since(place))) >= 2, 6)
        if not held:
            return Seen(False, f"shown: {code(session.shown()[-70:])}")
        session.send(CTRL_C)
        back = session.waits(lambda t: t.ready(), ABSENT_SECONDS)
        return Seen(back, "two results, then the prompt" if back else "Ctrl-C does not end it")


@point("A variable that was set can be used in a statement")
def sets_variables(shell):
    with shell.open() as session:
        session.ask(shell.word("set"))
        text = "\n".join(session.ask(shell.word("use")))
        return Seen("4243" in text, code(shell.word("use") if "4243" in text else text))


@point("`-c`, `-f` and `-c` again run in the order given")
def keeps_order(shell):
    path = file(shell, "b.sql", "select 'second' as b;\n")
    arguments = [shell.word("-c"), "select 'first' as a;", shell.word("-f"), str(path), shell.word("-c"), "select 'third' as c;"]
    done = shell.batch(arguments)
    found = re.findall(r"first|second|third", done.stdout)
    return Seen(found == ["first", "second", "third"], f"{', '.join(found) or 'nothing'}; exit code {done.returncode}")


@point("Through a pipe the output is the result alone: no prompt, no greeting, no colours, no time")
def pipes(shell):
    word = shell.word("csv").split()
    done = shell.batch(word, "select 4254 as a;\n")
    lines = done.stdout.split()
    return Seen(lines == ["a", "4254"] and not done.stderr.strip(), f"{code(done.stdout)} and {code(done.stderr)} on stderr")


@point("A failed statement of a script ends it, with an exit code that is not 0")
def fails_scripts(shell):
    done = shell.batch((shell.word("stop") or "").split(), "select nowhere;\nselect 4255 as after;\n")
    held = done.returncode != 0 and "4255" not in done.stdout
    return Seen(held, f"exit code {done.returncode}" + (f" with `{shell.word('stop')}`" if shell.word("stop") else ""))


@point("The list of tables says of each what it holds")
def lists_comments(shell):
    with shell.open(columns=160) as session:
        text = "\n".join(session.ask(shell.word("list")))
        found = [view for view in VIEWS if re.search(rf"\b{view}\b.*(change|latest)", text)]
        return Seen(len(found) == len(VIEWS), f"{code(shell.word('list'))}: {len(found)} of {len(VIEWS)}")


@point("The columns of a table are listed with their types")
def describes(shell):
    with shell.open() as session:
        text = "\n".join(session.ask(shell.word("describe")))
        types = {"identity_id": "varchar|varying|text|utf8", "sync_count": "bigint|int64"}
        held = all(re.search(rf"{name}\b.*?({kind})", text, re.IGNORECASE) for name, kind in types.items())
        return Seen(held, code(shell.word("describe") if held else text))


@point("One statement summarizes each column: count, distinct values, extremes")
def summarizes(shell):
    word = shell.word("summarize")
    if not word:
        return Seen(False, "no such statement")
    with shell.open(columns=200, lines=60) as session:
        text = "\n".join(session.ask(word))
        held = "identity_id" in text and re.search(r"\bmin", text) and re.search(r"unique|distinct", text)
        return Seen(bool(held), code(word if held else text))


@point("EXPLAIN prints the plan as an indented tree within 80 columns")
def explains(shell):
    with shell.open() as session:
        place = session.mark()
        session.ask(shell.word("plan"))
        lines = session.printed(place)
        widest = max((len(line) for line in lines), default=0)
        indents = {len(line) - len(line.lstrip(" │|")) for line in lines}
        drawn = any(re.search(r"[┌└├]", line) for line in lines)
        tree = len(indents) >= 2 or drawn
        return Seen(tree and widest <= 80 and len(lines) <= 60, f"{len(lines)} lines, widest {widest}")


@point("One command goes back to the rows of an earlier day, another to an earlier version")
def goes_back(shell):
    if not shell.word("as of"):
        return Seen(False, "no such command")
    counts = {"now": shell.rows}
    for word in (shell.word("as of"), shell.word("at version")):
        with shell.open() as session:
            session.ask(word)
            text = "\n".join(session.ask("select count(*) as n from changes;"))
            counts[word] = int((re.findall(r"^[^\d\n]*(\d+)[^\d\n]*$", text, re.MULTILINE) or ["-1"])[0])
    held = all(0 < counts[word] < shell.rows for word in list(counts)[1:])
    return Seen(held, ", ".join(f"{word if word == 'now' else code(word)}: {rows} rows" for word, rows in counts.items()))
