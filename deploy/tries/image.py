"""The image, built as the Dockerfile says, and the chart's Deployment with it, in a pod under podman.

podman is no Kubernetes: it takes the pod, its security context, its limits, its ConfigMap and its Secret as they are rendered, and does
without probes, Service and rollout. What is changed before is in `pod()`, and nothing else is.
"""

import base64
import json
import os
import pathlib
import time

import yaml

from checks import chart, tools

from . import images, stream
from .images import podman
from .sender import Sender, event, post
from .world import TOKEN, World, free_ports, status, wait_for

RATE, CONNECTIONS = 100, 10

CONFIG = """
[sources.openclaw]
path = "/openclaw/webhook"
preset = "openclaw"
verify = [{{ scheme = "bearer", secrets = [{{ file = "/run/secrets/senders/openclaw-token" }}] }}]

[sinks.js]
type = "nats"
servers = ["nats://host.containers.internal:{nats}"]
stream = "HOOKS"

[[routes]]
to = [{{ sink = "js", subject = "openclaw.{{attr.status}}" }}]
"""
# A config that differs: one more source.
MORE = """
[sources.partner]
path = "/partner"
verify = [{ scheme = "bearer", secrets = [{ file = "/run/secrets/senders/openclaw-token" }] }]
"""


def image():
    images.need("buildah", "podman", "runc", "catatonit", "iptables")
    began = time.monotonic()
    images.build()
    (described,) = json.loads(podman("image", "inspect", images.NAME))
    stand_ins = " on stand-ins for " + " and ".join(images.bases()) if images.get_bases() else ""
    print(f"        built{stand_ins} in {time.monotonic() - began:.0f} s; {described['Size'] / 1e6:.0f} MB in {len(described['RootFS']['Layers'])} layers", flush=True)
    yield from of_the_image(described)
    with World() as world:
        yield from in_a_pod(world, described["Healthcheck"]["Test"][1:])


def of_the_image(described):
    config = described["Config"]
    for key, wanted in (("User", "65532:65532"), ("StopSignal", "SIGTERM"), ("Entrypoint", ["/usr/local/bin/hookgate"]), ("Cmd", ["run"]), ("WorkingDir", "/etc/hookgate")):
        if config.get(key) != wanted:
            yield f"the image's {key} is {config.get(key)}, not {wanted}"
    said = podman("run", "--rm", "--network", "none", "--read-only", "--cap-drop", "ALL", images.NAME, "--version")
    if not said.strip().splitlines()[-1].startswith("hookgate "):
        yield f"the image does not say its version: {said.strip()}"


def in_a_pod(world, health):
    nats_port, http, admin = free_ports(3)
    world.nats(nats_port, "0.0.0.0")
    stream.make(nats_port)
    # Not the default name of the Secret: podman makes one volume of a ConfigMap and a Secret with one name.
    values = {"image": {"repository": "localhost/hookgate", "tag": "try"}, "existingSecrets": ["senders"], "config": CONFIG.format(nats=nats_port)}
    documents = chart.documents(chart.render(values, None))
    file = world.write("pod.yaml", yaml.safe_dump_all(pod(documents, http, admin)))
    podman("kube", "down", file, check=False)
    world.callback(lambda: podman("kube", "down", file, check=False))
    world.callback(lambda: [podman("volume", "rm", "--force", name, check=False) for name in ("hookgate", "senders")])
    podman("kube", "play", file)
    name = podman("ps", "--all", "--filter", f"ancestor={images.NAME}", "--format", "{{.Names}}").split()[0]
    logs = lambda: podman("logs", "--tail", 5, name, check=False)[1]
    wait_for(lambda: status(admin, "/readyz") == 200, lambda: f"the pod is ready: {logs()}")

    good = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    # podman 4.3 leaves a Secret in base64. That it is mended while hookgate runs shows that a replaced Secret is taken.
    if (got := post(http, "/openclaw/webhook", event(1), good)) != 401:
        yield f"with another token in the Secret an event is answered {got}"
    began = time.monotonic()
    directory = mounted(name, "/run/secrets/senders")
    (directory / "new").write_text(TOKEN)
    os.rename(directory / "new", directory / "openclaw-token")
    wait_for(lambda: post(http, "/openclaw/webhook", event(1), good) == 200, logs, 15)
    print(f"        a replaced Secret is in force after {time.monotonic() - began:.1f} s", flush=True)
    if 1 not in stream.runs(nats_port):
        yield "an event is answered, and not in the stream"
    yield from confinement(name)
    # The image's own health check, which is run without arguments where relay.toml is.
    code, said = podman("exec", name, *health, check=False)
    if code:
        yield f"the health check ends with {code}: {said.strip()}"
    yield from reload(name, http, good)
    yield from stop_under_load(name, http, nats_port)


