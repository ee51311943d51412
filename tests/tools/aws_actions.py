"""Which IAM actions on which resources an AWS request needs (service authorization reference of AWS)."""

import json
import urllib.parse

from cognito_sync import operation_of

ACCOUNT = "000000000000"
# Sub-resources of a bucket: the actions that read and write it. Their names differ from those of the operations.
BUCKET_ACTIONS = {
    "accelerate": ("GetAccelerateConfiguration", "PutAccelerateConfiguration"),
    "acl": ("GetBucketAcl", "PutBucketAcl"), "cors": ("GetBucketCORS", "PutBucketCORS"),
    "encryption": ("GetEncryptionConfiguration", "PutEncryptionConfiguration"),
    "lifecycle": ("GetLifecycleConfiguration", "PutLifecycleConfiguration"),
    "location": ("GetBucketLocation", None), "logging": ("GetBucketLogging", "PutBucketLogging"),
    "notification": ("GetBucketNotification", "PutBucketNotification"),
    "object-lock": ("GetBucketObjectLockConfiguration", "PutBucketObjectLockConfiguration"),
    "ownershipControls": ("GetBucketOwnershipControls", "PutBucketOwnershipControls"),
    "policy": ("GetBucketPolicy", "PutBucketPolicy"), "policyStatus": ("GetBucketPolicyStatus", None),
    "publicAccessBlock": ("GetBucketPublicAccessBlock", "PutBucketPublicAccessBlock"),
    "replication": ("GetReplicationConfiguration", "PutReplicationConfiguration"),
    "tagging": ("GetBucketTagging", "PutBucketTagging"), "uploads": ("ListBucketMultipartUploads", None),
    "versioning": ("GetBucketVersioning", "PutBucketVersioning"), "versions": ("ListBucketVersions", None),
}
OBJECT_ACTIONS = {
    "acl": ("GetObjectAcl", "PutObjectAcl"), "legal-hold": ("GetObjectLegalHold", "PutObjectLegalHold"),
    "retention": ("GetObjectRetention", "PutObjectRetention"), "tagging": ("GetObjectTagging", "PutObjectTagging"),
}
# Parameters that change the form of an answer, or that SDKs add; every other parameter must be known by name.
PLAIN = {
    "list-type", "prefix", "delimiter", "max-keys", "continuation-token", "start-after", "marker", "encoding-type", "fetch-owner",
    "x-id", "partNumber", "key-marker", "upload-id-marker", "version-id-marker", "max-uploads", "part-number-marker", "max-parts",
    "versionId", "uploadId", "delete", "response-content-type", "response-content-disposition", "response-cache-control",
}


class Unmapped(Exception):
    """No action is known for the request, so the proxy refuses it."""


class SomeResource(str):
    """The beginning of an ARN, for requests that name their resource by an opaque token only."""


def s3(method, target, headers):
    """Returns [(action, resource)] of a path-style request. A bulk delete names its keys in the body: see the proxy."""
    path, _, text = target.partition("?")
    query = dict(urllib.parse.parse_qsl(text, keep_blank_values=True))
    bucket, _, key = urllib.parse.unquote(path).removeprefix("/").partition("/")
    if not bucket:
        return [("s3:ListAllMyBuckets", "*")]
    known = BUCKET_ACTIONS if not key else OBJECT_ACTIONS
    if unknown := set(query) - PLAIN - set(known) - {"uploads"}:
        raise Unmapped(f"S3 parameter {', '.join(sorted(unknown))}")
    arn = f"arn:aws:s3:::{bucket}" + (f"/{key}" if key else "")
    for name in known:
        if name in query:
            action = known[name][method not in ("GET", "HEAD")]
            if action is None or method == "POST":
                raise Unmapped(f"S3 {method} ?{name}")
            # Only the tags of an object and the policy of a bucket have an action of their own to delete them.
            if method == "DELETE" and action in ("PutObjectTagging", "PutBucketPolicy"):
                action = action.replace("Put", "Delete")
            return [(f"s3:{action}", arn)]
    actions = object_actions(method, query, headers) if key else bucket_actions(method, query)
    if actions is None:
        raise Unmapped(f"S3 {method} on {arn}")
    needed = [(f"s3:{action}", arn) for action in actions]
    if key and method == "PUT" and (source := headers.get("x-amz-copy-source")):
        source, _, version = urllib.parse.unquote(source).removeprefix("/").partition("?versionId=")
        needed.insert(0, ("s3:GetObjectVersion" if version else "s3:GetObject", f"arn:aws:s3:::{source}"))
    return needed


