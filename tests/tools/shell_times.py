"""Measures how soon the shell answers a person: shell_times.py PROGRAMS LAKE [--runs N]. Prints JSON, in milliseconds.

A key is sent when the screen shows that the one before was taken, and a time ends when the screen shows what was waited for.
Started by bench_shell.py, with the packages of requirements-shell.txt.
"""

import argparse
import json
import pathlib
import re
import statistics
import tempfile
import time

from shell_terminal import CTRL_C, ENTER, TAB, Terminal, environment

CTRL_L = "\x0c"
PROMPT = "synclake>"
ANSWER = "select 4242 + count(*) * 0 as answer from current_state;"
# What is typed before Tab, and what the screen shows after it.
COMPLETIONS = {
    "keyword": ("sel", r"\bselect\b"),
    "table": ("select * from curr", r"\bcurrent_state\b"),
    "column": ("select * from changes where data", r"\bdataset_name\b"),
    "value": ("select * from changes where dataset_name = 'prof", r"'profile\b"),
}


def milliseconds(terminal, holds):
    """Waits until `holds(terminal)` is true; returns how long it took."""
    began = time.perf_counter()
    terminal.wait(holds, 30.0)
    return (time.perf_counter() - began) * 1000


def ready(terminal):
    return terminal.line().strip() == PROMPT


def session(command, home):
    """Returns the times of one session."""
    began = time.perf_counter()
    with Terminal(command, environment(home, NO_COLOR="1"), home) as terminal:
        terminal.wait(ready, 30.0)
        times = {"prompt": (time.perf_counter() - began) * 1000}
        terminal.send(ANSWER + ENTER)
        terminal.wait(lambda t: re.search(rb"\b4242\b\s", t.raw.split(b"from current_state;")[-1]), 30.0)
        times["first answer, typed at once"] = (time.perf_counter() - began) * 1000
        terminal.wait(ready, 30.0)
        for name, (typed, offered) in COMPLETIONS.items():
            # The screen is empty then, so that what is found was offered.
            terminal.send(CTRL_L)
            terminal.wait(lambda t: ready(t) and t.screen.cursor.y == 0, 30.0)
            terminal.send(typed)
            terminal.wait(lambda t: t.line().endswith(typed), 30.0)
            terminal.send(TAB)
            times[f"completion of a {name}"] = milliseconds(terminal, lambda t: re.search(offered, "\n".join(t.rows())))
            terminal.send(CTRL_C)
            terminal.wait(ready, 30.0)
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("programs", type=pathlib.Path, help="folder of synclake-query")
    parser.add_argument("lake", type=pathlib.Path)
    parser.add_argument("--runs", type=int, default=5, help="sessions, of which the medians are printed [5]")
    options = parser.parse_args()
    command = [str(options.programs.resolve() / "synclake-query"), "--lake", str(options.lake.resolve())]
    sessions = []
    for _ in range(options.runs):
        with tempfile.TemporaryDirectory() as home:
            sessions.append(session(command, home))
    print(json.dumps({name: statistics.median(times[name] for times in sessions) for name in sessions[0]}))


if __name__ == "__main__":
    main()
