"""A server that answers as Amazon Cognito Sync does (REST-JSON API of 2014-06-30), for the operations of a whole pool.

    python cognito_sync.py PORT [--kinesis URL] [--iam URL] [--publish-seconds N]

With --kinesis and --iam, SetIdentityPoolConfiguration checks that the stream exists and that the role can be assumed.
Without --publish-seconds, a bulk publish stays IN_PROGRESS until a test ends it.

Tests control the server on the same port, with requests that need no signature:
  GET    /_control/health       200
  PUT    /_control/pools/ID     makes or changes a pool: {"PushSync": {…}, "CognitoStreams": {…}, "BulkPublish": {"status":
                                …, "started": epoch, "completed": epoch, "message": …}, "SyncSessionsCount": 17,
                                "DataStorage": 1234, "LastModifiedDate": epoch}; null removes a member
  GET    /_control/pools/ID     the pool, in the same form
  DELETE /_control/pools/ID     removes the pool
  POST   /_control/fail         {"operation": …, "code": …, "times": 1, "pool": …, "message": …, "before": {…}}: the next
                                calls of the operation fail (times -1: all). `before` changes the pool right before the call;
                                with "code": null the call then succeeds, without a code it fails with
                                ConcurrentModificationException. {"clear": true} ends all failures, or those of one operation.
  GET    /_control/calls        the calls since the start or the last DELETE, as {"operation", "pool", "body", "error"}
  DELETE /_control/calls
"""

import argparse
import base64
import json
import re
import threading
import time
import urllib.parse

import stub_http
from stream_role import Refused, check_role, check_stream

# HTTP codes of the service model. ConcurrentModificationException has 400 there, and not 409.
ERROR_STATUS = {
    "AlreadyStreamedException": 400, "ConcurrentModificationException": 400, "DuplicateRequestException": 400,
    "InvalidParameterException": 400, "AccessDeniedException": 403, "NotAuthorizedException": 403,
    "MissingAuthenticationTokenException": 403, "ResourceNotFoundException": 404, "UnknownOperationException": 404,
    "ResourceConflictException": 409, "TooManyRequestsException": 429, "InternalErrorException": 500,
    "ServiceUnavailableException": 503,
}
# Identity pools and their operations; the paths of identities and datasets are only here to be named.
ROUTES = [
    ("GET", "/identitypools", "ListIdentityPoolUsage"),
    ("GET", "/identitypools/{pool}", "DescribeIdentityPoolUsage"),
    ("GET", "/identitypools/{pool}/configuration", "GetIdentityPoolConfiguration"),
    ("POST", "/identitypools/{pool}/configuration", "SetIdentityPoolConfiguration"),
    ("POST", "/identitypools/{pool}/bulkpublish", "BulkPublish"),
    ("POST", "/identitypools/{pool}/getBulkPublishDetails", "GetBulkPublishDetails"),
    ("GET", "/identitypools/{pool}/events", "GetCognitoEvents"),
    ("POST", "/identitypools/{pool}/events", "SetCognitoEvents"),
    ("POST", "/identitypools/{pool}/identity/{identity}/device", "RegisterDevice"),
    ("GET", "/identitypools/{pool}/identities/{identity}", "DescribeIdentityUsage"),
    ("GET", "/identitypools/{pool}/identities/{identity}/datasets", "ListDatasets"),
    ("GET", "/identitypools/{pool}/identities/{identity}/datasets/{dataset}", "DescribeDataset"),
    ("POST", "/identitypools/{pool}/identities/{identity}/datasets/{dataset}", "UpdateRecords"),
    ("DELETE", "/identitypools/{pool}/identities/{identity}/datasets/{dataset}", "DeleteDataset"),
    ("GET", "/identitypools/{pool}/identities/{identity}/datasets/{dataset}/records", "ListRecords"),
]
PATTERNS = [(method, re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path)), name) for method, path, name in ROUTES]
SECONDS_BETWEEN_PUBLISHES = 24 * 3600
# Only the service itself sets DisabledReason.
PART_MEMBERS = {"PushSync": ("ApplicationArns", "RoleArn"), "CognitoStreams": ("StreamName", "RoleArn", "StreamingStatus")}
POOL_MEMBERS = {"PushSync", "CognitoStreams", "BulkPublish", "SyncSessionsCount", "DataStorage", "LastModifiedDate"}
PUBLISH_MEMBERS = {"status", "started", "completed", "message"}


