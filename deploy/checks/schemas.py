"""Whether a Kubernetes object is what its API says: the built-in ones by the schemas of kubernetes-validate, the others by their
definitions, which are in the Go modules of those who define them."""

import functools

import yaml

from . import tools

# The oldest version that Chart.yaml allows, and the newest that is known.
OLDEST = "1.29"

# API group: the module, and where the definition of a kind is in it.
DEFINITIONS = {
    "gateway.networking.k8s.io": ("sigs.k8s.io/gateway-api@v1.4.1", "config/crd/standard/gateway.networking.k8s.io_{}.yaml"),
    "monitoring.coreos.com": ("github.com/prometheus-operator/prometheus-operator@v0.85.0", "example/prometheus-operator-crd/monitoring.coreos.com_{}.yaml"),
    "keda.sh": ("github.com/kedacore/keda/v2@v2.18.3", "config/crd/bases/keda.sh_{}.yaml"),
    "cert-manager.io": ("github.com/cert-manager/cert-manager@v1.19.2", "deploy/crds/cert-manager.io_{}.yaml"),
    "external-secrets.io": ("github.com/external-secrets/external-secrets@v1.3.2", "config/crds/bases/external-secrets.io_{}.yaml"),
}


def versions():
    newest = tools.module("kubernetes_validate").latest_version()
    return [OLDEST, ".".join(newest.split(".")[:2])]


def problems(document, version, where):
    """What is wrong with `document`, by the schema of Kubernetes `version` or by its definition."""
    group, _, api = document["apiVersion"].rpartition("/")
    what = f"{where}: {document['kind']} {document['metadata'].get('name', '')}"
    if group in DEFINITIONS:
        validator = _validator(group, api, document["kind"])
        for error in validator.iter_errors(document) if validator else ():
            yield f"{what}: {'.'.join(map(str, error.absolute_path))}: {error.message[:200]}"
        return
    validate = tools.module("kubernetes_validate")
    try:
        validate.validate(document, version, strict=True)
    except validate.ValidationError as error:
        yield f"{what} for Kubernetes {version}: {'.'.join(map(str, error.path))}: {error.message[:200]}"
    except validate.SchemaNotFoundError:
        yield f"{what}: Kubernetes {version} does not know {document['apiVersion']}"


@functools.cache
def _validator(group, api, kind):
    jsonschema = tools.module("jsonschema")
    module, path = DEFINITIONS[group]
    try:
        archive = tools.go_module(module)
    except tools.Missing as missing:
        # The built-in kinds beside it are checked all the same.
        tools.skip(f"{kind} against its definition: {missing}")
        return None
    plural = kind.lower() + ("es" if kind.endswith("s") else "s")
    plural = plural.replace("ys", "ies") if plural.endswith("cys") else plural
    definition = yaml.safe_load(archive.read(f"{module}/{path.format(plural)}"))
    schema = next(version["schema"]["openAPIV3Schema"] for version in definition["spec"]["versions"] if version["name"] == api)
    schema["properties"]["metadata"] = {"type": "object"}
    return jsonschema.Draft202012Validator(_strict(schema))


def _strict(schema):
    """Unknown fields, which a cluster would drop in silence, are refused."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: _strict(value) for key, value in schema.items()}
    if schema.get("x-kubernetes-int-or-string"):
        schema.pop("type", None)
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        if schema.get("type") == "object" and "additionalProperties" not in schema:
            schema["additionalProperties"] = False
    return schema
