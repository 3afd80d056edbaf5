//! The configuration as a whole: defaults, the report of problems, and the documents made from the table.
#![expect(clippy::disallowed_methods, reason = "UPDATE_DOCS is for the test, not for the program")]

use std::{cell::RefCell, collections::BTreeSet, time::Duration};

use config::{
    ApiConfig, Environment, MapVars, Problems, SignUp, TrustedProxy, UsedBy, VARIABLES, Vars, WhenUnset,
    WorkerConfig,
};

const SEED: &str = "k1:x4cUM5pZ3sJ0bq2g1Xw9mF7uQe8yRtVnLkHdSaPoIuY";
const SECRET: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

fn development() -> MapVars {
    MapVars::from([
        ("DATABASE_URL", "postgres://u:p@localhost/db"),
        ("REDIS_URL", "redis://localhost"),
        ("ENGINE_URL", "http://localhost:9000/v1/"),
    ])
}

fn production() -> MapVars {
    let mut vars = development();
    vars.set("APP_ENV", "production")
        .set("PUBLIC_URL", "https://api.example.com")
        .set("TRUSTED_PROXY", "railway")
        .set("JWT_SIGNING_KEY", SEED)
        .set("SERVER_SECRET", SECRET)
        .set("CHANNEL_ENCRYPTION_KEY", SECRET);
    vars
}

fn problems(vars: &MapVars) -> Problems {
    ApiConfig::from_vars(vars).expect_err("this configuration is wrong")
}

#[test]
fn development_needs_only_the_addresses_of_its_services() {
    let api = ApiConfig::from_vars(&development()).unwrap();
    assert_eq!(api.runtime.http.port, 8080);
    assert_eq!(api.trusted_proxy, TrustedProxy::None);
    assert_eq!(api.ai.engines[0].url.as_str(), "http://localhost:9000/v1", "the trailing slash is gone");
    assert_eq!(api.auth.issuer, "http://localhost:8080");
    WorkerConfig::from_vars(&development()).unwrap();
}

#[test]
fn production_is_accepted_when_everything_is_set() {
    let api = ApiConfig::from_vars(&production()).unwrap();
    assert_eq!(api.runtime.environment, Environment::Production);
    let limits = &api.limits;
    let rates = [
        (&limits.global, "100/15m"),
        (&limits.login, "5/15m"),
        (&limits.refresh, "60/15m"),
        (&limits.signup, "5/1h"),
        (&limits.ai_requests, "60/1m"),
        (&limits.ai_tokens, "100000/1m"),
        (&limits.ai_tokens_daily, "1000000/1day"),
        (&limits.user_jobs, "20/1h"),
    ];
    for (rate, wanted) in rates {
        assert_eq!(rate.to_string(), wanted);
    }
    let http = &api.runtime.http;
    assert_eq!(
        [http.header_timeout, http.body_idle_timeout, http.keep_alive, http.write_stall_timeout],
        [10, 20, 75, 30].map(Duration::from_secs)
    );
    assert_eq!(api.auth.signup, SignUp::Closed, "nobody registers unless somebody says so");
    assert!(!api.shows_mails);
}

#[test]
fn every_problem_is_reported_at_once_in_the_order_of_the_table() {
    let mut vars = production();
    vars.set("PORT", "eighty")
        .set("DATABASE_URL", "mysql://x")
        .set("RATE_LIMIT_LOGIN", "0/15m")
        .set("SIGNUP", "maybe");
    let names: Vec<_> = problems(&vars).0.iter().map(|p| p.name).collect();
    assert_eq!(names, ["PORT", "DATABASE_URL", "SIGNUP", "RATE_LIMIT_LOGIN"]);
}

/// Case A14.
#[test]
fn production_refuses_every_sample_and_every_missing_secret() {
    for variable in VARIABLES {
        let WhenUnset::Sample { value, .. } = variable.default else { continue };
        let mut vars = production();
        vars.set(variable.name, value);
        let report = problems(&vars).to_string();
        assert!(report.contains(variable.name) && report.contains("sample"), "{report}");
        assert!(!report.contains(value), "a secret is never printed");
        vars.set(variable.name, "");
        assert!(problems(&vars).to_string().contains("ballast keygen"));
    }
}