def operation_of(method, target):
    """Returns the operation's name and the decoded parts of its path, or (None, {})."""
    path = target.split("?")[0]
    for expected, pattern, name in PATTERNS:
        found = pattern.fullmatch(path)
        if found and method == expected:
            return name, {part: urllib.parse.unquote(value) for part, value in found.groupdict().items()}
    return None, {}


def refuse(code, message):
    raise Refused(code, message)


def validate(value, member, pattern, low, high):
    """Checks a string as the service's model does."""
    failure = f"1 validation error detected: Value '{value}' at '{member}' failed to satisfy constraint: Member must "
    if not isinstance(value, str):
        refuse("InvalidParameterException", failure + "be a string")
    if not low <= len(value) <= high:
        refuse("InvalidParameterException", failure + f"have length between {low} and {high}")
    if pattern and not re.fullmatch(pattern, value):
        refuse("InvalidParameterException", failure + f"satisfy regular expression pattern: {pattern}")


class Service:
    def __init__(self, kinesis=None, iam=None, publish_seconds=None):
        self.kinesis, self.iam, self.publish_seconds = kinesis, iam, publish_seconds
        self.lock = threading.Lock()
        self.pools = {}
        # Pools whose bulk publish ends by itself after `publish_seconds`.
        self.timed = set()
        self.failures = []
        self.calls = []

    # Control

    def change(self, pool_id, members):
        """Makes or changes a pool; the caller holds the lock."""
        if unknown := set(members) - POOL_MEMBERS:
            raise ValueError(f"unknown member of a pool: {sorted(unknown)}")
        publish = members.get("BulkPublish")
        if publish is not None:
            if unknown := set(publish) - PUBLISH_MEMBERS:
                raise ValueError(f"unknown member of BulkPublish: {sorted(unknown)}")
            if publish.get("status") not in ("NOT_STARTED", "IN_PROGRESS", "SUCCEEDED", "FAILED"):
                raise ValueError(f"unknown status of BulkPublish: {publish.get('status')}")
            # A test that only ends a publish keeps the time at which it started.
            publish = {**publish, "started": publish.get("started", self.publish_of(pool_id).get("started"))}
            if publish["status"] != "NOT_STARTED" and publish["started"] is None:
                publish["started"] = now()
            if publish["status"] == "SUCCEEDED":
                publish.setdefault("completed", now())
            members = {**members, "BulkPublish": publish}
        if "BulkPublish" in members:
            self.timed.discard(pool_id)
        pool = self.pools.setdefault(pool_id, {})
        for name, value in members.items():
            pool.pop(name, None)
            if value is not None:
                pool[name] = value

    def publish_of(self, pool_id):
        return self.pools.get(pool_id, {}).get("BulkPublish", {})

    def fail(self, rule):
        if unknown := set(rule) - {"operation", "code", "times", "pool", "message", "before", "clear"}:
            raise ValueError(f"unknown member of a failure: {sorted(unknown)}")
        if rule.get("clear"):
            self.failures = [f for f in self.failures if rule.get("operation") not in (None, f["operation"])]
            return
        if rule.get("operation") not in [name for _, _, name in ROUTES]:
            raise ValueError(f"unknown operation: {rule.get('operation')}")
        rule = {"code": "ConcurrentModificationException", **rule} if "before" in rule else rule
        if rule.get("code") not in ERROR_STATUS and not ("before" in rule and rule["code"] is None):
            raise ValueError(f"unknown error code: {rule.get('code')}")
        self.failures.append({"times": 1, **rule})

    # Operations

    def call(self, operation, parts, query, body):
        """Answers one call, or raises `Refused`."""
        pool_id = parts.get("pool")
        if pool_id is not None:
            validate(pool_id, "identityPoolId", r"[\w-]+:[0-9a-f-]+", 1, 55)
        if operation == "SetIdentityPoolConfiguration":
            check_configuration(body)
        with self.lock:
            self.injected_failure(operation, pool_id)
        streams = body.get("CognitoStreams") or {}
        if operation == "SetIdentityPoolConfiguration" and streams.get("StreamingStatus") == "ENABLED":
            # Without the lock: both ask another server.
            if self.kinesis:
                check_stream(self.kinesis, pool_id.split(":")[0], streams["StreamName"])
            if self.iam:
                check_role(self.iam, streams["RoleArn"])
        with self.lock:
            if pool_id is None:
                return self.list_usage(query)
            pool = self.pools.get(pool_id)
            if pool is None:
                refuse("ResourceNotFoundException", f"IdentityPool '{pool_id}' not found.")
            self.advance(pool_id)
            method = {
                "DescribeIdentityPoolUsage": lambda: {"IdentityPoolUsage": usage(pool_id, pool)},
                "GetIdentityPoolConfiguration": lambda: configuration(pool_id, pool),
                "SetIdentityPoolConfiguration": lambda: self.set_configuration(pool_id, pool, body),
                "BulkPublish": lambda: self.bulk_publish(pool_id, pool),
                "GetBulkPublishDetails": lambda: publish_details(pool_id, pool),
            }.get(operation)
            if method is None:
                refuse("UnknownOperationException", f"this server does not know {operation}")
            return method()

    def injected_failure(self, operation, pool_id):
        for rule in self.failures:
            if rule["operation"] != operation or rule.get("pool", pool_id) != pool_id or rule["times"] == 0:
                continue
            rule["times"] -= 1 if rule["times"] > 0 else 0
            if rule.get("before"):
                self.change(pool_id, rule["before"])
            if rule["code"]:
                messages = {
                    "ConcurrentModificationException": "A concurrent modification of the resource is in progress.",
                    "TooManyRequestsException": "Rate exceeded",
                }
                refuse(rule["code"], rule.get("message", messages.get(rule["code"], "injected")))
            return

    def advance(self, pool_id):
        """Ends a bulk publish whose time has come."""
        if pool_id not in self.timed:
            return
        publish = self.pools[pool_id]["BulkPublish"]
        completed = round(publish["started"] + self.publish_seconds, 3)
        if completed <= time.time():
            self.timed.remove(pool_id)
            publish.update(status="SUCCEEDED", completed=completed)

    def set_configuration(self, pool_id, pool, body):
        # The call replaces both parts; an absent part is cleared.
        for part, members in PART_MEMBERS.items():
            given = body.get(part)
            pool.pop(part, None)
            if given is not None:
                pool[part] = {name: given[name] for name in members if given.get(name) is not None}
        return configuration(pool_id, pool)

    def bulk_publish(self, pool_id, pool):
        if pool.get("CognitoStreams", {}).get("StreamingStatus") != "ENABLED":
            refuse("InvalidParameterException", f"Cognito Streams is not enabled for IdentityPool '{pool_id}'.")
        publish = pool.get("BulkPublish", {})
        if publish.get("status") == "IN_PROGRESS":
            refuse("DuplicateRequestException", "A bulk publish operation is already in progress for this identity pool.")
        if publish.get("status") == "SUCCEEDED" and time.time() - publish["completed"] < SECONDS_BETWEEN_PUBLISHES:
            refuse("AlreadyStreamedException", "A bulk publish operation completed successfully within the last 24 hours.")
        pool["BulkPublish"] = {"status": "IN_PROGRESS", "started": now()}
        if self.publish_seconds is not None:
            self.timed.add(pool_id)
        return {"IdentityPoolId": pool_id}

    def list_usage(self, query):
        try:
            limit = int(query.get("maxResults", ["60"])[0])
            start = int(base64.b64decode(query.get("nextToken", ["MA=="])[0], validate=True))
        except ValueError:
            refuse("InvalidParameterException", "maxResults or nextToken is not valid")
        if limit < 1 or start < 0:
            refuse("InvalidParameterException", "maxResults or nextToken is not valid")
        ids = sorted(self.pools)
        page = [usage(pool_id, self.pools[pool_id]) for pool_id in ids[start:start + limit]]
        answer = {"IdentityPoolUsages": page, "MaxResults": limit, "Count": len(page)}
        if start + limit < len(ids):
            answer["NextToken"] = base64.b64encode(str(start + limit).encode()).decode()
        return answer


