"""Creates and deletes the CloudFormation stack of deploy/ on ministack, with new and with existing resources: stack.py FOLDER

In the new resources it runs the tasks of the stack, with their settings and command lines and the programs in FOLDER.
ministack is no AWS: it checks no permissions, pulls no image, and ignores the lifecycle of a bucket and the encryption of a
stream. The rest of what it creates is compared with what the template is for. The types that it does not know are printed and
left out. A failure of a type that it knows is a fault.
"""

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import boto3
from botocore.exceptions import ClientError

from deploy_template import EVERYTHING, EXISTING, load
from with_servers import Servers, free_port

SECONDS_MAX = 120


class Cloud:
    """Clients of one ministack."""

    def __init__(self, url):
        self.session = boto3.Session(aws_access_key_id="test", aws_secret_access_key="test", region_name="eu-west-1")
        self.url = url

    def __getattr__(self, service):
        client = self.session.client(service.replace("_", "-"), endpoint_url=self.url)
        setattr(self, service, client)
        return client

    def network(self):
        vpc = self.ec2.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
        subnets = [self.ec2.create_subnet(VpcId=vpc, CidrBlock=f"10.9.{n}.0/24")["Subnet"]["SubnetId"] for n in (1, 2)]
        return {"VpcId": vpc, "SubnetIds": ",".join(subnets)}


def create(cloud, name, given):
    """Creates the stack from what ministack knows of the template; returns the template, the resources and the outputs."""
    template = with_numbers(load(), given)
    arguments = {
        "StackName": name, "Capabilities": ["CAPABILITY_IAM"],
        "Parameters": [{"ParameterKey": key, "ParameterValue": value} for key, value in given.items()],
    }
    try:
        cloud.cloudformation.create_stack(TemplateBody=json.dumps(template), **arguments)
    except ClientError as error:
        unknown = re.search(r"Unrecognized resource types: \[(.*)\]", str(error))
        if not unknown:
            raise
        print(f"{name}: ministack does not know {unknown[1]}")
        template["Resources"] = {
            key: part for key, part in template["Resources"].items() if part["Type"] not in unknown[1].split(", ")
        }
        cloud.cloudformation.create_stack(TemplateBody=json.dumps(template), **arguments)
    wait(cloud, name, "CREATE_COMPLETE")
    stack = cloud.cloudformation.describe_stacks(StackName=name)["Stacks"][0]
    resources = cloud.cloudformation.describe_stack_resources(StackName=name)["StackResources"]
    outputs = {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}
    return template, {part["LogicalResourceId"]: part for part in resources}, outputs


def with_numbers(template, given):
    """Replaces references to parameters of type Number: ministack gives them to its services as text, AWS as numbers."""
    numbers = {
        name: int(given.get(name, part.get("Default")))
        for name, part in template["Parameters"].items() if part["Type"] == "Number"
    }

    def replaced(value):
        if isinstance(value, list):
            return [replaced(part) for part in value]
        if not isinstance(value, dict):
            return value
        if set(value) == {"Ref"}:
            return numbers.get(value["Ref"], value)
        return {key: replaced(part) for key, part in value.items()}

    return template | {"Resources": replaced(template["Resources"])}


def wait(cloud, name, wanted):
    deadline = time.monotonic() + SECONDS_MAX
    while True:
        try:
            status = cloud.cloudformation.describe_stacks(StackName=name)["Stacks"][0]["StackStatus"]
        except ClientError:
            status = "DELETE_COMPLETE"
        if status == wanted:
            return
        if not status.endswith("IN_PROGRESS") or time.monotonic() > deadline:
            events = cloud.cloudformation.describe_stack_events(StackName=name)["StackEvents"]
            causes = [
                f"{event['LogicalResourceId']} ({event['ResourceType']}): {event.get('ResourceStatusReason')}"
                for event in events if event["ResourceStatus"].endswith("FAILED")
            ]
            sys.exit(f"error: {name} is {status}, not {wanted}:\n" + "\n".join(causes))
        time.sleep(0.2)


