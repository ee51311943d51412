"""Fetches Trino's server by Maven and unpacks what the tests need of it: trino_server.py FOLDER

The archive has 821 MB. It is kept in ${XDG_CACHE_HOME:-~/.cache}/synclake/engines, by its digest, and fetched if it is not there.
Only the server and its connectors for Delta Lake and Hive are unpacked: with all connectors it starts twice as slowly.
"""

import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile

ARTIFACT = "io.trino:trino-server:476:tar.gz"
DIGEST = "cfd5accde17e8ebd251eeeb78aed1f490e77bb3a164d95a0f454bf8a7c1cbd3f"
KEPT = ("lib/", "plugin/delta-lake/", "plugin/hive/")


def digest_of(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(archive):
    if not shutil.which("mvn"):
        sys.exit(f"error: Maven is missing, which fetches {ARTIFACT} for make engines; install it: apt-get install maven")
    archive.parent.mkdir(parents=True, exist_ok=True)
    part = archive.parent / f"part-{os.getpid()}"
    done = subprocess.run(["mvn", "-q", "dependency:copy", f"-Dartifact={ARTIFACT}", f"-DoutputDirectory={part}"], check=False)
    if done.returncode:
        sys.exit(f"error: Maven could not fetch {ARTIFACT}")
    next(part.iterdir()).replace(archive)
    part.rmdir()


def unpack(archive, folder):
    def inner(name):
        return name.partition("/")[2]

    # A file that several connectors have is a hard link to its first place, which may be in another connector.
    wanted = {}
    with tarfile.open(archive, "r|gz") as tar:
        for member in tar:
            if inner(member.name).startswith(KEPT) and (member.isfile() or member.islnk()):
                wanted.setdefault(member.linkname if member.islnk() else member.name, []).append(inner(member.name))
    with tarfile.open(archive, "r|gz") as tar:
        for member in tar:
            names = [folder / name for name in wanted.pop(member.name, [])]
            for number, path in enumerate(names):
                path.parent.mkdir(parents=True, exist_ok=True)
                if number:
                    os.link(names[0], path)
                else:
                    with open(path, "wb") as out:
                        shutil.copyfileobj(tar.extractfile(member), out)
    if wanted:
        sys.exit(f"error: {archive} lacks {', '.join(sorted(wanted)[:3])}")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = pathlib.Path(sys.argv[1]).resolve()
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache", "synclake/engines")
    archive = cache / "trino-server-476.tar.gz"
    if not archive.exists():
        fetch(archive)
    if digest_of(archive) != DIGEST:
        archive.unlink()
        sys.exit(f"error: {archive} had another digest than {DIGEST} and was deleted; run this again to fetch it")
    shutil.rmtree(folder, ignore_errors=True)
    unpack(archive, folder)


if __name__ == "__main__":
    main()