#[test]
fn a_malformed_value_of_any_variable_is_named_and_never_shown_when_secret() {
    let free_text = ["JWT_AUDIENCE", "JWT_ISSUER", "MAIL_FROM", "ENGINE_API_KEY", "RESEND_API_KEY"];
    for variable in VARIABLES.iter().filter(|v| !free_text.contains(&v.name)) {
        let mut vars = production();
        let canary = "canary {x}\u{7}";
        vars.set(variable.name, canary);
        let report = match (ApiConfig::from_vars(&vars), WorkerConfig::from_vars(&vars)) {
            (Err(api), Err(worker)) => api.and(worker),
            (Err(one), Ok(_)) | (Ok(_), Err(one)) => one,
            (Ok(_), Ok(_)) => panic!("{} accepts {canary:?}", variable.name),
        };
        assert!(report.0.iter().any(|p| p.name == variable.name), "{} is not named: {report}", variable.name);
        assert!(!variable.secret || !report.to_string().contains("canary"), "{} is shown", variable.name);
        assert!(!report.to_string().contains('\u{7}'), "control characters are escaped");
    }
}

/// Case A14.
#[test]
fn weak_and_contradicting_values_are_refused() {
    let cases = [
        ("SERVER_SECRET", "00".repeat(32)),
        ("JWT_SIGNING_KEY", format!("k1:{}", "A".repeat(43))),
        ("JWT_SIGNING_KEY", "../../etc:x".to_owned()),
        ("JWT_VERIFY_KEYS", SEED.to_owned()),
        ("CORS_ALLOWED_ORIGINS", "*".to_owned()),
        ("CORS_ALLOWED_ORIGINS", "https://a.example/".to_owned()),
        ("METRICS_TOKEN", "short".to_owned()),
        ("ADMIN_PORT", "8080".to_owned()),
        ("SHUTDOWN_DELAY", "50s".to_owned()),
        ("DATABASE_CALL_DEADLINE", "1s".to_owned()),
        ("ENGINE_URL", "https://user:pass@engine.example".to_owned()),
        ("ENGINES", "http://ollama:11434/v1".to_owned()),
        ("ENGINES", "default=http://ollama:11434/v1".to_owned()),
        ("ENGINES", "a=http://a.example,a=http://b.example".to_owned()),
        ("ENGINES_API_KEYS", "a=sk-1".to_owned()),
        ("ENGINE_MODELS", "gpt-*".to_owned()),
        ("ENGINE_MODELS", "*gpt=default".to_owned()),
        ("ENGINE_MODELS", "gpt-*=default|".to_owned()),
        ("ENGINE_MODELS", "gpt-*=openai".to_owned()),
        ("TRUSTED_PROXY", "everyone".to_owned()),
        ("LOG_LEVEL", "warning".to_owned()),
        ("LOG_LEVEL", "info,api=verbose".to_owned()),
        ("SIGNUP", "invited".to_owned()),
        ("CHANNEL_ENCRYPTION_KEY", SECRET[2..].to_owned()),
        ("CHANNEL_ENCRYPTION_KEY", format!("{SECRET},")),
        ("CHANNEL_ENCRYPTION_KEY", format!("{SECRET},{}", SECRET.to_uppercase())),
        ("CREDENTIAL_PROVIDERS", "https://api.openai.com/v1".to_owned()),
        ("CREDENTIAL_PROVIDERS", "Open AI=https://api.openai.com/v1".to_owned()),
        ("CREDENTIAL_PROVIDERS", "openai=ftp://api.openai.com".to_owned()),
        ("CREDENTIAL_PROVIDERS", "a=https://a.example,a=https://b.example".to_owned()),
        ("STRIPE_WEBHOOK_SECRET", "sk_live_0123456789abcdef".to_owned()),
        ("WEBHOOK_SECRETS", "stripe=whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned()),
        ("WEBHOOK_SECRETS", "crm=whsec_c2hvcnQ=".to_owned()),
        ("WEBHOOK_SECRETS", "../crm=whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned()),
    ];
    for (name, value) in cases {
        let mut vars = production();
        vars.set(name, &value);
        let report = problems(&vars);
        assert_eq!(report.0.iter().map(|p| p.name).collect::<Vec<_>>(), [name], "{report}");
    }
}

#[test]
fn several_engines_have_a_name_a_key_and_an_order_and_models_are_found_by_the_first_rule() {
    let mut vars = development();
    vars.set("ENGINES", "local=http://ollama:11434/v1/, openai=https://api.openai.com/v1")
        .set("ENGINES_API_KEYS", "openai=sk-x=")
        .set("ENGINE_MODELS", "gpt-4=openai,gpt-*=openai|default,*=default");
    let ai = ApiConfig::from_vars(&vars).unwrap().ai;
    let shown: Vec<_> = ai.engines.iter().map(|e| (e.name.as_str(), e.url.as_str())).collect();
    assert_eq!(
        shown,
        [
            ("default", "http://localhost:9000/v1"),
            ("local", "http://ollama:11434/v1"),
            ("openai", "https://api.openai.com/v1"),
        ]
    );
    let key = ai.engines[2].api_key.as_ref().unwrap();
    assert_eq!(secrecy::ExposeSecret::expose_secret(key), "sk-x=");
    assert!(ai.engines[0].api_key.is_none() && ai.engines[1].api_key.is_none());
    let found = |model| &ai.models.iter().find(|rule| rule.matches(model)).unwrap().engines[..];
    assert_eq!(found("gpt-4"), ["openai"]);
    assert_eq!(found("gpt-4o"), ["openai", "default"]);
    assert_eq!(found("llama"), ["default"]);
}

#[test]
fn production_refuses_to_guess_the_trusted_proxy() {
    let mut vars = production();
    vars.set("TRUSTED_PROXY", "");
    assert!(problems(&vars).to_string().contains("TRUSTED_PROXY"));
}

#[test]
fn on_railway_the_environment_defaults_to_production_and_the_budget_must_fit() {
    let mut vars = production();
    vars.set("APP_ENV", "").set("RAILWAY_ENVIRONMENT_NAME", "production");
    let report = problems(&vars).to_string();
    assert!(report.contains("SHUTDOWN_BUDGET") && report.contains("drainingSeconds"), "{report}");
    vars.set("RAILWAY_DEPLOYMENT_DRAINING_SECONDS", "60");
    assert_eq!(ApiConfig::from_vars(&vars).unwrap().runtime.environment, Environment::Production);
}

/// Notes which variables are asked for.
struct Recorder(MapVars, RefCell<BTreeSet<String>>);

impl Vars for Recorder {
    fn get(&self, name: &str) -> Option<String> {
        self.1.borrow_mut().insert(name.to_owned());
        self.0.get(name)
    }
}

#[test]
fn the_table_says_truly_who_reads_what() {
    let read_by = |run: &dyn Fn(&Recorder)| {
        let recorder = Recorder(development(), RefCell::default());
        run(&recorder);
        recorder.1.into_inner()
    };
    let api = read_by(&|r| drop(ApiConfig::from_vars(r).unwrap()));
    let worker = read_by(&|r| drop(WorkerConfig::from_vars(r).unwrap()));
    for v in VARIABLES {
        let (by_api, by_worker) = (api.contains(v.name), worker.contains(v.name));
        let expected = match v.used_by {
            UsedBy::Both => (true, true),
            UsedBy::Api => (true, false),
            UsedBy::Worker => (false, true),
        };
        assert_eq!((by_api, by_worker), expected, "{}", v.name);
    }
}

#[test]
fn the_documents_match_the_table() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let documents = [
        (".env.example", config::env_example()),
        (".env.production.example", config::env_production_example()),
        ("docs/configuration.md", config::configuration_md()),
    ];
    for (name, wanted) in documents {
        let path = format!("{root}/{name}");
        if std::env::var_os("UPDATE_DOCS").is_some() {
            std::fs::write(&path, &wanted).unwrap();
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default().replace("\r\n", "\n");
        assert!(found == wanted, "{name} is out of date: run `UPDATE_DOCS=1 cargo test -p config`");
    }
}

#[test]
fn the_example_file_leaves_secrets_blank() {
    for line in config::env_example().lines().filter(|l| !l.starts_with('#') && !l.is_empty()) {
        assert!(line.ends_with('='), "{line}");
    }
}