def now():
    return round(time.time(), 3)


def check_configuration(body):
    """Checks the members of a configuration, except for what other services know of them."""
    for part in ("PushSync", "CognitoStreams"):
        if not isinstance(body.get(part, {}), (dict, type(None))):
            refuse("InvalidParameterException", f"{part} must be an object")
        role = (body.get(part) or {}).get("RoleArn")
        if role is not None:
            validate(role, "roleArn", r"arn:aws:iam::\d+:role/.*", 20, 2048)
    streams = body.get("CognitoStreams") or {}
    if streams.get("StreamName") is not None:
        validate(streams["StreamName"], "cognitoStreams.streamName", None, 1, 128)
    status = streams.get("StreamingStatus")
    if status not in (None, "ENABLED", "DISABLED"):
        refuse("InvalidParameterException", f"1 validation error detected: Value '{status}' at 'cognitoStreams.streamingStatus' "
               "failed to satisfy constraint: Member must satisfy enum value set: [ENABLED, DISABLED]")
    if status == "ENABLED" and not (streams.get("StreamName") and streams.get("RoleArn")):
        refuse("InvalidParameterException", "StreamName and RoleArn are required to enable Cognito Streams.")


def configuration(pool_id, pool):
    parts = {name: pool[name] for name in ("PushSync", "CognitoStreams") if name in pool}
    return {"IdentityPoolId": pool_id, **parts}


