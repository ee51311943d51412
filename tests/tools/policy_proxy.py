"""A proxy in front of AWS emulators that refuses what an IAM policy does not allow, with the error of the service itself.

    python policy_proxy.py PORT --policy FILE [--s3 URL] [--kinesis URL] [--dynamodb URL] [--glue URL]
        [--cognito-sync URL] [--log FILE]

Clients use it as the endpoint of all services (AWS_ENDPOINT_URL). A request that is not signed, that belongs to a service
without an upstream, or for which no IAM action is known, is refused: nothing passes unchecked. aws_actions.py maps requests
to actions, iam_policy.py evaluates the policy. The log has one JSON line for each decision: {"action", "resource", "allowed"}.

Control, without a signature:
  PUT    /_policy          replaces the policy (the JSON body); 400 if it has an element that cannot be evaluated
  GET    /_policy/log      the decisions since the start or the last DELETE
  DELETE /_policy/log
  GET    /_policy/health   200
"""

import argparse
import http.client
import json
import pathlib
import re
import sys
import threading
import urllib.parse
import xml.etree.ElementTree
from xml.sax.saxutils import escape

import aws_actions
import stub_http
from iam_policy import Policy, PolicyError

S3_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
BODY_HEADERS = re.compile(r"content-length|content-md5|x-amz-(checksum-.*|sdk-checksum-algorithm|content-sha256|trailer)")


class Denied(Exception):
    def __init__(self, action, resource, decision):
        because = {
            "explicit deny": "with an explicit deny in an identity-based policy",
            "implicit deny": f"because no identity-based policy allows the {action} action",
        }.get(decision, decision)
        super().__init__(f"is not authorized to perform: {action} on resource: {resource} {because}")


class Guard:
    """The policy in force and the log of its decisions."""

    def __init__(self, policy, log_file=None):
        self.policy = Policy(policy)
        self.lock = threading.Lock()
        self.log = []
        self.file = open(log_file, "a", encoding="utf-8") if log_file else None

    def record(self, action, resource, allowed):
        decision = {"action": action, "resource": resource, "allowed": allowed}
        with self.lock:
            self.log.append(decision)
            if self.file:
                self.file.write(json.dumps(decision) + "\n")
                self.file.flush()

    def decide(self, action, resource):
        if isinstance(resource, aws_actions.SomeResource):
            decision, resource = self.policy.decide_some(action, resource), f"{resource}*"
        else:
            decision = self.policy.decide(action, resource)
        self.record(action, resource, decision == "allowed")
        return decision

    def require(self, needed):
        for action, resource in needed:
            decision = self.decide(action, resource)
            if decision != "allowed":
                raise Denied(action, resource, decision)


