"""A browser's EventSource and fetch against the API: `examples/runs.html` in a headless Chromium, by its own driver.

Run by `cargo verify --full --only browser`, which sets API_URL, DEMO_API_KEY and PAGE_URL (where examples/ is served). It needs
`chromedriver` and nothing that is not in Python.
"""

import json
import os
import subprocess
import sys
import time
import urllib.request

PORT = int(os.environ["DRIVER_PORT"])
PAGE = f"{os.environ['PAGE_URL']}/runs.html#api={os.environ['API_URL']}&key={os.environ['DEMO_API_KEY']}&leave-open=1"


def call(method: str, path: str, body: object = None) -> object:
    """One command of WebDriver (https://www.w3.org/TR/webdriver2/)."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{PORT}{path}", data, {"content-type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)["value"]


def until(what: str, look) -> object:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            if value := look():
                return value
        except OSError:
            pass
        time.sleep(0.1)
    sys.exit(f"not within a minute: {what}")


def main() -> None:
    driver = subprocess.Popen(["chromedriver", f"--port={PORT}"], stdout=subprocess.DEVNULL)
    try:
        until("the driver answers", lambda: call("GET", "/status")["ready"])
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        options = {"browserName": "chrome", "goog:chromeOptions": {"args": arguments}}
        session = call("POST", "/session", {"capabilities": {"alwaysMatch": options}})["sessionId"]
        try:
            check(f"/session/{session}")
        finally:
            call("DELETE", f"/session/{session}")
    finally:
        driver.terminate()
        driver.wait()


def check(session: str) -> None:
    def js(script: str) -> object:
        return call("POST", f"{session}/execute/sync", {"script": f"return {script}", "args": []})

    call("POST", f"{session}/url", {"url": PAGE})
    js("document.forms[0].requestSubmit()")
    until("the answer begins", lambda: js("document.getElementById('answer').textContent"))
    # The page goes away in the middle; the run does not, and the page takes it up again.
    call("POST", f"{session}/refresh", {})
    until("the run ends", lambda: js("document.getElementById('state').value") == "completed")
    answer = js("document.getElementById('answer').textContent")
    assert len(answer) > 20, answer
    # Left open, EventSource asks again after the end, gets 204, and stops.
    until("EventSource stops", lambda: js("document.body.dataset.source") == "closed")
    print(f"run in a browser: {answer[:60]}...")

    # And a stream by fetch.
    script = """
        const [api, key, done] = arguments;
        (async () => {
            const body = { model: 'sim-small', stream: true, messages: [{ role: 'user', content: 'Hello!' }] };
            const headers = { authorization: 'Bearer ' + key, 'content-type': 'application/json' };
            const response = await fetch(api + '/v1/chat/completions', { method: 'POST', headers, body: JSON.stringify(body) });
            const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
            let text = '', pieces = 0;
            for (let read; !(read = await reader.read()).done; pieces++) text += read.value;
            done([response.status, pieces, text]);
        })().catch((error) => done([0, 0, String(error)]));
    """
    arguments = [os.environ["API_URL"], os.environ["DEMO_API_KEY"]]
    status, pieces, text = call("POST", f"{session}/execute/async", {"script": script, "args": arguments})
    assert status == 200 and text.endswith("data: [DONE]\n\n"), (status, text)
    assert pieces > 1, "it came in one piece"
    print(f"fetch in a browser: {pieces} pieces")


main()
