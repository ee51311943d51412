"""Starts the test servers on free loopback ports, runs a command with their addresses in the environment, stops them.

    python with_servers.py [--s3 versity] COMMAND [ARGUMENT …]

S3 is ministack's or, with `--s3 versity`, the Versity S3 gateway's; everything else stays ministack's.

bench_stream.py imports `Servers`.
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


class Servers:
    """Servers that run until the end of a `with` block. Their logs are in a temporary folder, which stays."""

    def __init__(self):
        self.scratch = tempfile.mkdtemp(prefix="synclake-test-")
        self.processes = []
        # End the block on SIGTERM too.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()

    def start(self, name, args, env, url, seconds=60):
        """Starts a server, waits until `url` answers, and returns the process."""
        log = f"{self.scratch}/{name}.log"
        process = subprocess.Popen(
            args, env={**os.environ, **env}, stdout=open(log, "wb"), stderr=subprocess.STDOUT,
            start_new_session=True, cwd=self.scratch,
        )
        self.processes.append(process)
        wait_ready(name, url, process, log, seconds)
        return process

    def start_ministack(self):
        """Starts ministack, for S3 and DynamoDB; returns its address and the process."""
        port = free_port()
        process = self.start(
            "ministack", [str(TOOLS / "venv/bin/ministack")],
            {"GATEWAY_PORT": str(port), "BIND_HOST": "127.0.0.1", "LOG_LEVEL": "WARNING", "TMPDIR": self.scratch},
            f"http://127.0.0.1:{port}/_ministack/health",
        )
        return f"http://127.0.0.1:{port}", process

    def start_versity(self, others):
        """Starts the Versity S3 gateway, and a proxy that passes all that is not for S3 on to `others`; returns its address."""
        port, front = free_port(), free_port()
        for folder in ("objects", "attributes"):
            pathlib.Path(self.scratch, folder).mkdir()
        # The sidecar folder keeps the attributes of objects; not every file system has extended attributes.
        self.start(
            "versitygw",
            [str(TOOLS / "versitygw/bin/versitygw"), "--port", f"127.0.0.1:{port}", "--access", "test", "--secret", "test",
             "--health", "/_health", "--quiet", "posix", "--sidecar", f"{self.scratch}/attributes", f"{self.scratch}/objects"],
            {}, f"http://127.0.0.1:{port}/_health",
        )
        self.start(
            "s3-front",
            [sys.executable, str(ROOT / "tests/tools/s3_front.py"), str(front),
             "--s3", f"http://127.0.0.1:{port}", "--others", others],
            {}, f"http://127.0.0.1:{front}/_front/health",
        )
        return f"http://127.0.0.1:{front}"

    def start_kinesis_local(self):
        """Starts kinesis-local; returns its address."""
        port, tls_port = free_port(), free_port()
        self.start(
            "kinesis-local",
            ["node", "-r", str(ROOT / "tests/tools/loopback.cjs"), str(TOOLS / "node/node_modules/kinesis-local/main.js")],
            {
                "KINESIS_MOCK_PLAIN_PORT": str(port), "KINESIS_MOCK_TLS_PORT": str(tls_port),
                "KINESIS_MOCK_CERT_PATH": str(TOOLS / "node/node_modules/kinesis-local/server.json"),
                "CREATE_STREAM_DURATION": "20ms", "SPLIT_SHARD_DURATION": "20ms", "MERGE_SHARDS_DURATION": "20ms",
                "SHARD_LIMIT": "500", "LOG_LEVEL": "ERROR",
            },
            f"http://127.0.0.1:{port}/healthcheck",
        )
        return f"http://127.0.0.1:{port}"

    def start_cognito_sync(self, kinesis, iam):
        """Starts the server for Amazon Cognito Sync, which looks for streams and roles there; returns its address."""
        port = free_port()
        self.start(
            "cognito-sync",
            [sys.executable, str(ROOT / "tests/tools/cognito_sync.py"), str(port), "--kinesis", kinesis, "--iam", iam],
            {}, f"http://127.0.0.1:{port}/_control/health",
        )
        return f"http://127.0.0.1:{port}"

    def start_policy_proxy(self, s3, kinesis):
        """Starts the proxy that refuses what a policy does not allow, with a policy that allows nothing; returns its address."""
        port = free_port()
        policy = pathlib.Path(self.scratch, "policy.json")
        policy.write_text('{"Version": "2012-10-17", "Statement": []}')
        self.start(
            "policy-proxy",
            [sys.executable, str(ROOT / "tests/tools/policy_proxy.py"), str(port), "--policy", str(policy),
             "--s3", s3, "--dynamodb", s3, "--glue", s3, "--kinesis", kinesis],
            {}, f"http://127.0.0.1:{port}/_policy/health",
        )
        return f"http://127.0.0.1:{port}"

    def start_ferrokinesis(self):
        """Starts ferrokinesis, the fast Kinesis server of the benchmarks; returns its address and the process."""
        port = free_port()
        process = self.start(
            "ferrokinesis", [str(TOOLS / "ferrokinesis/bin/ferrokinesis"), "--port", str(port), "--log-level", "error"],
            {
                "LD_PRELOAD": str(TOOLS / "ferrokinesis/loopback.so"),
                "FERROKINESIS_CREATE_STREAM_MS": "20", "AWS_REGION": "us-east-1",
            },
            f"http://127.0.0.1:{port}/_health/ready",
        )
        return f"http://127.0.0.1:{port}", process


def environment(servers, s3, iam):
    """Starts the servers beside S3 and ministack; returns the variables by which the tests find all of them."""
    kinesis = servers.start_kinesis_local()
    return {
        "SYNCLAKE_TEST_S3": s3,
        "SYNCLAKE_TEST_KINESIS": kinesis,
        "SYNCLAKE_TEST_COGNITO_SYNC": servers.start_cognito_sync(kinesis, iam=iam),
        "SYNCLAKE_TEST_POLICY_PROXY": servers.start_policy_proxy(s3, kinesis),
        "SYNCLAKE_TEST_PYTHON": sys.executable,
        "SYNCLAKE_TEST_SPARK": str(TOOLS / "spark/bin/python"),
        "SYNCLAKE_TEST_TOOLS": str(TOOLS),
    }


def main():
    command = sys.argv[1:]
    is_versity = command[:2] == ["--s3", "versity"]
    command = command[2 * is_versity:]
    if not command or command[0].startswith("-"):
        sys.exit(__doc__)
    with Servers() as servers:
        iam, _ = servers.start_ministack()
        s3 = servers.start_versity(iam) if is_versity else iam
        env = {**os.environ, **environment(servers, s3, iam)}
        status = subprocess.run(command, env=env, check=False).returncode
    sys.exit(status)


if __name__ == "__main__":
    main()
