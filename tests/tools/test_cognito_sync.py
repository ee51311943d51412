"""Tests of the server cognito_sync.py. They need no other server.

    python -m unittest discover -s tests/tools
"""

import json
import time
import unittest
import urllib.parse

from stub_harness import Program, Upstream

POOL = "us-east-1:0a1b2c3d-0000-4000-8000-0123456789ab"
ROLE = "arn:aws:iam::000000000000:role/streams/cognito"
STREAMS = {"StreamName": "events", "RoleArn": ROLE, "StreamingStatus": "ENABLED"}
PUSH = {"ApplicationArns": ["arn:aws:sns:us-east-1:000000000000:app/GCM/a"], "RoleArn": ROLE}


class CognitoSync(Program):
    def serve(self, *args):
        self.client = self.start("cognito_sync.py", "/_control/health", *args)
        self.control("PUT", f"/pools/{POOL}", {"CognitoStreams": STREAMS, "PushSync": PUSH})

    def control(self, method, path, body=None):
        status, answer = self.client.json(method, f"/_control{path}", body)
        self.assertEqual(status, 200, answer)
        return answer

    def call(self, method, suffix, body=None, pool=POOL):
        """Returns the status, the error's code or None, and the answer. SDKs encode the colon of a pool's id."""
        path = f"/identitypools/{urllib.parse.quote(pool, safe='')}{suffix}"
        status, headers, answer = self.client.send(method, path, body, "cognito-sync")
        code = headers.get("x-amzn-ErrorType")
        return status, code and code.split(":")[0], json.loads(answer)

    def test_a_set_replaces_both_parts(self):
        self.serve()
        _, _, before = self.call("GET", "/configuration")
        self.assertEqual(before, {"IdentityPoolId": POOL, "PushSync": PUSH, "CognitoStreams": STREAMS})
        disabled = {**STREAMS, "StreamingStatus": "DISABLED"}
        status, _, answer = self.call("POST", "/configuration", {"CognitoStreams": {**disabled, "DisabledReason": "mine"}})
        self.assertEqual((status, answer), (200, {"IdentityPoolId": POOL, "CognitoStreams": disabled}))
        self.assertEqual(self.call("GET", "/configuration")[2], answer)

    def test_the_reason_of_a_stop_stays_until_a_set(self):
        self.serve()
        stopped = {**STREAMS, "StreamingStatus": "DISABLED", "DisabledReason": "the stream is gone"}
        self.control("PUT", f"/pools/{POOL}", {"CognitoStreams": stopped})
        self.assertEqual(self.call("GET", "/configuration")[2]["CognitoStreams"], stopped)
        self.assertEqual(self.call("POST", "/configuration", {"CognitoStreams": STREAMS})[2]["CognitoStreams"], STREAMS)

    def test_wrong_parameters(self):
        self.serve()
        cases = [
            ({"CognitoStreams": {"StreamingStatus": "ENABLED"}}, POOL, "InvalidParameterException", 400),
            ({"CognitoStreams": {**STREAMS, "StreamingStatus": "ON"}}, POOL, "InvalidParameterException", 400),
            ({"CognitoStreams": {**STREAMS, "RoleArn": "arn:aws:iam::1:user/someone"}}, POOL, "InvalidParameterException", 400),
            ({"CognitoStreams": {**STREAMS, "StreamName": "s" * 129}}, POOL, "InvalidParameterException", 400),
            (b"{", POOL, "InvalidParameterException", 400),
            ({}, "no-colon", "InvalidParameterException", 400),
            ({}, "us-east-1:0", "ResourceNotFoundException", 404),
        ]
        for body, pool, code, status in cases:
            self.assertEqual(self.call("POST", "/configuration", body, pool)[:2], (status, code), (body, pool))
        self.assertEqual(self.call("GET", "/configuration")[2]["PushSync"], PUSH)

    def test_other_services_and_unsigned_requests_get_no_answer(self):
        self.serve()
        path = f"/identitypools/{POOL}/configuration"
        status, answer = self.client.json("GET", path, service="s3")
        self.assertEqual(status, 404)
        self.assertIn("s3", answer["message"])
        self.assertEqual(self.client.send("GET", path)[0], 403)
        self.assertEqual(self.client.send("GET", "/elsewhere", service="cognito-sync")[0], 404)

    def test_bulk_publish_that_a_test_ends(self):
        self.serve()
        never = {"IdentityPoolId": POOL, "BulkPublishStatus": "NOT_STARTED"}
        self.assertEqual(self.call("POST", "/getBulkPublishDetails")[2], never)
        self.assertEqual(self.call("POST", "/bulkpublish"), (200, None, {"IdentityPoolId": POOL}))
        self.assertEqual(self.call("POST", "/bulkpublish")[:2], (400, "DuplicateRequestException"))
        _, _, running = self.call("POST", "/getBulkPublishDetails")
        self.assertEqual(set(running), {"IdentityPoolId", "BulkPublishStatus", "BulkPublishStartTime"})
        self.assertLess(abs(running["BulkPublishStartTime"] - time.time()), 60)

        self.control("PUT", f"/pools/{POOL}", {"BulkPublish": {"status": "FAILED", "message": "some portion"}})
        _, _, failed = self.call("POST", "/getBulkPublishDetails")
        self.assertEqual(failed, {**running, "BulkPublishStatus": "FAILED", "FailureMessage": "some portion"})
        self.assertEqual(self.call("POST", "/bulkpublish")[0], 200, "a failure does not count as the day's publish")

        self.control("PUT", f"/pools/{POOL}", {"BulkPublish": {"status": "SUCCEEDED"}})
        self.assertEqual(self.call("POST", "/bulkpublish")[:2], (400, "AlreadyStreamedException"))
        day = {"status": "SUCCEEDED", "started": 1700000000, "completed": time.time() - 86401}
        self.control("PUT", f"/pools/{POOL}", {"BulkPublish": day})
        self.assertEqual(self.call("POST", "/getBulkPublishDetails")[2]["BulkPublishCompleteTime"], day["completed"])
        self.assertEqual(self.call("POST", "/bulkpublish")[0], 200)

    def test_bulk_publish_that_ends_by_itself(self):
        self.serve("--publish-seconds", "0.2")
        self.call("POST", "/bulkpublish")
        self.assertEqual(self.call("POST", "/getBulkPublishDetails")[2]["BulkPublishStatus"], "IN_PROGRESS")
        deadline = time.monotonic() + 20
        while (details := self.call("POST", "/getBulkPublishDetails")[2])["BulkPublishStatus"] == "IN_PROGRESS":
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.02)
        self.assertAlmostEqual(details["BulkPublishCompleteTime"] - details["BulkPublishStartTime"], 0.2, places=2)

    def test_bulk_publish_needs_streaming(self):
        self.serve()
        self.control("PUT", f"/pools/{POOL}", {"CognitoStreams": None})
        self.assertEqual(self.call("POST", "/bulkpublish")[:2], (400, "InvalidParameterException"))

    def test_usage(self):
        self.serve()
        self.control("PUT", f"/pools/{POOL}", {"SyncSessionsCount": 17, "DataStorage": 1234, "LastModifiedDate": 1424801824.5})
        self.control("PUT", "/pools/us-east-1:ff", {})
        usage = {"IdentityPoolId": POOL, "SyncSessionsCount": 17, "DataStorage": 1234, "LastModifiedDate": 1424801824.5}
        self.assertEqual(self.call("GET", "")[2], {"IdentityPoolUsage": usage})
        _, first = self.client.json("GET", "/identitypools?maxResults=1", service="cognito-sync")
        self.assertEqual((first["IdentityPoolUsages"], first["Count"]), ([usage], 1))
        token = urllib.parse.quote(first["NextToken"])
        _, second = self.client.json("GET", f"/identitypools?maxResults=1&nextToken={token}", service="cognito-sync")
        self.assertEqual([u["IdentityPoolId"] for u in second["IdentityPoolUsages"]], ["us-east-1:ff"])
        self.assertNotIn("NextToken", second)
        self.assertEqual(self.client.send("GET", "/identitypools?nextToken=x", service="cognito-sync")[0], 400)

    def test_injected_failures(self):
        self.serve()
        statuses = {"TooManyRequestsException": 429, "NotAuthorizedException": 403, "InternalErrorException": 500}
        for code, status in statuses.items():
            self.control("POST", "/fail", {"operation": "GetIdentityPoolConfiguration", "code": code, "times": 2})
            for expected in [(status, code), (status, code), (200, None)]:
                self.assertEqual(self.call("GET", "/configuration")[:2], expected)
        self.control("POST", "/fail", {"operation": "BulkPublish", "code": "InternalErrorException", "times": -1})
        self.assertEqual([self.call("POST", "/bulkpublish")[0] for _ in range(3)], [500] * 3)
        self.assertEqual(self.call("GET", "/configuration")[0], 200)
        self.control("POST", "/fail", {"clear": True})
        self.assertEqual(self.call("POST", "/bulkpublish")[0], 200)
        self.assertEqual(self.client.send("POST", "/_control/fail", {"operation": "Nothing", "code": "x"})[0], 400)

    def test_a_lost_race(self):
        self.serve()
        other = {"PushSync": {**PUSH, "ApplicationArns": []}}
        self.control("POST", "/fail", {"operation": "SetIdentityPoolConfiguration", "before": other})
        body = {"PushSync": PUSH, "CognitoStreams": {**STREAMS, "StreamName": "new"}}
        self.assertEqual(self.call("POST", "/configuration", body)[:2], (400, "ConcurrentModificationException"))
        _, _, seen = self.call("GET", "/configuration")
        self.assertEqual((seen["PushSync"], seen["CognitoStreams"]), (other["PushSync"], STREAMS))
        self.assertEqual(self.call("POST", "/configuration", body)[0], 200)
        # Without an error, the call overwrites the other change: a caller cannot see that.
        self.control("POST", "/fail", {"operation": "SetIdentityPoolConfiguration", "before": other, "code": None})
        self.assertEqual(self.call("POST", "/configuration", body)[2]["PushSync"], PUSH)

    def test_the_list_of_calls(self):
        self.serve()
        self.call("GET", "/configuration")
        self.call("POST", "/configuration", {"PushSync": PUSH})
        self.call("POST", "/bulkpublish")
        calls = [tuple(call.values()) for call in self.control("GET", "/calls")]
        self.assertEqual(calls, [
            ("GetIdentityPoolConfiguration", POOL, {}, None), ("SetIdentityPoolConfiguration", POOL, {"PushSync": PUSH}, None),
            ("BulkPublish", POOL, {}, "InvalidParameterException"),
        ])
        self.control("DELETE", "/calls")
        self.assertEqual(self.control("GET", "/calls"), [])

    def test_the_stream_and_the_role_must_exist(self):
        principal = {"Service": "cognito-sync.amazonaws.com"}
        trust = {"Statement": [{"Effect": "Allow", "Principal": principal, "Action": "sts:AssumeRole"}]}
        found = {"stream": True, "role": ROLE, "trust": trust}

        def reply(handler, body):
            if handler.scope()[2] == "kinesis":
                if found["stream"] and json.loads(body) == {"StreamName": "events"}:
                    return handler.answer_json(200, {})
                return handler.answer_json(400, {"__type": "ResourceNotFoundException"})
            if not found["role"]:
                return handler.answer(404, b"<ErrorResponse><Error><Code>NoSuchEntity</Code></Error></ErrorResponse>")
            policy = urllib.parse.quote(json.dumps(found["trust"]))
            role = f"<Arn>{found['role']}</Arn><AssumeRolePolicyDocument>{policy}</AssumeRolePolicyDocument>"
            handler.answer(200, f"<GetRoleResponse xmlns='urn:x'><Role>{role}</Role></GetRoleResponse>".encode())

        upstream = Upstream(reply)
        self.serve("--kinesis", upstream.url, "--iam", upstream.url)
        body = {"CognitoStreams": STREAMS}
        self.assertEqual(self.call("POST", "/configuration", body)[0], 200)
        wrong_trust = json.loads(json.dumps(trust).replace("cognito-sync", "lambda"))
        changes = {"stream": (False, "stream"), "role": (None, "not exist"), "trust": (wrong_trust, "assumed")}
        for name, (value, message) in changes.items():
            right, found[name] = found[name], value
            status, code, answer = self.call("POST", "/configuration", body)
            self.assertEqual((status, code), (400, "InvalidParameterException"), name)
            self.assertIn(message, answer["message"])
            disabled = {"CognitoStreams": {**STREAMS, "StreamingStatus": "DISABLED"}}
            self.assertEqual(self.call("POST", "/configuration", disabled)[0], 200, "nothing is checked to turn it off")
            found[name] = right
        found["role"] = ROLE.replace("/streams/", "/")
        self.assertIn("not exist", self.call("POST", "/configuration", body)[2]["message"])


if __name__ == "__main__":
    unittest.main()
