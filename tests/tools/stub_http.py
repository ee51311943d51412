"""HTTP/1.1 server parts that cognito_sync.py, policy_proxy.py and s3_front.py share."""

import http.client
import http.server
import json
import re
import select
import sys
import urllib.parse
import uuid


class Server(http.server.ThreadingHTTPServer):
    """A server on loopback with one thread for each connection."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, port, handler):
        super().__init__(("127.0.0.1", port), handler)

    def handle_error(self, request, client_address):
        # A client that ends its connection midway is normal; every other error belongs into the log.
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class Handler(http.server.BaseHTTPRequestHandler):
    """Reads whole request bodies, and sends each answer in as few packets as possible."""

    protocol_version = "HTTP/1.1"
    # Head and body in separate packets would wait for the client's delayed acknowledgement.
    disable_nagle_algorithm = True
    wbufsize = 1 << 16

    def log_message(self, *_):
        pass

    def handle_expect_100(self):
        done = super().handle_expect_100()
        self.wfile.flush()
        return done

    @property
    def target(self):
        """The request target as the client sent it. `path` has lost a second slash at its beginning."""
        return self.requestline.split(" ")[1]

    def read_body(self):
        if "chunked" not in self.headers.get("Transfer-Encoding", "").lower():
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            if len(body) < length:
                raise ConnectionResetError("the client ended the connection inside a body")
            return body
        body = b""
        while size := int(self.rfile.readline().split(b";")[0] or b"0", 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline() not in (b"\r\n", b""):
            pass
        return body

    def answer(self, status, body=b"", headers=()):
        """Sends a whole answer; the answer to HEAD has no body."""
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def answer_json(self, status, document, headers=()):
        self.answer(status, json.dumps(document).encode(), [("Content-Type", "application/json"), *headers])

    def scope(self):
        """Returns (access key, region, service) that the request is signed for, or None if it is not signed."""
        found = re.search(r"Credential=([^/,\s]+)/\d+/([^/,\s]+)/([^/,\s]+)/aws4_request", self.headers.get("Authorization", ""))
        return found.groups() if found else None


# Headers of one connection, which a proxy does not pass on.
HOP_BY_HOP = {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "expect"}


class ForwardingHandler(Handler):
    """A handler that sends requests on. It keeps a connection to each server for as long as the client's connection lives."""

    def setup(self):
        super().setup()
        self.connections = {}

    def finish(self):
        super().finish()
        for connection in self.connections.values():
            connection.close()

    def forward(self, server, body, headers):
        """Sends the request to the URL of a server with these headers, and returns the answer with its body unread."""
        if server not in self.connections:
            url = urllib.parse.urlsplit(server)
            self.connections[server] = http.client.HTTPConnection(url.hostname, url.port, timeout=120)
        connection = self.connections[server]
        # An idle connection that the server ended is readable. A request is never sent twice, because a second
        # PutRecord would store a second record.
        if connection.sock and select.select([connection.sock], [], [], 0)[0]:
            connection.close()
        connection.putrequest(self.command, self.target, skip_host=True, skip_accept_encoding=True)
        for name, value in headers:
            connection.putheader(name, value.encode("latin1"))
        if body or self.command in ("PUT", "POST"):
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body or None)
        return connection.getresponse()


def request_id():
    return str(uuid.uuid4())
