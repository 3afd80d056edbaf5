/**
 * What runs on Railway: one project, the same resources in every environment.
 *
 *   railway config plan     what would change
 *   railway config apply    change it (asks before anything is deleted)
 *
 * Both compare this file with the environment that the directory is linked to (`railway link`). They deploy no code: that is
 * `railway up`, which the deploy workflow runs for the commit that CI passed. docs/deploy.md has the whole way, step by step.
 *
 * What is not listed here is planned for deletion. So every variable is: `preserve()` keeps the value that Railway holds, and
 * is how secrets get here without being in a file. `cargo verify --only deployment` type-checks this file and evaluates it for each
 * environment; the result, evaluated.json, is committed and held against what the program needs.
 */
import { type BuildConfig, defineRailway, empty, postgres, preserve, project, redis, service } from "railway/iac";

/** The image's only program. There is no shell in it: no `&&`, no `$PORT`; the program reads its port itself. */
const program = "/usr/local/bin/ballast";

/** The code comes from `railway up`, and from nowhere else: with a GitHub source every push would deploy, passed or not. */
const source = empty();

const build: BuildConfig = {
  builder: "DOCKERFILE",
  dockerfilePath: "Dockerfile",
  // A change of these makes a new image; one of the documentation does not.
  watchPatterns: ["/Cargo.*", "/.cargo/**", "/.sqlx/**", "/crates/**", "/migrations/**", "/Dockerfile*"],
};

/** A process that a deploy ends is not restarted; one that fails is, ten times. */
const restart = { restartPolicyType: "ON_FAILURE", restartPolicyMaxRetries: 10 } as const;

export default defineRailway((ctx) => {
  const production = ctx.isEnvironment("production");
  const replicas = production ? 2 : 1;

  const db = postgres("Postgres");
  const cache = redis("Redis");

  /** What both roles read. */
  const common = {
    APP_ENV: production ? "production" : "staging",
    DATABASE_URL: db.env.DATABASE_URL,
    REDIS_URL: cache.env.REDIS_URL,
    // With a domain of your own: https://api.example.com
    PUBLIC_URL: "https://${{api.RAILWAY_PUBLIC_DOMAIN}}",
    ENGINE_URL: preserve(),
    ENGINE_API_KEY: preserve(),
    ENGINES: preserve(),
    ENGINES_API_KEYS: preserve(),
    ENGINE_MODELS: preserve(),
    CHANNEL_ENCRYPTION_KEY: preserve(),
    CREDENTIAL_PROVIDERS: preserve(),
    METRICS_TOKEN: preserve(),
    RESEND_API_KEY: preserve(),
    SENTRY_DSN: preserve(),
    OTEL_EXPORTER_OTLP_ENDPOINT: preserve(),
    LOG_LEVEL: preserve(),
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
      // The old release goes on serving beside the new one for so long,
      overlapSeconds: 20,
      // and is killed so long after SIGTERM. The default is 0: at once. Above SHUTDOWN_BUDGET (45 s).
      drainingSeconds: 60,
    },
    env: {
      ...common,
      TRUSTED_PROXY: "railway",
      API_REPLICAS: String(replicas),
      CORS_ALLOWED_ORIGINS: preserve(),
      JWT_SIGNING_KEY: preserve(),
      JWT_VERIFY_KEYS: preserve(),
      SERVER_SECRET: preserve(),
      STRIPE_WEBHOOK_SECRET: preserve(),
      WEBHOOK_SECRETS: preserve(),
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
    deploy: { ...restart, overlapSeconds: 0, drainingSeconds: 120 },
    env: {
      ...common,
      APP_URL: preserve(),
      MAIL_FROM: preserve(),
    },
  });

  // Once a week, on Sunday at three (UTC), beside the daily snapshots that Railway makes of the volume.
  const backup = service("backup", {
    source,
    build: { ...build, dockerfilePath: "deploy/backup/Dockerfile" },
    start: "/usr/local/bin/backup dump",
    // It ends by itself; a failed one is seen in the dashboard and tried again next week, or by hand.
    deploy: { cronSchedule: "0 3 * * 0", restartPolicyType: "NEVER" },
    env: {
      DATABASE_URL: db.env.DATABASE_URL,
      S3_ENDPOINT: preserve(),
      S3_BUCKET: preserve(),
      S3_REGION: preserve(),
      S3_ACCESS_KEY_ID: preserve(),
      S3_SECRET_ACCESS_KEY: preserve(),
    },
  });

  return project("ballast", { resources: [db, cache, api, worker, ...(production ? [backup] : [])] });
});
