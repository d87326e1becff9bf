"""Rules, their tests, the dashboard, the runbooks: they name what exists, and each other."""

import json
import re
import tempfile

import yaml

from . import tools

MONITORING = tools.DEPLOY / "monitoring"
RUNBOOKS = tools.ROOT / "docs/runbooks"
TELEMETRY = tools.ROOT / "crates/hookgate/src/telemetry"

# Those that the crate metrics-process exports on Linux, which names them in its own code.
PROCESS_METRICS = {
    "process_cpu_seconds_total", "process_max_fds", "process_open_fds", "process_resident_memory_bytes",
    "process_start_time_seconds", "process_threads", "process_virtual_memory_bytes", "process_virtual_memory_max_bytes",
}
WORDS = {"and", "or", "unless", "bool", "offset", "inf", "nan"}


def rules():
    for group in yaml.safe_load((MONITORING / "rules.yaml").read_text())["groups"]:
        yield from group["rules"]


def alerts():
    return [rule for rule in rules() if "alert" in rule]


def dashboard():
    return json.loads((MONITORING / "dashboard.json").read_text())


def _filled(expression):
    expression = expression.replace("$__rate_interval", "5m").replace("$__range", "1h")
    return re.sub(r"\$\w+", "x", expression)


def dashboard_expressions(filled=_filled):
    """Each with what it is in, variables filled in."""
    board = dashboard()
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], filled(target["expr"])
    for annotation in board["annotations"]["list"]:
        yield annotation["name"], filled(annotation["expr"])
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            inner = re.fullmatch(r"label_values\((.*), \w+\)", variable["query"]["query"])
            yield f"variable {variable['name']}", filled(inner.group(1))


def metrics():
    """The names that hookgate exports, as the code has them, and those that follow from histograms."""
    code = "".join(path.read_text().split("#[cfg(test)]")[0] for path in sorted(TELEMETRY.glob("*.rs")))
    names = set(re.findall(r'"(hookgate_[a-z0-9_]+)"', code))
    histograms = set(re.findall(r'histogram!\(\s*"(hookgate_[a-z0-9_]+)"', code))
    names |= {f"{name}{suffix}" for name in histograms for suffix in ("_bucket", "_count", "_sum")}
    names -= histograms
    return names | (PROCESS_METRICS if "metrics_process" in code else set())


def names_in(expression):
    """The metrics that an expression names: what is left without texts, labels, times and functions."""
    text = re.sub(r"#.*", "", expression)
    text = re.sub(r'"[^"]*"', "", text)
    text = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", text)
    text = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", text)
    text = re.sub(r"\b\d+(\.\d+)?(ms|[smhdwy])?\b", " ", text)
    return {name for name in re.findall(r"[A-Za-z_:][A-Za-z0-9_:]*(?!\w|\s*\()", text) if name not in WORDS}


def promtool_takes_the_rules():
    code, said = tools.run(tools.promtool(), "check", "rules", MONITORING / "rules.yaml")
    if code:
        yield said.strip()
    code, said = tools.run(tools.promtool(), "check", "config", "--syntax-only", tools.DEPLOY / "compose/prometheus.yaml")
    if code:
        yield said.strip()


def every_alert_does_what_its_test_says():
    code, said = tools.run(tools.promtool(), "test", "rules", "rules_test.yaml", cwd=MONITORING)
    if code:
        yield said.strip()


def every_alert_has_a_firing_and_a_silent_case():
    tests = yaml.safe_load((MONITORING / "rules_test.yaml").read_text())["tests"]
    fires, silent = set(), set()
    for test in tests:
        series = " ".join(one["series"] for one in test["input_series"])
        for expected in test["promql_expr_test"]:
            (name,) = re.findall(r'alertname="(\w+)"', expected["expr"])
            if expected["exp_samples"]:
                fires.add(name)
            # Either nothing fires, or something that stands beside what does.
            if not expected["exp_samples"] or ('namespace="good"' in series and all("good" not in one["labels"] for one in expected["exp_samples"])):
                silent.add(name)
    names = {alert["alert"] for alert in alerts()}
    yield from (f"{name} has no case in which it fires" for name in sorted(names - fires))
    yield from (f"{name} has no case in which it is silent" for name in sorted(names - silent))
    yield from (f"{name} is tested and is no alert" for name in sorted((fires | silent) - names))


def every_alert_has_a_runbook_that_begins_with_what_to_type():
    names = {alert["alert"] for alert in alerts()}
    for alert in alerts():
        name = alert["alert"]
        page = RUNBOOKS / f"{name}.md"
        if alert["annotations"].get("runbook_url") != f"docs/runbooks/{name}.md":
            yield f"{name}: runbook_url is not docs/runbooks/{name}.md"
        if alert["labels"].get("severity") not in ("page", "ticket"):
            yield f"{name}: severity is neither page nor ticket"
        if not page.exists():
            yield f"{name}: docs/runbooks/{name}.md does not exist"
        elif not re.match(rf"# {name}\n\n```sh\n", page.read_text()):
            yield f"docs/runbooks/{name}.md does not begin with what to type"
    for page in sorted(RUNBOOKS.glob("*.md")):
        if page.stem not in names | {"README"}:
            yield f"docs/runbooks/{page.name} is of no alert"


