"""The Helm chart: what it renders under each file in ci/, and what it refuses."""

import functools
import itertools
import json
import pathlib
import tempfile

import yaml

from . import schemas, tools
from .tools import CHART

# Why each of checkov's policies does not apply.
CHECKOV_SKIPS = {
    "CKV_K8S_11": "no CPU limit, on purpose: throttling looks like a slow broker",
    "CKV_K8S_15": "a tag is not moved, so it need not be pulled anew",
    "CKV_K8S_21": "the namespace is Helm's",
    "CKV_K8S_35": "a Redis URL in the environment is one of the ways that the ci files show",
    "CKV_K8S_43": "the digest is the operator's to give",
    "CKV_DOCKER_7": "the tag is in an ARG, which checkov does not look into",
}

# Values that must be refused, and a part of what is said.
REFUSED = {
    "a misspelt value": ({"replicaz": 3}, "replicaz"),
    "a misspelt value below": ({"spool": {"persistence": {"sise": "2Gi"}}}, "sise"),
    "an unknown scrape": ({"monitoring": {"scrape": "pods"}}, "scrape"),
    "a number out of range": ({"server": {"drainDelaySeconds": -1}}, "drainDelaySeconds"),
    "subPath": ({"extraVolumeMounts": [{"name": "a", "mountPath": "/a", "subPath": "b"}]}, "extraVolumeMounts"),
    "a grace period below the drain": ({"termination": {"gracePeriodSeconds": 59}}, "a stop may take 60 s"),
    "a drain above the grace period": ({"server": {"shutdownTimeoutSeconds": 40}, "termination": {"gracePeriodSeconds": 60}}, "a stop may take 80 s"),
    "two replicas with one claim": ({"spool": {"enabled": True, "persistence": {"existingClaim": "c"}}}, "replicas"),
    "a scaled spool": ({"autoscaling": {"kind": "hpa"}, "spool": {"enabled": True}}, "autoscaling"),
    "a volume smaller than the spool": ({"spool": {"enabled": True, "maxSizeMiB": 4096}}, "spool.persistence.size"),
    "KEDA without Prometheus": ({"autoscaling": {"kind": "keda"}}, "prometheusAddress"),
    "a route without a gateway": ({"gateway": {"enabled": True, "hostnames": ["a.example.com"]}}, "parentRefs"),
    "an ingress without hosts": ({"ingress": {"enabled": True}}, "hosts"),
    "too little memory": ({"server": {"maxInFlightMiB": 512}}, "resources.limits.memory"),
    "a second [server]": ({"config": "[server]\nlisten = '0.0.0.0:1'\n"}, "config has [server]"),
    "a second admin table": ({"config": "admin = { listen = '0.0.0.0:1' }\n"}, "config has [admin]"),
    "a drain delay in the environment": ({"env": [{"name": "HOOKGATE_SERVER__DRAIN_DELAY", "value": "60s"}]}, "HOOKGATE_SERVER__DRAIN_DELAY"),
    "a file of a Secret that is not mounted": ({"existingSecrets": []}, "existingSecrets"),
}


class Refused(Exception):
    """Helm does not render the chart under these values."""


def render(values, version):
    """The text that Helm 3 makes of the chart. `version` None is Helm 4 with its own idea of the cluster."""
    if version is None:
        helm = tools.module("helm_python")
        with helm.Chart.load(str(CHART)) as chart:
            try:
                rendered = chart.render(values, name="hookgate", namespace="hooks")
            except helm.HelmError as error:
                raise Refused(str(error)) from error
        return "".join(f"---\n{text}\n" for path, text in sorted(rendered.items()) if path.endswith(".yaml"))
    program = tools.go_program("helm", tools.HELM)
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        json.dump(values, file)
        file.flush()
        code, said = tools.run(program, "template", "hookgate", CHART, "--namespace", "hooks", "--values", file.name, "--kube-version", f"{version}.0")
    if code:
        raise Refused(said.strip())
    return said


@functools.cache
def scenarios():
    """Each file in ci/, rendered for each version: (name, version, documents). Without Go only by Helm 4."""
    try:
        tools.go_program("helm", tools.HELM)
        versions = schemas.versions()
    except tools.Missing as missing:
        tools.skip(f"Helm 3, and rendering for {schemas.OLDEST}: {missing}")
        versions = [None]
    rendered = []
    for path, version in itertools.product(sorted((CHART / "ci").glob("*-values.yaml")), versions):
        text = render(yaml.safe_load(path.read_text()), version)
        rendered.append((path.name.removesuffix("-values.yaml"), version, documents(text)))
    return rendered


def documents(text):
    return list(filter(None, yaml.safe_load_all(text)))


def pods(rendered):
    for document in rendered:
        if document["kind"] in ("Deployment", "StatefulSet"):
            yield document["kind"], document["spec"]["template"]["spec"]
        elif document["kind"] == "Pod":
            yield "test pod", document["spec"]


def lint_finds_nothing():
    helm = tools.module("helm_python")
    for message in helm.lint(str(CHART), strict=True)["messages"]:
        if message["severity"] > 1:
            yield f"{message['path']}: {message['error']}"


def every_scenario_fits_its_schemas():
    for name, version, rendered in scenarios():
        for target in [version] if version else schemas.versions():
            for document in rendered:
                yield from schemas.problems(document, target, name)


