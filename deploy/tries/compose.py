"""The compose file's default profile under podman-compose: hookgate, NATS, its stream, Redis.

What the file names is taken from a registry where that can be reached. Where not, stand-ins of the same names are made of the same
programs: of NATS from their Go modules, Redis from Debian. hookgate's image is the one that the part image builds.
"""

import json
import os
import shutil
import time
import urllib.request

import yaml

from checks import tools
from checks.tools import DEPLOY

from . import images
from .images import podman
from .sender import event, post
from .world import World, connects, status, wait_for

HTTP, ADMIN = 8080, 9090
GOOD = {"Authorization": "Bearer change-me", "Content-Type": "application/json"}

NATS = "github.com/nats-io/nats-server/v2@v2.12.15"
NATS_CLI = "github.com/nats-io/natscli/nats@v0.4.0"
# What is in a stand-in, and how it is started.
STAND_INS = {
    "nats": 'COPY nats-server /\nENTRYPOINT ["/nats-server"]',
    "natsio/nats-box": "COPY nats /usr/local/bin/nats\nCOPY passwd /etc/passwd\nWORKDIR /root",
    "redis": 'COPY redis/ /',
}


def compose():
    images.need("buildah", "podman", "runc", "catatonit", "iptables")
    if connects(HTTP) or connects(ADMIN):
        raise tools.Missing(f"port {HTTP} or {ADMIN} is taken, and the compose file names them")
    images.build()
    podman("tag", images.NAME, "localhost/hookgate:latest")
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    names = sorted({one["image"] for one in services.values() if "profiles" not in one and "build" not in one})
    with World() as world:
        made = [name for name in names if get(name, world.directory)]
        if made:
            print(f"        stand-ins for {', '.join(made)}", flush=True)
        run = lambda *words: tools.run(tools.script("podman-compose"), "--podman-args", " ".join(map(str, images.options())), "--file", DEPLOY / "compose.yaml", *words)
        world.callback(lambda: run("down", "--volumes"))
        run("down", "--volumes")
        code, said = run("up", "--detach", "--no-build")
        if code:
            raise tools.Failed(f"podman-compose up: {said.strip()[-600:]}")
        yield from used(run)


def used(run):
    logs = lambda: f"hookgate: {podman('logs', '--tail', 4, container('hookgate'), check=False)[1]}"
    wait_for(lambda: status(ADMIN, "/readyz") == 200, logs)
    # The stream is made by a service of its own, which may be later.
    wait_for(lambda: post(HTTP, "/openclaw/webhook", event(1), GOOD) == 200, logs)
    yield from expect("a repeat", 1, 200)
    # The first may have gone to the spool, where the stream was not there yet.
    wait_for(lambda: messages() == 1, lambda: f"one message in the stream, but {messages()}; {logs()}")
    wait_for(lambda: metric("hookgate_dedup_store_up") == 1, "Redis used")
    began = time.monotonic()
    podman("stop", container("nats"))
    yield from expect("an event without NATS", 2, 202)
    podman("start", container("nats"))
    wait_for(lambda: messages() == 2, lambda: f"the spooled event in the stream; {readiness()}; {logs()}", 90)
    print(f"        NATS stopped and started: the spooled event is in the stream {time.monotonic() - began:.0f} s after", flush=True)
    state = json.loads(podman("inspect", container("hookgate")))[0]
    if not state["HostConfig"]["ReadonlyRootfs"] or state["EffectiveCaps"]:
        yield f"hookgate's root is writable, or it has rights: {state['EffectiveCaps']}"
    code, said = podman("exec", container("hookgate"), "/usr/local/bin/hookgate", "health", check=False)
    if code:
        yield f"the health check ends with {code}: {said.strip()}"
    began = time.monotonic()
    run("stop", "hookgate")
    took = time.monotonic() - began
    code = podman("inspect", "--format", "{{.State.ExitCode}}", container("hookgate")).strip()
    print(f"        stopped with {code} after {took:.0f} s", flush=True)
    # drain_delay is 5 s, and there is nothing in flight.
    if took > 15:
        yield f"a stop takes {took:.0f} s: {podman('logs', '--tail', 8, container('hookgate'), check=False)[1]}"
    if code != "0":
        yield f"hookgate ends with {code}"


def expect(what, number, wanted):
    got = post(HTTP, "/openclaw/webhook", event(number), GOOD)
    if got != wanted:
        yield f"{what} is answered {got}, not {wanted}"


def container(service):
    return f"hookgate_{service}_1"


def metric(name):
    with urllib.request.urlopen(f"http://127.0.0.1:{ADMIN}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return next((float(line.split()[-1]) for line in lines if line.startswith(name)), None)


def readiness():
    with urllib.request.urlopen(f"http://127.0.0.1:{ADMIN}/readyz", timeout=5) as answer:
        return json.dumps(json.load(answer))


def messages():
    code, said = podman("run", "--rm", "--network", "hookgate_default", "localhost/natsio/nats-box:0.18.0" if images.has("localhost/natsio/nats-box:0.18.0") else "natsio/nats-box:0.18.0", "nats", "--server=nats:4222", "stream", "info", "HOOKS", "--json", check=False)
    return json.loads(said[said.index("{") :])["state"]["messages"] if code == 0 else None


def get(name, directory):
    """Fetches an image, or makes a stand-in for it. Whether it is such."""
    short = name.split(":")[0]
    if images.has(f"localhost/{name}"):
        return True
    full = name if name.count("/") else f"library/{name}"
    if podman("pull", "--quiet", f"docker.io/{full}", check=False)[0] == 0:
        return False
    context = directory / short.replace("/", "-")
    context.mkdir()
    if short == "redis":
        images.need("mmdebstrap")
        code, said = tools.run("mmdebstrap", "--variant=extract", "--include=base-files,redis-server", images.SUITE, context / "redis.tar")
        if code:
            raise tools.Missing(f"mmdebstrap cannot make a stand-in for {name}")
        (context / "redis").mkdir()
        tools.run("tar", "-xf", context / "redis.tar", "-C", context / "redis", "--exclude=./dev/*")
        os.remove(context / "redis.tar")
    else:
        program, package = ("nats-server", NATS) if short == "nats" else ("nats", NATS_CLI)
        (context / "passwd").write_text("root:x:0:0::/root:/sbin/nologin\n")
        shutil.copy(tools.go_program(program, package, static=True), context)
    (context / "Dockerfile").write_text(f"FROM scratch\nENV PATH=/usr/local/bin:/usr/bin:/bin\n{STAND_INS[short]}\n")
    code, said = images.buildah("bud", "--isolation", "chroot", "--tag", f"localhost/{name}", context)
    if code:
        raise tools.Failed(f"buildah bud {name}: {said.strip()[-400:]}")
    return True