def usage(pool_id, pool):
    counts = {name: pool.get(name, 0) for name in ("SyncSessionsCount", "DataStorage")}
    found = {"IdentityPoolId": pool_id, **counts}
    if "LastModifiedDate" in pool:
        found["LastModifiedDate"] = pool["LastModifiedDate"]
    return found


def publish_details(pool_id, pool):
    publish = pool.get("BulkPublish", {"status": "NOT_STARTED"})
    details = {"IdentityPoolId": pool_id, "BulkPublishStatus": publish["status"]}
    if publish.get("started") is not None:
        details["BulkPublishStartTime"] = publish["started"]
    # The service documents the completion time for a success, and the message for a failure.
    if publish["status"] == "SUCCEEDED":
        details["BulkPublishCompleteTime"] = publish["completed"]
    if publish["status"] == "FAILED" and publish.get("message") is not None:
        details["FailureMessage"] = publish["message"]
    return details


def make_handler(service):
    class CognitoSync(stub_http.Handler):
        def answer_error(self, code, message):
            self.answer_json(ERROR_STATUS[code], {"message": message}, [
                ("x-amzn-RequestId", stub_http.request_id()), ("x-amzn-ErrorType", f"{code}:"), ("x-amzn-ErrorMessage", message),
            ])

        def do_any(self):
            body = self.read_body()
            try:
                if self.target.startswith("/_control/"):
                    return self.control(json.loads(body) if body else None)
                self.api(body)
            except Refused as error:
                self.answer_error(error.code, error.message)
            except ValueError as error:
                self.answer_json(400, {"message": str(error)})

        do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = do_PATCH = do_any

        def api(self, raw):
            scope = self.scope()
            if scope is None:
                refuse("MissingAuthenticationTokenException", "Missing Authentication Token")
            if scope[2] != "cognito-sync":
                refuse("UnknownOperationException", f"this server is Amazon Cognito Sync; the request is signed for {scope[2]}")
            operation, parts = operation_of(self.command, self.target)
            if operation is None:
                refuse("UnknownOperationException", f"no operation of Amazon Cognito Sync has {self.command} {self.target}")
            query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.target).query)
            call = {"operation": operation, "pool": parts.get("pool"), "body": None, "error": None}
            with service.lock:
                service.calls.append(call)
            try:
                call["body"] = body = parse_object(raw)
                answer = service.call(operation, parts, query, body)
            except Refused as error:
                call["error"] = error.code
                raise
            self.answer_json(200, answer, [("x-amzn-RequestId", stub_http.request_id())])

        def control(self, document):
            what, _, name = self.target.removeprefix("/_control/").partition("/")
            name = urllib.parse.unquote(name)
            with service.lock:
                match self.command, what:
                    case "GET", "health":
                        return self.answer_json(200, {})
                    case "PUT", "pools" if name:
                        service.change(name, document or {})
                        return self.answer_json(200, service.pools[name])
                    case "GET", "pools" if name in service.pools:
                        service.advance(name)
                        return self.answer_json(200, service.pools[name])
                    case "DELETE", "pools" if name in service.pools:
                        service.timed.discard(name)
                        return self.answer_json(200, service.pools.pop(name))
                    case "POST", "fail":
                        service.fail(document or {})
                        return self.answer_json(200, {})
                    case "GET", "calls":
                        return self.answer_json(200, service.calls)
                    case "DELETE", "calls":
                        service.calls = []
                        return self.answer_json(200, {})
            self.answer_json(404, {"message": f"no control answers {self.command} {self.target}"})

    return CognitoSync


def parse_object(raw):
    try:
        body = json.loads(raw) if raw else {}
    except ValueError:
        refuse("InvalidParameterException", "the body is not JSON")
    if not isinstance(body, dict):
        refuse("InvalidParameterException", "the body is not a JSON object")
    return body


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--kinesis")
    parser.add_argument("--iam")
    parser.add_argument("--publish-seconds", type=float)
    options = parser.parse_args()
    service = Service(options.kinesis, options.iam, options.publish_seconds)
    stub_http.Server(options.port, make_handler(service)).serve_forever()


if __name__ == "__main__":
    main()
