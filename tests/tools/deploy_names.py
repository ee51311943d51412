"""Names in deploy/ that other files define: metrics, alarms, settings, permissions, runbook entries and command lines.

Imported by deploy.py. Each check yields its faults as text.
"""

import json
import os
import re
import shlex
import subprocess

import yaml

from deploy_template import EVERYTHING, EXISTING, PSEUDO, ROOT, Template

DEPLOY = ROOT / "deploy"
OPERATIONS = ROOT / "docs/operations.md"
CONFIGURATION = ROOT / "docs/configuration.md"
ALERTS = DEPLOY / "prometheus/alerts.yaml"
DASHBOARD = DEPLOY / "grafana/synclake.json"
# Values of what Kubernetes and systemd replace in a command line.
PLACEHOLDERS = {"$(EXTRACTS)": "s3://my-bucket/extracts", "${EXTRACTS}": "s3://my-bucket/extracts"}


def text_files():
    return [path for path in sorted(DEPLOY.rglob("*")) if path.is_file()]


def headings(path):
    """Returns the headings of a document."""
    return re.findall(r"^#+ (.*)$", path.read_text(), re.M)


def anchors():
    """Returns the headings of docs/operations.md by their anchors, as GitHub makes them."""
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-"): text for text in headings(OPERATIONS)}


def table(heading):
    """Returns the cells of the first table below a heading of docs/operations.md."""
    section = re.search(rf"^#+ {heading}\n(.*?)(?=^#|\Z)", OPERATIONS.read_text(), re.M | re.S)[1]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def documented_metrics():
    return {re.search(r"`(\w+)`", row[0])[1] for row in table("Monitoring") if row[0].startswith("`synclake_")}


def embedded_metrics():
    """Returns the metrics of `ingest --metrics emf`, which are in the namespace `synclake`. A test of the program holds the table."""
    return {row[0].strip("`") for row in table("Embedded metrics")}


def alerts():
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def dashboard_queries():
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", [])]


def prometheus_metrics():
    known = documented_metrics()
    queries = [("alerts.yaml", rule["expr"]) for rule in alerts()]
    queries += [("synclake.json", query) for query in dashboard_queries()]
    for file, query in queries:
        for name in set(re.findall(r"\bsynclake_\w+", query)):
            if re.sub(r"_bucket$", "", name) not in known:
                yield f"{file}: docs/operations.md, Monitoring, has no metric {name}"
    shown = " ".join(dashboard_queries())
    for name in sorted(known):
        if not re.search(rf"\b{name}(_bucket)?\b", shown):
            yield f"synclake.json: no panel shows {name}"


def documented_alerts():
    """The table of alarms and alerts.yaml have the same alerts, expressions and times."""
    def plain(query):
        return re.sub(r"\s+", " ", query).strip()
    documented = {re.search(r"\w+", row[0])[0]: (plain(row[1].strip("`")), row[2]) for row in table("Alarms")}
    written = {rule["alert"]: (plain(rule["expr"]), rule.get("for", "0m")) for rule in alerts()}
    for name in sorted(documented.keys() | written.keys()):
        if documented.get(name) != written.get(name):
            yield f"{name}: docs/operations.md has {documented.get(name)}, alerts.yaml has {written.get(name)}"


def alert_tests():
    """Each alert fires in a test, and does not in another."""
    tests = yaml.safe_load((DEPLOY / "prometheus/alerts_test.yaml").read_text())["tests"]
    seen = [(case["alertname"], bool(case["exp_alerts"])) for test in tests for case in test["alert_rule_test"]]
    for rule in alerts():
        for fires in (True, False):
            if (rule["alert"], fires) not in seen:
                yield f"alerts_test.yaml: {rule['alert']} {'fires' if fires else 'stays quiet'} in no test"


def runbook():
    known = anchors()
    for rule in alerts():
        for name in ("summary", "description", "runbook"):
            if name not in rule["annotations"]:
                yield f"alerts.yaml: {rule['alert']} has no {name}"
        target = rule["annotations"].get("runbook", "").removeprefix("docs/operations.md#")
        if target not in known or known[target] != rule["alert"]:
            yield f"alerts.yaml: {rule['alert']}: docs/operations.md has no entry {target}"
    for name, alarm in Template(EVERYTHING).resources("AWS::CloudWatch::Alarm").items():
        entry = re.search(r"Runbook: ([\w/]+\.md), (.*)\.$", alarm["AlarmDescription"])
        if not entry:
            yield f"synclake.yaml: {name} names no entry of the runbook"
        elif entry[2] not in headings(ROOT / entry[1]):
            yield f"synclake.yaml: {name}: {entry[1]} has no entry {entry[2]}"


def cloudwatch_metrics():
    for given in (EVERYTHING, EXISTING):
        template = Template(given)
        made = {
            (part["MetricNamespace"], part["MetricName"])
            for transformed in template.resources("AWS::Logs::MetricFilter").values()
            for part in transformed["MetricTransformations"]
        }
        known = {("synclake", name) for name in embedded_metrics()} | made
        stream = template.outputs()["StreamName"]
        used = []
        for name, alarm in template.resources("AWS::CloudWatch::Alarm").items():
            used.append((name, alarm["Namespace"], alarm["MetricName"]))
            if alarm["Namespace"] == "synclake" and alarm["Dimensions"] != [{"Name": "Stream", "Value": stream}]:
                yield f"synclake.yaml: {name} does not have the dimension Stream={stream}"
            if not alarm.get("AlarmActions"):
                yield f"synclake.yaml: {name} tells nobody"
            seconds = int(alarm["Period"]) * int(alarm["EvaluationPeriods"])
            if seconds > (7 * 86400 if int(alarm["Period"]) >= 3600 else 86400):
                yield f"synclake.yaml: {name} looks back {seconds} s, which CloudWatch refuses"
        body = json.loads(template.resources("AWS::CloudWatch::Dashboard")["Dashboard"]["DashboardBody"])
        for widget in body["widgets"]:
            for metric in widget["properties"].get("metrics", []):
                used.append((widget["properties"]["title"], metric[0], metric[1]))
        for place, namespace, metric in used:
            if namespace.split("/")[0] == "synclake" and (namespace, metric) not in known:
                yield f"synclake.yaml: {place}: there is no metric {metric} in the namespace {namespace}"


