//! Every variable there is: name, default, who needs it, and its documentation.

/// What happens when a variable is not set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenUnset {
    /// Must be set everywhere.
    Required,
    /// May be left out; the feature behind it is then off.
    Optional,
    /// The same default everywhere.
    Value(&'static str),
    /// One default for development, another for staging and production.
    PerEnvironment {
        /// In development.
        development: &'static str,
        /// In staging and production.
        deployed: &'static str,
    },
    /// A default in development; must be set elsewhere.
    Development(&'static str),
    /// A sample secret in development; elsewhere it must be set, and a value that contains `sample` is refused.
    Sample {
        /// The development value.
        value: &'static str,
        /// The part by which the sample is recognised.
        sample: &'static str,
    },
}

/// Which roles read a variable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UsedBy {
    /// API and worker.
    Both,
    /// The API only.
    Api,
    /// The worker only.
    Worker,
}

/// One environment variable.
#[derive(Debug, Clone, Copy)]
pub struct Variable {
    /// Its name.
    pub name: &'static str,
    /// The heading it stands under.
    pub section: &'static str,
    /// Who reads it.
    pub used_by: UsedBy,
    /// What happens when it is not set.
    pub default: WhenUnset,
    /// Its value is never printed.
    pub secret: bool,
    /// What it does, with units and bounds.
    pub help: &'static str,
    /// A value as one would write it.
    pub example: &'static str,
    /// What the same thing is called in other systems.
    pub also_known_as: &'static [&'static str],
}

impl Variable {
    pub(crate) fn missing_hint(&self) -> String {
        if self.secret && matches!(self.default, WhenUnset::Sample { .. }) {
            "make one with `ballast keygen`".to_owned()
        } else {
            format!("for example {}={}", self.name, self.example)
        }
    }
}

const fn v(
    section: &'static str,
    name: &'static str,
    used_by: UsedBy,
    default: WhenUnset,
    example: &'static str,
    help: &'static str,
) -> Variable {
    Variable { name, section, used_by, default, secret: false, help, example, also_known_as: &[] }
}

impl Variable {
    const fn secret(mut self) -> Self {
        self.secret = true;
        self
    }
    const fn aka(mut self, names: &'static [&'static str]) -> Self {
        self.also_known_as = names;
        self
    }
}

use UsedBy::{Api, Both, Worker};
use WhenUnset::{Development, Optional, PerEnvironment, Required, Sample, Value};

const PROCESS: &str = "Process";
const STORES: &str = "Postgres and Redis";
const HTTP: &str = "HTTP";
const AUTH: &str = "Authentication";
const CREDENTIALS: &str = "Stored credentials";
const LIMITS: &str = "Rate limits";
const ENGINE: &str = "AI engine";
const RUNS: &str = "Resumable runs";
const HOOKS: &str = "Webhooks";
const WORK: &str = "Worker";
const WATCH: &str = "Logs, metrics, traces, errors";

