"""An HTTP/1.1 proxy on loopback that injects the faults of networks and services.

It runs inside the driver's process, in a thread with its own event loop: `FaultProxy(upstream_port).start()`.

A rule is a dict. `match` is a regular expression on "METHOD path X-Amz-Target". `p` is the probability that it fires
(default 1). `skip` passes the first matches, `times` limits how often it fires. `do` is one of
  error                 answers `status` and `code` without a request to upstream (`json`: as AWS's JSON services do)
  reset_before          resets the connection before upstream gets the request
  reset_after           upstream answers, but the client never gets the answer: an ambiguous outcome
  cut                   the answer breaks off after `bytes`
  stall                 upstream's answer waits for `seconds`
  delay                 the request waits for `seconds`
  slow                  the answer trickles at `rate` bytes a second
  truncate_upload       upstream gets only the first `bytes` of the body
"""

import asyncio
import collections
import json
import logging
import random
import re
import socket
import struct
import threading


# Connections that are still open when the driver ends need no log message.
logging.getLogger("asyncio").setLevel(logging.CRITICAL)


class FaultProxy:
    def __init__(self, upstream_port, seed=0):
        self.upstream_port = upstream_port
        self.rules = []
        # Called with the headers of a request; returns a rule of `do: error` to answer instead of upstream, or None.
        self.guard = None
        self.fired = collections.Counter()
        self.requests = 0
        self.random = random.Random(seed)
        self.port = None
        self._ready = threading.Event()

    def start(self):
        threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True).start()
        self._ready.wait(10)
        return self

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def heal(self):
        self.rules = []

    async def _serve(self):
        server = await asyncio.start_server(self._client, "127.0.0.1", 0, limit=1 << 20)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        async with server:
            await server.serve_forever()

    def _pick(self, line):
        for rule in self.rules:
            if not re.search(rule.get("match", "."), line):
                continue
            rule["seen"] = rule.get("seen", 0) + 1
            if rule["seen"] <= rule.get("skip", 0) or rule.get("done", 0) >= rule.get("times", 1 << 60):
                continue
            if self.random.random() >= rule.get("p", 1):
                continue
            rule["done"] = rule.get("done", 0) + 1
            self.fired[rule.get("name") or rule["do"]] += 1
            return rule
        return None

    async def _client(self, reader, writer):
        upstream = None
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self.requests += 1
                lines = head[:-4].decode("latin1").split("\r\n")
                headers = {k.lower(): v.strip() for k, v in (line.split(":", 1) for line in lines[1:])}
                method, path, _ = lines[0].split(" ", 2)
                rule = self.guard(headers) if self.guard else None
                rule = rule or self._pick(f"{method} {path} {headers.get('x-amz-target', '')}")
                do = rule and rule["do"]
                if do == "reset_before":
                    return reset(writer)
                if do == "delay":
                    await asyncio.sleep(rule["seconds"])
                expects = "100-continue" in headers.get("expect", "")
                if expects:
                    writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                if do == "error":
                    await pass_body(reader, None, headers)
                    writer.write(error_answer(rule, method))
                    await writer.drain()
                    continue
                answer, upstream = await asyncio.open_connection("127.0.0.1", self.upstream_port, limit=1 << 20)
                kept = [line for line in lines[1:] if line.split(":")[0].lower() not in ("connection", "expect")]
                upstream.write(("\r\n".join([lines[0], *kept, "Connection: close"]) + "\r\n\r\n").encode("latin1"))
                limit = rule["bytes"] if do == "truncate_upload" else None
                if not await pass_body(reader, upstream, headers, limit):
                    upstream.transport.abort()
                    return reset(writer)
                if do == "reset_after":
                    await answer.read()
                    return reset(writer)
                if do == "stall":
                    await asyncio.sleep(rule["seconds"])
                sent = 0
                while data := await answer.read(65536):
                    if do == "cut" and sent + len(data) > rule["bytes"]:
                        writer.write(data[: max(0, rule["bytes"] - sent)])
                        await writer.drain()
                        return reset(writer)
                    writer.write(data)
                    sent += len(data)
                    await writer.drain()
                    if do == "slow":
                        await asyncio.sleep(len(data) / rule["rate"])
                writer.close()
                return None
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.LimitOverrunError):
            writer.close()
        finally:
            if upstream:
                upstream.close()


def reset(writer):
    sock = writer.get_extra_info("socket")
    if sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def pass_body(reader, writer, headers, limit=None):
    if "chunked" in headers.get("transfer-encoding", ""):
        while True:
            size = await reader.readuntil(b"\r\n")
            data = await reader.readexactly(int(size.split(b";")[0], 16) + 2)
            if writer:
                writer.write(size + data)
                await writer.drain()
            if len(data) == 2:
                return True
    left = int(headers.get("content-length", 0))
    passed = 0
    while left:
        data = await reader.read(min(left, 1 << 18))
        if not data:
            raise ConnectionError
        left -= len(data)
        if limit is not None and passed + len(data) >= limit:
            if writer:
                writer.write(data[: limit - passed])
                await writer.drain()
            return False
        passed += len(data)
        if writer:
            writer.write(data)
            await writer.drain()
    if writer:
        await writer.drain()
    return True


def error_answer(rule, method):
    status, code = rule.get("status", 503), rule.get("code", "SlowDown")
    if rule.get("json"):
        body, kind = json.dumps({"__type": code, "message": "injected"}).encode(), "application/x-amz-json-1.1"
    else:
        body = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>injected</Message></Error>'
        body, kind = body.encode(), "application/xml"
    head = f"HTTP/1.1 {status} Injected\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nx-amzn-errortype: {code}\r\n\r\n"
    return head.encode() + (b"" if method == "HEAD" else body)
