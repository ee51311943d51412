"""The plan of `spark_jobs.py` for one lake: which program runs which step of which day, where it is killed, and what is deleted.

A plan depends on a random generator alone. Every plan has both programs after each other in both directions, for the refresh and
for the extract; a kill of each step of each program; a day that is extracted again after later days; and a deletion.
"""

import dataclasses
import itertools

SPARK, SYNCLAKE = "Spark", "synclake"
STEPS = "refresh", "extract"
# Of Spark: PLACES of `spark_job_server.py`. Of synclake: names of failpoints (`src/failpoint.rs`).
PLACES = {
    (SPARK, "refresh"): ["rows/before", "rows/files", "rows/after", "id/after"],
    (SPARK, "extract"): ["rows/before", "rows/files", "rows/after", "id/after"],
    (SYNCLAKE, "refresh"): ["file/after", "refresh/before", "refresh/after"],
    (SYNCLAKE, "extract"): ["extract/planned", "file/after", "extract/committed"],
}


@dataclasses.dataclass
class Turn:
    """A step of a day, by a program, perhaps after a kill of a program at a place."""

    step: str
    date: str
    program: str
    kill: tuple | None = None

    def __str__(self):
        killed = f"{self.kill[0]} killed at {self.kill[1]}, then " if self.kill else ""
        return f"{self.step}{' ' + self.date if self.step == 'extract' else ''}: {killed}{self.program}"


@dataclasses.dataclass
class Deletion:
    """Which person's rows are deleted after the ingest of a day."""

    nth: int
    # Whether only rows that came with the newest file are deleted, which no state and no extract has yet.
    is_of_new: bool
    # Whether Spark deletes by deletion vectors, in place of new files.
    by_vectors: bool

    def __str__(self):
        return f"a deletion{' of new rows' if self.is_of_new else ''}{' by vectors' if self.by_vectors else ''}, "


@dataclasses.dataclass
class Day:
    date: str
    turns: list
    deletion: Deletion | None = None

    def __str__(self):
        return f"  {self.date}: {self.deletion or ''}{'; '.join(map(str, self.turns))}"


class Turns:
    """The plan of a lake."""

    def __init__(self, rng, days):
        assert days >= 3, "fewer days have no turn in both directions"
        self.seed = rng.randrange(1 << 30)
        dates = [f"2026-01-{number + 1:02}" for number in range(days)]
        programs = {step: in_turn(rng, days) for step in STEPS}
        self.days = []
        for number, date in enumerate(dates):
            turns = [Turn(step, date, programs[step][number]) for step in STEPS]
            rng.shuffle(turns)
            self.days.append(Day(date, turns))
        is_of_new = rng.random() < 0.5
        self.days[rng.randrange(1, days)].deletion = Deletion(rng.randrange(1 << 30), is_of_new, rng.random() < 0.5)
        for step in STEPS:
            # One kill in a turn: after a kill that follows the last commit, a step has nothing to do, and comes to no place.
            turns = rng.sample([turn for day in self.days for turn in day.turns if turn.step == step], 2)
            for program, turn in zip((SPARK, SYNCLAKE), turns):
                turn.kill = program, rng.choice(PLACES[program, step])
        earlier = rng.randrange(days - 1)
        self.days[-1].turns.append(Turn("extract", dates[earlier], rng.choice([SPARK, SYNCLAKE])))

    def __str__(self):
        return "\n".join(map(str, self.days))


def in_turn(rng, days):
    """Returns a program for each day, so that each follows the other at least once."""
    while True:
        programs = [rng.choice([SPARK, SYNCLAKE]) for _ in range(days)]
        if {(SPARK, SYNCLAKE), (SYNCLAKE, SPARK)} <= set(itertools.pairwise(programs)):
            return programs
