"""A sender at a constant rate, over connections that are kept alive. It repeats nothing: what fails has failed. Like most HTTP clients it
looks, before it uses a connection again, whether that was closed meanwhile."""

import collections
import http.client
import json
import select
import threading
import time

from .world import TOKEN


def event(run, job="try"):
    """As OpenClaw sends it; `run` is its identity."""
    return json.dumps({"jobId": job, "action": "finished", "runAtMs": run, "durationMs": 70, "status": "ok", "summary": "x" * 200})


class Sender:
    """`rate` events a second over `connections` connections to `port`, until it is stopped. Each event has its number in `runAtMs`."""

    def __init__(self, port, rate, connections, first, headers=None):
        self.port, self.pause, self.first = port, connections / rate, first
        self.headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"} | (headers or {})
        self.answers = collections.Counter()
        # Numbers of those that were answered with 2xx, and what became of all others.
        self.accepted, self.failures, self.seconds = [], [], []
        # Connections that the other end closed after an answer that had not said so: a request that comes at that moment is lost.
        self.closed_unannounced = 0
        self._stop, self._lock, self._next = threading.Event(), threading.Lock(), first
        self._threads = [threading.Thread(target=self._send, args=(number * self.pause / connections,), daemon=True) for number in range(connections)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def sent(self):
        return self._next - self.first

    def _send(self, offset):
        connection, used = None, 0
        due = time.monotonic() + offset
        while not self._stop.wait(max(0, due - time.monotonic())):
            # One that was late does not send faster afterwards than its rate.
            due = max(due + self.pause, time.monotonic())
            with self._lock:
                run, self._next = self._next, self._next + 1
            began = time.monotonic()
            try:
                if connection and select.select([connection.sock], [], [], 0)[0]:
                    self.closed_unannounced += 1
                    connection.close()
                    connection = None
                if connection is None:
                    connection, used = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10), 0
                connection.request("POST", "/openclaw/webhook", event(run), self.headers)
                answer = connection.getresponse()
                outcome = (answer.status, json.loads(answer.read()).get("outcome", ""))
                used += 1
                if answer.will_close:
                    connection.close()
                    connection = None
            except (OSError, http.client.HTTPException) as error:
                outcome = (f"{type(error).__name__} on request {used + 1} of its connection", str(error))
                connection.close()
                connection = None
            taken = time.monotonic() - began
            with self._lock:
                self.answers[outcome] += 1
                self.seconds.append(taken)
                if outcome[0] in (200, 202):
                    self.accepted.append(run)
                else:
                    self.failures.append((run, time.time(), taken, outcome))

    def percentile(self, part):
        ordered = sorted(self.seconds)
        return ordered[min(len(ordered) - 1, int(len(ordered) * part))] if ordered else 0


def post(port, path, body, headers=None, method="POST"):
    """The status of a single request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()
