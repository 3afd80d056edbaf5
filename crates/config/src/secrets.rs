//! The secrets among the variables, as they may turn up in a text.

use url::Url;

use crate::{VARIABLES, Vars};

/// The values of all variables that are secret, and their parts that are secrets by themselves: the password or user in a
/// URL, each key of a list, a key without its id. For removing them from whatever leaves the process.
pub fn secrets(vars: &impl Vars) -> Vec<String> {
    let mut found = Vec::new();
    for value in VARIABLES.iter().filter(|v| v.secret).filter_map(|v| vars.get(v.name)) {
        match Url::parse(&value) {
            Ok(url) if url.has_host() => {
                // A DSN's key stands where other URLs have the user's name.
                found.push(url.password().unwrap_or(url.username()).to_owned());
            }
            _ => {
                let parts = value.split([',', ':']).map(str::trim);
                // `NAME=SECRET`, where the secret may end in `=` itself.
                found
                    .extend(parts.clone().filter_map(|part| part.split_once('=')).map(|(_, s)| s.to_owned()));
                found.extend(parts.map(str::to_owned));
            }
        }
        found.push(value);
    }
    found.retain(|secret| !secret.is_empty());
    found.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MapVars;

    #[test]
    fn secrets_are_found_whole_and_in_their_parts_and_nothing_else_is() {
        let vars = MapVars::from([
            ("DATABASE_URL", "postgres://user:pass-of-postgres@host.example/db"),
            ("REDIS_URL", "redis://host.example"),
            ("SENTRY_DSN", "https://key-of-sentry@host.example/1"),
            ("JWT_SIGNING_KEY", "k1:seed-of-the-key"),
            ("ENGINE_API_KEY", "key-of-the-engine"),
            ("WEBHOOK_SECRETS", "crm=whsec_of-the-crm=,billing=whsec_of-billing"),
            ("ENGINE_URL", "https://engine.example/v1"),
        ]);
        let found = secrets(&vars);
        for part in [
            "pass-of-postgres",
            "key-of-sentry",
            "seed-of-the-key",
            "key-of-the-engine",
            "whsec_of-the-crm=",
            "whsec_of-billing",
        ] {
            assert!(found.iter().any(|secret| secret == part), "{part} is not in {found:?}");
        }
        assert!(!found.iter().any(|secret| secret == "host.example" || secret.contains("engine.example")));
        assert!(
            found.is_sorted_by_key(|secret| std::cmp::Reverse(secret.len())),
            "the whole before its parts"
        );
    }
}
