"""A session that does not exist: the refusal's own words reach the caller."""

import asyncio
import json
import os

import socketio

transports = {"websocket": ["websocket"], "upgrade": ["polling", "websocket"], "polling": ["polling"]}[os.environ["MODE"]]
said = []


def blocking():
    client = socketio.Client(reconnection=False)
    client.on("connect_error", lambda data=None: said.append(data))
    try:
        client.connect(os.environ["BASE_URL"], auth={"sessionId": "a1b2c3d4e5f6"}, transports=transports)
    except socketio.exceptions.ConnectionError:
        return
    raise SystemExit("it was let in")


async def asynchronous():
    client = socketio.AsyncClient(reconnection=False)

    async def refused(data=None):
        said.append(data)

    client.on("connect_error", refused)
    try:
        await client.connect(os.environ["BASE_URL"], auth={"sessionId": "a1b2c3d4e5f6"}, transports=transports)
    except socketio.exceptions.ConnectionError:
        return
    raise SystemExit("it was let in")


blocking()
asyncio.run(asynchronous())
print(json.dumps({"at": "end", "said": said}), flush=True)
