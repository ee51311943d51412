"""Runs the application of tests/engines/kcl for kcl.py, by a plan, and kills it."""

import json
import pathlib
import queue
import signal
import subprocess
import sys
import threading
import time


class Application:
    """A run of the application; `steps` are the lines that it has printed, until it is killed."""

    def __init__(self, classes, scratch, stream, name, worker, kinesis, dynamodb, plan):
        self.log = pathlib.Path(scratch, f"{name}-{worker}.log")
        plan_file = pathlib.Path(scratch, f"{name}-{worker}.plan")
        plan_file.write_text("".join(f"{verb} {event.id}\n" for verb, event in plan))
        self.steps, self.lines = [], queue.Queue()
        command = [
            "java", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
            "-cp", f"{classes}/classes:{classes}/lib/*", "-Dorg.slf4j.simpleLogger.defaultLogLevel=info",
            "synclake.tests.Application", stream, name, worker, kinesis, dynamodb, str(plan_file),
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=open(self.log, "wb"), text=True)
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def run_until(self, holds, seconds=300):
        """Waits until these shards are held and kills the application, so that it can write nothing more."""
        try:
            self.await_holds(set(holds), time.monotonic() + seconds)
        finally:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()

    def await_holds(self, missing, deadline):
        while missing:
            try:
                line = self.lines.get(timeout=max(0, deadline - time.monotonic()))
            except queue.Empty:
                line = None
            if line is None:
                sys.exit(f"the application did not hold {sorted(missing)}; the end of {self.log}:\n{self.tail()}")
            step = json.loads(line)
            self.steps.append(step)
            if step["step"] == "hold":
                missing.discard(step["shard"])

    def tail(self):
        return self.log.read_text(errors="replace")[-3000:]

    def of(self, step, shard=None):
        return [s for s in self.steps if s["step"] == step and shard in (None, s["shard"])]

    def checkpoints(self):
        """Returns the last checkpoint of each shard, as the application wrote it."""
        return {s["shard"]: (s["sequence"], s["sub"]) for s in self.of("checkpoint")}
