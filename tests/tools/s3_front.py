"""A proxy that makes an S3 server with signatures and ministack look like one server, which the tests expect.

    python s3_front.py PORT --s3 URL --others URL

A request for S3 goes to the S3 server, and every other one (DynamoDB, IAM and STS, ministack's own paths) to ministack. Some
tests send S3 requests without a signature, as ministack allows; the proxy signs those as the user test/test. All other
requests and all answers pass unchanged.

Control: GET /_front/health answers 200.
"""

import argparse
import datetime
import hashlib
import hmac
import http.client
import sys
import urllib.parse

import stub_http

REGION = "us-east-1"
USER = SECRET = "test"


def signed_headers(method, target, host, body, now):
    """Returns the headers that sign a request for S3 by Signature Version 4."""
    path, _, query = target.partition("?")
    pairs = sorted(urllib.parse.parse_qsl(query, keep_blank_values=True))
    quote = lambda text: urllib.parse.quote(text, safe="-_.~")
    time, digest = now.strftime("%Y%m%dT%H%M%SZ"), hashlib.sha256(body).hexdigest()
    headers = {"host": host, "x-amz-content-sha256": digest, "x-amz-date": time}
    names = ";".join(headers)
    canonical = "\n".join([
        method, urllib.parse.quote(urllib.parse.unquote(path), safe="/-_.~"),
        "&".join(f"{quote(k)}={quote(v)}" for k, v in pairs),
        *(f"{name}:{value}" for name, value in headers.items()), "", names, digest,
    ])
    scope = f"{time[:8]}/{REGION}/s3/aws4_request"
    text = "\n".join(["AWS4-HMAC-SHA256", time, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    key = f"AWS4{SECRET}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    authorization = f"AWS4-HMAC-SHA256 Credential={USER}/{scope}, SignedHeaders={names}, Signature={signature}"
    return {"x-amz-content-sha256": digest, "x-amz-date": time, "Authorization": authorization}


def make_handler(s3, others):
    class Front(stub_http.ForwardingHandler):
        def is_for_s3(self):
            scope = self.scope()
            if scope:
                return scope[2] == "s3"
            return "X-Amz-Target" not in self.headers and not self.target.startswith("/_")

        def do_any(self):
            body = self.read_body()
            if self.target == "/_front/health":
                return self.answer_json(200, {})
            headers = [(k, v) for k, v in self.headers.items() if k.lower() not in stub_http.HOP_BY_HOP | {"content-length"}]
            upstream = s3 if self.is_for_s3() else others
            if upstream == s3 and self.scope() is None:
                now = datetime.datetime.now(datetime.UTC)
                headers += signed_headers(self.command, self.target, self.headers["Host"], body, now).items()
            try:
                answer, content = self.send(upstream, body, headers)
            except (http.client.HTTPException, OSError) as error:
                # The client sees a broken connection, as without the proxy.
                print(f"{self.command} {self.target}: {error!r}", file=sys.stderr, flush=True)
                self.connections[upstream].close()
                self.close_connection = True
                return
            self.send_response_only(answer.status, answer.reason)
            for name, value in answer.getheaders():
                if name.lower() not in stub_http.HOP_BY_HOP | {"content-length"}:
                    self.send_header(name, value)
            if self.close_connection:
                # The client asked for it, and may pass this answer on to a client that did not.
                self.send_header("Connection", "close")
            length = answer.getheader("Content-Length", "0") if self.command == "HEAD" else str(len(content))
            if answer.status not in (204, 304):
                self.send_header("Content-Length", length)
            self.end_headers()
            self.wfile.write(content)
            self.wfile.flush()

        do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_any

        def send(self, upstream, body, headers):
            """Sends the request once, and returns the answer and its whole body."""
            answer = self.forward(upstream, body, headers)
            return answer, answer.read()

    return Front


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--s3", required=True)
    parser.add_argument("--others", required=True)
    options = parser.parse_args()
    stub_http.Server(options.port, make_handler(options.s3, options.others)).serve_forever()


if __name__ == "__main__":
    main()