def pod(documents, http, admin):
    """The rendered objects that podman takes, with ports of the host, and the Secret that the chart asks for."""
    token = base64.b64encode(TOKEN.encode()).decode()
    yield {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "senders"}, "data": {"openclaw-token": token}}
    for document in documents:
        if document["kind"] == "Deployment":
            spec = document["spec"]["template"]["spec"]
            document["spec"]["replicas"] = 1
            (container,) = spec["containers"]
            for port in container["ports"]:
                port["hostPort"] = {"http": http, "admin": admin}[port["name"]]
            # podman runs them inside the container, by curl, which the image does not have.
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                del container[probe]
            # Where it is left out podman 4.3 crashes.
            for volume in spec["volumes"]:
                if "secret" in volume:
                    volume["secret"]["optional"] = False
            yield document
        elif document["kind"] == "ConfigMap":
            yield document


def confinement(name):
    """As the kernel sees the process, not as the container was asked for."""
    process = podman("inspect", "--format", "{{.State.Pid}}", name).strip()
    state = dict(line.split(":\t", 1) for line in pathlib.Path(f"/proc/{process}/status").read_text().splitlines() if ":\t" in line)
    for key, wanted in (("Uid", "65532\t65532\t65532\t65532"), ("Gid", "65532\t65532\t65532\t65532"), ("CapEff", "0" * 16), ("CapBnd", "0" * 16), ("NoNewPrivs", "1"), ("Seccomp", "2")):
        if state[key].strip() != wanted:
            yield f"the process has {key} {state[key].strip()}, not {wanted}"
    for path in ("", "etc/hookgate/", "var/lib/hookgate/"):
        try:
            os.close(os.open(f"/proc/{process}/root/{path}written", os.O_CREAT | os.O_WRONLY))
            yield f"/{path} can be written to"
        except OSError as error:
            if error.errno != 30:
                yield f"/{path} cannot be written to for another reason: {error}"


def mounted(name, where):
    """The directory of the volume that the container has there."""
    (volume,) = [one["Source"] for one in json.loads(podman("inspect", name))[0]["Mounts"] if one["Destination"] == where]
    return pathlib.Path(volume)


def reload(name, http, good):
    """As the kubelet does it: a new directory, and a link to it that changes at once. podman made plain files of the ConfigMap."""
    directory = mounted(name, "/etc/hookgate")
    old = (directory / "relay.toml").read_text()
    for number, text in enumerate([old, old + MORE]):
        version = directory / f"..version_{number}"
        version.mkdir()
        (version / "relay.toml").write_text(text)
        (directory / "..data_tmp").symlink_to(version.name)
        os.rename(directory / "..data_tmp", directory / "..data")
        if number == 0:
            (directory / "relay.toml.tmp").symlink_to("..data/relay.toml")
            os.rename(directory / "relay.toml.tmp", directory / "relay.toml")
            if post(http, "/partner", '{"id": 1}', good) != 404:
                yield "the source that is added later is there already"
    began = time.monotonic()
    wait_for(lambda: post(http, "/partner", '{"id": 1}', good) == 200, "the changed ConfigMap in force", 15)
    print(f"        a changed ConfigMap is in force after {time.monotonic() - began:.1f} s", flush=True)


def stop_under_load(name, http, nats_port):
    with Sender(http, RATE, CONNECTIONS, 1_000_000) as sender:
        time.sleep(3)
        began = time.monotonic()
        podman("stop", "--time", 60, name)
        took = time.monotonic() - began
        time.sleep(0.5)
    code = podman("inspect", "--format", "{{.State.ExitCode}}", name).strip()
    found, accepted = stream.runs(nats_port), set(sender.accepted)
    # After it has ended nobody listens, and a sender is told so.
    refused = [one for one in sender.failures if one[3][0].startswith("ConnectionRefused")]
    print(f"        stopped under load: exit code {code} after {took:.1f} s; {len(accepted)} accepted, {len(refused)} refused afterwards", flush=True)
    if code != "0":
        yield f"a stop ends with {code}"
    yield from (f"run {run} was answered 2xx and is not in the stream" for run in sorted(accepted - found.keys()))
    for run, _, taken, (what, outcome) in sender.failures:
        if not what.startswith("ConnectionRefused"):
            yield f"request {run} fails after {taken * 1000:.0f} ms: {what} {outcome}; {'it is' if run in found else 'it is not'} in the stream"
