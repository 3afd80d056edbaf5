//! Documentation generated from the table.

use std::fmt::Write as _;

use crate::{UsedBy, VARIABLES, Variable, WhenUnset};

const HOW: &str =
    "Generated from crates/config/src/table.rs by `UPDATE_DOCS=1 cargo test -p config`. Do not edit.";

fn sections() -> Vec<&'static str> {
    let mut names: Vec<&str> = VARIABLES.iter().map(|v| v.section).collect();
    names.dedup();
    names
}

fn template(intro: &str, line: impl Fn(&Variable) -> String) -> String {
    let mut out = format!("# {HOW}\n{intro}");
    for section in sections() {
        let _ = write!(out, "\n# ---- {section} ----\n");
        for v in VARIABLES.iter().filter(|v| v.section == section) {
            let _ = writeln!(out, "# {}", v.help);
            let _ = writeln!(out, "{}", line(v));
        }
    }
    out
}

/// `.env.example`: what a developer may set. Secrets are blank; what is commented out has a default.
pub fn env_example() -> String {
    let intro = "# Copy to .env to change something; without it every value below has its development default.\n\
                 # `cargo stack` and `docker compose up` set DATABASE_URL, REDIS_URL and ENGINE_URL themselves.\n";
    template(intro, |v| match v.default {
        _ if v.secret && v.default != WhenUnset::Required => format!("{}=", v.name),
        WhenUnset::Value(d)
        | WhenUnset::Development(d)
        | WhenUnset::PerEnvironment { development: d, .. } => {
            format!("# {}={d}", v.name)
        }
        WhenUnset::Optional => format!("# {}=", v.name),
        WhenUnset::Required | WhenUnset::Sample { .. } => format!("{}=", v.name),
    })
}

/// `.env.production.example`: what a deployment must set, and what it may.
pub fn env_production_example() -> String {
    let intro = "# What staging and production need. Uncommented lines must be filled in; `ballast keygen` makes the secrets.\n\
                 # Check the result with `ballast doctor`.\n";
    template(intro, |v| match v.default {
        _ if v.name == "APP_ENV" => "APP_ENV=production".to_owned(),
        WhenUnset::Required | WhenUnset::Sample { .. } | WhenUnset::Development(_) => format!("{}=", v.name),
        WhenUnset::Value(d) | WhenUnset::PerEnvironment { deployed: d, .. } => format!("# {}={d}", v.name),
        WhenUnset::Optional => format!("# {}=", v.name),
    })
}

fn cell_default(v: &Variable) -> String {
    match v.default {
        WhenUnset::Required => "**required**".to_owned(),
        WhenUnset::Optional => "off".to_owned(),
        WhenUnset::Value(d) => format!("`{d}`"),
        WhenUnset::PerEnvironment { development, deployed } => {
            format!("`{deployed}` (development `{development}`)")
        }
        WhenUnset::Development(d) => format!("**required** (development `{d}`)"),
        WhenUnset::Sample { .. } => "**required** (development: a sample)".to_owned(),
    }
}

/// `docs/configuration.md`.
pub fn configuration_md() -> String {
    let mut out = format!(
        "# Configuration\n\n<!-- {HOW} -->\n\n\
         All settings are environment variables, read once at start. Every problem is reported in one go, each with the name of\n\
         its variable, and the process exits with 78 (`EX_CONFIG` of sysexits.h). No secret is ever printed. An empty value counts as\n\
         not set. Durations are written `250ms`, `15m`, `30d`; rates `100/15m`.\n\n\
         Outside development (`APP_ENV=staging` or `production`) required variables have no defaults and sample secrets are refused.\n\
         `ballast keygen` makes all secrets of a deployment; `ballast doctor` checks a configuration against the real services.\n"
    );
    for section in sections() {
        let _ =
            write!(out, "\n## {section}\n\n| variable | read by | default | meaning |\n|---|---|---|---|\n");
        for v in VARIABLES.iter().filter(|v| v.section == section) {
            let by = match v.used_by {
                UsedBy::Both => "api, worker",
                UsedBy::Api => "api",
                UsedBy::Worker => "worker",
            };
            let secret = if v.secret { " *Secret.*" } else { "" };
            let _ = writeln!(
                out,
                "| `{}` | {by} | {} | {}{secret} |",
                v.name,
                cell_default(v),
                v.help.replace('|', "\\|")
            );
        }
    }
    out.push_str(
        "\n## Coming from another stack\n\nWhat the same setting is called elsewhere.\n\n| elsewhere | here |\n|---|---|\n",
    );
    for v in VARIABLES {
        for other in v.also_known_as {
            let _ = writeln!(out, "| `{other}` | `{}` |", v.name);
        }
    }
    out
}
