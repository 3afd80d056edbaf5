#!/usr/bin/env python3
"""The official OpenAI package against the API: only base_url and api_key differ from OpenAI itself.

    pip install openai
    eval "$(cargo stack --env)"      # API_URL, DEMO_API_KEY, DEMO_EMAIL, DEMO_PASSWORD
    python examples/openai_client.py

With DEMO_API_KEY it uses the key, otherwise it logs in with DEMO_EMAIL and DEMO_PASSWORD. MODEL and EMBEDDING_MODEL name
models of a real engine.
"""

import json
import os
import sys
import time
import urllib.request

import openai

API_URL = os.environ.get("API_URL", "http://127.0.0.1:8080")
MODEL = os.environ.get("MODEL", "sim-small")
EMBEDDING_MODEL = os.environ.get("EMBEDDING_MODEL", "sim-embedding")
QUESTION = [{"role": "user", "content": "What is ballast for?"}]


def credential() -> str:
    """An API key, or else an access token: both are bearer tokens to the API."""
    if key := os.environ.get("DEMO_API_KEY"):
        return key
    try:
        account = {"email": os.environ["DEMO_EMAIL"], "password": os.environ["DEMO_PASSWORD"]}
    except KeyError as missing:
        sys.exit(f"{missing.args[0]} is not set. Run: eval \"$(cargo stack --env)\"")
    request = urllib.request.Request(
        f"{API_URL}/v1/auth/login", json.dumps(account).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)["access_token"]


def title(text: str) -> None:
    print(f"\n== {text}")


def main() -> None:
    key = credential()
    client = openai.OpenAI(base_url=f"{API_URL}/v1", api_key=key)

    title("models")
    print(", ".join(model.id for model in client.models.list()))

    title("chat, streamed")
    started = time.monotonic()
    first = usage = None
    stream = client.chat.completions.create(
        model=MODEL, messages=QUESTION, stream=True, stream_options={"include_usage": True}
    )
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            if choice.delta.content:
                first = first or time.monotonic() - started
                print(choice.delta.content, end="", flush=True)
    tokens = f"{usage.prompt_tokens} + {usage.completion_tokens} tokens" if usage else "no usage reported"
    print(f"\n[first token after {(first or 0) * 1000:.0f} ms, {tokens}]")

    title("chat, in one piece")
    raw = client.chat.completions.with_raw_response.create(model=MODEL, messages=QUESTION, max_tokens=20)
    print(raw.parse().choices[0].message.content)
    left = raw.headers.get("x-ratelimit-remaining-tokens")
    print(f"[{left} tokens left this minute]")

    title("responses, streamed")
    with client.responses.create(model=MODEL, input="Say it in one line.", stream=True) as events:
        for event in events:
            if event.type == "response.output_text.delta":
                print(event.delta, end="", flush=True)
    print()

    title("embeddings")
    vectors = client.embeddings.create(model=EMBEDDING_MODEL, input=["stone", "water"]).data
    print(f"{len(vectors)} vectors of {len(vectors[0].embedding)} numbers")

    title("a wrong request")
    try:
        client.chat.completions.create(model=MODEL, messages=[])
    except openai.BadRequestError as error:
        print(f"{type(error).__name__}: {error.body['message']}")
    else:
        sys.exit("a request without messages was not refused")

    title("a wrong key")
    try:
        openai.OpenAI(base_url=f"{API_URL}/v1", api_key="blst_wrong").models.list()
    except openai.AuthenticationError as error:
        print(f"{type(error).__name__}: {error.body['message']}")
    else:
        sys.exit("a wrong key was not refused")

    title("what it cost")
    request = urllib.request.Request(f"{API_URL}/v1/usage?days=1", headers={"authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request) as answer:
        for row in json.load(answer)["data"]:
            print(f"{row['day']}  {row['model']:<15} {row['requests']:>4} requests {row['total_tokens']:>7} tokens")


if __name__ == "__main__":
    main()