def every_expression_of_the_dashboard_parses():
    promtool = tools.promtool()
    recorded = [{"record": f"panel:{number}", "expr": expression} for number, (_, expression) in enumerate(dashboard_expressions())]
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump({"groups": [{"name": "dashboard", "rules": recorded}]}, file)
        file.flush()
        code, said = tools.run(promtool, "check", "rules", file.name)
    if code:
        yield said.strip()


def the_dashboard_asks_the_chosen_data_source():
    board = dashboard()
    if board["templating"]["list"][0]["type"] != "datasource":
        yield "the first variable is no data source"
    for panel in board["panels"]:
        for source in [panel.get("datasource"), *(target.get("datasource") for target in panel.get("targets", []))]:
            if panel["type"] != "row" and source != {"type": "prometheus", "uid": "${datasource}"}:
                yield f"{panel['title']}: its data source is not ${{datasource}}"
    numbers = [panel["id"] for panel in board["panels"]]
    if len(numbers) != len(set(numbers)):
        yield "two panels have one id"


def every_metric_that_is_named_exists():
    known = metrics() | {rule["record"] for rule in rules() if "record" in rule}
    named = [(f"rule {rule.get('alert') or rule['record']}", rule["expr"]) for rule in rules()]
    named += [(f"dashboard: {title}", expression) for title, expression in dashboard_expressions()]
    for where, expression in named:
        for name in sorted(names_in(expression) - known):
            yield f"{where}: {name} is not exported"
    pages = [*sorted(RUNBOOKS.glob("*.md")), tools.DEPLOY / "README.md", tools.CHART / "README.md"]
    pages += [tools.CHART / "templates/autoscaling.yaml", *sorted((tools.DEPLOY / "examples").glob("*.yaml"))]
    for page in pages:
        text = page.read_text()
        # What grep is given, like hookgate_(a|b_.*), stands for all that begin so.
        choices = re.findall(r"\bhookgate_([a-z0-9_]*)\(([^()'`]*)", text)
        begun = {f"hookgate_{head}{re.match('[a-z0-9_]*', tail).group()}" for head, tails in choices for tail in tails.split("|")}
        for name in sorted((set(re.findall(r"\bhookgate_[a-z0-9_]+", text)) | begun) - known):
            # A histogram is exported as three metrics, and called by its own name.
            found = f"{name}_count" in known or (name in begun or name.endswith("_")) and any(one.startswith(name) for one in known)
            if not found:
                yield f"{page.relative_to(tools.ROOT)}: {name} is not exported"


def every_label_value_that_is_named_exists():
    """A misspelt `result="bypased"` would be silent for ever."""
    code = "".join(path.read_text() for path in sorted(tools.ROOT.glob("crates/*/src/**/*.rs")))
    expressions = [(rule.get("alert") or rule["record"], rule["expr"]) for rule in rules()] + list(dashboard_expressions())
    for where, expression in expressions:
        for label, values in re.findall(r'\b(outcome|result|reason|required|path)(?:=~|!~|!=|=)"([^"]*)"', expression):
            for value in values.split("|"):
                if f'"{value}"' not in code:
                    yield f'{where}: nothing has {label}="{value}"'


def the_dashboard_shows_every_metric():
    shown = set().union(*(names_in(expression) for _, expression in dashboard_expressions()))
    family = lambda name: re.sub(r"_(bucket|count|sum)$", "", name) if "_seconds" in name or "_bytes" in name else name
    missing = {family(name) for name in metrics() - PROCESS_METRICS} - {family(name) for name in shown} - NOT_SHOWN
    yield from (f"{name} is on no panel" for name in sorted(missing))


# Told by another panel: the counter of what became of events, the state of the spool's disk as an alert, sizes beside counts.
NOT_SHOWN = {
    "hookgate_events_received_total",
    "hookgate_spool_writable",
    "hookgate_spool_segments",
    "hookgate_sink_last_success_timestamp_seconds",
    "hookgate_sink_client_queued_bytes",
    "hookgate_sink_client_round_trip_p99_seconds",
}

CHECKS = [
    promtool_takes_the_rules,
    every_alert_does_what_its_test_says,
    every_alert_has_a_firing_and_a_silent_case,
    every_alert_has_a_runbook_that_begins_with_what_to_type,
    every_expression_of_the_dashboard_parses,
    the_dashboard_asks_the_chosen_data_source,
    every_metric_that_is_named_exists,
    every_label_value_that_is_named_exists,
    the_dashboard_shows_every_metric,
]
