"""Loses its transport and comes back with the last offset that it saw."""

import json
import os

import socketio


def say(at, **more):
    print(json.dumps({"at": at, **more}), flush=True)


transports = {"websocket": ["websocket"], "upgrade": ["polling", "websocket"], "polling": ["polling"]}[os.environ["MODE"]]
client = socketio.Client(reconnection_delay=0.05, reconnection_delay_max=0.2)
last = {"sessionId": os.environ["SESSION_ID"]}
numbers = []


@client.event
def connect():
    say("connected", transport=client.transport())


@client.event
def disconnect(reason=None):
    say("disconnected", reason=reason)


@client.on("message")
def message(data, *rest):
    if rest and isinstance(rest[-1], str):
        last["offset"] = rest[-1]
    if data["type"] == "action":
        numbers.append(data["data"]["n"])
        say("action", n=data["data"]["n"])
    if data["type"] == "task_completed":
        say("end", numbers=numbers)
        client.disconnect()


client.connect(os.environ["BASE_URL"], auth=lambda: last, transports=transports)
client.wait()
