"""A pseudo-terminal with a screen, for programs that a person types into. Part of shell_points.py and shell_picture.py.

The screen is that of pyte, which knows the control sequences of a VT100. It answers questions for the cursor's position, as a
terminal does. Every wait is for something that the program shows, with a limit; none is for a time.
"""

import codecs
import fcntl
import os
import pathlib
import pty
import re
import select
import signal
import struct
import termios
import time

import pyte

ENTER, TAB, UP, CTRL_C, CTRL_D, CTRL_R = "\r", "\t", "\x1b[A", "\x03", "\x04", "\x12"
COLOUR = re.compile(rb"\x1b\[(?:\d+;)*(?:3[0-7]|9[0-7]|38;[0-9;]+)m")


class Screen(pyte.HistoryScreen):
    """A screen whose answers go back to the program."""

    answer = None

    def write_process_input(self, data):
        if self.answer:
            self.answer(data)

    def report_device_attributes(self, mode=0, **kwargs):
        # A question with a prefix is of a later terminal: pyte does not expect it.
        if not kwargs:
            super().report_device_attributes(mode)


class Gone(Exception):
    """The program did not show what was waited for; the text is what its screen shows."""


class Terminal:
    """A program that runs in a pseudo-terminal of `columns` and `lines`."""

    def __init__(self, command, environment, folder, columns=80, lines=24):
        self.screen = Screen(columns, lines, history=20_000, ratio=0.5)
        self.stream = pyte.Stream(self.screen)
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.raw = bytearray()
        self.status = None
        # A screen for each of a million lines would be slower than the program that prints them.
        self.raw_only = False
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            try:
                fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
                os.chdir(folder)
                os.execvpe(command[0], command, environment)
            finally:
                os._exit(127)
        self.screen.answer = lambda data: os.write(self.fd, data.encode())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def pump(self, seconds):
        """Reads what the program writes within `seconds`; returns whether there was something."""
        if not select.select([self.fd], [], [], max(seconds, 0))[0]:
            return False
        try:
            data = os.read(self.fd, 1 << 16)
        except OSError:
            data = b""
        if not data:
            self.reap()
            return False
        self.raw += data
        if not self.raw_only:
            self.stream.feed(self.decoder.decode(data))
        return True

    def reap(self):
        if self.status is None:
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def wait(self, shows, seconds=10.0):
        """Waits until `shows(self)` is true; returns the seconds it took.

        Raises Gone when the time is up or the program has ended.
        """
        began = time.monotonic()
        while True:
            if shows(self):
                return time.monotonic() - began
            left = began + seconds - time.monotonic()
            if left <= 0 or self.status is not None:
                raise Gone(self.shown())
            self.pump(min(left, 1.0))

    def waits(self, shows, seconds):
        """Waits until `shows(self)` is true; returns whether it became so."""
        try:
            self.wait(shows, seconds)
        except Gone:
            return False
        return True

    def ended(self, seconds=5.0):
        """Waits for the program's end and returns its exit code, or None if it goes on."""
        self.waits(lambda t: t.status is not None, seconds)
        return self.status

    def send(self, text):
        data = text.encode()
        while data:
            # A program that prints without reading would block a writer that does not read.
            self.pump(0)
            if select.select([], [self.fd], [], 1.0)[1]:
                data = data[os.write(self.fd, data) :]

    def mark(self):
        """Returns a place in the output; `since` gives what came after it."""
        return len(self.raw)

    def since(self, mark):
        return bytes(self.raw[mark:])

    def rows(self):
        """Returns the lines of the screen."""
        return [line.rstrip() for line in self.screen.display]

    def everything(self):
        """Returns the lines that have left the screen at the top, and those of the screen."""
        width = self.screen.columns
        above = ["".join(line[x].data for x in range(width)).rstrip() for line in self.screen.history.top]
        return above + self.rows()

    def shown(self):
        return "\n".join(line for line in self.rows() if line)

    def line(self):
        """Returns the line that the cursor stands in, up to the cursor."""
        return self.screen.display[self.screen.cursor.y][: self.screen.cursor.x]

    def colours(self, y, begin=0):
        """Returns the colours of the text in line `y` from column `begin`, without the terminal's own."""
        cells = [self.screen.buffer[y][x] for x in range(begin, self.screen.columns)]
        return {cell.fg for cell in cells if cell.data.strip() and cell.fg != "default"}

    def close(self):
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            self.reap()
        os.close(self.fd)


def environment(home, **more):
    """Returns the environment of a person's terminal, whose home is the folder `home`."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "TMPDIR") if name in os.environ}
    home = pathlib.Path(home)
    return {**kept, "HOME": str(home), "TERM": "xterm-256color", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", **more}