def expect(what, found, wanted):
    if found != wanted:
        sys.exit(f"error: {what} is {found!r}, not {wanted!r}")


def check_new(cloud, resources, outputs):
    """Compares the settings of what the stack created with what the template is for."""
    bucket = resources["Bucket"]["PhysicalResourceId"]
    expect("the lake", outputs["Lake"], f"s3://{bucket}/cognito")
    blocked = cloud.s3.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"]
    expect("the public access block", blocked, dict.fromkeys(
        ("BlockPublicAcls", "BlockPublicPolicy", "IgnorePublicAcls", "RestrictPublicBuckets"), True))
    rule = cloud.s3.get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]["Rules"][0]
    expect("the encryption", rule["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"], "AES256")
    expect("the versioning", cloud.s3.get_bucket_versioning(Bucket=bucket).get("Status"), None)
    policy = json.loads(cloud.s3.get_bucket_policy(Bucket=bucket)["Policy"])
    expect("the bucket policy", [(part["Effect"], part["Condition"]) for part in policy["Statement"]],
           [("Deny", {"Bool": {"aws:SecureTransport": "false"}})])
    stream = cloud.kinesis.describe_stream_summary(StreamName=outputs["StreamName"])["StreamDescriptionSummary"]
    expect("the mode of the stream", stream["StreamModeDetails"]["StreamMode"], "ON_DEMAND")
    expect("the retention of the stream", stream["RetentionPeriodHours"], 168)
    table = cloud.dynamodb.describe_table(TableName=outputs["LeaseTableName"])["Table"]
    expect("the key of the lease table", table["KeySchema"], [{"AttributeName": "leaseKey", "KeyType": "HASH"}])
    expect("the billing of the lease table", table["BillingModeSummary"]["BillingMode"], "PAY_PER_REQUEST")


def check_all(cloud, resources, outputs):
    """Compares the service, its settings and the alarms with the outputs."""
    service = cloud.ecs.describe_services(cluster=outputs["ClusterName"], services=[resources["Service"]["PhysicalResourceId"]])
    expect("the number of workers", service["services"][0]["desiredCount"], 1)
    task = cloud.ecs.describe_task_definition(taskDefinition=service["services"][0]["taskDefinition"])["taskDefinition"]
    settings = {part["name"]: part["value"] for part in task["containerDefinitions"][0]["environment"]}
    expect("the settings", settings, {
        "SYNCLAKE_SOURCE": f"kinesis:{outputs['StreamName']}", "SYNCLAKE_LAKE": outputs["Lake"],
        "SYNCLAKE_LEASE_TABLE": f"dynamodb:{outputs['LeaseTableName']}", "SYNCLAKE_METRICS": "127.0.0.1:9464,emf",
        "SYNCLAKE_MEMORY": "256MiB", "SYNCLAKE_REGION": "eu-west-1",
    })
    alarms = cloud.cloudwatch.describe_alarms()["MetricAlarms"]
    wanted = {part["PhysicalResourceId"] for part in resources.values() if part["ResourceType"] == "AWS::CloudWatch::Alarm"}
    expect("the set of alarms", {alarm["AlarmName"] for alarm in alarms} & wanted, wanted)


