// A load for a deployed URL: ordinary requests at a constant rate, and streams beside them. Exit code 99 when a threshold is missed.
//
//   k6 run -e API_URL=https://staging.example.com -e API_KEY=... deploy/k6/load.js
//   -e RATE=50 (requests per second)  -e STREAMS=20  -e SECONDS=90  -e MODEL=sim-small
//
// The key needs scopes for what is called, and a policy that lets it through: otherwise this measures 429s. Never aim it at
// a place that is not yours.
import http from "k6/http";
import { check } from "k6";
import { Counter, Trend } from "k6/metrics";

const url = __ENV.API_URL;
const key = __ENV.API_KEY;
if (!url || !key) throw new Error("-e API_URL=... -e API_KEY=... are needed");

const seconds = Number(__ENV.SECONDS || 90);
const firstByte = new Trend("stream_first_byte", true);
const limited = new Counter("limited");

export const options = {
  scenarios: {
    requests: {
      executor: "constant-arrival-rate",
      exec: "request",
      rate: Number(__ENV.RATE || 50),
      timeUnit: "1s",
      duration: `${seconds}s`,
      preAllocatedVUs: 50,
    },
    streams: {
      executor: "constant-vus",
      exec: "stream",
      vus: Number(__ENV.STREAMS || 20),
      duration: `${seconds}s`,
      gracefulStop: "60s",
    },
  },
  thresholds: {
    "http_req_failed{scenario:requests}": ["rate<0.01"],
    "http_req_duration{scenario:requests}": ["p(95)<500", "p(99)<2000"],
    "http_req_failed{scenario:streams}": ["rate<0.01"],
    limited: ["count<1"],
  },
};

const headers = { "x-api-key": key, "content-type": "application/json" };

function counted(response) {
  if (response.status === 429) limited.add(1);
  return response;
}

export function request() {
  const response = counted(http.get(`${url}/v1/usage`, { headers }));
  check(response, { "usage is 200": (r) => r.status === 200 });
}

export function stream() {
  const body = JSON.stringify({
    model: __ENV.MODEL || "sim-small",
    stream: true,
    messages: [{ role: "user", content: "Say something about ballast." }],
  });
  const response = counted(http.post(`${url}/v1/chat/completions`, body, { headers, timeout: "120s" }));
  firstByte.add(response.timings.waiting);
  check(response, {
    "stream is 200": (r) => r.status === 200,
    "stream ends": (r) => r.body.includes("[DONE]"),
  });
}