def bucket():
    """An erasure and a vacuum delete for good, nothing else deletes data, and unfinished uploads end."""
    properties = Template(EVERYTHING).resources("AWS::S3::Bucket")["Bucket"]
    if "VersioningConfiguration" in properties:
        yield "synclake.yaml: the bucket keeps versions of what was deleted"
    for rule in properties["LifecycleConfiguration"]["Rules"]:
        if set(rule) != {"Id", "Status", "AbortIncompleteMultipartUpload"}:
            yield f"synclake.yaml: the lifecycle rule {rule['Id']} does more than abort uploads"


def variables():
    """Each variable SYNCLAKE_… of deploy/ is a setting of a program."""
    known = set(re.findall(r"`(SYNCLAKE_\w+)`", CONFIGURATION.read_text()))
    for path in text_files():
        for name in sorted(set(re.findall(r"\bSYNCLAKE_[A-Z_]+\b", path.read_text())) - known):
            yield f"{path.relative_to(ROOT)}: docs/configuration.md has no variable {name}"


def grants(document):
    """Returns the pairs of action and resource that a policy allows."""
    def several(value):
        return value if isinstance(value, list) else [value]
    return {
        (action, resource) for statement in document["Statement"]
        for action in several(statement["Action"]) for resource in several(statement["Resource"])
    }


def printed_policies(programs):
    """The roles of the template allow what `synclake iam-policy` prints, but the creation of the lease table."""
    for given in (EVERYTHING, EXISTING):
        template = Template(given)
        policies, outputs = template.policies(), template.outputs()
        bucket = outputs["Lake"].removeprefix("s3://").split("/")[0]
        more = {
            "ingest": [
                "--source", f"kinesis:{outputs['StreamName']}", "--lease-table", f"dynamodb:{outputs['LeaseTableName']}",
                "--region", PSEUDO["AWS::Region"], "--account", PSEUDO["AWS::AccountId"],
            ],
            "extract": ["--out", f"s3://{bucket}/{template.values['ExtractsPrefix']}"],
        }
        keys = ["--kms-key", given["KmsKeyArn"]] if "KmsKeyArn" in given else []
        for role in ("ingest", "query", "extract", "care"):
            command = [programs / "synclake", "iam-policy", "--role", role, "--lake", outputs["Lake"], *more.get(role, []), *keys]
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=clean_environment())
            if done.returncode:
                yield f"{' '.join(map(str, command))}: {done.stderr.strip()}"
                continue
            printed = {grant for grant in grants(json.loads(done.stdout)) if grant[0] != "dynamodb:CreateTable"}
            written = grants(policies[f"{role.capitalize()}Role"])
            if printed != written:
                yield f"{role}: only printed {sorted(printed - written)}, only in synclake.yaml {sorted(written - printed)}"


def clean_environment():
    """Returns the environment without settings of synclake."""
    return {name: value for name, value in os.environ.items() if not name.startswith("SYNCLAKE_")}


def command_lines():
    """Yields each command line of deploy/ with its place."""
    for given in (EVERYTHING, EXISTING):
        template = Template(given)
        for name, task in template.resources("AWS::ECS::TaskDefinition").items():
            container = task["ContainerDefinitions"][0]
            yield f"synclake.yaml: {name}", ["synclake", *container["Command"]]
            if "HealthCheck" in container:
                yield f"synclake.yaml: {name}", ["synclake", *container["HealthCheck"]["Command"][2:]]
        for name, value in template.outputs().items():
            for command in value.split(" && ") if name.startswith("Step") else ():
                yield f"synclake.yaml: {name}", shlex.split(command)
    for path in sorted((DEPLOY / "kubernetes").glob("*.yaml")):
        for document in yaml.safe_load_all(path.read_text()):
            spec = document.get("spec", {})
            spec = spec.get("jobTemplate", {}).get("spec", spec).get("template", {}).get("spec", {})
            for container in spec.get("containers", []):
                yield path.name, ["synclake", *container["args"]]
    for path in sorted((DEPLOY / "systemd").glob("*.service")):
        for command in re.findall(r"^ExecStart=/usr/local/bin/(.*)$", path.read_text(), re.M):
            yield path.name, shlex.split(command)
    for path in text_files():
        # Between backticks, in prose and comments.
        for command in re.findall(r"`(synclake(?:-query)? [^`\n]*)`", path.read_text()):
            yield path.name, shlex.split(command)


def commands(programs):
    """Each command line parses: with --help at its end a program checks every word before it, and does nothing."""
    seen = set()
    for place, words in command_lines():
        words = [PLACEHOLDERS.get(word, word) for word in words]
        if tuple(words) in seen:
            continue
        seen.add(tuple(words))
        done = subprocess.run(
            [programs / words[0], *words[1:], "--help"], capture_output=True, text=True, check=False, env=clean_environment(),
        )
        if done.returncode:
            yield f"{place}: {shlex.join(words)}: {done.stderr.strip().splitlines()[0] if done.stderr else done.returncode}"
    if len(seen) < 10:
        yield f"only {len(seen)} command lines were found"
