"""Images, in a store of their own under target/tools, so that no stand-in is ever taken for what it stands for.

What the Dockerfile begins with is taken from a registry where that can be reached. Where not, stand-ins of the same names are made from
Debian packages: for the builder a system with a C compiler, into which the machine's own Rust toolchain is mounted; for the runtime the
libraries alone, as in the original without a shell.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess

from checks import tools
from checks.tools import DEPLOY, ROOT, TOOLS

STORE = TOOLS / "containers"
NAME = "localhost/hookgate:try"
SUITE = "trixie"
TOOLCHAIN, CARGO = "/usr/local/toolchain", "/usr/local/cargo"
BUILDER_PACKAGES = "gcc,g++,make,perl,libc6-dev,ca-certificates"
RUNTIME_PACKAGES = "base-files,libc6,libgcc-s1,libstdc++6"

# What a container may not set here without more rights than root has, or under old and new cgroups at once, is left out.
RUNTIME = """#!/usr/bin/env python3
import json, os, pathlib, sys
for before, word in zip(sys.argv, sys.argv[1:]):
    file = pathlib.Path(word, "config.json") if before == "--bundle" else pathlib.Path(word) if before == "--process" else None
    if file:
        spec = json.loads(file.read_text())
        spec.get("process", spec).pop("rlimits", None)
        file.write_text(json.dumps(spec))
os.execvp("runc", ["runc", *sys.argv[1:]])
"""


def need(*programs):
    if os.geteuid():
        raise tools.Missing("images are built and run as root here")
    for program in programs:
        if not shutil.which(program):
            raise tools.Missing(f"no {program}")


def _store():
    return ["--root", STORE / "storage", "--runroot", STORE / "run"]


def buildah(*words):
    return tools.run("buildah", *_store(), *words)


def options():
    """podman's, before any command."""
    wrapper = STORE / "runtime"
    STORE.mkdir(parents=True, exist_ok=True)
    wrapper.write_text(RUNTIME)
    wrapper.chmod(0o755)
    return [*_store(), "--runtime", wrapper, "--cgroup-manager", "cgroupfs", "--events-backend", "file"]


def podman(*words, check=True):
    """What it says; a failure is an error unless it is asked not to be."""
    code, said = tools.run("podman", *options(), *words)
    if code and check:
        raise tools.Failed(f"podman {' '.join(map(str, words[:3]))}: {said.strip()[-600:]}")
    return said if check else (code, said)


def has(name):
    return podman("image", "exists", name, check=False)[0] == 0


def bases():
    """The names of the builder's and the runtime's base image, as the Dockerfile has them."""
    text = (DEPLOY / "Dockerfile").read_text()
    return [re.search(rf"^ARG {name}=(\S+)$", text, re.MULTILINE).group(1) for name in ("RUST_IMAGE", "RUNTIME_IMAGE")]


def get_bases():
    """Fetches both, or makes stand-ins for them. Whether they are such."""
    builder, runtime = bases()
    full = lambda name: name if "." in name.split("/")[0] else f"docker.io/library/{name}"
    note = STORE / "stand-ins.json"
    if has(full(builder)) and has(full(runtime)):
        return note.exists()
    if all(podman("pull", "--quiet", full(name), check=False)[0] == 0 for name in (builder, runtime)):
        return False
    need("mmdebstrap", "rustc")
    _debian(full(builder), "minbase", BUILDER_PACKAGES, [f"ENV PATH={TOOLCHAIN}/bin:/usr/bin:/bin", f"ENV CARGO_HOME={CARGO}"])
    user = 'printf "root:x:0:0::/root:/sbin/nologin\\nnonroot:x:65532:65532::/home/nonroot:/sbin/nologin\\n" >"$1/etc/passwd"'
    _debian(full(runtime), "extract", RUNTIME_PACKAGES, [], user, "mkdir -p $1/etc/ssl/certs", "copy-in /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs")
    note.write_text(json.dumps([builder, runtime]))
    return True


def _debian(name, variant, packages, changes, *hooks):
    archive = STORE / "base.tar"
    code, said = tools.run("mmdebstrap", f"--variant={variant}", f"--include={packages}", *(f"--customize-hook={hook}" for hook in hooks), SUITE, archive)
    if code:
        raise tools.Missing(f"mmdebstrap cannot make a stand-in for {name}: {said.strip().splitlines()[-1]}")
    podman("import", *(word for change in changes for word in ("--change", change)), archive, name)
    archive.unlink()


def build():
    """Both stages of the Dockerfile. Layers that are there already are not built again."""
    words = ["bud", "--isolation", "chroot", "--layers", "--format", "docker", "--pull-never", "--file", DEPLOY / "Dockerfile", "--tag", NAME]
    if get_bases():
        sysroot = tools.run("rustc", "--print", "sysroot")[1].strip()
        home = os.environ.get("CARGO_HOME", pathlib.Path.home() / ".cargo")
        words += ["--volume", f"{sysroot}:{TOOLCHAIN}:ro", "--volume", f"{home}/registry:{CARGO}/registry"]
    # Compiling takes minutes of every core that it gets.
    done = subprocess.run(["nice", "-n", "19", "buildah", *map(str, [*_store(), *words, ROOT])], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    (STORE / "build.log").write_text(done.stdout)
    if done.returncode:
        raise tools.Failed(f"buildah bud: {' | '.join(done.stdout.strip().splitlines()[-8:])}")
