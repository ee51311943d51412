"""Checks the files of deploy/: deploy.py [--programs FOLDER]

Runs the linters of requirements-deploy.txt, promtool, systemd-analyze, and the checks of deploy_names.py. With --programs,
the folder of synclake and synclake-query, also checks command lines and policies against the programs.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import yaml
from cloudsplaining.scan.policy_document import PolicyDocument

import deploy_names
from deploy_template import EVERYTHING, EXISTING, ROOT, TEMPLATE, Template

DEPLOY = ROOT / "deploy"
BIN = pathlib.Path(sys.executable).parent
DEBIAN = ROOT / ".tools/debian"
# systemd-analyze rates the exposure of a unit from 0 (none) to 100. A worker needs the network, which is most of the rest.
EXPOSURE_MAX = 14
# What cloudsplaining finds, and why it stays.
ACCEPTED_RISKS = {
    ("ExecutionRole", "credentials_exposure", "ecr:GetAuthorizationToken"): "ECS logs in to the registry; it has no resource",
}
# Kinds that Kubernetes itself does not define, so that kubernetes-validate has no schema for them.
FOREIGN_KINDS = {"Kustomization", "PodMonitor"}


def found(program):
    """Returns the path of a program of a Debian package."""
    unpacked = DEBIAN / "usr/bin" / program
    path = str(unpacked) if unpacked.exists() else shutil.which(program)
    if not path:
        raise FileNotFoundError(
            f"{program} is missing; `make .tools/debian.stamp` unpacks promtool, `apt-get install systemd` has systemd-analyze")
    return path


def run(*command, cwd=ROOT):
    """Yields the output of a command that failed."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SYNCLAKE_", "AWS_"))}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, check=False,
    )
    if done.returncode:
        yield f"{pathlib.Path(command[0]).name} ended with {done.returncode}:\n{done.stdout.strip()}"


def cfn_lint():
    return run(BIN / "cfn-lint", "--", TEMPLATE)


def checkov():
    """checkov finds files by their names, and no Containerfile: it gets copies, in a folder without the tools."""
    with tempfile.TemporaryDirectory(prefix="synclake-deploy-") as folder:
        shutil.copy(DEPLOY / "container/Containerfile", f"{folder}/Dockerfile")
        shutil.copytree(DEPLOY / "cloudformation", f"{folder}/cloudformation")
        shutil.copytree(DEPLOY / "kubernetes", f"{folder}/kubernetes")
        yield from run(
            BIN / "checkov", "--config-file", DEPLOY / "checkov.yaml", "--directory", folder,
            "--framework", "cloudformation", "kubernetes", "dockerfile", "secrets",
        )


def cloudsplaining():
    seen = set()
    for given in (EVERYTHING, EXISTING):
        for role, policy in Template(given).policies().items():
            document = PolicyDocument(policy)
            for risk in (
                "all_allowed_unrestricted_actions", "allows_privilege_escalation", "allows_data_exfiltration_actions",
                "credentials_exposure", "infrastructure_modification", "permissions_management_without_constraints",
                "service_wildcard", "contains_statement_using_not_action",
            ):
                for finding in getattr(document, risk):
                    seen.add((role, risk, str(finding)))
    for finding in sorted(seen - ACCEPTED_RISKS.keys()):
        yield f"synclake.yaml: {' '.join(finding)}"
    for finding in sorted(ACCEPTED_RISKS.keys() - seen):
        yield f"deploy.py: ACCEPTED_RISKS has {' '.join(finding)}, which cloudsplaining does not find"


def hadolint():
    return run(BIN / "hadolint", DEPLOY / "container/Containerfile")


def promtool_rules():
    return run(found("promtool"), "check", "rules", "alerts.yaml", cwd=DEPLOY / "prometheus")


def promtool_tests():
    return run(found("promtool"), "test", "rules", "alerts_test.yaml", cwd=DEPLOY / "prometheus")


def kubernetes():
    folder = DEPLOY / "kubernetes"
    files = sorted(path for path in folder.glob("*.yaml") if path.name != "kustomization.yaml")
    listed = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    if sorted(listed) != [path.name for path in files]:
        yield f"kustomization.yaml lists {sorted(listed)}, the folder has {[path.name for path in files]}"
    native = []
    for path in files:
        kinds = {document["kind"] for document in yaml.safe_load_all(path.read_text())}
        if not kinds & FOREIGN_KINDS:
            native.append(path)
    yield from run(BIN / "kubernetes-validate", "--strict", "--quiet", *native)


