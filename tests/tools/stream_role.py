"""Checks of a Cognito stream's target: the Kinesis stream exists, and the service can assume the role."""

import json
import time
import urllib.error
import urllib.parse
import urllib.request
import xml.etree.ElementTree

PRINCIPAL = "cognito-sync.amazonaws.com"


class Refused(Exception):
    """An error that the service answers to its caller."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code, self.message = code, message


def post(url, service, region, account, body, headers):
    """Sends a request that names its region and account in a signature which no test server verifies."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    credential = f"Credential={account}/{stamp[:8]}/{region}/{service}/aws4_request"
    signature = f"AWS4-HMAC-SHA256 {credential}, SignedHeaders=host;x-amz-date, Signature={'0' * 64}"
    request = urllib.request.Request(url, body, {"X-Amz-Date": stamp, "Authorization": signature, **headers}, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError as error:
        raise Refused("InternalErrorException", f"{service} does not answer at {url}: {error}") from error


def check_stream(url, region, name):
    target = {"X-Amz-Target": "Kinesis_20131202.DescribeStreamSummary", "Content-Type": "application/x-amz-json-1.1"}
    status, answer = post(url, "kinesis", region, "test", json.dumps({"StreamName": name}).encode(), target)
    if status == 200:
        return
    if b"ResourceNotFoundException" in answer:
        raise Refused("InvalidParameterException", f"Kinesis stream '{name}' does not exist in region {region}.")
    raise Refused("InternalErrorException", f"Kinesis answered {status}: {answer[:300]!r}")


def check_role(url, arn):
    account, name = arn.split(":")[4], arn.rsplit("/", 1)[-1]
    form = urllib.parse.urlencode({"Action": "GetRole", "Version": "2010-05-08", "RoleName": name}).encode()
    status, answer = post(url, "iam", "us-east-1", account, form, {"Content-Type": "application/x-www-form-urlencoded"})
    if status == 404 and b"NoSuchEntity" in answer:
        raise Refused("InvalidParameterException", f"Role '{arn}' does not exist.")
    if status != 200:
        raise Refused("InternalErrorException", f"IAM answered {status}: {answer[:300]!r}")
    texts = {element.tag.split("}")[-1]: element.text or "" for element in xml.etree.ElementTree.fromstring(answer).iter()}
    # A role name is unique in its account, so an ARN with another path names no role.
    if texts.get("Arn") != arn:
        raise Refused("InvalidParameterException", f"Role '{arn}' does not exist.")
    if not trusts(json.loads(urllib.parse.unquote(texts["AssumeRolePolicyDocument"]))):
        raise Refused("InvalidParameterException", f"Role '{arn}' cannot be assumed by {PRINCIPAL}.")


def listed(value):
    return value if isinstance(value, list) else [value]


def trusts(policy):
    """Returns whether the service may assume the role. Conditions of the trust policy are not evaluated."""
    allowed = False
    for statement in listed(policy.get("Statement", [])):
        principal = statement.get("Principal", {})
        services = ["*"] if principal == "*" else listed(principal.get("Service", []))
        actions = [action.lower() for action in listed(statement.get("Action", []))]
        if {PRINCIPAL, "*"} & set(services) and {"sts:assumerole", "sts:*", "*"} & set(actions):
            if statement["Effect"] == "Deny":
                return False
            allowed = True
    return allowed
