"""Loses its transport and comes back with the last offset that it saw."""

import json
import os
import sys
import time

import socketio


def say(at, **more):
    # Handlers run on threads of their own: one write, so that lines stay whole.
    sys.stdout.write(json.dumps({"at": at, **more}) + "\n")
    sys.stdout.flush()


transports = {"websocket": ["websocket"], "upgrade": ["polling", "websocket"], "polling": ["polling"]}[os.environ["MODE"]]
client = socketio.Client(reconnection_delay=0.05, reconnection_delay_max=0.2)
last = {"sessionId": os.environ["SESSION_ID"]}
numbers = []


def number(offset):
    return int(offset.split(":")[1])


@client.event
def connect():
    say("connected", transport=client.transport())


@client.event
def disconnect(reason=None):
    say("disconnected", reason=reason)


@client.on("message")
def message(data, offset):
    # Handlers run beside each other: the highest offset is the last one.
    if "offset" not in last or number(offset) > number(last["offset"]):
        last["offset"] = offset
    if data["type"] == "action":
        numbers.append(data["data"]["n"])
        say("action", n=data["data"]["n"])
    if data["type"] == "task_completed":
        # Handlers of earlier events may still be on their way.
        time.sleep(0.3)
        say("end", numbers=sorted(numbers))
        client.disconnect()


client.connect(os.environ["BASE_URL"], auth=lambda: last, transports=transports)
client.wait()
