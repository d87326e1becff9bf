"""The processes of a try: brokers, proxies and hookgate itself, in a directory and on ports of their own. All end with it."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

from checks import tools

TOKEN = "try-token"


class Process:
    """A program that writes what it says to a file, and can be started again."""

    def __init__(self, name, command, directory, env):
        self.name, self.command, self.env = name, [str(word) for word in command], os.environ | env
        self.log = directory / f"{name}.log"
        self.child = None

    def start(self):
        with self.log.open("ab") as log:
            self.child = subprocess.Popen(self.command, env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def stop(self, how=signal.SIGTERM, limit=60):
        """Its exit code."""
        if self.child.poll() is None:
            self.child.send_signal(how)
        try:
            return self.child.wait(limit)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
            return "killed"

    def said(self, lines=5):
        return " | ".join(self.log.read_text(errors="replace").splitlines()[-lines:])


class World(contextlib.ExitStack):
    def __enter__(self):
        super().__enter__()
        self.directory = pathlib.Path(self.enter_context(tempfile.TemporaryDirectory(prefix="hookgate-try-")))
        return self

    def start(self, name, *command, env=None):
        process = Process(name, command, self.directory, env or {})
        process.start()
        self.callback(lambda: process.stop(signal.SIGKILL))
        return process

    def write(self, name, text):
        path = self.directory / name
        path.write_text(text)
        return path

    def nats(self, port, address="127.0.0.1"):
        # Of Debian's, then of Go's: as tests/run does.
        try:
            program = tools.debian_program("nats-server", "nats-server")
        except tools.Missing:
            program = [tools.go_program("nats-server", tools.NATS)]
        server = self.start("nats", *program, "-a", address, "-p", port, "-js", "-sd", self.directory / "jetstream")
        wait_for(lambda: connects(port), f"nats-server: {server.said()}")
        return server

    def redis(self, port):
        program = tools.debian_program("redis-server", "redis-server", "redis-tools", "libjemalloc2", "liblzf1", "libatomic1")
        options = ["--bind", "127.0.0.1", "--port", port, "--save", "", "--appendonly", "no", "--dir", self.directory]
        server = self.start("redis", *program, *options, env={"LC_ALL": "C"})
        wait_for(lambda: connects(port), f"redis-server: {server.said()}")
        return server

    def hookgate(self, name, config):
        path = self.write(f"{name}.toml", config)
        env = {"OPENCLAW_TOKEN": TOKEN, "RUST_BACKTRACE": "1"}
        return self.start(name, tools.hookgate(), "run", "--config", path, env=env)


def free_ports(number):
    """Ports that nobody has now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def connects(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    except OSError:
        return False


def status(port, path):
    """Of a GET; None where nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


class NotInTime(tools.Failed):
    """What was waited for did not happen."""


def wait_for(condition, what, limit=30):
    """What `condition` returns once that is true."""
    end = time.monotonic() + limit
    while not (found := condition()):
        if time.monotonic() > end:
            raise NotInTime(f"after {limit} s still not: {what() if callable(what) else what}")
        time.sleep(0.1)
    return found