def make_handler(guard, upstreams):
    class PolicyProxy(stub_http.ForwardingHandler):
        def do_any(self):
            body = self.read_body()
            if self.target == "/_policy" or self.target.startswith("/_policy/"):
                return self.control(body)
            self.caller, self.region, self.service = self.scope() or ("anonymous", "us-east-1", self.guessed_service())
            try:
                if self.scope() is None:
                    raise aws_actions.Unmapped("the request is not signed")
                if self.service not in upstreams:
                    raise aws_actions.Unmapped(f"no upstream for the service {self.service}")
                self.checked(body)
            except (aws_actions.Unmapped, KeyError, ValueError, xml.etree.ElementTree.ParseError) as error:
                guard.record(f"{self.service}:?", f"{self.command} {self.target}", False)
                print(f"refused {self.command} {self.target}: {error}", file=sys.stderr, flush=True)
                self.answer_denied(f"cannot be authorized by the test's policy proxy: {error}")
            except Denied as error:
                self.answer_denied(str(error))

        do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_PATCH = do_any

        def guessed_service(self):
            target = self.headers.get("X-Amz-Target", "")
            known = {"DynamoDB": "dynamodb", "Kinesis": "kinesis", "AWSGlue": "glue"}
            return next((service for prefix, service in known.items() if target.startswith(prefix)), "s3")

        def checked(self, body):
            operation = self.headers.get("X-Amz-Target", "").rpartition(".")[2]
            if self.service == "s3":
                return self.s3(body)
            if self.service == "cognito-sync":
                guard.require(aws_actions.cognito_sync(self.command, self.target, body, self.region))
            elif not operation:
                raise aws_actions.Unmapped("the request has no X-Amz-Target")
            else:
                mappings = {"kinesis": aws_actions.kinesis, "dynamodb": aws_actions.dynamodb, "glue": aws_actions.glue}
                guard.require(mappings[self.service](operation, body, self.region))
            self.relay(self.send(body, self.headers.items()))

        # S3

        def s3(self, body):
            needed = aws_actions.s3(self.command, self.target, self.headers)
            if self.command == "POST" and not needed:
                return self.bulk_delete(body)
            guard.require(needed)
            answer = self.send(body, self.headers.items())
            reads = needed[0][0] in ("s3:GetObject", "s3:GetObjectVersion")
            if answer.status == 404 and reads:
                # Without s3:ListBucket, S3 does not tell whether an object exists.
                bucket, resource = needed[0][1].partition("/")[0], needed[0][1]
                found = answer.read()
                if b"NoSuchBucket" not in found and (decision := guard.decide("s3:ListBucket", bucket)) != "allowed":
                    raise Denied("s3:ListBucket", bucket, decision)
                return self.answer(404, found, end_to_end(answer.headers.items(), "content-length"))
            self.relay(answer)

        def bulk_delete(self, body):
            """Forwards the keys that may be deleted, and answers an error for each other key."""
            if "aws-chunked" in self.headers.get("Content-Encoding", ""):
                raise aws_actions.Unmapped("a bulk delete with aws-chunked encoding")
            bucket = urllib.parse.unquote(self.target.partition("?")[0]).strip("/")
            # Bytes outside the items, such as Quiet, stay as they are.
            root = xml.etree.ElementTree.fromstring(body)
            refused = []
            for item in [child for child in root if child.tag.endswith("Object")]:
                fields = {child.tag.rpartition("}")[2]: child.text or "" for child in item}
                action = "s3:DeleteObjectVersion" if fields.get("VersionId") else "s3:DeleteObject"
                resource = f"arn:aws:s3:::{bucket}/{fields['Key']}"
                decision = guard.decide(action, resource)
                if decision != "allowed":
                    refused.append((fields, str(Denied(action, resource, decision))))
                    root.remove(item)
            if not refused:
                return self.relay(self.send(body, self.headers.items()))
            errors = "".join(self.delete_error(fields, message) for fields, message in refused).encode()
            if not any(child.tag.endswith("Object") for child in root):
                whole = b'<?xml version="1.0" encoding="UTF-8"?>\n<DeleteResult xmlns="%s">%s</DeleteResult>'
                return self.answer(200, whole % (S3_NAMESPACE.encode(), errors), [("Content-Type", "application/xml")])
            xml.etree.ElementTree.register_namespace("", S3_NAMESPACE)
            allowed = xml.etree.ElementTree.tostring(root)
            headers = [(k, v) for k, v in self.headers.items() if not BODY_HEADERS.fullmatch(k.lower())]
            answer = self.send(allowed, [*headers, ("x-amz-content-sha256", "UNSIGNED-PAYLOAD")])
            result = answer.read()
            if answer.status == 200:
                # An upstream that deletes all keys quietly may answer with an empty element.
                result = re.sub(rb"<DeleteResult([^>]*?)\s*/>", rb"<DeleteResult\1></DeleteResult>", result)
                result = result.replace(b"</DeleteResult>", errors + b"</DeleteResult>")
            self.answer(answer.status, result, end_to_end(answer.headers.items(), "content-length"))

        def delete_error(self, fields, message):
            version = f"<VersionId>{escape(fields['VersionId'])}</VersionId>" if fields.get("VersionId") else ""
            message = f"<Code>AccessDenied</Code><Message>{escape(self.user() + message)}</Message>"
            return f"<Error><Key>{escape(fields['Key'])}</Key>{version}{message}</Error>"

        # Forwarding

        def send(self, body, headers):
            """Sends the request to its upstream, and returns the answer with its body unread."""
            return self.forward(upstreams[self.service], body, end_to_end(headers, "content-length"))

        def drop(self):
            # The next request opens the connection again.
            self.connections[upstreams[self.service]].close()

        def relay(self, answer):
            """Passes the answer on as it arrives. If it breaks off, the client's connection breaks off, too."""
            try:
                self.send_response_only(answer.status, answer.reason)
                for name, value in end_to_end(answer.headers.items()):
                    self.send_header(name, value)
                # The length is 0 for answers that have no body, such as those to HEAD, and None if it is unknown.
                chunked = answer.length is None
                if chunked:
                    self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                expected, sent = answer.length, 0
                while data := answer.read1(1 << 16):
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data) if chunked else data)
                    sent += len(data)
                if chunked:
                    self.wfile.write(b"0\r\n\r\n")
                elif sent < expected:
                    raise http.client.IncompleteRead(b"", expected - sent)
                self.wfile.flush()
            except (http.client.HTTPException, OSError):
                self.close_connection = True
                self.drop()
                return
            if answer.will_close:
                self.drop()
            else:
                answer.close()

        # Refusals

        def user(self):
            return f"User: arn:aws:iam::{aws_actions.ACCOUNT}:user/{self.caller} "

        def answer_denied(self, message):
            message, identity = self.user() + message, stub_http.request_id()
            if self.service == "s3":
                body = (
                    '<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code>'
                    f"<Message>{escape(message)}</Message><RequestId>{identity}</RequestId><HostId>policy</HostId></Error>"
                )
                return self.answer(403, body.encode(), [("Content-Type", "application/xml"), ("x-amz-request-id", identity)])
            if "x-www-form-urlencoded" in self.headers.get("Content-Type", ""):
                # The query protocol: STS, IAM and others.
                body = (
                    f"<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code><Message>{escape(message)}</Message></Error>"
                    f"<RequestId>{identity}</RequestId></ErrorResponse>"
                )
                return self.answer(403, body.encode(), [("Content-Type", "text/xml"), ("x-amzn-RequestId", identity)])
            prefix = "com.amazon.coral.service#" if self.service == "dynamodb" else ""
            if self.service in ("kinesis", "dynamodb", "glue"):
                status, document = 400, {"__type": f"{prefix}AccessDeniedException", "Message": message}
            else:
                status, document = 403, {"message": message}
            headers = [
                ("Content-Type", self.headers.get("Content-Type", "application/json")),
                ("x-amzn-RequestId", identity), ("x-amzn-ErrorType", "AccessDeniedException"),
            ]
            self.answer(status, json.dumps(document).encode(), headers)

        # Control

        def control(self, body):
            match self.command, self.target:
                case "GET", "/_policy/health":
                    return self.answer_json(200, {})
                case "PUT", "/_policy":
                    try:
                        guard.policy = Policy(json.loads(body))
                    except ValueError as error:
                        return self.answer_json(400, {"message": str(error)})
                    return self.answer_json(200, {})
                case "GET", "/_policy/log":
                    with guard.lock:
                        return self.answer_json(200, guard.log)
                case "DELETE", "/_policy/log":
                    with guard.lock:
                        guard.log = []
                    return self.answer_json(200, {})
            self.answer_json(404, {"message": f"no control answers {self.command} {self.target}"})

    return PolicyProxy


def end_to_end(headers, *without):
    return [(name, value) for name, value in headers if name.lower() not in stub_http.HOP_BY_HOP and name.lower() not in without]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--policy", required=True)
    services = ("s3", "kinesis", "dynamodb", "glue", "cognito-sync")
    for service in services:
        parser.add_argument(f"--{service}")
    parser.add_argument("--log")
    options = vars(parser.parse_args())
    upstreams = {service: url for service in services if (url := options[service.replace("-", "_")])}
    try:
        guard = Guard(json.loads(pathlib.Path(options["policy"]).read_text()), options["log"])
    except PolicyError as error:
        sys.exit(f"cannot evaluate the policy in {options['policy']}: {error}")
    stub_http.Server(options["port"], make_handler(guard, upstreams)).serve_forever()


if __name__ == "__main__":
    main()
