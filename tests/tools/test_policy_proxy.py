"""Tests of policy_proxy.py, iam_policy.py and aws_actions.py. They need no other server.

    python -m unittest discover -s tests/tools
"""

import http.client
import json
import pathlib
import re
import socket
import tempfile
import unittest

import aws_actions
from iam_policy import Policy, PolicyError
from stub_harness import Client, Program, Upstream

BUCKET = "arn:aws:s3:::lake"
STREAM = "arn:aws:kinesis:us-east-1:000000000000:stream/events"
TABLE = "arn:aws:dynamodb:us-east-1:000000000000:table/leases"


def allow(actions, resources):
    return {"Effect": "Allow", "Action": actions, "Resource": resources}


def policy(*statements):
    return {"Version": "2012-10-17", "Statement": list(statements)}


class Evaluation(unittest.TestCase):
    def test_wildcards(self):
        cases = [
            ("s3:*", "*", "s3:GetObject", f"{BUCKET}/a", True),
            ("S3:getobject", f"{BUCKET}/*", "s3:GetObject", f"{BUCKET}/a/b:c", True),
            ("s3:GetObject", f"{BUCKET}/*", "s3:GetObject", BUCKET, False),
            ("s3:GetObject", f"{BUCKET}/*", "s3:GetObjectVersion", f"{BUCKET}/a", False),
            ("s3:Get*", f"{BUCKET}/A", "s3:GetObject", f"{BUCKET}/a", False),
            ("s3:Get?bject", f"{BUCKET}/a?", "s3:GetObject", f"{BUCKET}/ab", True),
            ("s3:GetObject", f"{BUCKET}/a?", "s3:GetObject", f"{BUCKET}/a", False),
            ("s3:GetObject", f"{BUCKET}/[ab].", "s3:GetObject", f"{BUCKET}/a.", False),
            ("s3:GetObject", f"{BUCKET}/[ab].", "s3:GetObject", f"{BUCKET}/[ab].", True),
            ("kinesis:*", "arn:aws:kinesis:*:*:stream/ev*", "kinesis:GetRecords", STREAM, True),
            ("kinesis:*", "arn:aws:kinesis:eu-west-1:*:stream/*", "kinesis:GetRecords", STREAM, False),
            (["dynamodb:GetItem", "s3:PutObject"], ["arn:aws:s3:::x", TABLE], "dynamodb:GetItem", TABLE, True),
            ("*", "*", "iam:PassRole", "arn:aws:iam::1:role/r", True),
        ]
        for actions, resources, action, resource, allowed in cases:
            decision = Policy(policy(allow(actions, resources))).decide(action, resource)
            self.assertEqual(decision == "allowed", allowed, (actions, resources, action, resource))

    def test_a_deny_wins(self):
        rules = Policy(policy(
            {"Effect": "Deny", "Action": "s3:*", "Resource": f"{BUCKET}/secret/*"}, allow("s3:*", "*"),
            {"Effect": "Deny", "NotAction": "s3:*", "Resource": "*"}, {"Effect": "Allow", "Action": "sts:*", "NotResource": BUCKET},
        ))
        self.assertEqual(rules.decide("s3:GetObject", f"{BUCKET}/secret/a"), "explicit deny")
        self.assertEqual(rules.decide("s3:GetObject", f"{BUCKET}/a"), "allowed")
        self.assertEqual(rules.decide("sts:AssumeRole", "*"), "explicit deny")
        self.assertEqual(Policy(policy()).decide("s3:GetObject", f"{BUCKET}/a"), "implicit deny")

    def test_a_request_that_names_no_resource(self):
        some = lambda *statements: Policy(policy(*statements)).decide_some("kinesis:GetRecords", "arn:aws:kinesis:")
        self.assertEqual(some(allow("kinesis:Get*", STREAM)), "allowed")
        self.assertEqual(some(allow("*", "arn:aws:*:us-east-1:*:stream/x")), "allowed")
        self.assertEqual(some(allow("kinesis:ListShards", STREAM)), "implicit deny")
        self.assertEqual(some(allow("kinesis:*", BUCKET)), "implicit deny")
        self.assertEqual(some(allow("*", "*"), {"Effect": "Deny", "Action": "kinesis:*", "Resource": "*"}), "explicit deny")

    def test_what_cannot_be_evaluated_is_an_error(self):
        statement = allow("s3:*", "*")
        wrong = [
            {**statement, "Condition": {"StringLike": {"s3:prefix": "a/*"}}}, {**statement, "Principal": "*"},
            {**statement, "Effect": "allow"}, {**statement, "NotAction": "s3:*"}, allow("GetObject", "*"),
            allow("s3:*", "lake/*"), allow("s3:*", "arn:aws:s3:::lake/${aws:username}/*"), {"Effect": "Allow", "Action": "s3:*"},
        ]
        for statement in wrong:
            with self.assertRaises(PolicyError, msg=statement):
                Policy(policy(statement))
        with self.assertRaises(PolicyError):
            Policy({"Statement": []})


