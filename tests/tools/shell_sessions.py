"""Starts the shells that shell_points.py compares, on the same rows, and speaks with them. shell_picture.py uses it too.

The rows are those of a lake that `synclake simulate`, `ingest` and `refresh` make. DuckDB and psql read copies of two of its
views: a database file, and a PostgreSQL server of its own that listens on a socket in its folder.
"""

import contextlib
import dataclasses
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
import time

from shell_terminal import CTRL_C, ENTER, Gone, Terminal, environment

CONTROLS = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[@-Z\\-_=>]|\r")
VIEWS = {"current_state": "the live keys, each with its latest value", "changes": "every change once"}
EVENTS = 5000
# Limits for what a program shows: an answer, and the absence of something that a program shows at once or never.
ANSWER_SECONDS, ABSENT_SECONDS = 30.0, 2.0


POINTS = []


@dataclasses.dataclass
class Seen:
    """Whether a point holds, and what was seen."""

    holds: bool
    text: str


def point(question):
    """Adds a function to the points; it takes a shell and returns what it saw."""

    def add(function):
        POINTS.append((function.__name__, question, function))
        return function

    return add


def best(attempts, ask):
    """Returns the first answer that holds, else the last one: a machine that is busy makes any shell late."""
    for _ in range(attempts):
        seen = ask()
        if seen.holds:
            break
    return seen


def code(text):
    """Returns the begin of a program's output as a short piece of code of Markdown."""
    text = " ".join((text if isinstance(text, str) else " ".join(text)).replace("`", "'").split())
    return f"`{text if len(text) <= 70 else text[:69] + '…'}`" if text else "nothing"


def plain(data):
    """Returns output without control sequences."""
    return CONTROLS.sub("", data.decode("utf-8", "replace") if isinstance(data, bytes) else data)


def run(command, **more):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, **more)
    if done.returncode:
        raise SystemExit(f"error: {' '.join(map(str, command))} failed:\n{(done.stderr or done.stdout).strip()}")
    return done.stdout


class Session(Terminal):
    """A shell in a terminal; its prompt is known."""

    def __init__(self, shell, command, home, columns, lines, **variables):
        super().__init__(command, environment(home, **{**shell.environment, **variables}), home, columns, lines)
        self.shell = shell
        try:
            self.started = self.wait(Session.ready, ANSWER_SECONDS)
        except Gone:
            self.close()
            raise

    def ready(self):
        return self.is_prompt(self.line())

    def is_prompt(self, line):
        """Returns whether a line ends with an empty prompt: alone, or after the `^C` of an output that was cut."""
        return line.strip() == self.shell.prompt or line.strip().endswith("^C" + self.shell.prompt)

    def type(self, text):
        """Types a text, and waits until the screen shows it before the cursor."""
        tail = text.split("\n")[-1].rstrip()[-8:]
        self.send(text)
        self.wait(lambda t: t.before().rstrip().endswith(tail))

    def before(self):
        """Returns the text of the screen before the cursor, without line breaks."""
        y = self.screen.cursor.y
        return "".join(self.screen.display[max(0, y - 3) : y]) + self.line()

    def clear(self):
        """Empties the input line."""
        self.send(CTRL_C)
        self.wait(Session.ready)

    def enter(self, text):
        """Types a statement and Enter; returns a place in the lines that `lines_since` takes."""
        self.type(text)
        place = len(self.screen.history.top) + self.screen.cursor.y + 1
        self.send(ENTER)
        return place

    def ask(self, text, seconds=ANSWER_SECONDS):
        """Types a statement and Enter, waits for the next prompt, and returns the lines that were printed."""
        place = self.enter(text)
        self.wait(Session.ready, seconds)
        return self.lines_since(place)

    def lines_since(self, place):
        return self.everything()[place : len(self.screen.history.top) + self.screen.cursor.y]

    def shows(self, pattern, seconds=ABSENT_SECONDS):
        """Waits until the screen shows a pattern; returns whether it does."""
        found = re.compile(pattern, re.IGNORECASE)
        return self.waits(lambda t: found.search("\n".join(t.rows())), seconds)

    def type_raw(self, text):
        """Types a statement and Enter into a terminal whose screen is not drawn."""
        self.send(text + ENTER)

    def prompts(self, place):
        """Returns whether the output since `place` ends with a prompt, and there was more of it."""
        tail = plain(bytes(self.raw[max(place, len(self.raw) - 400) :]))
        return ("\n" in tail or "^C" in tail) and self.is_prompt(tail.rpartition("\n")[2])

    def printed(self, place):
        """Returns the lines printed since `place`, as the program wrote them: not broken at the terminal's edge."""
        return [line.rstrip() for line in plain(self.since(place)).split("\n")[1:-1]]