def run_tasks(cloud, kinesis, resources, outputs, programs):
    """Publishes a simulated stream, and runs ingest, extract, care and a query as the tasks and outputs of the stack say.

    The stream is one of the same name on kinesis-local, which all other tests read.
    """
    client = cloud.session.client("kinesis", endpoint_url=kinesis)
    client.create_stream(StreamName=outputs["StreamName"], ShardCount=2)
    client.get_waiter("stream_exists").wait(StreamName=outputs["StreamName"], WaiterConfig={"Delay": 1})
    metrics = f"127.0.0.1:{free_port()}"
    with tempfile.TemporaryDirectory(prefix="synclake-stack-") as folder:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("SYNCLAKE_", "AWS_"))} | {
            "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ENDPOINT_URL_S3": cloud.url, "AWS_ENDPOINT_URL_DYNAMODB": cloud.url, "AWS_ENDPOINT_URL_KINESIS": kinesis,
            "TMPDIR": folder,
        }

        def run(program, *arguments, settings=None):
            done = subprocess.run(
                [programs / program, *arguments], env=environment | (settings or {}), cwd=folder, capture_output=True, text=True,
                check=False, timeout=120,
            )
            if done.returncode:
                sys.exit(f"error: {program} {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
            return done.stdout

        def run_task(name, *arguments):
            task = cloud.ecs.describe_task_definition(taskDefinition=resources[name]["PhysicalResourceId"])["taskDefinition"]
            container = task["containerDefinitions"][0]
            settings = {part["name"]: part["value"].replace("127.0.0.1:9464", metrics) for part in container["environment"]}
            return json.loads(run("synclake", *container["command"], *arguments, settings=settings))

        truth = f"{folder}/truth.ndjson"
        run("synclake", "simulate", "--events", "300", "--to", f"kinesis:{outputs['StreamName']}", "--oracle", truth,
            "--region", "eu-west-1")
        report = run_task("IngestTask", "--until-idle", "3s")
        live = len(pathlib.Path(truth).read_text().splitlines())
        counted = run("synclake-query", "--lake", outputs["Lake"], "--region", "eu-west-1", "--format", "csv",
                      "-c", "select count(*) as live_keys from current_state").split()[-1]
        expect("the number of live keys", int(counted), live)
        expect("the number of leases", cloud.dynamodb.scan(TableName=outputs["LeaseTableName"])["Count"] > 0, True)
        expect("the extract", run_task("ExtractTask")["state_rows"], live)
        run_task("CareTask")
        print(f"tasks: {report['records']} records, {live} live keys, extracted and cared for")


def exists(call, **arguments):
    try:
        call(**arguments)
    except ClientError:
        return False
    return True


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    programs = pathlib.Path(sys.argv[1]).resolve()
    with Servers() as servers:
        cloud = Cloud(servers.start_ministack()[0])
        network = cloud.network()
        cloud.kinesis.create_stream(StreamName=EXISTING["ExistingStreamName"], StreamModeDetails={"StreamMode": "ON_DEMAND"})
        cloud.s3.create_bucket(
            Bucket=EXISTING["ExistingBucketName"], CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
        for name, given in (("new", EVERYTHING), ("existing", EXISTING)):
            template, resources, outputs = create(cloud, name, given | network)
            if name == "new":
                check_new(cloud, resources, outputs)
                expect("the set of resources", set(resources), set(template["Resources"]))
                run_tasks(cloud, servers.start_kinesis_local(), resources, outputs, programs)
            else:
                expect("the stream", outputs["StreamName"], EXISTING["ExistingStreamName"])
                expect("the lake", outputs["Lake"], f"s3://{EXISTING['ExistingBucketName']}/cognito")
                expect("a new bucket", resources.get("Bucket"), None)
            check_all(cloud, resources, outputs)
            types = {part["ResourceType"] for part in resources.values()}
            cloud.cloudformation.delete_stack(StackName=name)
            wait(cloud, name, "DELETE_COMPLETE")
            bucket = outputs["Lake"].split("/")[2]
            stream, table = outputs["StreamName"], outputs["LeaseTableName"]
            expect("the stream, kept", exists(cloud.kinesis.describe_stream_summary, StreamName=stream), True)
            expect("the bucket, kept", exists(cloud.s3.head_bucket, Bucket=bucket), True)
            expect("the lease table, kept", exists(cloud.dynamodb.describe_table, TableName=table), False)
            print(f"{name}: created and deleted {len(resources)} resources of {len(types)} types")


if __name__ == "__main__":
    main()
