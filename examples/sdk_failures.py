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


def stats() -> dict:
    with urllib.request.urlopen(f"{ENGINE}/control") as answer:
        return json.load(answer)["stats"]


def cancelled() -> int:
    return stats()["cancelled"]


def defaults(settings: dict) -> None:
    """For all following requests to the engine, whoever asks."""
    request = urllib.request.Request(
        f"{ENGINE}/control", json.dumps(settings).encode(), {"content-type": "application/json"}, method="POST"
    )
    urllib.request.urlopen(request).close()


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


def retries() -> None:
    """The package tries again where that helps, and does not where the API says that it would not."""
    patient = client.with_options(max_retries=3)
    before = stats()["requests_total"]
    defaults({"fault": "status:500", "times": 2})
    answer = patient.chat.completions.create(model=MODEL, messages=prompt("tokens=3"))
    asked = stats()["requests_total"] - before
    check("two failures, then an answer", bool(answer.choices) and asked == 3, f"the engine was asked {asked} times")

    before, started = stats()["requests_total"], time.monotonic()
    try:
        # About 1.1 million tokens: more than a minute's, whenever it comes.
        patient.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "word " * 900_000}])
        check("a prompt beyond every limit", False, "no exception")
    except openai.RateLimitError as error:
        said = error.response.headers.get("x-should-retry")
        asked = stats()["requests_total"] - before
        check("a prompt beyond every limit", said == "false" and asked == 0, f"x-should-retry: {said}")


def cache() -> None:
    """The same request again, answered by the cache."""
    ask = client.with_options(default_headers={"X-AI-Cache": "on"}).chat.completions.with_raw_response.create
    question = prompt("tokens=5") + [{"role": "user", "content": str(time.time_ns())}]
    words, texts = [], []
    for _ in range(2):
        raw = ask(model=MODEL, messages=question)
        words.append(raw.headers.get("x-ai-cache"))
        texts.append(raw.parse().choices[0].message.content)
    check("an answer that is kept", words == ["miss", "hit"] and texts[0] == texts[1], " then ".join(words))


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
    for part in [harmless, broken_streams, statuses, retries, cache, responses, leaving, langchain]:
        part()
    sys.exit(1 if wrong else 0)
