"""Builds the image of deploy/container/Containerfile from built programs, and tries it: image.py PROGRAMS_FOLDER

buildah builds it on a base of Debian packages (debian.py), because no registry is needed so: the tested image differs from
the published one in its base and in who compiled the programs. It is then run as ECS and Kubernetes run it: as another user
than root, without capabilities, with a read-only root file system and a volume at /tmp, in namespaces of its own.
Needs root.
"""

import ctypes
import fcntl
import json
import os
import pathlib
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEBIAN = ROOT / ".tools/debian"
PROGRAMS = ["synclake", "synclake-query"]
USER = 65532
BASE, IMAGE = "localhost/synclake-base", "localhost/synclake"
# The configuration that the templates of deploy/ rely on.
EXPECTED = {
    "User": "65532:65532", "Entrypoint": ["/usr/local/bin/synclake"], "Cmd": ["--help"], "Volumes": {"/tmp": {}},
    "StopSignal": "SIGTERM", "WorkingDir": "/tmp",
}
HEALTH = ["CMD", "/usr/local/bin/synclake", "health"]


class Buildah:
    """buildah with a storage of its own below `folder`."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "policy.json").write_text('{"default": [{"type": "reject"}], "transports": {"containers-storage": '
                                            '{"": [{"type": "insecureAcceptAnything"}]}}}')
        (folder / "registries.conf").write_text("unqualified-search-registries = []\n")
        (folder / "tmp").mkdir()
        libraries = {str(path.parent) for path in DEBIAN.glob("**/lib*.so.*") if "base" not in path.relative_to(DEBIAN).parts}
        self.environment = os.environ | {
            "LD_LIBRARY_PATH": ":".join(sorted(libraries)), "TMPDIR": str(folder / "tmp"),
            "CONTAINERS_REGISTRIES_CONF": str(folder / "registries.conf"), "BUILDAH_ISOLATION": "chroot",
        }
        unpacked = DEBIAN / "usr/bin/buildah"
        self.program = str(unpacked) if unpacked.exists() else shutil.which("buildah")
        if not self.program:
            sys.exit("error: buildah is missing; make .tools/debian.stamp unpacks it")

    def __call__(self, command, *arguments):
        options = ["--storage-driver", "vfs", "--root", self.folder / "storage", "--runroot", self.folder / "run"]
        if command in ("from", "commit", "build"):
            arguments = ("--signature-policy", self.folder / "policy.json", *arguments)
        words = [str(word) for word in (self.program, *options, command, *arguments)]
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"error: {' '.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout.strip()


def build(buildah, programs, folder):
    """Builds the image, and returns its configuration and the folder of its files."""
    base = folder / "base"
    shutil.copytree(DEBIAN / "base", base, symlinks=True)
    for name in ("tmp", "proc", "dev"):
        (base / name).mkdir()
    (base / "tmp").chmod(0o1777)
    certificates = base / "etc/ssl/certs/ca-certificates.crt"
    certificates.parent.mkdir(parents=True, exist_ok=True)
    # What the installation of the package ca-certificates does.
    certificates.write_bytes(b"".join(path.read_bytes() for path in sorted((base / "usr/share/ca-certificates").glob("*/*.crt"))))
    container = buildah("from", "scratch")
    buildah("copy", "--quiet", container, base, "/")
    buildah("commit", "--quiet", "--rm", container, BASE)

    context = folder / "context/programs"
    context.mkdir(parents=True)
    for program in PROGRAMS:
        shutil.copy(programs / program, context)
    buildah(
        "build", "--quiet", "--format", "docker", "--pull-never",
        "--build-arg", f"BASE={BASE}", "--build-arg", "PROGRAMS=prebuilt", "--file", ROOT / "deploy/container/Containerfile", "--tag", IMAGE, context.parent,
    )
    inspected = json.loads(buildah("inspect", "--type", "image", IMAGE))
    return inspected["Docker"]["config"], pathlib.Path(buildah("mount", buildah("from", IMAGE)))


def check_config(config):
    for name, expected in EXPECTED.items():
        if config.get(name) != expected:
            sys.exit(f"error: the image has {name} {config.get(name)!r}, not {expected!r}")
    if config["Healthcheck"]["Test"] != HEALTH:
        sys.exit(f"error: the image has the health check {config['Healthcheck']}, not {HEALTH}")
    for label in ("title", "description", "licenses", "version", "revision"):
        if not config["Labels"].get(f"org.opencontainers.image.{label}"):
            sys.exit(f"error: the image has no label {label}")


class Container:
    """Runs programs in the files of the image, from within namespaces of their own (`unshare`, see main)."""

    def __init__(self, root, environment):
        self.root, self.environment = root, environment
        for command in (
            ["mount", "--make-rprivate", "/"], ["mount", "--bind", root, root],
            ["mount", "-t", "proc", "proc", f"{root}/proc"], ["mount", "--bind", "/dev", f"{root}/dev"],
            ["mount", "-o", "remount,bind,ro", root],
            ["mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", f"{root}/tmp"],
        ):
            subprocess.run(command, check=True)
        bring_loopback_up()
        self.libc = ctypes.CDLL(None, use_errno=True)

    def enter(self):
        os.chroot(self.root)
        os.chdir("/tmp")
        os.setgroups([])
        os.setgid(USER)
        # This also drops all capabilities.
        os.setuid(USER)
        pr_set_no_new_privs = 38
        if self.libc.prctl(pr_set_no_new_privs, 1, 0, 0, 0):
            raise OSError("prctl failed")

    def start(self, *command, **options):
        program = f"/usr/local/bin/{command[0]}" if "/" not in command[0] else command[0]
        environment = self.environment | options.pop("settings", {})
        return subprocess.Popen(
            [program, *command[1:]], env=environment, preexec_fn=self.enter, text=True, **options,
        )

    def run(self, *command, code=0, **options):
        """Returns the output of a command that must end with `code`."""
        process = self.start(*command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
        output, messages = process.communicate(timeout=120)
        if process.returncode != code:
            sys.exit(f"error: {' '.join(command)} ended with {process.returncode}, not {code}:\n{output}{messages}")
        return output + messages if code else output


def bring_loopback_up():
    get_flags, set_flags, up = 0x8913, 0x8914, 1
    with socket.socket() as control:
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack("16sH14x", fcntl.ioctl(control, get_flags, request))[1]
        fcntl.ioctl(control, set_flags, struct.pack("16sH14x", b"lo", flags | up))


def try_image(root, environment):
    container = Container(root, environment)
    simulate = ["simulate", "--seed", "7", "--events", "3000", "--out", "/tmp/events.ndjson", "--oracle", "/tmp/truth.ndjson"]
    container.run("synclake", *simulate)
    report = json.loads(container.run("synclake", "ingest", "--source", "file:/tmp/events.ndjson", "--lake", "/tmp/lake"))
    live = len(pathlib.Path(root, "tmp/truth.ndjson").read_text().splitlines())
    query = "select count(*) as live_keys from current_state"
    counted = container.run("synclake-query", "--lake", "/tmp/lake", "--format", "csv", "-c", query).split()[-1]
    if report["records"] == 0 or int(counted) != live:
        sys.exit(f"error: {report['records']} records gave {counted} live keys, not {live}")
    print(f"ingest and query: {report['records']} records, {counted} live keys")

    refused = container.run("synclake", "simulate", "--events", "1", "--out", "/events.ndjson", code=1)
    if "ead-only file system" not in refused:
        sys.exit(f"error: the root file system is not read-only: {refused}")
    print(f"read-only root: {refused.strip().splitlines()[-1]}")
    try_health(container)


def try_health(container):
    """The health check fails, succeeds while an ingest runs, and fails again after it stopped."""
    health = HEALTH[1:]
    print(f"health without an ingest: {container.run(*health, code=1).strip()}")
    settings = {"SYNCLAKE_METRICS": "127.0.0.1:9464", "SYNCLAKE_SOURCE": "file:-", "SYNCLAKE_LAKE": "/tmp/other"}
    ingest = container.start("synclake", "ingest", settings=settings, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while container.start(*health, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).wait(30):
        if ingest.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"error: the health check fails beside an ingest (which ended with {ingest.poll()})")
        time.sleep(0.2)
    status = pathlib.Path(f"/proc/{ingest.pid}/status").read_text()
    for line in (f"Uid:\t{USER}\t{USER}\t{USER}\t{USER}", "CapEff:\t0000000000000000", "NoNewPrivs:\t1"):
        if line not in status:
            sys.exit(f"error: the ingest does not run with {line!r}")
    begin = time.monotonic()
    ingest.send_signal(signal.SIGTERM)
    if ingest.wait(60) != 0:
        sys.exit(f"error: after SIGTERM the ingest ended with {ingest.returncode}")
    print(f"health beside an ingest: well; SIGTERM ended the ingest in {time.monotonic() - begin:.1f} s")
    container.run(*health, code=1)


def size_of(root):
    files = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    return sum(path.stat().st_size for path in files)


def main():
    if sys.argv[1:2] == ["--inside"]:
        # Not the machine's /proc, which shows the processes of before: it would have no `self`.
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        subprocess.run(["mount", "-t", "proc", "proc", "/proc"], check=True)
        try_image(sys.argv[2], json.loads(sys.argv[3]))
        return
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    if os.geteuid():
        sys.exit("error: image.py runs programs as another user and mounts file systems; run it as root")
    programs = pathlib.Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory(prefix="synclake-image-", dir=ROOT / ".tools") as folder:
        folder = pathlib.Path(folder)
        config, root = build(Buildah(folder), programs, folder)
        check_config(config)
        total = size_of(root)
        own = sum((root / "usr/local/bin" / program).stat().st_size for program in PROGRAMS)
        print(f"size: {total / 2**20:.0f} MiB, of which the programs are {own / 2**20:.0f} MiB")
        environment = dict(pair.split("=", 1) for pair in config["Env"])
        status = subprocess.run(
            ["unshare", "--mount", "--pid", "--net", "--ipc", "--uts", "--fork", "--kill-child", sys.executable, __file__,
             "--inside", root, json.dumps(environment)],
            check=False,
        ).returncode
    sys.exit(status)


if __name__ == "__main__":
    main()
