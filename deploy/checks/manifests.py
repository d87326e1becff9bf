"""deploy/manifests: the chart, rendered, for those who use kubectl alone."""

import re

import yaml

from . import chart, schemas, tools

MANIFESTS = tools.DEPLOY / "manifests"
NOTE = "# Made by deploy/check --write from the chart; changes belong there, or into an overlay.\n"
SPOOL = {"spool": {"enabled": True}}


def rendered():
    """Each generated file with its content."""
    yield MANIFESTS / "base/hookgate.yaml", NOTE + "".join(_without_helm({}, lambda document: document["kind"] != "Pod"))
    is_other = lambda document: document["kind"] == "StatefulSet" or document["metadata"]["name"].endswith("-headless")
    yield MANIFESTS / "overlays/spool/statefulset.yaml", NOTE + "".join(_without_helm(SPOOL, is_other))
    yield MANIFESTS / "overlays/spool/config.yaml", NOTE + "".join(_without_helm(SPOOL, lambda document: document["kind"] == "ConfigMap"))


def _without_helm(values, wanted):
    text = chart.render(values, schemas.versions()[-1])
    for part in re.split(r"^---\n", text, flags=re.MULTILINE):
        document = yaml.safe_load(part)
        if document and wanted(document):
            part = re.sub(r"^# Source: .*\n|^ *(app\.kubernetes\.io/managed-by|helm\.sh/chart): .*\n", "", part, flags=re.MULTILINE)
            yield "---\n" + re.sub(r"[ \t]+$", "", part, flags=re.MULTILINE)


def write():
    for path, text in rendered():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def manifests_are_what_the_chart_renders():
    for path, text in rendered():
        if not path.exists() or path.read_text() != text:
            yield f"{path.relative_to(tools.ROOT)} is not what the chart renders: deploy/check --write"


def base_and_overlays_build_and_fit_their_schemas():
    kustomize = tools.go_program("kustomize", tools.KUSTOMIZE)
    for directory, kind in (("base", "Deployment"), ("overlays/dev", "Deployment"), ("overlays/spool", "StatefulSet")):
        code, said = tools.run(kustomize, "build", MANIFESTS / directory)
        if code:
            yield f"{directory}: {said.strip()}"
            continue
        documents = chart.documents(said)
        for version in schemas.versions():
            for document in documents:
                yield from schemas.problems(document, version, directory)
        kinds = [document["kind"] for document in documents if document["kind"] in ("Deployment", "StatefulSet")]
        if kinds != [kind]:
            yield f"{directory}: has {kinds}, not one {kind}"


CHECKS = [manifests_are_what_the_chart_renders, base_and_overlays_build_and_fit_their_schemas]
