"""Resolves the CloudFormation template of deploy/ for given parameters, as CloudFormation does.

Imported by deploy.py and stack.py. Knows the functions that the template uses, and fails on any other.
"""

import pathlib
import re

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
TEMPLATE = ROOT / "deploy/cloudformation/synclake.yaml"
ABSENT = object()
PSEUDO = {
    "AWS::AccountId": "111111111111", "AWS::Region": "eu-west-1", "AWS::Partition": "aws", "AWS::StackName": "lake",
    "AWS::URLSuffix": "amazonaws.com", "AWS::NoValue": ABSENT,
}
# Parameters without a default, for a template that makes all of its resources.
EVERYTHING = {
    "IdentityPoolIds": "eu-west-1:11111111-2222-3333-4444-555555555555,eu-west-1:66666666-7777-8888-9999-000000000000",
    "ImageUri": "111111111111.dkr.ecr.eu-west-1.amazonaws.com/synclake:0.1.0",
    "VpcId": "vpc-11111111", "SubnetIds": "subnet-11111111,subnet-22222222",
    "AlarmEmail": "operator@example.org", "CareSchedule": "cron(0 3 * * ? *)",
}
# For a template that uses what exists.
EXISTING = EVERYTHING | {
    "ExistingStreamName": "cognito-stream", "ExistingBucketName": "my-bucket", "CareSchedule": "",
    "KmsKeyArn": "arn:aws:kms:eu-west-1:111111111111:key/11111111-2222-3333-4444-555555555555",
    "SecurityGroupId": "sg-11111111", "AlarmEmail": "", "AlarmTopicArn": "arn:aws:sns:eu-west-1:111111111111:on-call",
}


class Loader(yaml.SafeLoader):
    """Reads the short forms of functions as their long forms."""


def short_form(loader, suffix, node):
    if isinstance(node, yaml.ScalarNode):
        value = loader.construct_scalar(node)
        if suffix == "GetAtt":
            value = value.split(".", 1)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    else:
        value = loader.construct_mapping(node, deep=True)
    return {suffix if suffix in ("Ref", "Condition") else f"Fn::{suffix}": value}


Loader.add_multi_constructor("!", short_form)


def load():
    return yaml.load(TEMPLATE.read_text(), Loader)


class Template:
    """The template with the values of `given`, and the defaults of the other parameters."""

    def __init__(self, given):
        self.source = load()
        self.values = {}
        for name, parameter in self.source["Parameters"].items():
            value = str(given.get(name, parameter.get("Default", ABSENT)))
            if name not in given and "Default" not in parameter:
                raise KeyError(f"parameter {name} has neither a value nor a default")
            is_list = parameter["Type"].startswith(("CommaDelimitedList", "List<"))
            items = value.split(",") if is_list else [value]
            pattern = parameter.get("AllowedPattern")
            for item in items:
                if pattern and not re.fullmatch(pattern, item):
                    raise ValueError(f"parameter {name}: {item!r} does not match {pattern}")
                if item not in map(str, parameter.get("AllowedValues", [item])):
                    raise ValueError(f"parameter {name}: {item!r} is not allowed")
            self.values[name] = items if is_list else value

    def exists(self, part):
        return "Condition" not in part or self.holds(part["Condition"])

    def holds(self, condition):
        return self.resolve(self.source["Conditions"][condition])

    def resources(self, kind=None):
        """Returns the properties of the resources that exist, of one type or of all."""
        return {
            name: self.resolve(resource.get("Properties", {})) for name, resource in self.source["Resources"].items()
            if self.exists(resource) and kind in (None, resource["Type"])
        }

    def outputs(self):
        return {name: self.resolve(part["Value"]) for name, part in self.source["Outputs"].items() if self.exists(part)}

    def policies(self):
        """Returns the policy document of each role."""
        return {
            name: role["Policies"][0]["PolicyDocument"] for name, role in self.resources("AWS::IAM::Role").items()
        }

    def resolve(self, value):
        if isinstance(value, list):
            return [part for part in map(self.resolve, value) if part is not ABSENT]
        if not isinstance(value, dict):
            return value
        if len(value) == 1:
            (name, argument), = value.items()
            if name == "Ref":
                return self.ref(argument)
            if name == "Condition" and isinstance(argument, str):
                return self.holds(argument)
            if name.startswith("Fn::"):
                return getattr(self, name[4:].lower())(argument)
        resolved = {key: self.resolve(part) for key, part in value.items()}
        return {key: part for key, part in resolved.items() if part is not ABSENT}

    def ref(self, name):
        if name in PSEUDO:
            return PSEUDO[name]
        if name in self.values:
            return self.values[name]
        self.check_exists(name)
        kind = self.source["Resources"][name]["Type"]
        return {
            "AWS::ECS::TaskDefinition": f"arn:aws:ecs:eu-west-1:111111111111:task-definition/{name}:1",
            "AWS::SNS::Topic": f"arn:aws:sns:eu-west-1:111111111111:{name}",
        }.get(kind, f"lake-{name.lower()}")

    def check_exists(self, name):
        if not self.exists(self.source["Resources"][name]):
            raise ValueError(f"{name} is used where it does not exist")

    def getatt(self, argument):
        name, attribute = argument
        self.check_exists(name)
        kind = self.source["Resources"][name]["Type"]
        if attribute != "Arn":
            return f"lake-{name.lower()}"
        service, path = {
            "AWS::Kinesis::Stream": ("kinesis:eu-west-1:111111111111", "stream/"), "AWS::S3::Bucket": ("s3::", ""),
            "AWS::DynamoDB::Table": ("dynamodb:eu-west-1:111111111111", "table/"),
            "AWS::IAM::Role": ("iam::111111111111", "role/"), "AWS::ECS::Cluster": ("ecs:eu-west-1:111111111111", "cluster/"),
            "AWS::Logs::LogGroup": ("logs:eu-west-1:111111111111", "log-group:"),
            "AWS::Events::Rule": ("events:eu-west-1:111111111111", "rule/"),
        }[kind]
        return f"arn:aws:{service}:{path}lake-{name.lower()}"

    def sub(self, argument):
        text, own = argument if isinstance(argument, list) else (argument, {})
        own = self.resolve(own)

        def replacement(match):
            name = match[1]
            if name in own:
                return own[name]
            return self.getatt(name.split(".", 1)) if "." in name else self.ref(name)

        return re.sub(r"\$\{([A-Za-z0-9:.]+)\}", replacement, text)

    def join(self, argument):
        return argument[0].join(self.resolve(argument[1]))

    def findinmap(self, argument):
        name, first, second = self.resolve(argument)
        return self.source["Mappings"][name][first][second]

    # The branch that is not taken may name resources that do not exist.
    def fn_if(self, argument):
        condition, yes, no = argument
        return self.resolve(yes if self.holds(condition) else no)

    def equals(self, argument):
        first, second = self.resolve(argument)
        return first == second

    def fn_not(self, argument):
        return not self.resolve(argument)[0]

    def fn_or(self, argument):
        return any(self.resolve(argument))


setattr(Template, "if", Template.fn_if)
setattr(Template, "not", Template.fn_not)
setattr(Template, "or", Template.fn_or)
