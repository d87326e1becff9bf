"""The alerts and the dashboard under a real Prometheus, while a real broker, and then Redis, is taken away and comes back.

Two installations share both: "spooled" has two replicas with spools, "bare" has one without. Time runs sixty times as fast in a copy of the
rules: an hour is a minute, a minute a second. The outage of 45 s so stands for one of 45 minutes.
"""

import json
import re
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request

import yaml

from checks import monitoring, tools

from . import picture, stream
from .sender import Sender, event, post
from .world import TOKEN, NotInTime, World, free_ports, status, wait_for

# Durations that are numbers of seconds. The bound of a slow answer, 1 s, is none of them: hookgate itself does not run faster.
# The bound of a late event, 60 s, is more than an answer may take, and so it stays: 5 s here.
SECONDS = {"> 600": "> 10", ", 3600)": ", 60)", 'le=~"60|60.0"': 'le=~"5|5.0"'}
# While its broker is away a spool makes an attempt every 5 s or so, and so does not run faster either.
LONGER = {"HookgateSpoolNotDraining": "20s"}

STEADY, OUTAGE = 50, 45
RATE = 25  # events a second for each installation
CONNECTIONS = 80  # so many that the rate is kept while each answer takes 2.5 s

# What docs/operations/outage.md shows; else the picture of a try is left in target.
PICTURE = tools.ROOT / "docs/operations/outage.svg"

# Which ought to fire when, in which installation. All others must not.
BROKER_AWAY = {
    # Events wait in the spools; nothing is refused.
    ("HookgateSinkDown", "spooled"), ("HookgateSinkFailing", "spooled"), ("HookgateFreshnessBudgetBurn", "spooled"),
    # Everything is.
    ("HookgateSinkDown", "bare"), ("HookgateSinkFailing", "bare"), ("HookgateAcceptanceBudgetFastBurn", "bare"), ("HookgateAcceptanceBudgetSlowBurn", "bare"),
}
# Its windows reach back six hours, here six minutes, which is longer than this takes.
LASTING = {("HookgateAcceptanceBudgetSlowBurn", "bare")}
# May fire here, and would not: those who wait when the broker returns are answered after up to 2.5 s, which is no sixtieth of what it is, and
# there is no day's worth of fast answers before them.
DISTORTED = {("HookgateLatencyBudgetSlowBurn", "spooled"), ("HookgateLatencyBudgetSlowBurn", "bare")}
MISHAPS = {
    ("HookgateDedupStoreDown", "spooled"), ("HookgateDedupStoreDown", "bare"), ("HookgateDedupBypassed", "spooled"), ("HookgateDedupBypassed", "bare"),
    ("HookgateEventsRefused", "spooled"), ("HookgateDeadLetters", "spooled"), ("HookgateVerificationFailures", "spooled"), ("HookgatePayloadMismatch", "spooled"),
}

# Queries of the dashboard that have no data here, by a part of each, and why.
EMPTY = {
    "hookgate_key_fetches_total": "no source verifies tokens by keys that are fetched",
    "hookgate_spool_quarantined_segments": "no spool is damaged",
    "hookgate_spool_corrupt_records_total": "no spool is damaged",
    "hookgate_sink_client_": "there is no Kafka sink",
    "changes(process_start_time_seconds": "nothing is started again",
}

