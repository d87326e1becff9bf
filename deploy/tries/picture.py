"""A picture of an outage, of the queries that the dashboard asks."""

from checks import tools

SPOOLED, BARE = 'namespace="spooled"', 'namespace="bare"'
RATE = "[5s]"
PANELS = [
    ("answers a second, with a spool", f"sum by (code) (rate(hookgate_http_requests_total{{{SPOOLED}}}{RATE})) > 0", "code"),
    ("answers a second, without", f"sum by (code) (rate(hookgate_http_requests_total{{{BARE}}}{RATE})) > 0", "code"),
    ("attempts to publish a second, with a spool", f"sum by (result) (rate(hookgate_publish_attempts_total{{{SPOOLED}}}{RATE})) > 0", "result"),
    ("time to answer, 99th percentile, seconds", f"histogram_quantile(0.99, sum by (le, namespace) (rate(hookgate_http_request_duration_seconds_bucket{RATE})))", "namespace"),
    ("events waiting in the spool", "sum by (instance) (hookgate_spool_events{namespace=\"spooled\"})", None),
    ("sinks up", "sum by (namespace) (hookgate_sink_up)", "namespace"),
]
COLOURS = {"200": "#2a9d4a", "202": "#2f6fbb", "503": "#c8372d", "504": "#e08a1e", "spooled": "#2f6fbb", "bare": "#c8372d", "acked": "#2a9d4a"}


def draw(prometheus, marks, path):
    matplotlib = tools.module("matplotlib")
    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "hookgate", "font.size": 8, "font.family": "sans-serif"}
    from matplotlib import pyplot

    zero, start, end = marks["down"], marks["down"] - 20, marks["end"]
    spans = sorted(prometheus.spans(marks["start"]).items(), key=lambda item: item[1][0])
    figure, axes = pyplot.subplots(len(PANELS) + 1, 1, sharex=True, figsize=(9, 11), height_ratios=[1] * len(PANELS) + [1.4], layout="constrained")
    for axis, (title, expression, label) in zip(axes, PANELS):
        for number, series in enumerate(prometheus.range(expression, start, end, 1)):
            points = [(float(at) - zero, float(value)) for at, value in series["values"] if value != "NaN"]
            name = series["metric"].get(label, "") if label else f"replica {number + 1}"
            # A gap between two points is no line.
            at, values = [], []
            for x, y in points:
                if at and x - at[-1] > 1.5:
                    at.append(x - 0.5)
                    values.append(float("nan"))
                at.append(x)
                values.append(y)
            axis.plot(at, values, label=name, linewidth=1.2, color=COLOURS.get(name))
        axis.set_title(title, loc="left", fontsize=8)
        axis.set_ylim(bottom=0)
        axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=7, frameon=False)
    for row, ((name, where), (began, ended)) in enumerate(reversed(spans)):
        axes[-1].barh(row, ended - began, left=began - zero, height=0.6, color=COLOURS.get(where))
    axes[-1].set_yticks(range(len(spans)), [f"{name.removeprefix('Hookgate')} ({where})" for (name, where), _ in reversed(spans)], fontsize=7)
    axes[-1].set_title("alerts that fire", loc="left", fontsize=8)
    axes[-1].set_xlabel("seconds after the broker was killed; in the rules each is a minute")
    for axis in axes:
        axis.axvspan(0, marks["up"] - zero, color="#000000", alpha=0.07, linewidth=0)
        axis.set_xlim(start - zero, end - zero)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
