"""Tries synclake on S3 servers: s3_servers.py PROGRAMS [TEST_COMMAND …]

1. The rules of s3_contract.py, on ministack and on the Versity S3 gateway.
2. The tests of tests/it that use S3, on the gateway. TEST_COMMAND runs the tests whose names follow it; the default is
   PROGRAMS/it --exact.
3. Two scenarios of tests/chaos/chaos.py on the gateway: a fleet that is broken on purpose, and a kill at each failpoint.

PROGRAMS is the folder with the program synclake, built with failpoints. Ends with exit code 1 if something fails. `make
s3-servers` runs it.
"""

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import s3_contract

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/tools"))

from with_servers import Servers, environment  # noqa: E402

# Not among them: doctor::a_sound_pipeline_has_no_fault_and_each_break_has_one. It sets the bucket's encryption, its lifecycle
# and its public access block, which the gateway does not have.
TESTS = [
    "compact::a_lake_on_s3_is_compacted",
    "kinesis::a_reshard_midway_loses_and_doubles_nothing",
    "manifest::manifests_on_s3_are_replaced_under_a_condition",
    "policies::each_policy_is_enough_and_each_of_its_actions_is_used",
    "vacuum::a_lake_on_s3_is_vacuumed_like_a_folder",
    "vacuum::uploads_that_never_ended_are_aborted",
]
CHAOS = [["fleet", "--cycles", "30"], ["sigkill"]]
ROUNDS = 60


def check_contract(name, url):
    print(f"rules of an S3 server, {name}:", flush=True)
    broken = s3_contract.check(url, ROUNDS)
    if any(broken.values()):
        sys.exit(f"{name} breaks a rule")
    return len(broken)


def check_tests(command, env):
    done = subprocess.run([*command, *TESTS], env=env, cwd=ROOT, check=False, stdout=subprocess.PIPE, text=True)
    print(done.stdout, flush=True)
    passed = sum(int(n) for n in re.findall(r"^test result: .* (\d+) passed", done.stdout, re.MULTILINE))
    if done.returncode or passed != len(TESTS):
        sys.exit(f"{passed} of {len(TESTS)} tests passed on the Versity S3 gateway")
    return passed


def check_chaos(program, env):
    for scenario in CHAOS:
        with tempfile.TemporaryDirectory() as work:
            command = [sys.executable, ROOT / "tests/chaos/chaos.py", scenario[0], program, work, *scenario[1:]]
            done = subprocess.run(command, env=env, check=False, stdout=subprocess.PIPE, text=True)
        print(done.stdout, flush=True)
        if done.returncode:
            sys.exit(f"chaos.py {scenario[0]} ended with {done.returncode}")
        summary = json.loads(done.stdout.splitlines()[-1])
        if (summary["faults"], summary["verify_exit"], summary["orphans"]) != (0, 0, 0) or not summary["records"]:
            sys.exit(f"chaos.py {scenario[0]} found faults")
    return len(CHAOS)


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    programs, *command = sys.argv[1:]
    with Servers() as servers:
        ministack, _ = servers.start_ministack()
        versity = servers.start_versity(ministack)
        passed = check_contract("ministack", ministack) + check_contract("Versity S3 gateway", versity)
        env = {**os.environ, **environment(servers, versity, ministack)}
        passed += check_tests(command or [f"{programs}/it", "--exact"], env)
        passed += check_chaos(pathlib.Path(programs, "synclake").resolve(), env)
    print(f"{passed} passed, 0 failed")


if __name__ == "__main__":
    main()