COMMON = """
[server]
listen = "127.0.0.1:{http}"
drain_delay = "0s"
{spool}
[admin]
listen = "127.0.0.1:{admin}"

[dedup.redis]
url = "redis://127.0.0.1:{redis}"
# Longer than by default: what is tried here shares a machine with all that tries it.
timeout = "1s"
prefix = "{name}:"

[sources.openclaw]
path = "/openclaw/webhook"
preset = "openclaw"
verify = [{{ scheme = "bearer", secrets = [{{ env = "OPENCLAW_TOKEN" }}] }}]
max_body = "3 MiB"

[sources.partner]
path = "/partner"
verify = [{{ scheme = "bearer", secrets = [{{ env = "OPENCLAW_TOKEN" }}] }}]
event_id = ["/id"]
body = "json"
max_body = "1 KiB"
challenges = [{{ method = "POST", when = [{{ field = "/challenge" }}], text = "{{/challenge}}" }}]

[sinks.js]
type = "nats"
servers = ["nats://127.0.0.1:{nats}"]
stream = "HOOKS"

[[routes]]
name = "openclaw"
when = 'source == "openclaw"'
to = [{{ sink = "js", subject = "openclaw.{name}.{{attr.status}}" }}]

[[routes]]
name = "partner"
when = 'source == "partner" && json.id != "nowhere"'
to = [{{ sink = "js", subject = "openclaw.partner" }}]
"""


