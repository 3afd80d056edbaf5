#!/usr/bin/env python3
"""What the OpenAI and LangChain packages make of an engine that fails, with the API in between.

    pip install -r examples/requirements.txt
    eval "$(cargo stack --env)"
    python examples/sdk_failures.py

Needs the simulated engine, which is told in the prompt how to misbehave. Exits with 1 when something is not as it should be.
"""

import asyncio
import json
import os
import sys
import time
import urllib.request

import openai
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

BASE_URL = os.environ.get("API_URL", "http://127.0.0.1:8080") + "/v1"
KEY = os.environ["DEMO_API_KEY"]
ENGINE = os.environ["ENGINE_URL"].removesuffix("/v1")
MODEL = "sim-small"

client = openai.OpenAI(base_url=BASE_URL, api_key=KEY)
wrong = 0


def check(what: str, fine: bool, seen: object) -> None:
    global wrong
    wrong += not fine
    print(f"{'ok   ' if fine else 'WRONG'} {what}: {seen}")


def prompt(settings: str) -> list:
    return [{"role": "user", "content": f"[[sim {settings}]]"}]


def stream(settings: str):
    return client.chat.completions.create(model=MODEL, messages=prompt(settings), stream=True)


def read(events) -> str:
    return "".join(event.choices[0].delta.content or "" for event in events if event.choices)


def cancelled() -> int:
    with urllib.request.urlopen(f"{ENGINE}/control") as answer:
        return json.load(answer)["stats"]["cancelled"]


def harmless() -> None:
    """Oddities of engines that break this or that client when they get through to it."""
    expected = len(read(stream("tokens=9")))
    for fault in ["crlf", "bom", "split:1", "empty-events", "no-done", "done-open", "long-line:2000000"]:
        length = len(read(stream(f"fault={fault} tokens=9")))
        check(f"stream with {fault}", length == expected, f"{length} characters")


def broken_streams() -> None:
    """After the first event: the part is delivered, then an exception."""
    for fault in ["reset:5", "half-chunk:5", "in-band-error:3", "named-error:3"]:
        part = ""
        try:
            for event in stream(f"fault={fault}"):
                part += event.choices[0].delta.content or "" if event.choices else ""
            check(f"stream with {fault}", False, "no exception")
        except openai.APIError as error:
            check(f"stream with {fault}", bool(part), f"{len(part)} characters, then {type(error).__name__}: {error}")


def statuses() -> None:
    """Before the first event: the exception that fits the status."""
    for fault, expected in {
        "status:400": openai.BadRequestError,
        "status:404": openai.NotFoundError,
        "status:429": openai.RateLimitError,
        "status:500": openai.InternalServerError,
        "html": openai.InternalServerError,
        "redirect": openai.InternalServerError,
    }.items():
        try:
            stream(f"fault={fault}")
            check(fault, False, "no exception")
        except openai.APIStatusError as error:
            check(fault, isinstance(error, expected), f"{type(error).__name__}: {error.status_code} {error.code}")
        client.models.list()  # a success between failures, or the breaker opens


def responses() -> None:
    for fault, last in {"no-done": "error", "in-band-error:3": "error", "bom": "response.completed"}.items():
        events = client.responses.create(model=MODEL, input=f"[[sim fault={fault}]]", stream=True)
        kinds = [event.type for event in events]
        check(f"responses with {fault}", kinds[-1] == last, kinds[-1])


def leaving() -> None:
    """Whoever leaves stops the engine."""
    before = cancelled()
    events = stream("tokens=100000 token-interval-ms=5")
    next(iter(events))
    events.close()
    time.sleep(0.25)
    check("close() cancels", cancelled() == before + 1, cancelled() - before)

    async def give_up() -> None:
        patient = openai.AsyncOpenAI(base_url=BASE_URL, api_key=KEY)
        request = patient.chat.completions.create(
            model=MODEL, messages=prompt("fault=hang-before-headers"), stream=True
        )
        try:
            await asyncio.wait_for(request, 0.3)
        except TimeoutError:
            await asyncio.sleep(0.25)

    before = cancelled()
    asyncio.run(give_up())
    check("a cancelled task cancels", cancelled() == before + 1, cancelled() - before)


def langchain() -> None:
    model = ChatOpenAI(model=MODEL, base_url=BASE_URL, api_key=KEY, stream_usage=True)
    chunks = list(model.stream("Hello!"))
    usage = [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata]
    check("langchain streams", len(chunks) > 10 and len(usage) == 1, f"{len(chunks)} chunks")
    check("langchain invokes", bool(model.invoke("Hello!").content), "an answer")
    embeddings = OpenAIEmbeddings(
        model="sim-embedding", base_url=BASE_URL, api_key=KEY, check_embedding_ctx_length=False
    )
    check("langchain embeds", len(embeddings.embed_query("stone")) == 1536, "1536 numbers")


if __name__ == "__main__":
    for part in [harmless, broken_streams, statuses, responses, leaving, langchain]:
        part()
    sys.exit(1 if wrong else 0)
