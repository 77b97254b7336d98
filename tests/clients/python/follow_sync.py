"""Follows a task to its end with the blocking client, and answers its question."""

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
client = socketio.Client()
heard = []


@client.event
def connect():
    say("connected", sid=client.get_sid())


@client.on("message")
def message(data, offset):
    heard.append((int(offset.split(":")[1]), data))
    if data["type"] == "guardrail_trigger":
        say("asked", value=data["data"]["value"])
        client.emit("message", {"actionType": "guardrail", "prompt": "secret answer 1", "newState": "resume"})


@client.on("error")
def error(data, *_):
    say("error", error=data)


@client.on("end_session")
def end_session(data, *_):
    # Handlers of earlier events may still be on their way.
    time.sleep(0.3)
    # This client runs each handler on a thread of its own: the order is that of the offsets.
    in_order = [data for _, data in sorted(heard, key=lambda one: one[0])]
    say("end", heard=in_order, transport=client.transport(), ended=data)
    client.disconnect()


client.connect(os.environ["BASE_URL"], auth={"sessionId": os.environ["SESSION_ID"]}, transports=transports)
client.wait()