def alerts():
    with World() as world:
        (nats_port, redis_port, web, *ports) = free_ports(9)
        replicas = {}
        nats, redis = world.nats(nats_port), world.redis(redis_port)
        stream.make(nats_port)
        for number, (name, spool) in enumerate([("spooled", 1), ("spooled", 2), ("bare", None)]):
            http, admin = ports[2 * number : 2 * number + 2]
            table = f'\n[spool]\ndir = "{world.directory}/spool-{spool}"\n' if spool else ""
            config = COMMON.format(http=http, admin=admin, spool=table, redis=redis_port, nats=nats_port, name=name)
            process = world.hookgate(f"{name}-{number}", config)
            wait_for(lambda: status(admin, "/readyz") == 200, lambda: f"hookgate ready: {process.said()}")
            replicas[admin] = (name, http)
        hurried, wrong = hurry((monitoring.MONITORING / "rules.yaml").read_text())
        yield from wrong
        prometheus = Prometheus(world, web, hurried, {name: [admin for admin, (of, _) in replicas.items() if of == name] for name in ("spooled", "bare")})

        wait_for(lambda: prometheus.value("count(hookgate_build_info)") == len(replicas), "every replica scraped")
        wait_for(lambda: not prometheus.firing(), "no alert fires")
        marks = {"start": time.time()}
        doors = [http for _, http in replicas.values()]
        halves = [Sender(door, RATE / 2, CONNECTIONS // 2, first) for door, first in zip(doors, (1_000_000, 2_000_000))]
        senders = [*halves, Sender(doors[2], RATE, CONNECTIONS, 3_000_000)]
        with senders[0], senders[1], senders[2]:
            time.sleep(STEADY)
            yield from prometheus.compare("while all is well", marks["start"], set())
            marks["down"] = time.time()
            nats.stop(signal.SIGKILL)
            time.sleep(OUTAGE)
            nats.start()
            marks["up"] = time.time()
            yield from prometheus.resolved(BROKER_AWAY - LASTING, 90)
            time.sleep(3)
            marks["end"] = time.time()
        yield from prometheus.compare("while the broker is away", marks["start"], BROKER_AWAY, DISTORTED)
        for name, some in (("spooled", senders[:2]), ("bare", senders[2:])):
            told = {f"{code} {outcome}".strip(): sum(one.answers[code, outcome] for one in some) for code, outcome in sorted({key for one in some for key in one.answers}, key=str)}
            print(f"        {name}: " + ", ".join(f"{count} x {what}" for what, count in told.items()), flush=True)
        yield from (f"spooled: run {run} was answered {outcome}" for one in senders[:2] for run, _, _, outcome in one.failures)

        accepted = {run for one in senders for run in one.accepted}
        wait_for(lambda: prometheus.value('sum(hookgate_spool_events)') == 0, "the spools empty")
        found = stream.runs(nats_port)
        print(f"        {len(accepted)} events accepted, {len(accepted & found.keys())} of them in the stream, {sum(found.values()) - len(found)} twice", flush=True)
        yield from (f"run {run} was answered 2xx and is not in the stream" for run in sorted(accepted - found.keys()))
        yield from (f"run {run} is in the stream {count} times" for run, count in found.items() if count > 1)
        say_spans(prometheus.spans(marks["start"]), marks)

        picture.draw(prometheus, marks, PICTURE if "--write" in sys.argv else tools.ROOT / "target/outage.svg")

        # Once the windows have forgotten the outage.
        mishaps = time.time()
        with Sender(doors[0], RATE, CONNECTIONS, 4_000_000), Sender(doors[2], RATE, CONNECTIONS, 5_000_000):
            redis.stop(signal.SIGKILL)
            exercise(*doors[:2], next(iter(replicas)))
            time.sleep(12)
            redis.start()
            yield from prometheus.resolved(MISHAPS - {("HookgatePayloadMismatch", "spooled")}, 60)
        yield from prometheus.compare("while Redis is away and senders err", mishaps, MISHAPS, LASTING | DISTORTED)

        for admin in replicas:
            yield from lint_of_metrics(admin)
        yield from dashboard_has_data(prometheus, marks["start"])


def hurry(text):
    """The rules with every duration divided by sixty, and what was not there to be divided."""
    groups, wrong = yaml.safe_load(text), []

    def faster(match):
        number, unit = int(match[2]), match[3]
        shorter = {"m": f"{number}s", "h": f"{number}m", "d": f"{number * 24}m", "w": f"{number * 168}m"}[unit]
        return f"{match[1]}{shorter}"

    found = set()
    for rule in (rule for group in groups["groups"] for rule in group["rules"]):
        expression = re.sub(r"(\[|offset )(\d+)([mhdw])", faster, rule["expr"])
        for seconds, fewer in SECONDS.items():
            if seconds in expression:
                found.add(seconds)
                expression = expression.replace(seconds, fewer)
        rule["expr"] = expression
        if "for" in rule:
            rule["for"] = LONGER.get(rule["alert"]) or re.sub(r"()(\d+)([mhdw])$", faster, rule["for"])
    wrong += [f"no rule has {seconds}, which is said to be a duration" for seconds in SECONDS.keys() - found]
    return yaml.safe_dump(groups, sort_keys=False, width=1000), wrong


def exercise(first, second, admin):
    """The ways of a request that a broker's outage does not take."""
    good = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    expected = [
        (200, first, "/openclaw/webhook", event(9), good, "POST"),
        (200, second, "/openclaw/webhook", event(9), good, "POST"),
        (200, first, "/openclaw/webhook", event(9), good, "POST"),
        (401, first, "/openclaw/webhook", event(10), good | {"Authorization": "Bearer wrong"}, "POST"),
        (401, first, "/openclaw/webhook", event(10), {}, "POST"),
        (404, first, "/nobody", event(10), good, "POST"),
        (405, first, "/openclaw/webhook", None, {}, "GET"),
        (413, first, "/partner", "x" * 2000, good, "POST"),
        (400, first, "/partner", "no JSON", good, "POST"),
        (422, first, "/partner", '{"id": "nowhere"}', good, "POST"),
        (200, first, "/partner", '{"challenge": "c"}', good, "POST"),
        # More than the broker takes: a dead letter.
        (202, first, "/openclaw/webhook", event(11)[:-1] + f', "output": "{"x" * 1_200_000}"}}', good, "POST"),
        *((401, first, "/partner", '{"id": "1"}', {"Authorization": "Bearer wrong"}, "POST") for _ in range(30)),
        *((200, first, "/partner", json.dumps({"id": "same", "time": number}), good, "POST") for number in range(20)),
    ]
    for wanted, port, path, body, headers, method in expected:
        got = post(port, path, body, headers, method)
        if got != wanted:
            raise tools.Failed(f"{method} {path} {(body or '')[:40]} is answered {got}, not {wanted}")
    post(admin, "/reload", "")


def lint_of_metrics(admin):
    with urllib.request.urlopen(f"http://127.0.0.1:{admin}/metrics", timeout=5) as answer:
        text = answer.read()
    done = subprocess.run([str(tools.promtool()), "check", "metrics"], input=text, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode or done.stdout.strip():
        yield from (f"promtool check metrics: {line}" for line in done.stdout.decode().strip().splitlines())


def dashboard_has_data(prometheus, start):
    """Each query over the whole time, as the dashboard asks it."""
    filled = lambda text: re.sub(r"\$\w+", ".*", text.replace("$__rate_interval", "10s").replace("$__range", "1m"))
    asked, empty = 0, set()
    for where, expression in monitoring.dashboard_expressions(filled):
        asked += 1
        series = prometheus.range(expression, start, time.time(), 1)
        if any(value != "NaN" for one in series for _, value in one["values"]):
            continue
        reasons = [part for part in EMPTY if part in expression]
        empty |= set(reasons)
        if not reasons:
            yield f"dashboard: {where}: no data: {expression}"
    print(f"        dashboard: {asked} queries; without data, as expected: " + "; ".join(f"{part} ({EMPTY[part]})" for part in sorted(empty)))
    yield from (f"dashboard: {part} is said to be empty, and is not" for part in EMPTY.keys() - empty)


def say_spans(spans, marks):
    for (name, where), (began, ended) in sorted(spans.items(), key=lambda item: item[1]):
        print(f"        {began - marks['down']:+6.0f} s to {ended - marks['up']:+4.0f} s after the return: {name} ({where})", flush=True)


class Prometheus:
    def __init__(self, world, port, rules, targets):
        self.url = f"http://127.0.0.1:{port}/api/v1"
        rule_file = world.write("rules.yaml", rules)
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(rule_file)],
            "scrape_configs": [{
                "job_name": "hookgate",
                "static_configs": [{"targets": [f"127.0.0.1:{admin}" for admin in admins], "labels": {"namespace": name}} for name, admins in targets.items()],
            }],
        }
        file = world.write("prometheus.yaml", yaml.safe_dump(config))
        program = tools.debian_program("prometheus", "prometheus")
        process = world.start("prometheus", *program, f"--config.file={file}", f"--storage.tsdb.path={world.directory}/tsdb", f"--web.listen-address=127.0.0.1:{port}")
        wait_for(lambda: status(port, "/-/ready") == 200, lambda: f"Prometheus ready: {process.said()}")

    def _get(self, what, **parameters):
        with urllib.request.urlopen(f"{self.url}/{what}?{urllib.parse.urlencode(parameters)}", timeout=20) as answer:
            return json.load(answer)["data"]["result"]

    def value(self, expression):
        found = self._get("query", query=expression)
        return float(found[0]["value"][1]) if found else None

    def range(self, expression, start, end, step):
        return self._get("query_range", query=expression, start=start, end=end, step=step)

    def spans(self, start):
        """From when to when each alert fired: (name, namespace) to (first, last)."""
        found = {}
        for one in self.range('ALERTS{alertstate="firing"}', start, time.time(), 1):
            key, times = (one["metric"]["alertname"], one["metric"].get("namespace", "")), [float(at) for at, _ in one["values"]]
            old = found.get(key, (times[0], times[-1]))
            found[key] = (min(old[0], times[0]), max(old[1], times[-1]))
        return found

    def fired(self, start):
        return set(self.spans(start))

    def firing(self):
        return {(one["metric"]["alertname"], one["metric"].get("namespace", "")) for one in self._get("query", query='ALERTS{alertstate="firing"}')}

    def compare(self, when, start, wanted, allowed=frozenset()):
        fired = self.fired(start)
        yield from (f"{name} ({where}) does not fire {when}" for name, where in sorted(wanted - fired))
        yield from (f"{name} ({where}) fires {when}" for name, where in sorted(fired - wanted - allowed))

    def resolved(self, alerts, limit):
        try:
            wait_for(lambda: not (self.firing() & alerts), "resolved", limit)
        except NotInTime:
            yield from (f"{name} ({where}) still fires {limit} s after the return" for name, where in sorted(self.firing() & alerts))