def bucket_actions(method, query):
    if method == "POST":
        return [] if "delete" in query else None
    return {"GET": ["ListBucket"], "HEAD": ["ListBucket"], "PUT": ["CreateBucket"], "DELETE": ["DeleteBucket"]}.get(method)


def object_actions(method, query, headers):
    version = "Version" if "versionId" in query else ""
    if method in ("GET", "HEAD"):
        return ["ListMultipartUploadParts"] if "uploadId" in query else [f"GetObject{version}"]
    if method == "DELETE":
        return ["AbortMultipartUpload"] if "uploadId" in query else [f"DeleteObject{version}"]
    if method == "PUT" or (method == "POST" and ("uploads" in query or "uploadId" in query)):
        return ["PutObject"] + (["PutObjectTagging"] if headers.get("x-amz-tagging") else [])
    return None


def json_body(body):
    document = json.loads(body) if body else {}
    if not isinstance(document, dict):
        raise Unmapped("the body is not a JSON object")
    return document


def kinesis(operation, body, region):
    document, base = json_body(body), f"arn:aws:kinesis:{region}:{ACCOUNT}:stream/"
    named = document.get("ConsumerARN") or document.get("StreamARN") or document.get("ResourceARN")
    if not named and document.get("StreamName"):
        named = base + document["StreamName"]
    if not named and (document.get("ShardIterator") or document.get("NextToken")):
        named = SomeResource("arn:aws:kinesis:")
    return [(f"kinesis:{operation}", named or "*")]


def dynamodb(operation, body, region):
    document = json_body(body)

    def arn(name):
        return name if name.startswith("arn:") else f"arn:aws:dynamodb:{region}:{ACCOUNT}:table/{name}"

    if operation in ("BatchGetItem", "BatchWriteItem"):
        return [(f"dynamodb:{operation}", arn(name)) for name in document["RequestItems"]]
    if operation in ("TransactGetItems", "TransactWriteItems"):
        # A transaction needs the actions of its parts.
        parts = [part for item in document["TransactItems"] for part in item.items()]
        return [(f"dynamodb:{kind}Item", arn(part["TableName"])) for kind, part in parts]
    named = document.get("TableName") or document.get("ResourceArn")
    if not named:
        return [(f"dynamodb:{operation}", "*")]
    table = arn(named)
    needed = [(f"dynamodb:{operation}", f"{table}/index/{document['IndexName']}" if document.get("IndexName") else table)]
    if operation == "CreateTable" and document.get("Tags"):
        needed.append(("dynamodb:TagResource", table))
    return needed


def glue(operation, body, region):
    """Glue asks for the catalogue, and for the database and the table below it."""
    document, base = json_body(body), f"arn:aws:glue:{region}:{ACCOUNT}:"
    named = document.get("TableInput") or {}
    table = document.get("TableName") or named.get("Name") or ("DatabaseName" in document and document.get("Name"))
    database = document.get("DatabaseName") or (document.get("DatabaseInput") or {}).get("Name") or document.get("Name")
    if not database:
        raise Unmapped(f"Glue {operation} without a database")
    resources = [f"{base}catalog", f"{base}database/{database}"]
    if table:
        resources.append(f"{base}table/{database}/{table}")
    return [(f"glue:{operation}", resource) for resource in resources]


def cognito_sync(method, target, body, region):
    operation, parts = operation_of(method, target)
    if operation is None:
        raise Unmapped(f"Cognito Sync {method} {target}")
    arn = "*"
    if parts:
        arn = f"arn:aws:cognito-sync:{region}:{ACCOUNT}:identitypool/{parts['pool']}"
        for part in ("identity", "dataset"):
            arn += f"/{part}/{parts[part]}" if part in parts else ""
    needed = [(f"cognito-sync:{operation}", arn)]
    if operation == "SetIdentityPoolConfiguration":
        # The caller gives a role to the service.
        for part in ("CognitoStreams", "PushSync"):
            if role := (json_body(body).get(part) or {}).get("RoleArn"):
                needed.append(("iam:PassRole", role))
    return needed