class Actions(unittest.TestCase):
    def test_s3(self):
        key = f"{BUCKET}/a b/c+d"
        cases = [
            ("GET", "/", {}, [("ListAllMyBuckets", "*")]),
            ("GET", "/lake?list-type=2&prefix=x%2F", {}, [("ListBucket", BUCKET)]),
            ("GET", "/lake/?delimiter=%2F", {}, [("ListBucket", BUCKET)]),
            ("HEAD", "/lake", {}, [("ListBucket", BUCKET)]),
            ("GET", "/lake?uploads", {}, [("ListBucketMultipartUploads", BUCKET)]),
            ("GET", "/lake?location", {}, [("GetBucketLocation", BUCKET)]),
            ("GET", "/lake?versioning", {}, [("GetBucketVersioning", BUCKET)]),
            ("GET", "/lake?encryption=", {}, [("GetEncryptionConfiguration", BUCKET)]),
            ("GET", "/lake?publicAccessBlock", {}, [("GetBucketPublicAccessBlock", BUCKET)]),
            ("GET", "/lake?lifecycle", {}, [("GetLifecycleConfiguration", BUCKET)]),
            ("DELETE", "/lake?lifecycle", {}, [("PutLifecycleConfiguration", BUCKET)]),
            ("PUT", "/lake", {}, [("CreateBucket", BUCKET)]),
            ("POST", "/lake?delete", {}, []),
            ("GET", "/lake/a%20b/c%2Bd?x-id=GetObject", {}, [("GetObject", key)]),
            ("HEAD", "/lake/a%20b/c+d", {}, [("GetObject", key)]),
            ("GET", "/lake/a%20b/c+d?versionId=1", {}, [("GetObjectVersion", key)]),
            ("PUT", "/lake/a%20b/c+d", {}, [("PutObject", key)]),
            ("PUT", "/lake/a%20b/c+d", {"x-amz-tagging": "a=b"}, [("PutObject", key), ("PutObjectTagging", key)]),
            ("PUT", "/lake/a%20b/c+d?tagging", {}, [("PutObjectTagging", key)]),
            ("PUT", "/lake/a%20b/c+d?partNumber=1&uploadId=u", {}, [("PutObject", key)]),
            ("PUT", "/lake/a%20b/c+d", {"x-amz-copy-source": "/x/k%20"}, [("GetObject", "arn:aws:s3:::x/k "), ("PutObject", key)]),
            ("POST", "/lake/a%20b/c+d?uploads", {}, [("PutObject", key)]),
            ("POST", "/lake/a%20b/c+d?uploadId=u", {}, [("PutObject", key)]),
            ("GET", "/lake/a%20b/c+d?uploadId=u", {}, [("ListMultipartUploadParts", key)]),
            ("DELETE", "/lake/a%20b/c+d?uploadId=u", {}, [("AbortMultipartUpload", key)]),
            ("DELETE", "/lake/a%20b/c+d", {}, [("DeleteObject", key)]),
        ]
        for method, target, headers, needed in cases:
            expected = [(f"s3:{action}", resource) for action, resource in needed]
            self.assertEqual(aws_actions.s3(method, target, headers), expected, (method, target))
        for method, target in [("GET", "/lake?inventory"), ("POST", "/lake/key"), ("PUT", "/lake?location"), ("PATCH", "/lake/a")]:
            with self.assertRaises(aws_actions.Unmapped, msg=target):
                aws_actions.s3(method, target, {})

    def test_kinesis_and_dynamodb(self):
        def kinesis(operation, **body):
            return aws_actions.kinesis(operation, json.dumps(body).encode(), "us-east-1")

        def dynamodb(operation, **body):
            return aws_actions.dynamodb(operation, json.dumps(body).encode(), "us-east-1")

        self.assertEqual(kinesis("ListShards", StreamName="events"), [("kinesis:ListShards", STREAM)])
        self.assertEqual(kinesis("GetRecords", ShardIterator="i", StreamARN=STREAM), [("kinesis:GetRecords", STREAM)])
        [(action, resource)] = kinesis("GetRecords", ShardIterator="i")
        self.assertIsInstance(resource, aws_actions.SomeResource)
        self.assertEqual(kinesis("ListStreams"), [("kinesis:ListStreams", "*")])
        self.assertEqual(dynamodb("Scan", TableName="leases"), [("dynamodb:Scan", TABLE)])
        self.assertEqual(dynamodb("Query", TableName=TABLE, IndexName="i"), [("dynamodb:Query", f"{TABLE}/index/i")])
        self.assertEqual(dynamodb("ListTables"), [("dynamodb:ListTables", "*")])
        self.assertEqual(dynamodb("BatchWriteItem", RequestItems={"leases": []}), [("dynamodb:BatchWriteItem", TABLE)])
        parts = [{"Put": {"TableName": "leases"}}, {"ConditionCheck": {"TableName": "leases"}}]
        needed = [("dynamodb:PutItem", TABLE), ("dynamodb:ConditionCheckItem", TABLE)]
        self.assertEqual(dynamodb("TransactWriteItems", TransactItems=parts), needed)
        tagged = [("dynamodb:CreateTable", TABLE), ("dynamodb:TagResource", TABLE)]
        self.assertEqual(dynamodb("CreateTable", TableName="leases", Tags=[{"Key": "k"}]), tagged)

    def test_glue(self):
        def glue(operation, **body):
            return aws_actions.glue(operation, json.dumps(body).encode(), "us-east-1")

        base = "arn:aws:glue:us-east-1:000000000000:"
        places = [f"{base}catalog", f"{base}database/d", f"{base}table/d/t"]
        self.assertEqual(glue("GetDatabase", Name="d"), [("glue:GetDatabase", place) for place in places[:2]])
        self.assertEqual(glue("GetTable", DatabaseName="d", Name="t"), [("glue:GetTable", place) for place in places])
        created = glue("CreateTable", DatabaseName="d", TableInput={"Name": "t"})
        self.assertEqual(created, [("glue:CreateTable", place) for place in places])
        created = glue("CreateDatabase", DatabaseInput={"Name": "d"})
        self.assertEqual(created, [("glue:CreateDatabase", place) for place in places[:2]])
        with self.assertRaises(aws_actions.Unmapped):
            glue("GetDatabases")

    def test_cognito_sync(self):
        pool = "arn:aws:cognito-sync:us-east-1:000000000000:identitypool/us-east-1:0a"
        role = "arn:aws:iam::000000000000:role/r"
        body = json.dumps({"CognitoStreams": {"RoleArn": role}}).encode()
        needed = aws_actions.cognito_sync("POST", "/identitypools/us-east-1%3A0a/configuration", body, "us-east-1")
        self.assertEqual(needed, [("cognito-sync:SetIdentityPoolConfiguration", pool), ("iam:PassRole", role)])
        listed = aws_actions.cognito_sync("GET", "/identitypools?maxResults=3", b"", "us-east-1")
        self.assertEqual(listed, [("cognito-sync:ListIdentityPoolUsage", "*")])


