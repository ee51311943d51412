"""Unpacks programs of Debian packages into a folder, without root: debian.py FOLDER

deploy.py needs promtool, image.py needs buildah and the files of a base image. apt-get checks the signatures. The packages
are those of the machine's own release, so the programs fit its libraries.
"""

import pathlib
import shutil
import subprocess
import sys

# Packages that are unpacked over each other into FOLDER, and those that make the base of the image, in FOLDER/base.
TOOLS = ["prometheus", "buildah", "libgpgme11", "libassuan0", "libdevmapper1.02.1", "libseccomp2"]
BASE = ["libc6", "libgcc-s1", "ca-certificates"]
PROGRAMS = ["promtool", "buildah"]


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = pathlib.Path(sys.argv[1]).resolve()
    if not shutil.which("apt-get") or not shutil.which("dpkg"):
        sys.exit(f"error: apt-get is missing, which unpacks {', '.join(PROGRAMS)}; run this on Debian or Ubuntu")
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("lists/partial", "cache/archives/partial", "packages", "base"):
        (folder / name).mkdir(parents=True)
    # Lists of its own: on a fresh machine there are none, and updating those of the machine needs root.
    apt = [
        "apt-get", "-qq", "-o", f"Dir::State::Lists={folder}/lists", "-o", f"Dir::Cache={folder}/cache",
        "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3",
    ]
    run([*apt, "update"], folder)
    for packages, target in ((TOOLS, folder), (BASE, folder / "base")):
        run([*apt, "download", *packages], folder / "packages")
        for package in sorted((folder / "packages").glob("*.deb")):
            run(["dpkg", "-x", str(package), str(target)], folder)
            package.unlink()
    for name in ("lists", "cache", "packages"):
        shutil.rmtree(folder / name)


def run(command, folder):
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: {' '.join(command)} failed:\n{done.stderr.strip()}")


if __name__ == "__main__":
    main()
