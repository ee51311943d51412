"""Counts the instructions of the steps of ingest and of the views, and compares them: instructions.py BIN_FOLDER [--update]

Makes a small lake from a fixed seed, runs `examples/instructions` (tests/bench/instructions.rs) once below callgrind, and
compares each count with tests/bench/instructions.txt. Fails on a count that is higher by more than TOLERANCE, because that
step became slower, and on a count that is lower by more, because the stored count would then hide the next slowdown.

The counts belong to the architecture and the compiler that are named in the file. glibc and callgrind select code by the
features of the processor, so a processor without AVX2 has other counts.
"""

import os
import pathlib
import platform
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
STORED = ROOT / "tests/bench/instructions.txt"
UPDATE = "make instructions UPDATE=1"
# Share by which a count may differ. docs/architecture.md says how much equal programs differ.
TOLERANCE = 0.02
SIMULATE = [
    "simulate", "--seed", "7", "--events", "12000", "--identities", "800", "--pools", "2", "--days", "5",
    "--bulk-copies", "0.005",
]
FUNCTION = "instructions::counted_{}"
STEPS = ["decode", "append", "sort", "encode", "select_1", "current_state", "changes", "daily_changes"]


def run(command, **options):
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))} failed with {done.returncode}:\n{done.stderr[-4000:]}")
    return done.stdout


def clean_environment():
    """Returns the environment without settings of synclake, AWS and the allocator."""
    of_others = ("SYNCLAKE_", "AWS_", "MALLOC_CONF", "_RJEM_MALLOC_CONF", "FAILPOINTS")
    return {name: value for name, value in os.environ.items() if not name.startswith(of_others)} | {
        "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": "/dev/null", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    }


def count(programs):
    """Returns the instructions of each step."""
    environment = clean_environment()
    with tempfile.TemporaryDirectory(prefix="synclake-instructions-") as folder:
        folder = pathlib.Path(folder)
        events, lake = folder / "events.ndjson", folder / "lake"
        run([programs / "synclake", *SIMULATE, "--out", events], env=environment)
        run([programs / "synclake", "ingest", "--source", f"file:{events}", "--lake", lake], env=environment)
        sort_log(lake / "sync_records/_delta_log")
        callgrind = [
            "valgrind", "--tool=callgrind", f"--callgrind-out-file={folder / 'out'}", "--compress-strings=no",
            "--cache-sim=no", *(f"--toggle-collect={FUNCTION.format(step)}" for step in STEPS),
        ]
        run([*callgrind, programs / "examples/instructions", events, lake], env=environment)
        found = inclusive(folder / "out")
    if lacking := [step for step in STEPS if not found[step]]:
        sys.exit(f"error: callgrind has no function {FUNCTION.format(lacking[0])}; compare tests/bench/instructions.rs")
    return found


def sort_log(log):
    """Sorts the files of each commit. Files are listed as they are finished, and queries read them in this order."""
    for commit in log.glob("*.json"):
        lines = commit.read_text().splitlines()
        commit.write_text("\n".join(sorted(lines, key=lambda line: (line.startswith('{"add"'), line))) + "\n")


def inclusive(profile):
    """Returns the instructions of each step and of all that it calls, from a profile of callgrind."""
    steps = {FUNCTION.format(step): step for step in STEPS}
    found = dict.fromkeys(STEPS, 0)
    step = None
    with profile.open(errors="replace") as lines:
        for line in lines:
            if line.startswith("fn="):
                step = steps.get(line[3:].strip())
            elif step and line[0] in "0123456789+-*":
                # Own instructions, or after a line `calls=` those of the called function. The first word is the place.
                found[step] += int(line.split()[1])
    return found


def compiler():
    return run(["rustc", "--version"], cwd=ROOT).split()[1]


def store(found):
    lines = [
        f"# Instructions of each step below callgrind, from tests/tools/instructions.py; `{UPDATE}` writes this file.",
        f"# {platform.machine()}, rustc {compiler()}",
        *(f"{step} {found[step]}" for step in STEPS),
    ]
    STORED.write_text("\n".join(lines) + "\n")


def stored():
    """Returns the architecture and compiler of the stored counts, and the counts."""
    lines = STORED.read_text().splitlines() if STORED.exists() else []
    about = next((line[2:] for line in lines[1:] if line.startswith("# ")), "")
    return about, {name: int(text) for name, text in (line.split() for line in lines if not line.startswith("#"))}


def compare(found, expected):
    """Prints a table. Returns the steps that need more instructions than stored, and those that need fewer."""
    more, fewer = [], []
    print(f"{'step':<14}{'instructions':>15}{'stored':>15}{'change':>9}")
    for step in STEPS:
        known = expected.get(step)
        change = found[step] / known - 1 if known else 1.0
        if change > TOLERANCE:
            more.append(step)
        elif change < -TOLERANCE:
            fewer.append(step)
        print(f"{step:<14}{found[step]:>15,}{known or 0:>15,}{change:>+9.1%}")
    return more, fewer


def main():
    found = count(pathlib.Path(sys.argv[1]).resolve())
    about, expected = stored()
    more, fewer = compare(found, expected)
    if "--update" in sys.argv:
        store(found)
        return
    here = f"{platform.machine()}, rustc {compiler()}"
    relative = STORED.relative_to(ROOT)
    other = "" if about == here else f" (the stored counts are of {about or 'nothing'}, this is {here})"
    if more:
        print(f"error: {', '.join(more)}: more instructions than {relative} allows{other}; find the cause, "
              f"or accept the new counts: {UPDATE}", file=sys.stderr)
    if fewer:
        print(f"error: {', '.join(fewer)}: fewer instructions than stored in {relative}{other}; store the new counts, "
              f"so that the gain is kept: {UPDATE}", file=sys.stderr)
    sys.exit(1 if more or fewer else 0)


main()
