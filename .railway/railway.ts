/**
 * What runs on Railway: one project, the same resources in every environment.
 *
 *   railway config plan     what would change
 *   railway config apply    change it (asks before anything is deleted)
 *
 * Both compare this file with the environment that the directory is linked to (`railway link`). They deploy no code: that is
 * `railway up`, which the deploy workflow runs for the commit that CI passed. docs/deploy.md has the whole way, step by step.
 *
 * What is not listed here is planned for deletion. So every variable that a role reads is: `preserve()` keeps the value that
 * Railway holds, if it holds one, and is how secrets get here without being in a file. `cargo verify --only deployment` type-checks this file and evaluates it for each
 * environment; the result, evaluated.json, is committed and held against what the program needs.
 */
import { type BuildConfig, database, defineRailway, empty, preserve, project, redis, service } from "railway/iac";

/** The image's only program. There is no shell in it: no `&&`, no `$PORT`; the program reads its port itself. */
const program = "/usr/local/bin/ballast";

/** The code comes from `railway up`, and from nowhere else: with a GitHub source every push would deploy, passed or not. */
const source = empty();

/** A change of these makes a new image; one of the documentation does not. */
const watched = ["/Cargo.*", "/.cargo/**", "/.sqlx/**", "/crates/**", "/migrations/**", "/Dockerfile*"];
const build: BuildConfig = { builder: "DOCKERFILE", dockerfilePath: "Dockerfile", watchPatterns: watched };

/** Variables that are set in the dashboard, or not at all: the program has defaults. */
const kept = (names: string) => Object.fromEntries(names.trim().split(/\s+/).map((name) => [name, preserve()]));

/**
 * So long after SIGTERM a process is killed; the default is 0: at once. Above SHUTDOWN_BUDGET (45 s), which the program insists on
 * at its start. It is told by the variable, which has the same meaning as the setting: both, so that neither depends on the other.
 */
const draining = (seconds: number) => ({
  deploy: { drainingSeconds: seconds },
  env: { RAILWAY_DEPLOYMENT_DRAINING_SECONDS: String(seconds) },
});
const apiDraining = draining(60);
const workerDraining = draining(120);

/** A process that a deploy ends is not restarted; one that fails is, ten times. */
const restart = { restartPolicyType: "ON_FAILURE", restartPolicyMaxRetries: 10 } as const;

