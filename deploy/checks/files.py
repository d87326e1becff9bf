"""Files by themselves: the image, YAML, the compose file and its configs, the examples."""

import json
import pathlib
import re
import shutil
import tempfile
import tomllib

import yaml

from . import schemas, tools
from .tools import DEPLOY

YAMLLINT = """{extends: default, rules: {line-length: disable, document-start: disable, comments: {min-spaces-from-content: 1},
  indentation: {indent-sequences: whatever}, braces: {min-spaces-inside: 0, max-spaces-inside: 1}, brackets: {max-spaces-inside: 0}}}"""


def the_Dockerfile_is_clean():
    code, said = tools.run(tools.script("hadolint"), DEPLOY / "Dockerfile")
    if code:
        yield said.strip()


def the_image_needs_neither_root_nor_a_shell():
    final = (DEPLOY / "Dockerfile").read_text().split("\nFROM ")[-1]
    for line in (r"USER 65532:65532", r"STOPSIGNAL SIGTERM", r"ENTRYPOINT \[", r"HEALTHCHECK .*CMD \[\"[^\"]+\", \"health\"\]"):
        if not re.search(f"^{line}", final, re.MULTILINE):
            yield f"the last stage has no line like {line}"
    if re.search(r"^RUN ", final, re.MULTILINE):
        yield "the last stage has RUN, for which it would need a shell"


def the_first_stage_leaves_what_manifests_name():
    """Its command, on a copy: a target that a manifest names and the command deletes stops the build of the image."""
    text = (DEPLOY / "Dockerfile").read_text()
    stage = re.search(r"^FROM \S+ AS manifests\n.*?^RUN (.*?[^\\])\n", text, re.MULTILINE | re.DOTALL).group(1)
    with tempfile.TemporaryDirectory() as directory:
        copy = shutil.copytree(tools.ROOT / "crates", pathlib.Path(directory, "crates"))
        code, said = tools.run("sh", "-ec", stage.replace("\\\n", " "), cwd=directory)
        if code:
            yield said.strip()
        for manifest in sorted(copy.glob("*/Cargo.toml")):
            targets = tomllib.loads(manifest.read_text())
            for kind, folder in (("bench", "benches"), ("test", "tests"), ("example", "examples"), ("bin", "src/bin")):
                for target in targets.get(kind, []):
                    # Where a path is given, cargo looks only when it builds the target.
                    if "path" not in target and not (manifest.parent / folder / f"{target['name']}.rs").exists():
                        yield f"{manifest.relative_to(directory)}: {kind} {target['name']} is not there"


def YAML_is_clean():
    lint = tools.script("yamllint")
    paths = [path for path in sorted(DEPLOY.rglob("*.yaml")) if "templates" not in path.parts]
    code, said = tools.run(lint, "--strict", "-d", YAMLLINT, "-f", "parsable", *paths)
    if code:
        yield from said.strip().splitlines()


def the_compose_file_fits_its_schema():
    jsonschema = tools.module("jsonschema")
    module = "github.com/compose-spec/compose-go/v2@v2.16.2"
    schema = json.loads(tools.go_module(module).read(f"{module}/schema/compose-spec.json"))
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    for error in jsonschema.validators.validator_for(schema)(schema).iter_errors(compose):
        yield f"{'.'.join(map(str, error.absolute_path))}: {error.message[:200]}"


def the_compose_file_is_hardened_and_mounts_what_exists():
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    ours = compose["services"]["hookgate"]
    if not (ours.get("read_only") and ours.get("cap_drop") == ["ALL"] and "no-new-privileges:true" in ours.get("security_opt", [])):
        yield "hookgate: read_only, cap_drop and no-new-privileges are not all there"
    if "depends_on" in ours:
        yield "hookgate: depends_on; it starts without brokers"
    for name, service in compose["services"].items():
        for port in service.get("ports", []):
            if not port.startswith("127.0.0.1:"):
                yield f"{name}: port {port} is open to everybody"
        for volume in service.get("volumes", []):
            source = volume.split(":")[0].replace("${HOOKGATE_CONFIG", "nats") if "${" not in volume else "./compose/nats.toml"
            if source.startswith("."):
                if not (DEPLOY / source).exists():
                    yield f"{name}: {source} does not exist"
            elif source not in compose["volumes"]:
                yield f"{name}: volume {source} is not declared"


def hookgate_reads_the_configs_of_the_compose_file():
    program = tools.hookgate()
    for config in sorted((DEPLOY / "compose").glob("*.toml")):
        code, said = tools.run(program, "config", "--config", config)
        if code:
            yield f"{config.name}: {said.strip()}"


def examples_are_what_their_APIs_say():
    for path in sorted((DEPLOY / "examples").glob("*.yaml")):
        for document in filter(None, yaml.safe_load_all(path.read_text())):
            for version in schemas.versions():
                yield from schemas.problems(document, version, path.name)


def every_link_in_the_READMEs_leads_somewhere():
    for page in [DEPLOY / "README.md", tools.CHART / "README.md", *sorted((tools.ROOT / "docs/runbooks").glob("*.md"))]:
        for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in link and not (page.parent / link).exists():
                yield f"{page.relative_to(tools.ROOT)}: {link} does not exist"


CHECKS = [
    the_Dockerfile_is_clean,
    the_image_needs_neither_root_nor_a_shell,
    the_first_stage_leaves_what_manifests_name,
    YAML_is_clean,
    the_compose_file_fits_its_schema,
    the_compose_file_is_hardened_and_mounts_what_exists,
    hookgate_reads_the_configs_of_the_compose_file,
    examples_are_what_their_APIs_say,
    every_link_in_the_READMEs_leads_somewhere,
]
