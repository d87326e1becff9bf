"""The JetStream stream of a try: made beforehand, since hookgate makes none, and read back afterwards."""

import asyncio
import collections
import json

from checks import tools

NAME = "HOOKS"


def make(port, subjects=("openclaw.>",), window=7200):
    """A stream as docs/sinks/nats.md says, of one replica."""
    nats = tools.module("nats")

    async def work(stream):
        await stream.add_stream(nats.js.api.StreamConfig(
            name=NAME, subjects=list(subjects), storage="file", duplicate_window=window, max_age=7 * 86400, max_bytes=1 << 30, discard="new",
        ))

    _with_stream(port, work)


def runs(port):
    """How often each `runAtMs` is in it."""

    async def work(stream):
        found = collections.Counter()
        count = (await stream.stream_info(NAME)).state.messages
        subscription = await stream.subscribe("openclaw.>", stream=NAME, ordered_consumer=True)
        for _ in range(count):
            message = await subscription.next_msg(timeout=10)
            found[json.loads(message.data).get("runAtMs")] += 1
        # Those of another kind have none.
        found.pop(None, None)
        return found

    return _with_stream(port, work)


def _with_stream(port, work):
    nats = tools.module("nats")

    async def connected():
        connection = await nats.connect(f"nats://127.0.0.1:{port}")
        try:
            return await work(connection.jetstream())
        finally:
            await connection.close()

    return asyncio.run(connected())