def systemd():
    """Verifies the units in a root of their own, where the programs exist, and rates the exposure of the services."""
    analyze = found("systemd-analyze")
    units = sorted((DEPLOY / "systemd").glob("*.service")) + sorted((DEPLOY / "systemd").glob("*.timer"))
    with tempfile.TemporaryDirectory(prefix="synclake-deploy-") as folder:
        root = pathlib.Path(folder)
        for name in ("usr/local/bin", "etc/systemd/system"):
            (root / name).mkdir(parents=True)
        shutil.copytree("/usr/lib/systemd/system", root / "usr/lib/systemd/system", symlinks=True)
        (root / "lib").symlink_to("usr/lib")
        shutil.copy("/bin/true", root / "usr/local/bin/synclake")
        for unit in units:
            shutil.copy(unit, root / "etc/systemd/system")
        names = [unit.name for unit in units]
        yield from run(analyze, "verify", "--man=no", "--recursive-errors=one", f"--root={root}", *names)
    for unit in units:
        if unit.suffix == ".service":
            yield from run(analyze, "security", "--no-pager", "--offline=true", f"--threshold={EXPOSURE_MAX}", unit)


def grafana():
    panels = json.loads(deploy_names.DASHBOARD.read_text())["panels"]
    taken = {}
    for panel in panels:
        place = panel["gridPos"]
        if place["x"] + place["w"] > 24:
            yield f"synclake.json: {panel['title']} is wider than the dashboard"
        columns, rows = range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])
        for cell in ((x, y) for x in columns for y in rows):
            if cell in taken:
                yield f"synclake.json: {panel['title']} covers {taken[cell]}"
                break
            taken[cell] = panel["title"]
    if len({panel["id"] for panel in panels}) != len(panels):
        yield "synclake.json: two panels have the same id"


def grafana_queries():
    """promtool parses the queries of the dashboard as rules, with values for the variables of Grafana."""
    rules = []
    for number, query in enumerate(deploy_names.dashboard_queries()):
        for name, value in (("$__rate_interval", "5m"), ("$job", "synclake"), ("$instance", ".*")):
            query = query.replace(name, value)
        rules.append({"record": f"panel:query:{number}", "expr": query})
    with tempfile.TemporaryDirectory(prefix="synclake-deploy-") as folder:
        path = pathlib.Path(folder, "synclake.json")
        path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
        yield from run(found("promtool"), "check", "rules", path)


# The slow ones first.
CHECKS = [
    checkov, promtool_tests, cfn_lint, cloudsplaining, kubernetes, systemd, promtool_rules, grafana_queries,
    hadolint, grafana,
    deploy_names.prometheus_metrics, deploy_names.documented_alerts, deploy_names.alert_tests, deploy_names.runbook,
    deploy_names.cloudwatch_metrics, deploy_names.bucket, deploy_names.variables,
]
CHECKS_OF_PROGRAMS = [deploy_names.commands, deploy_names.printed_policies]


def outcome(check, *arguments):
    begin = time.monotonic()
    try:
        faults = list(check(*arguments))
    except Exception as error:  # pylint: disable=broad-except
        faults = [f"{type(error).__name__}: {error}"]
    return check.__name__, faults, time.monotonic() - begin


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=pathlib.Path, help="folder of synclake and synclake-query")
    programs = parser.parse_args().programs
    programs = programs and programs.resolve()
    failed = 0
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = [pool.submit(outcome, check) for check in CHECKS]
        if programs:
            runs += [pool.submit(outcome, check, programs) for check in CHECKS_OF_PROGRAMS]
        for done in runs:
            name, faults, seconds = done.result()
            print(f"{'failed' if faults else 'ok':7} {name:20} {seconds:5.1f} s")
            for fault in faults:
                print("    " + fault.replace("\n", "\n    "))
            failed += bool(faults)
    if not programs:
        print("not run: commands, printed_policies (they need --programs)")
    print(f"{len(runs) - failed} passed, {failed} failed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