def Helm_3_and_4_render_the_same():
    newest = schemas.versions()[-1]
    for path in sorted((CHART / "ci").glob("*-values.yaml")):
        values = yaml.safe_load(path.read_text())
        key = lambda document: (document["kind"], document["metadata"]["name"])
        three, four = (sorted(documents(render(values, version)), key=key) for version in (newest, None))
        if three != four:
            different = next((a["kind"] for a, b in zip(three, four) if a != b), "their number")
            yield f"{path.name}: {different} differs"


def pods_are_restricted():
    """What Kubernetes' own policy "restricted" asks for, and what we promise beside."""
    for name, version, rendered in scenarios():
        for kind, pod in pods(rendered):
            where = f"{name}: {kind}"
            context = pod.get("securityContext", {})
            if not (context.get("runAsNonRoot") and context.get("runAsUser") == 65532 and context.get("seccompProfile") == {"type": "RuntimeDefault"}):
                yield f"{where}: securityContext is not restricted"
            if pod.get("automountServiceAccountToken") is not False or pod.get("enableServiceLinks") is not False:
                yield f"{where}: has a token, or variables of Services"
            for volume in pod.get("volumes", []):
                if not volume.keys() & {"configMap", "secret", "emptyDir", "persistentVolumeClaim"}:
                    yield f"{where}: volume {volume['name']} is not of an allowed kind"
            for container in pod["containers"]:
                context = container.get("securityContext", {})
                if context != {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}:
                    yield f"{where}: container {container['name']} is not restricted"
                if container["resources"]["limits"]["memory"] != container["resources"]["requests"]["memory"]:
                    yield f"{where}: container {container['name']} may take more memory than it was promised"
                for mount in container.get("volumeMounts", []):
                    if "subPath" in mount or "subPathExpr" in mount:
                        yield f"{where}: {mount['mountPath']} is a subPath, whose files never change"
            if kind != "test pod":
                (container,) = pod["containers"]
                if not {"startupProbe", "livenessProbe", "readinessProbe"} <= container.keys():
                    yield f"{where}: a probe is missing"
                if ("lifecycle" in container) != (version != schemas.OLDEST):
                    yield f"{where}: a sleep before SIGTERM for Kubernetes {version}, which has none, or none where there is one"


def the_admin_port_is_not_public():
    for name, _, rendered in scenarios():
        for document in rendered:
            if document["kind"] == "Service" and document["spec"].get("clusterIP") != "None":
                if [port["targetPort"] for port in document["spec"]["ports"]] != ["http"]:
                    yield f"{name}: the Service has other ports than http"
        if not any(document["kind"] == "NetworkPolicy" for document in rendered):
            yield f"{name}: no NetworkPolicy"


def hookgate_reads_every_rendered_config():
    program = tools.hookgate()
    for name, _, rendered in scenarios():
        config = next(document["data"]["relay.toml"] for document in rendered if document["kind"] == "ConfigMap" and "relay.toml" in document["data"])
        with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
            file.write(config)
            file.flush()
            code, said = tools.run(program, "config", "--config", file.name)
        if code:
            yield f"{name}: {said.strip()}"


def what_makes_no_sense_is_refused():
    for what, (values, said) in REFUSED.items():
        try:
            render(values, None)
            yield f"{what} is accepted"
        except Refused as refusal:
            if said not in str(refusal):
                yield f"{what} is refused for another reason: {refusal}"


def the_schema_is_closed():
    """Nothing that is ours may be misspelt: `additionalProperties` is false wherever keys are listed."""

    def walk(schema, path):
        if isinstance(schema, dict):
            if "properties" in schema and schema.get("type") == "object" and schema.get("additionalProperties") is not False:
                yield f"{path or 'the root'} takes unknown keys"
            for key, value in schema.get("properties", {}).items():
                yield from walk(value, f"{path}.{key}".lstrip("."))
            yield from walk(schema.get("items"), f"{path}[]")

    yield from walk(json.loads((CHART / "values.schema.json").read_text()), "")


def every_value_is_described():
    page = (CHART / "README.md").read_text()

    def leaves(values, path=""):
        for key, value in values.items():
            below = f"{path}.{key}".lstrip(".")
            if isinstance(value, dict) and value and below not in ("resources.requests", "resources.limits", "monitoring.dashboard.labels"):
                yield from leaves(value, below)
            else:
                yield below

    for leaf in leaves(yaml.safe_load((CHART / "values.yaml").read_text())):
        if f"`{leaf}`" not in page:
            yield f"README.md does not say what {leaf} is"


def checkov_finds_nothing():
    checkov = tools.script("checkov")
    skips = ",".join(CHECKOV_SKIPS)
    options = ["--compact", "--quiet", "--skip-download", "--skip-check", skips]
    with tempfile.TemporaryDirectory() as directory:
        for name, version, rendered in scenarios():
            # A test has neither probes nor a network policy.
            kept = [document for document in rendered if document["kind"] != "Pod"]
            pathlib.Path(directory, f"{name}-{version}.yaml").write_text(yaml.safe_dump_all(kept))
        code, said = tools.run(checkov, "--directory", directory, "--framework", "kubernetes", *options)
        if code:
            yield said.strip()
    code, said = tools.run(checkov, "--file", tools.DEPLOY / "Dockerfile", "--framework", "dockerfile", *options)
    if code:
        yield said.strip()


CHECKS = [
    lint_finds_nothing,
    every_scenario_fits_its_schemas,
    Helm_3_and_4_render_the_same,
    pods_are_restricted,
    the_admin_port_is_not_public,
    hookgate_reads_every_rendered_config,
    what_makes_no_sense_is_refused,
    the_schema_is_closed,
    every_value_is_described,
    checkov_finds_nothing,
]