class Shell:
    """A shell: how it is started, and its own words for things that all shells may have."""

    def __init__(self, name, command, prompt, words, folder):
        self.name, self.command, self.prompt, self.words = name, [str(word) for word in command], prompt, words
        self.folder = pathlib.Path(folder)
        # Results stay in the terminal, except where a point sets another pager.
        self.environment = {"PAGER": "cat"}
        self.rows = None
        self.version = f"{name} {re.search(r'v?([0-9]+(?:[.][0-9]+)+)', run([command[0], '--version'])).group(1)}"

    def home(self):
        """Returns a fresh home folder."""
        return tempfile.mkdtemp(dir=self.folder)

    def open(self, home=None, columns=80, lines=24, arguments=(), **variables):
        """Starts the shell in a terminal and waits for its prompt."""
        return Session(self, [*self.command, *arguments], home or self.home(), columns, lines, **variables)

    def batch(self, arguments=(), stdin=""):
        """Runs the shell without a terminal."""
        home = self.home()
        return subprocess.run(
            [*self.command, *arguments], input=stdin, capture_output=True, text=True, check=False, cwd=home, timeout=60,
            env=environment(home, **self.environment),
        )

    def word(self, idea, **values):
        """Returns the shell's words for an idea, or None if it has none."""
        word = self.words.get(idea)
        return word.format(**values) if word else None


SYNCLAKE_WORDS = {
    "leave": "\\q", "command prefix": "\\tim", "command": "\\timing", "include": "\\i {file}", "output": "\\o {file}",
    "output off": "\\o", "watch": "\\watch 1", "edit": "\\e", "all rows": "\\all",
    "vertical": "\\x", "pager on": "\\pager on", "set": "\\set who 4242", "use": "select $who + 1 as given;",
    "list": "\\d", "describe": "describe current_state;", "summarize": "summarize current_state;",
    "as of": "\\as-of 2026-01-03", "-c": "-c", "-f": "-f",
    "csv": "--format csv", "json": "--format json", "markdown": "--format markdown", "parquet": "--format parquet -o {file}",
    "parquet sql": "", "stop": "", "plan": "explain select count(*) from changes where key = 'score';",
}
DUCKDB_WORDS = {
    "leave": ".quit", "command prefix": ".tim", "command": ".timer", "include": ".read {file}", "output": ".output {file}",
    "output off": ".output", "edit": ".edit", "all rows": ".maxrows 1000000", "vertical": ".mode line", "pager on": ".pager on",
    "set": "set variable who = 4242;", "use": "select getvariable('who') + 1 as given;", "list": ".tables",
    "describe": "describe current_state;", "summarize": "summarize current_state;", "-c": "-c", "-f": "-f", "csv": "-csv",
    "json": "-json", "markdown": "-markdown", "parquet sql": "copy ({query}) to '{file}' (format parquet)", "stop": "-bail",
    "plan": "explain select count(*) from changes where key = 'score';",
}
PSQL_WORDS = {
    "leave": "\\q", "command prefix": "\\tim", "command": "\\timing", "include": "\\i {file}", "output": "\\o {file}",
    "output off": "\\o", "watch": "\\watch 1", "edit": "\\e", "all rows": "\\pset pager off",
    "vertical": "\\x on", "pager on": "\\pset pager always", "set": "\\set who 4242", "use": "select :who + 1 as given;",
    "list": "\\d+", "describe": "\\d current_state", "-c": "-c", "-f": "-f", "csv": "--csv", "stop": "-v ON_ERROR_STOP=1",
    "plan": "explain select count(*) from changes where key = 'score';",
}


