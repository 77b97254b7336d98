"""Follows a task to its end with the blocking client, and answers its question."""

import json
import os

import socketio


def say(at, **more):
    print(json.dumps({"at": at, **more}), flush=True)


transports = {"websocket": ["websocket"], "upgrade": ["polling", "websocket"], "polling": ["polling"]}[os.environ["MODE"]]
client = socketio.Client()
heard = []


@client.event
def connect():
    say("connected", sid=client.get_sid())


@client.on("message")
def message(data, *_):
    heard.append(data)
    if data["type"] == "guardrail_trigger":
        say("asked", value=data["data"]["value"])
        client.emit("message", {"actionType": "guardrail", "prompt": "secret answer 1", "newState": "resume"})


@client.on("error")
def error(data, *_):
    say("error", error=data)


@client.on("end_session")
def end_session(data, *_):
    say("end", heard=heard, transport=client.transport(), ended=data)
    client.disconnect()


client.connect(os.environ["BASE_URL"], auth={"sessionId": os.environ["SESSION_ID"]}, transports=transports)
client.wait()
