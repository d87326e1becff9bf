"""A rolling restart behind a load balancer: three processes, one after the other, are told to stop, end, and are started again, while a
sender keeps its connections open. HAProxy passes bytes on (mode tcp), so what a sender sees is what hookgate does."""

import signal
import time

from checks import tools

from . import stream
from .sender import Sender
from .world import World, free_ports, status, wait_for

RATE, CONNECTIONS, BEFORE_AND_AFTER = 200, 20, 4

CONFIG = """
[server]
listen = "127.0.0.1:{http}"

[admin]
listen = "127.0.0.1:{admin}"

[dedup.redis]
url = "redis://127.0.0.1:{redis}"

[sources.openclaw]
path = "/openclaw/webhook"
preset = "openclaw"
verify = [{{ scheme = "bearer", secrets = [{{ env = "OPENCLAW_TOKEN" }}] }}]

[sinks.js]
type = "nats"
servers = ["nats://127.0.0.1:{nats}"]
stream = "HOOKS"

[[routes]]
to = [{{ sink = "js", subject = "openclaw.{{attr.status}}" }}]
"""

# A server that does not answer /readyz with 200 twice in a row gets no new connections; those that it has stay.
HAPROXY = """
global
  stats socket {socket} level admin
defaults
  mode tcp
  timeout connect 2s
  timeout client 60s
  timeout server 60s
  option redispatch
  retries 3
listen hookgate
  bind 127.0.0.1:{port}
  balance roundrobin
  option httpchk GET /readyz
  default-server check inter 1s fall 2 rise 2
"""


def balancer():
    with World() as world:
        port, nats_port, redis_port, *ports = free_ports(9)
        pairs = list(zip(ports[::2], ports[1::2]))
        haproxy = tools.debian_program("haproxy", "haproxy", "liblua5.3-0", "libopentracing-c-wrapper0", "libopentracing1")
        world.nats(nats_port)
        world.redis(redis_port)
        stream.make(nats_port)
        replicas = []
        for number, (http, admin) in enumerate(pairs):
            replicas.append(world.hookgate(f"hookgate-{number}", CONFIG.format(http=http, admin=admin, redis=redis_port, nats=nats_port)))
            wait_for(lambda: status(admin, "/readyz") == 200, lambda: f"hookgate ready: {replicas[-1].said()}")
        servers = "".join(f"  server hookgate-{number} 127.0.0.1:{http} port {admin}\n" for number, (http, admin) in enumerate(pairs))
        file = world.write("haproxy.cfg", HAPROXY.format(port=port, socket=world.directory / "haproxy.sock") + servers)
        world.start("haproxy", *haproxy, "-f", file, "-db")
        wait_for(lambda: status(port, "/nobody") == 404, "haproxy answers")

        began, events = time.monotonic(), []
        with Sender(port, RATE, CONNECTIONS, 1_000_000) as sender:
            time.sleep(BEFORE_AND_AFTER)
            for replica, (_, admin) in zip(replicas, pairs):
                asked = time.monotonic()
                events.append((time.time(), f"{replica.name} is told to stop"))
                code = replica.stop(signal.SIGTERM)
                took = time.monotonic() - asked
                events.append((time.time(), f"{replica.name} has ended"))
                print(f"        {replica.name}: exit code {code} after {took:.1f} s", flush=True)
                if code != 0:
                    yield f"{replica.name} ends with {code}: {replica.said()}"
                replica.start()
                wait_for(lambda: status(admin, "/readyz") == 200, lambda: f"{replica.name} ready: {replica.said()}")
                # Two checks in a row, and something for it to do.
                time.sleep(BEFORE_AND_AFTER)
        seconds = time.monotonic() - began

        found = stream.runs(nats_port)
        accepted = set(sender.accepted)
        print(
            f"        {sender.sent} requests in {seconds:.0f} s over {CONNECTIONS} connections: {len(accepted)} accepted, {len(sender.failures)} failed,"
            f" p50 {sender.percentile(0.5) * 1000:.1f} ms, p99 {sender.percentile(0.99) * 1000:.1f} ms, slowest {sender.percentile(1) * 1000:.0f} ms",
            flush=True,
        )
        print(f"        in the stream: {len(accepted & found.keys())} of them, {sum(found.values()) - len(found)} twice", flush=True)
        if sender.closed_unannounced:
            yield f"{sender.closed_unannounced} connections were closed though the answer before had not said so: a request that comes at that moment is lost"
        for run, at, taken, (what, outcome) in sender.failures:
            since = max((event for event in events if event[0] <= at), default=(at, "nothing"))
            stored = "it is in the stream" if run in found else "it is not in the stream"
            yield f"request {run} fails after {taken * 1000:.0f} ms, {at - since[0]:.2f} s after {since[1]}: {what} {outcome}; {stored}"
        yield from (f"run {run} was answered 2xx and is not in the stream" for run in sorted(accepted - found.keys()))
        yield from (f"run {run} is in the stream {count} times" for run, count in found.items() if count > 1)