export default defineRailway((ctx) => {
  const production = ctx.isEnvironment("production");
  const replicas = production ? 2 : 1;

  // What `postgres("Postgres")` makes, with a version: that one takes whatever this package thinks of as newest, and pg_dump in the
  // backup's image refuses a server that is newer than itself.
  const db = database("Postgres", "postgres", {
    image: "ghcr.io/railwayapp-templates/postgres-ssl:17",
    output: "DATABASE_URL",
    defaultMountPath: "/var/lib/postgresql/data",
  });
  const cache = redis("Redis");

  /** What both roles read. */
  const common = {
    APP_ENV: production ? "production" : "staging",
    DATABASE_URL: db.env.DATABASE_URL,
    REDIS_URL: cache.env.REDIS_URL,
    // With a domain of your own: https://api.example.com
    PUBLIC_URL: "https://${{api.RAILWAY_PUBLIC_DOMAIN}}",
    API_REPLICAS: String(replicas),
    // Few requests: each of them is looked at. In production a tenth, unless it is set.
    SENTRY_TRACES_SAMPLE_RATE: production ? preserve() : "1.0",
    ...kept(`
      ADMIN_PORT SHUTDOWN_DELAY SHUTDOWN_BUDGET LOG_LEVEL LOG_FORMAT METRICS_TOKEN SENTRY_DSN OTEL_EXPORTER_OTLP_ENDPOINT
      DATABASE_DIRECT_URL DATABASE_POOL_SIZE DATABASE_ACQUIRE_TIMEOUT DATABASE_STATEMENT_TIMEOUT DATABASE_CALL_DEADLINE
      DATABASE_SLOW_QUERY REDIS_KEY_PREFIX REDIS_POOL_SIZE
      HTTP_HEADER_TIMEOUT HTTP_BODY_IDLE_TIMEOUT HTTP_KEEP_ALIVE HTTP_WRITE_STALL_TIMEOUT HTTP_MAX_CONNECTIONS
      CHANNEL_ENCRYPTION_KEY CREDENTIAL_PROVIDERS RESEND_API_KEY
      RATE_LIMIT_GLOBAL RATE_LIMIT_LOGIN RATE_LIMIT_REFRESH RATE_LIMIT_SIGNUP RATE_LIMIT_ACCOUNT_MAIL RATE_LIMIT_AI_REQUESTS
      RATE_LIMIT_AI_TOKENS RATE_LIMIT_AI_TOKENS_DAILY RATE_LIMIT_USER_JOBS AI_CONCURRENT_STREAMS
      ENGINE_URL ENGINE_API_KEY ENGINES ENGINES_API_KEYS ENGINE_MODELS ENGINE_PASSTHROUGH ENGINE_CONNECT_TIMEOUT ENGINE_HEADER_HOLD
      ENGINE_FIRST_TOKEN_TIMEOUT ENGINE_IDLE_TIMEOUT ENGINE_STREAM_TIMEOUT ENGINE_RESPONSE_TIMEOUT ENGINE_RETRIES
      STREAM_HEARTBEAT AI_MAX_BODY_BYTES RUN_STREAM_EVENTS RUN_STREAM_TTL
    `),
  };

  const api = service("api", {
    source,
    build,
    start: `${program} api`,
    // Once per deploy, before any replica of it starts; when it fails the old release stays.
    preDeploy: [`${program} migrate up`],
    healthcheck: "/readyz",
    healthcheckTimeout: 300,
    replicas,
    deploy: {
      ...restart,
      // The old release goes on serving beside the new one for so long.
      overlapSeconds: 20,
      ...apiDraining.deploy,
    },
    env: {
      ...common,
      TRUSTED_PROXY: "railway",
      ...apiDraining.env,
      ...kept(`
        CORS_ALLOWED_ORIGINS REQUEST_TIMEOUT
        JWT_SIGNING_KEY JWT_VERIFY_KEYS JWT_ISSUER JWT_AUDIENCE ACCESS_TOKEN_TTL REFRESH_TOKEN_TTL SESSION_MAX_AGE SERVER_SECRET
        SIGNUP PASSWORD_HASH_CONCURRENCY
        AI_CACHE_ROUTES AI_CACHE_TTL AI_CACHE_MAX_BYTES AI_CACHE_PLACES AI_CACHE_WAIT AI_CACHE_SHARED
        STRIPE_WEBHOOK_SECRET WEBHOOK_SECRETS
      `),
    },
  });

  const worker = service("worker", {
    source,
    build,
    start: `${program} worker`,
    // It serves its health on PORT, as the API does.
    healthcheck: "/readyz",
    healthcheckTimeout: 300,
    // One is enough for most; a deploy runs two for a moment, and any number is safe.
    replicas: 1,
    deploy: { ...restart, overlapSeconds: 0, ...workerDraining.deploy },
    env: {
      ...common,
      ...workerDraining.env,
      ...kept(`
        RUN_CONCURRENCY WORKER_CONCURRENCY WORKER_POLL_INTERVAL WORKER_LEASE JOB_RETENTION EMBEDDING_MODEL AUDIT_LOG_RETENTION
        USAGE_EVENT_RETENTION MAIL_FROM APP_URL
      `),
    },
  });

  // Once a week, on Sunday at three (UTC), beside the daily snapshots that Railway makes of the volume.
  const backup = service("backup", {
    source,
    build: {
      ...build,
      dockerfilePath: "deploy/backup/Dockerfile",
      watchPatterns: [...watched, "/deploy/backup/**"],
    },
    start: "/usr/local/bin/backup dump",
    // It ends by itself; a failed one is seen in the dashboard and tried again next week, or by hand.
    deploy: { cronSchedule: "0 3 * * 0", restartPolicyType: "NEVER" },
    env: {
      DATABASE_URL: db.env.DATABASE_URL,
      ...kept("S3_ENDPOINT S3_BUCKET S3_REGION S3_PREFIX S3_ACCESS_KEY_ID S3_SECRET_ACCESS_KEY"),
    },
  });

  return project("ballast", { resources: [db, cache, api, worker, ...(production ? [backup] : [])] });
});
