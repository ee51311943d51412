"""What the tests of the test servers share: a client, an upstream inside the process, and a program on a free port."""

import http.client
import json
import pathlib
import subprocess
import sys
import tempfile
import threading
import unittest

import stub_http
from with_servers import free_port, wait_ready

FOLDER = pathlib.Path(__file__).parent


class Client:
    """An HTTP client that keeps its connection and signs in name only."""

    def __init__(self, port):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def send(self, method, path, body=None, service=None, **headers):
        """Returns the status, the headers and the body."""
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        if service:
            scope = f"Credential=test/20260101/us-east-1/{service}/aws4_request"
            headers["Authorization"] = f"AWS4-HMAC-SHA256 {scope}, SignedHeaders=host, Signature=0"
        self.connection.request(method, path, data or None, headers)
        answer = self.connection.getresponse()
        return answer.status, answer.headers, answer.read()

    def json(self, method, path, body=None, service=None, **headers):
        status, _, answer = self.send(method, path, body, service, **headers)
        return status, json.loads(answer)


class Upstream:
    """An upstream on a free port, in this process, which answers with what `reply(handler, body)` does."""

    def __init__(self, reply):
        self.requests = requests = []

        class Handler(stub_http.Handler):
            def do_any(self):
                body = self.read_body()
                requests.append((self.command, self.target, self.headers, body))
                reply(self, body)

            do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_any

        self.server = stub_http.Server(0, Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


class Program(unittest.TestCase):
    """Starts a server of this folder for each test."""

    def start(self, name, health, *args):
        port = free_port()
        log = tempfile.NamedTemporaryFile(suffix=".log")
        process = subprocess.Popen([sys.executable, str(FOLDER / name), str(port), *args], stdout=log, stderr=log)

        def stop():
            process.terminate()
            process.wait(10)
            printed = pathlib.Path(log.name).read_text()
            log.close()
            self.assertNotIn("Traceback", printed)

        self.addCleanup(stop)
        wait_ready(name, f"http://127.0.0.1:{port}{health}", process, log.name)
        client = Client(port)
        self.addCleanup(client.connection.close)
        return client
