"""Starts the test servers on free loopback ports, runs a command with their addresses in the environment, stops them.

    python with_servers.py COMMAND [ARGUMENT …]
"""

import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
TOOLS = ROOT / ".tools"


def free_port(taken=set()):
    # Ports below the system's ephemeral range, in random order. Two runs that start at once would otherwise choose the
    # same port, and one of them would take the other's server for its own.
    for port in random.sample(range(21000, 32000), 11000):
        if port in taken:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        taken.add(port)
        return port
    sys.exit("no free port between 21000 and 32000")


def wait_ready(name, url, process, log, seconds=60):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            sys.exit(f"{name} ended with {process.returncode}:\n{pathlib.Path(log).read_text()[-2000:]}")
        try:
            with urllib.request.urlopen(url, timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            pass
        time.sleep(0.1)
    sys.exit(f"{name} was not ready at {url} within {seconds} s")


def main():
    command = sys.argv[1:]
    if not command:
        sys.exit(__doc__)
    scratch = tempfile.mkdtemp(prefix="synclake-test-")
    s3, kinesis, kinesis_tls = free_port(), free_port(), free_port()
    servers = []

    def start(name, args, env, url):
        log = f"{scratch}/{name}.log"
        process = subprocess.Popen(
            args, env={**os.environ, **env}, stdout=open(log, "wb"), stderr=subprocess.STDOUT,
            start_new_session=True, cwd=scratch,
        )
        servers.append(process)
        wait_ready(name, url, process, log)

    status = 1
    # Stop the servers on SIGTERM too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        start(
            "ministack", [str(TOOLS / "venv/bin/ministack")],
            {"GATEWAY_PORT": str(s3), "BIND_HOST": "127.0.0.1", "LOG_LEVEL": "WARNING", "TMPDIR": scratch},
            f"http://127.0.0.1:{s3}/_ministack/health",
        )
        start(
            "kinesis-local",
            ["node", "-r", str(ROOT / "tests/tools/loopback.cjs"), str(TOOLS / "node/node_modules/kinesis-local/main.js")],
            {
                "KINESIS_MOCK_PLAIN_PORT": str(kinesis), "KINESIS_MOCK_TLS_PORT": str(kinesis_tls),
                "KINESIS_MOCK_CERT_PATH": str(TOOLS / "node/node_modules/kinesis-local/server.json"),
                "CREATE_STREAM_DURATION": "20ms", "SPLIT_SHARD_DURATION": "20ms", "MERGE_SHARDS_DURATION": "20ms",
                "SHARD_LIMIT": "500", "LOG_LEVEL": "ERROR",
            },
            f"http://127.0.0.1:{kinesis}/healthcheck",
        )
        env = {
            **os.environ,
            "SYNCLAKE_TEST_S3": f"http://127.0.0.1:{s3}",
            "SYNCLAKE_TEST_KINESIS": f"http://127.0.0.1:{kinesis}",
            "SYNCLAKE_TEST_PYTHON": sys.executable,
            "SYNCLAKE_TEST_SPARK": str(TOOLS / "spark/bin/python"),
            "SYNCLAKE_TEST_TOOLS": str(TOOLS),
        }
        status = subprocess.run(command, env=env, check=False).returncode
    finally:
        for process in servers:
            process.terminate()
        for process in servers:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
    sys.exit(status)


main()