class Proxy(Program):
    def serve(self, *statements):
        """Starts a proxy in front of an upstream of objects in memory."""
        self.objects = {"/lake/a": b"alpha", "/lake/b": b"beta", "/lake/c": b"gamma"}
        self.upstream = Upstream(self.reply)
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        file, self.log = pathlib.Path(folder.name, "policy.json"), pathlib.Path(folder.name, "log")
        file.write_text(json.dumps(policy(*statements)))
        addresses = [f"--{name}={self.upstream.url}" for name in ("s3", "kinesis", "dynamodb", "glue", "cognito-sync")]
        self.client = self.start("policy_proxy.py", "/_policy/health", "--policy", str(file), "--log", str(self.log), *addresses)

    def reply(self, handler, body):
        path = handler.target.partition("?")[0]
        if handler.scope()[2] != "s3":
            return handler.answer_json(200, {"service": handler.scope()[2]}, [("x-two", "1"), ("x-two", "2")])
        if handler.command == "POST":
            keys = re.findall(rb"<Key>(.*?)</Key>", body)
            deleted = b"".join(b"<Deleted><Key>%s</Key></Deleted>" % key for key in keys)
            if b"<Quiet>true" in body:
                return handler.answer(200, b"<DeleteResult />")
            return handler.answer(200, b'<DeleteResult xmlns="urn:s3">%s</DeleteResult>' % deleted)
        if handler.command == "PUT":
            self.objects[path] = body
            return handler.answer(200, b"", [("ETag", '"1"')])
        if path == "/lake/cut":
            # The answer ends before its announced length.
            handler.send_response(200)
            handler.send_header("Content-Length", "100")
            handler.end_headers()
            handler.wfile.write(b"short")
            handler.close_connection = True
            return None
        if path == "/lake/chunks":
            handler.send_response(200)
            handler.send_header("Transfer-Encoding", "chunked")
            handler.end_headers()
            handler.wfile.write(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
            return None
        if path not in self.objects:
            return handler.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        if handler.headers.get("If-None-Match") == '"1"':
            handler.send_response(304)
            handler.send_header("ETag", '"1"')
            handler.end_headers()
            return None
        if handler.headers.get("Range") == "bytes=1-2":
            return handler.answer(206, self.objects[path][1:3], [("Content-Range", f"bytes 1-2/{len(self.objects[path])}")])
        return handler.answer(200, self.objects[path], [("ETag", '"1"'), ("x-amz-meta-a", "b")])

    def decisions(self):
        return [tuple(d.values()) for d in self.client.json("GET", "/_policy/log")[1]]

    def test_objects_pass_unchanged(self):
        self.serve(allow("s3:*", "*"))
        status, headers, body = self.client.send("GET", "/lake/a", service="s3")
        self.assertEqual((status, body, headers["ETag"], headers["x-amz-meta-a"]), (200, b"alpha", '"1"', "b"))
        status, headers, body = self.client.send("HEAD", "/lake/a", service="s3")
        self.assertEqual((status, body, headers["Content-Length"]), (200, b"", "5"))
        status, headers, body = self.client.send("GET", "/lake/a", service="s3", Range="bytes=1-2")
        self.assertEqual((status, body, headers["Content-Range"]), (206, b"lp", "bytes 1-2/5"))
        status, headers, body = self.client.send("GET", "/lake/a", service="s3", If_None_Match='"1"')
        self.assertEqual((status, body, headers["ETag"]), (304, b"", '"1"'))
        self.assertEqual(self.client.send("GET", "/lake/chunks", service="s3")[2], b"abcde")
        self.assertEqual(self.client.send("GET", "/lake/none", service="s3")[0], 404)
        self.assertEqual(self.client.send("HEAD", "/lake/none", service="s3")[0], 404)
        large = bytes(range(256)) * 20000
        self.assertEqual(self.client.send("PUT", "/lake//d%2Fe%20?x-id=PutObject", large, "s3", If_Match='"1"')[0], 200)
        method, target, headers, body = self.upstream.requests[-1]
        self.assertEqual((method, target, headers["If-Match"]), ("PUT", "/lake//d%2Fe%20?x-id=PutObject", '"1"'))
        self.assertEqual(headers.get_all("Host"), [f"127.0.0.1:{self.client.connection.port}"], "the signature covers the host")
        self.assertEqual(body, large)
        self.assertEqual(self.client.send("GET", "/lake//d%2Fe%20", service="s3")[2], large)
        with self.assertRaises(http.client.IncompleteRead):
            self.client.send("GET", "/lake/cut", service="s3")
        self.client = Client(self.client.connection.port)
        self.addCleanup(self.client.connection.close)
        self.assertEqual(self.client.send("GET", "/lake/b", service="s3")[2], b"beta")

    def test_s3_refuses_what_the_policy_does_not_allow(self):
        self.serve(allow("s3:GetObject", f"{BUCKET}/a*"), allow("s3:PutObject", f"{BUCKET}/p/*"))
        self.assertEqual(self.client.send("GET", "/lake/a", service="s3")[0], 200)
        status, headers, body = self.client.send("GET", "/lake/b", service="s3")
        self.assertEqual((status, headers["Content-Type"]), (403, "application/xml"))
        self.assertIn(b"<Code>AccessDenied</Code>", body)
        self.assertIn(b"s3:GetObject on resource: arn:aws:s3:::lake/b", body)
        self.assertEqual(self.client.send("HEAD", "/lake/b", service="s3")[::2], (403, b""))
        self.assertEqual(self.client.send("PUT", "/lake/b", b"x", "s3")[0], 403)
        self.assertEqual(self.client.send("PUT", "/lake/p/b", b"x", "s3", x_amz_copy_source="lake/b")[0], 403)
        # Without s3:ListBucket, an object that does not exist looks like one that may not be read.
        self.assertEqual(self.client.send("GET", "/lake/absent", service="s3")[0], 403)
        self.assertEqual(self.client.send("HEAD", "/lake/absent", service="s3")[0], 403)
        self.assertEqual([request[:2] for request in self.upstream.requests], [
            ("GET", "/lake/a"), ("GET", "/lake/absent"), ("HEAD", "/lake/absent"),
        ])
        expected = [("s3:GetObject", f"{BUCKET}/a", True), ("s3:GetObject", f"{BUCKET}/b", False)]
        self.assertEqual(self.decisions()[:2], expected)
        self.assertEqual(self.decisions()[-1], ("s3:ListBucket", BUCKET, False))
        self.assertEqual([tuple(json.loads(line).values()) for line in self.log.read_text().splitlines()], self.decisions())

    def test_an_answer_to_head_has_no_body(self):
        self.serve(allow("s3:GetObject", f"{BUCKET}/a"))
        for path, status in [("/lake/a", b"200"), ("/lake/b", b"403")]:
            with socket.create_connection(("127.0.0.1", self.client.connection.port), timeout=30) as raw:
                signed = "Authorization: AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request"
                raw.sendall(f"HEAD {path} HTTP/1.1\r\nHost: x\r\n{signed}\r\nConnection: close\r\n\r\n".encode())
                answer = b"".join(iter(lambda: raw.recv(65536), b""))
            self.assertEqual((answer.split(b" ")[1], answer.partition(b"\r\n\r\n")[2]), (status, b""))

    def test_a_bulk_delete_with_a_refused_key(self):
        self.serve(allow("s3:DeleteObject", [f"{BUCKET}/a", f"{BUCKET}/c&amp"]))
        def delete(keys, quiet=""):
            items = "".join(f"<Object><Key>{key}</Key></Object>" for key in keys)
            body = f'<Delete xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{quiet}{items}</Delete>'.encode()
            sums = {"Content_MD5": "stale", "x_amz_checksum_crc32": "stale"}
            status, _, answer = self.client.send("POST", "/lake?delete", body, "s3", **sums)
            self.assertEqual(status, 200)
            return re.findall(rb"<(?:Deleted|Error)><Key>.*?</Key>", answer), answer

        entries, answer = delete(["a", "b", "c&amp;amp"])
        self.assertEqual(entries, [b"<Deleted><Key>a</Key>", b"<Deleted><Key>c&amp;amp</Key>", b"<Error><Key>b</Key>"])
        self.assertIn(b"<Code>AccessDenied</Code>", answer)
        _, _, headers, sent = self.upstream.requests[-1]
        self.assertNotIn(b"<Key>b</Key>", sent)
        self.assertFalse({"Content-MD5", "x-amz-checksum-crc32"} & set(headers))
        self.assertEqual(delete(["a", "b"], "<Quiet>true</Quiet>")[0], [b"<Error><Key>b</Key>"])
        count = len(self.upstream.requests)
        self.assertEqual(delete(["b"])[0], [b"<Error><Key>b</Key>"])
        self.assertEqual(len(self.upstream.requests), count, "no request when no key may be deleted")
        self.assertEqual(delete(["a"])[0], [b"<Deleted><Key>a</Key>"])
        self.assertEqual(self.upstream.requests[-1][2]["Content-MD5"], "stale")

    def test_json_services(self):
        self.serve(allow("kinesis:Get*", STREAM), allow("dynamodb:Scan", TABLE), allow("cognito-sync:Get*", "*"))
        kind = {"Content_Type": "application/x-amz-json-1.1"}

        def call(service, target, body):
            return self.client.send("POST", "/", body, service, X_Amz_Target=target, **kind)

        status, headers, body = call("kinesis", "Kinesis_20131202.GetRecords", {"ShardIterator": "i"})
        self.assertEqual((status, json.loads(body), headers.get_all("x-two")), (200, {"service": "kinesis"}, ["1", "2"]))
        self.assertEqual(call("dynamodb", "DynamoDB_20120810.Scan", {"TableName": "leases"})[0], 200)
        for service, target, body, code in [
            ("kinesis", "Kinesis_20131202.ListShards", {"StreamName": "events"}, "AccessDeniedException"),
            ("kinesis", "Kinesis_20131202.GetRecords", {"StreamName": "other"}, "AccessDeniedException"),
            ("dynamodb", "DynamoDB_20120810.Scan", {"TableName": "other"}, "com.amazon.coral.service#AccessDeniedException"),
        ]:
            status, headers, answer = call(service, target, body)
            self.assertEqual((status, json.loads(answer)["__type"]), (400, code))
            self.assertEqual(headers["x-amzn-errortype"], "AccessDeniedException")
            self.assertEqual(headers["Content-Type"], "application/x-amz-json-1.1")
        path = "/identitypools/us-east-1%3A0a/configuration"
        self.assertEqual(self.client.send("GET", path, service="cognito-sync")[0], 200)
        status, headers, _ = self.client.send("POST", path, {}, "cognito-sync")
        self.assertEqual((status, headers["x-amzn-errortype"]), (403, "AccessDeniedException"))
        self.assertEqual(len(self.upstream.requests), 3)

    def test_nothing_passes_unchecked(self):
        self.serve(allow("*", "*"))
        self.assertEqual(self.client.send("GET", "/lake/a")[0], 403, "not signed")
        self.assertEqual(self.client.send("GET", "/lake?inventory", service="s3")[0], 403, "no known action")
        form = {"Content_Type": "application/x-www-form-urlencoded"}
        status, _, answer = self.client.send("POST", "/", b"Action=GetCallerIdentity", "sts", **form)
        self.assertEqual(status, 403)
        self.assertIn(b"no upstream for the service sts", answer)
        self.assertEqual(self.client.send("POST", "/", b"not json", "kinesis", X_Amz_Target="Kinesis_20131202.GetRecords")[0], 400)
        self.assertEqual(self.upstream.requests, [])
        self.assertEqual([allowed for _, _, allowed in self.decisions()], [False] * 4)

    def test_the_policy_changes_at_run_time(self):
        self.serve(allow("s3:*", "*"))
        self.assertEqual(self.client.send("GET", "/lake/a", service="s3")[0], 200)
        status, answer = self.client.json("PUT", "/_policy", policy({**allow("s3:*", "*"), "Condition": {"Bool": {}}}))
        self.assertEqual(status, 400)
        self.assertIn("Condition", answer["message"])
        self.assertEqual(self.client.send("GET", "/lake/a", service="s3")[0], 200, "a wrong policy replaces nothing")
        self.assertEqual(self.client.json("PUT", "/_policy", policy(allow("kinesis:*", "*")))[0], 200)
        self.assertEqual(self.client.send("GET", "/lake/a", service="s3")[0], 403)
        self.client.json("DELETE", "/_policy/log")
        self.assertEqual(self.decisions(), [])


if __name__ == "__main__":
    unittest.main()