def make_lake(programs, folder):
    """Makes a lake of some thousand changes, in two steps; returns the version after the first one."""
    lake, synclake = folder / "lake", programs / "synclake"
    run([synclake, "simulate", "--seed", 7, "--events", EVENTS, "--out", folder / "events.ndjson"])
    events = (folder / "events.ndjson").read_text().splitlines(keepends=True)
    versions = []
    for part in (events[: EVENTS // 2], events[EVENTS // 2 :]):
        (folder / "part.ndjson").write_text("".join(part))
        run([synclake, "ingest", "--source", f"file:{folder}/part.ndjson", "--lake", lake])
        versions.append(max(int(path.stem) for path in (lake / "sync_records/_delta_log").glob("*.json")))
    run([synclake, "refresh", "--lake", lake])
    return versions[0]


def synclake_shell(programs, folder, lake, **words):
    """Returns synclake-query on a lake."""
    command = [programs / "synclake-query", "--lake", lake]
    return Shell("synclake-query", command, "synclake>", {**SYNCLAKE_WORDS, **words}, folder)


def synclake_query(programs, folder):
    """Returns synclake-query on a lake that is made."""
    version = make_lake(programs, folder)
    return synclake_shell(programs, folder, folder / "lake", **{"at version": f"\\at {version}"})


def export(shell, folder, view, form):
    """Writes a view into a file of the folder, and returns the file."""
    path = folder / f"{view}.{form}"
    run([*shell.command, "--format", form, "-o", path, "-c", f"select * from {view}"])
    return path


def duckdb_program():
    import duckdb_cli

    return pathlib.Path(duckdb_cli.__file__).parent / "duckdb"


def duckdb(shell, folder):
    """Returns DuckDB's shell on a copy of the views."""
    database, program = folder / "lake.duckdb", duckdb_program()
    for view, comment in VIEWS.items():
        export(shell, folder, view, "parquet")
        table = f"create table {view} as from '{folder}/{view}.parquet'; comment on table {view} is '{comment}'"
        run([program, database, "-c", table])
    return Shell("DuckDB", [program, database], "lake D", DUCKDB_WORDS, folder)


def postgres_programs():
    found = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    if not found:
        raise SystemExit("error: PostgreSQL is missing, which psql is tried on; install it: apt-get install postgresql")
    return found[-1].parent


@contextlib.contextmanager
def psql(shell, folder):
    """Yields psql on a server of its own that holds a copy of the views, and stops the server at the end."""
    programs, home = postgres_programs(), folder / "postgres"
    home.mkdir()
    # The server refuses to run as root.
    other = shlex.split("setpriv --reuid=nobody --regid=nogroup --clear-groups") if os.getuid() == 0 else []
    if other:
        shutil.chown(home, "nobody", "nogroup")
        folder.chmod(0o755)
    initdb = [programs / "initdb", "-D", home / "data", "-U", "analyst", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8"]
    run([*other, *initdb, "--no-sync"], cwd="/")
    settings = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={home}", "-c", "fsync=off"]
    log = open(folder / "postgres.log", "w")
    server = subprocess.Popen([*other, programs / "postgres", "-D", home / "data", *settings], cwd="/", stdout=log, stderr=log)
    try:
        command = [programs / "psql", "-h", home, "-U", "analyst"]
        wait_ready(programs, home, server, folder / "postgres.log")
        run([*command, "-d", "postgres", "-c", "create database lake"])
        for view, comment in VIEWS.items():
            rows, typed = (export(shell, folder, view, form) for form in ("csv", "parquet"))
            types = f"select column_name, column_type from (describe from '{typed}')"
            types = run([duckdb_program(), "-csv", "-noheader", "-c", types])
            columns = ", ".join(line.strip().replace(",", " ") for line in types.splitlines())
            copy = f"\\copy {view} from '{rows}' csv header"
            run([*command, "-d", "lake", "-c", f"create table {view} ({columns})", "-c", copy])
            run([*command, "-d", "lake", "-c", f"comment on table {view} is '{comment}'"])
        yield Shell("psql", [*command, "-d", "lake"], "lake=#", PSQL_WORDS, folder)
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)
        log.close()


def wait_ready(programs, home, server, log, seconds=60):
    until = time.monotonic() + seconds
    while subprocess.run([programs / "pg_isready", "-q", "-h", home], check=False).returncode:
        if server.poll() is not None or time.monotonic() > until:
            raise SystemExit(f"error: PostgreSQL did not start:\n{log.read_text()[-2000:]}")
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(0.1)