/// Every variable, in the order of the documentation.
#[rustfmt::skip]
pub const VARIABLES: &[Variable] = &[
    v(PROCESS, "APP_ENV", Both, Value("development"), "production",
        "development, staging or production. Outside development sample secrets are refused and required variables have no defaults. Unset on Railway means production.").aka(&["NODE_ENV", "ENVIRONMENT"]),
    v(PROCESS, "HOST", Both, Value("::"), "0.0.0.0",
        "Address to listen on. `::` takes IPv4 too and falls back to 0.0.0.0 where there is no IPv6."),
    v(PROCESS, "PORT", Both, Value("8080"), "8080",
        "Port of the API, or of the worker's health routes.").aka(&["API_PORT"]),
    v(PROCESS, "ADMIN_PORT", Both, Optional, "9090",
        "Port for /metrics without a token, reachable only from inside. Unset: /metrics is served on PORT and asks for METRICS_TOKEN."),
    v(PROCESS, "SHUTDOWN_DELAY", Both, PerEnvironment { development: "0s", deployed: "2s" }, "2s",
        "After SIGTERM: how long readiness is off before the listener closes, so that balancers notice (0s to 60s)."),
    v(PROCESS, "SHUTDOWN_BUDGET", Both, PerEnvironment { development: "10s", deployed: "45s" }, "45s",
        "From SIGTERM to the end of the process (1s to 15m). Must be at least 5 s below the platform's draining time.").aka(&["SHUTDOWN_TIMEOUT", "GRACEFUL_SHUTDOWN_TIMEOUT"]),

    v(STORES, "DATABASE_URL", Both, Required, "postgres://ballast:secret@localhost:5432/ballast",
        "Postgres 14 or newer. TLS by `?sslmode=verify-full`. May be a transaction pooler that keeps track of prepared statements (PgBouncer 1.21 or newer with max_prepared_statements above 0, Neon) when DATABASE_DIRECT_URL is set; statement timeouts are then the role's (`alter role ... set statement_timeout`).").secret(),
    v(STORES, "DATABASE_DIRECT_URL", Both, Optional, "postgres://ballast:secret@db.internal:5432/ballast",
        "The same database without a pooler: for LISTEN, migrations and locks.").secret().aka(&["DIRECT_URL"]),
    v(STORES, "DATABASE_POOL_SIZE", Both, Value("10"), "10",
        "Connections per process (1 to 500). All processes together must stay below the server's max_connections.").aka(&["connection_limit"]),
    v(STORES, "DATABASE_ACQUIRE_TIMEOUT", Both, Value("2s"), "2s",
        "How long a request waits for a connection before it is answered 503 with Retry-After (10ms to 60s).").aka(&["pool_timeout"]),
    v(STORES, "DATABASE_STATEMENT_TIMEOUT", Both, Value("10s"), "10s",
        "The server ends a statement after this (100ms to 10m)."),
    v(STORES, "DATABASE_CALL_DEADLINE", Both, Value("15s"), "15s",
        "The client gives a call up after this and closes the connection: a server that vanished answers nothing (100ms to 15m)."),
    v(STORES, "DATABASE_SLOW_QUERY", Both, Value("500ms"), "500ms",
        "Statements that take longer are logged as warnings (1ms to 1h).").aka(&["SLOW_QUERY_THRESHOLD"]),
    v(STORES, "REDIS_URL", Both, Required, "redis://localhost:6379",
        "Redis 7 or newer, or Valkey. TLS by `rediss://`. Holds only what may be lost.").secret().aka(&["UPSTASH_REDIS_URL"]),
    v(STORES, "REDIS_KEY_PREFIX", Both, Value("ballast:"), "myapp:",
        "Goes in front of every key, so that several deployments can share a server."),
    v(STORES, "REDIS_POOL_SIZE", Both, Value("16"), "16",
        "Connections per process for everything but the hot path (1 to 500)."),

    v(HTTP, "PUBLIC_URL", Both, Development("http://localhost:8080"), "https://api.example.com",
        "Where clients reach the API: used in links and as the tokens' default issuer.").aka(&["API_BASE_URL"]),
    v(HTTP, "TRUSTED_PROXY", Api, Development("none"), "railway",
        "Whose word on the client's address counts: railway, none, or a list of networks. Wrong here means one bucket for all users, or none.").aka(&["TRUST_PROXY"]),
    v(HTTP, "CORS_ALLOWED_ORIGINS", Api, Optional, "https://app.example.com",
        "Exact origins, comma-separated. Unset: no cross-origin access. `*` is refused, because requests carry credentials.").aka(&["FRONTEND_URL", "CORS_ORIGIN"]),
    v(HTTP, "REQUEST_TIMEOUT", Api, Value("30s"), "30s",
        "Longest time for an ordinary request; AI routes have their own (1s to 15m)."),
    v(HTTP, "HTTP_HEADER_TIMEOUT", Both, Value("10s"), "10s",
        "From accept to the first byte, and from there to the end of the request head (1s to 5m)."),
    v(HTTP, "HTTP_BODY_IDLE_TIMEOUT", Both, Value("20s"), "20s",
        "Longest pause inside a request body; and the time for all of it, to which each KiB adds a second (1s to 5m)."),
    v(HTTP, "HTTP_KEEP_ALIVE", Both, Value("75s"), "75s",
        "How long an idle connection is kept; above the edge's own 60 s (1s to 1h)."),
    v(HTTP, "HTTP_WRITE_STALL_TIMEOUT", Both, Value("30s"), "30s",
        "A client that takes nothing for so long is cut (1s to 15m)."),
    v(HTTP, "HTTP_MAX_CONNECTIONS", Both, Value("20000"), "20000",
        "Open connections per process; beyond that new ones wait in the listen queue (10 to 1000000). Never more than three quarters of the files that the process may open."),

    v(AUTH, "JWT_SIGNING_KEY", Api, Sample { value: "dev:YmFsbGFzdC1kZXZlbG9wbWVudC1zYW1wbGUta2V5ISE", sample: "YmFsbGFzdC1kZXZlbG9wbWVudC1zYW1wbGUta2V5ISE" }, "k1:BASE64URL_OF_32_BYTES",
        "Signs access tokens (EdDSA): KID:SEED.").secret().aka(&["JWT_SECRET", "JWT_ACCESS_SECRET"]),
    v(AUTH, "JWT_VERIFY_KEYS", Api, Optional, "k0:BASE64URL_OF_32_BYTES",
        "Public keys accepted beside the signing key, comma-separated KID:PUBLIC: the next one before a rotation, the last one after it."),
    v(AUTH, "JWT_ISSUER", Api, Optional, "https://api.example.com",
        "The `iss` of access tokens. Default: PUBLIC_URL."),
    v(AUTH, "JWT_AUDIENCE", Api, Value("ballast-api"), "my-api",
        "The `aud` of access tokens."),
    v(AUTH, "ACCESS_TOKEN_TTL", Api, Value("15m"), "15m",
        "Lifetime of an access token (1m to 1h).").aka(&["JWT_EXPIRES_IN"]),
    v(AUTH, "REFRESH_TOKEN_TTL", Api, Value("30d"), "30d",
        "A session ends when its refresh token was not used for so long (1h to 365d).").aka(&["REFRESH_TOKEN_EXPIRES_IN", "JWT_REFRESH_EXPIRES_IN"]),
    v(AUTH, "SESSION_MAX_AGE", Api, Value("90d"), "90d",
        "A session ends after this, used or not (1h to 3650d)."),
    v(AUTH, "SERVER_SECRET", Api, Sample { value: "62616c6c6173742d646576656c6f706d656e742d73616d706c652d7365637265", sample: "62616c6c6173742d646576656c6f706d656e742d73616d706c652d7365637265" }, "64 hex digits",
        "32 random bytes in hex. Derives refresh tokens and hides e-mail addresses in Redis keys; every replica needs the same.").secret().aka(&["JWT_REFRESH_SECRET", "SESSION_SECRET"]),
    v(AUTH, "SIGNUP", Api, PerEnvironment { development: "open", deployed: "closed" }, "closed",
        "Who may register: open, invite (whom an administrator invited) or closed. Open sign-up spends AI money."),
    v(AUTH, "PASSWORD_HASH_CONCURRENCY", Api, Value("2"), "2",
        "Password hashings at a time, 19 MiB and about 20 ms of CPU each (1 to 64). Excess waits 1.5 s, then 503."),

    v(CREDENTIALS, "CHANNEL_ENCRYPTION_KEY", Both, Sample { value: "62616c6c6173742d646576656c6f706d656e742d73616d706c652d6372656465", sample: "62616c6c6173742d646576656c6f706d656e742d73616d706c652d6372656465" }, "64 hex digits",
        "Encrypts the credentials of other systems that users store (AES-256-GCM): 32 random bytes, in hex or base64. Several, comma-separated, while keys are rotated: the first one encrypts, all of them decrypt. API and worker need the same.").secret().aka(&["ENCRYPTION_KEY", "CREDENTIALS_ENCRYPTION_KEY"]),
    v(CREDENTIALS, "CREDENTIAL_PROVIDERS", Both, Value("openai=https://api.openai.com/v1"), "openai=https://api.openai.com/v1,mistral=https://api.mistral.ai/v1",
        "The systems that users may store credentials of, comma-separated NAME=URL: base URLs of OpenAI-compatible APIs. A stored credential is tried with a request to URL/models."),

    v(LIMITS, "RATE_LIMIT_GLOBAL", Both, PerEnvironment { development: "10000/15m", deployed: "100/15m" }, "100/15m",
        "Requests per client: the user, or the address when anonymous. Health routes are exempt.").aka(&["RATE_LIMIT_MAX", "RATE_LIMIT_WINDOW_MS"]),
    v(LIMITS, "RATE_LIMIT_LOGIN", Both, PerEnvironment { development: "50/15m", deployed: "5/15m" }, "5/15m",
        "Login attempts per address and account; a strict window."),
    v(LIMITS, "RATE_LIMIT_REFRESH", Both, PerEnvironment { development: "600/15m", deployed: "60/15m" }, "60/15m",
        "Refresh tokens and one-time tokens presented, per address."),
    v(LIMITS, "RATE_LIMIT_SIGNUP", Both, PerEnvironment { development: "50/1h", deployed: "5/1h" }, "5/1h",
        "Sign-ups per address; a strict window."),
    v(LIMITS, "RATE_LIMIT_ACCOUNT_MAIL", Both, PerEnvironment { development: "50/1h", deployed: "5/1h" }, "5/1h",
        "Mails to confirm an address or to reset a password, per address and account; a strict window. A mailbox gets at most 5 of a kind an hour, whoever asks."),
    v(LIMITS, "RATE_LIMIT_AI_REQUESTS", Both, PerEnvironment { development: "600/1m", deployed: "60/1m" }, "60/1m",
        "AI requests per user."),
    v(LIMITS, "RATE_LIMIT_AI_TOKENS", Both, PerEnvironment { development: "1000000/1m", deployed: "100000/1m" }, "100000/1m",
        "AI tokens per user, prompt and completion together."),
    v(LIMITS, "RATE_LIMIT_AI_TOKENS_DAILY", Both, PerEnvironment { development: "50000000/1d", deployed: "1000000/1d" }, "1000000/1d",
        "AI tokens per user and day (UTC)."),
    v(LIMITS, "RATE_LIMIT_USER_JOBS", Both, PerEnvironment { development: "2000/1h", deployed: "20/1h" }, "20/1h",
        "Jobs that a user starts (POST /v1/jobs); a strict window. The example of a policy for one route.").aka(&["COUPON_RATE_LIMIT"]),
    v(LIMITS, "AI_CONCURRENT_STREAMS", Both, PerEnvironment { development: "50", deployed: "10" }, "10",
        "AI requests at a time per user (1 to 100000)."),
    v(LIMITS, "API_REPLICAS", Both, Value("2"), "2",
        "How many API replicas run: while Redis is out each one allows its share of every limit (1 to 1000)."),

    v(ENGINE, "ENGINE_URL", Both, Required, "https://api.openai.com/v1",
        "Base URL of an OpenAI-compatible engine, with its /v1: vLLM, Ollama, llama.cpp, OpenAI, OpenRouter, LiteLLM.").aka(&["AI_ENGINE_URL", "OPENAI_BASE_URL"]),
    v(ENGINE, "ENGINE_API_KEY", Both, Optional, "sk-...",
        "Sent to the engine as a bearer token; never to a client.").secret().aka(&["OPENAI_API_KEY", "ANTHROPIC_API_KEY"]),
    v(ENGINE, "ENGINES", Both, Optional, "local=http://ollama:11434/v1,openai=https://api.openai.com/v1",
        "Further engines as NAME=URL, in order of preference behind the one at ENGINE_URL, whose name is `default`: asked when an engine before them fails, or by ENGINE_MODELS."),
    v(ENGINE, "ENGINES_API_KEYS", Both, Optional, "openai=sk-...",
        "The keys of ENGINES, as NAME=KEY.").secret(),
    v(ENGINE, "ENGINE_MODELS", Both, Optional, "gpt-*=openai|default,*=default",
        "Which engines have which models, as MODEL=ENGINE|ENGINE; a * ends a model's name, the first match counts, and a model without a match is refused. Unset: any engine has any model."),
    v(ENGINE, "ENGINE_PASSTHROUGH", Both, Value("default"), "local",
        "The one engine behind POST /v1/ai/{path}, by its name; off: the route answers 404."),
    v(ENGINE, "ENGINE_CONNECT_TIMEOUT", Both, Value("2s"), "2s",
        "To connect to the engine (50ms to 60s)."),
    v(ENGINE, "ENGINE_HEADER_HOLD", Both, Value("10s"), "10s",
        "The answer's head is held until the engine's first event, at most so long: a failing engine then still gives a real status code (100ms to 60s)."),
    v(ENGINE, "ENGINE_FIRST_TOKEN_TIMEOUT", Both, Value("60s"), "60s",
        "From the request to the engine's first event (100ms to 15m)."),
    v(ENGINE, "ENGINE_IDLE_TIMEOUT", Both, Value("60s"), "60s",
        "Longest silence of the engine inside a stream; comments don't count (100ms to 15m)."),
    v(ENGINE, "ENGINE_STREAM_TIMEOUT", Both, Value("10m"), "10m",
        "Longest stream (1s to 24h). Railway's edge ends requests after 15 minutes."),
    v(ENGINE, "ENGINE_RESPONSE_TIMEOUT", Both, Value("5m"), "5m",
        "Longest wait for an answer that is not a stream (1s to 1h).").aka(&["LLM_TIMEOUT", "AI_ENGINE_TIMEOUT"]),
    v(ENGINE, "ENGINE_RETRIES", Both, Value("1"), "1",
        "Retries before the first event, on connection errors and 502/503/504 (0 to 3).").aka(&["LLM_MAX_RETRIES"]),
    v(ENGINE, "STREAM_HEARTBEAT", Both, Value("15s"), "15s",
        "A comment is sent on a stream that was silent for so long (50ms to 5m)."),
    v(ENGINE, "AI_MAX_BODY_BYTES", Both, Value("8388608"), "8388608",
        "Largest request body on AI routes (1024 to 268435456)."),
    v(ENGINE, "AI_CACHE_ROUTES", Api, Optional, "embeddings",
        "Routes that answer from the cache without being asked to, comma-separated: chat, responses, embeddings. Unset: only requests with `X-AI-Cache: on`."),
    v(ENGINE, "AI_CACHE_TTL", Api, Value("1h"), "1h",
        "How long an answer is kept in the cache (1s to 30d)."),
    v(ENGINE, "AI_CACHE_MAX_BYTES", Api, Value("131072"), "131072",
        "Largest answer that is kept in the cache (1024 to 16777216)."),
    v(ENGINE, "AI_CACHE_PLACES", Api, Value("2048"), "2048",
        "So many answers are kept at most (1 to 10000000). Redis needs room for so many times AI_CACHE_MAX_BYTES: 256 MiB with the defaults."),
    v(ENGINE, "AI_CACHE_WAIT", Api, Value("30s"), "30s",
        "How long a request waits for the same one that is under way, before it asks the engine itself (0s to 5m)."),
    v(ENGINE, "AI_CACHE_SHARED", Api, Value("false"), "false",
        "`true`: users get answers to each other's requests, where those are exactly the same. Otherwise each user has a cache of one's own."),

    v(RUNS, "RUN_STREAM_EVENTS", Both, Value("10000"), "10000",
        "So many events of a run are kept in Redis, the last ones (10 to 1000000)."),
    v(RUNS, "RUN_STREAM_TTL", Both, Value("1h"), "1h",
        "For so long after its last event a run can be read, and its tickets are good (1s to 30d)."),
    v(RUNS, "RUN_CONCURRENCY", Worker, Value("20"), "20",
        "Runs at a time in this process, apart from WORKER_CONCURRENCY (1 to 1000)."),

    v(HOOKS, "STRIPE_WEBHOOK_SECRET", Api, Optional, "whsec_...",
        "Signing secret of the endpoint `/v1/webhooks/stripe` in Stripe's dashboard; several, comma-separated, while it is rotated. Unset: the route answers 404.").secret(),
    v(HOOKS, "WEBHOOK_SECRETS", Api, Optional, "crm=whsec_...,billing=whsec_...",
        "Senders of Standard Webhooks, comma-separated NAME=SECRET: each may post to `/v1/webhooks/NAME`. A name stands there twice while its secret is rotated.").secret(),

    v(WORK, "WORKER_CONCURRENCY", Worker, Value("10"), "10",
        "Jobs at a time in this process, over all queues; each queue keeps one of them for itself (1 to 1000). At most DATABASE_POOL_SIZE where jobs hold a connection for long."),
    v(WORK, "WORKER_POLL_INTERVAL", Worker, Value("1s"), "1s",
        "How often the queue is polled when no notification arrives, jittered (10ms to 60s)."),
    v(WORK, "WORKER_LEASE", Worker, Value("30s"), "30s",
        "A worker that was silent for so long is taken for dead and its jobs are run elsewhere (1s to 10m)."),
    v(WORK, "JOB_RETENTION", Worker, Value("7d"), "7d",
        "How long finished jobs are kept (1d to 365d)."),
    v(WORK, "EMBEDDING_MODEL", Worker, Value("text-embedding-3-small"), "nomic-embed-text",
        "The engine's model that documents are embedded with. Numbers of two models cannot be compared: after a change, documents are to be handed in anew."),
    v(WORK, "AUDIT_LOG_RETENTION", Worker, Value("365d"), "730d",
        "How long security events are kept (1d to 3650d)."),
    v(WORK, "USAGE_EVENT_RETENTION", Worker, Value("90d"), "30d",
        "How long single AI requests are kept once they are counted (1d to 3650d). The sums by hour stay."),
    v(WORK, "MAIL_FROM", Worker, Value("Ballast <noreply@example.com>"), "My App <noreply@example.com>",
        "Sender of e-mail.").aka(&["EMAIL_FROM"]),
    v(WORK, "RESEND_API_KEY", Both, Optional, "re_...",
        "Sends e-mail through Resend. Unset: no mail is sent; development shows it in the log and at /v1/admin/mails. The API reads only whether it is set.").secret(),
    v(WORK, "APP_URL", Worker, Optional, "https://app.example.com",
        "Where people use the front end: links in mails lead to APP_URL/verify-email, /reset-password and /register, with the token behind the #. Unset: mails hold the token and the route that takes it."),

    v(WATCH, "LOG_LEVEL", Both, Value("info"), "info,api=debug,sqlx=warn",
        "Filter of tracing: a level, or levels by target.").aka(&["RUST_LOG"]),
    v(WATCH, "LOG_FORMAT", Both, PerEnvironment { development: "pretty", deployed: "json" }, "json",
        "json or pretty."),
    v(WATCH, "METRICS_TOKEN", Both, Optional, "a long random string",
        "Bearer token for /metrics on PORT, at least 16 characters. Unset and no ADMIN_PORT: /metrics is closed outside development.").secret(),
    v(WATCH, "SENTRY_DSN", Both, Optional, "https://key@o1.ingest.sentry.io/1",
        "Reports errors, panics and failed jobs to Sentry.").secret(),
    v(WATCH, "SENTRY_TRACES_SAMPLE_RATE", Both, PerEnvironment { development: "1.0", deployed: "0.1" }, "0.1",
        "Share of requests traced, from 0.0 to 1.0; also for OTLP."),
    v(WATCH, "OTEL_EXPORTER_OTLP_ENDPOINT", Both, Optional, "http://localhost:4318",
        "Sends traces by OTLP over HTTP (protobuf) to this collector."),
];
