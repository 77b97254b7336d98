"""Follows a task to its end with the asynchronous client, and answers its question."""

import asyncio
import json
import os

import socketio


def say(at, **more):
    print(json.dumps({"at": at, **more}), flush=True)


transports = {"websocket": ["websocket"], "upgrade": ["polling", "websocket"], "polling": ["polling"]}[os.environ["MODE"]]


async def main():
    client = socketio.AsyncClient()
    heard = []

    @client.event
    async def connect():
        say("connected", sid=client.get_sid())

    @client.on("message")
    async def message(data, *_):
        heard.append(data)
        if data["type"] == "guardrail_trigger":
            say("asked", value=data["data"]["value"])
            answer = {"actionType": "guardrail", "prompt": "secret answer 1", "newState": "resume"}
            await client.emit("message", answer)

    @client.on("error")
    async def error(data, *_):
        say("error", error=data)

    @client.on("end_session")
    async def end_session(data, *_):
        say("end", heard=heard, transport=client.transport(), ended=data)
        await client.disconnect()

    await client.connect(os.environ["BASE_URL"], auth={"sessionId": os.environ["SESSION_ID"]}, transports=transports)
    await client.wait()


asyncio.run(main())
