//! What to do with a stack that is up: addresses, and commands to copy.

use std::path::Path;

use crate::ui::{self, Ui};

/// See the module.
#[derive(Debug)]
pub(super) struct Hints<'a> {
    pub(super) exports: &'a [(String, String)],
    /// Whether the engine is our simulated one.
    pub(super) own_engine: bool,
    /// Directory of the log files, for a detached stack.
    pub(super) logs: Option<&'a Path>,
}

impl Hints<'_> {
    pub(super) fn print(&self, ui: &Ui) {
        ui.title(&format!("\nThe stack is up ({:.1} s).\n", ui.elapsed().as_secs_f64()));
        ui::print(&self.addresses());
        ui.title("\nTry it:\n");
        ui::print(&self.curl());
        ui.title("\nWith the openai Python package:\n");
        ui::print(&self.python());
        let end = match self.logs {
            Some(logs) => format!(
                "\nLogs: {}   Addresses for a shell: cargo stack --env   Stop: cargo stack --stop",
                logs.display()
            ),
            None => "\nAddresses for another shell: cargo stack --env   Stop: Ctrl-C\n".to_owned(),
        };
        ui::print(&end);
    }

    fn get(&self, name: &str) -> &str {
        self.exports.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }

    fn addresses(&self) -> String {
        let (api, admin, worker) = (self.get("API_URL"), self.get("ADMIN_URL"), self.get("WORKER_ADMIN_URL"));
        let kind =
            if self.own_engine { "simulated; set ENGINE_URL for a real one" } else { "from ENGINE_URL" };
        let rows = [
            ("API", api.to_owned()),
            ("documentation", format!("{api}/docs")),
            ("health", format!("{api}/health   {worker}/health (worker)")),
            ("metrics", format!("{admin}/metrics   {worker}/metrics (worker)")),
            ("engine", format!("{} ({kind})", self.get("ENGINE_URL"))),
            ("Postgres", without_password(self.get("DATABASE_URL"))),
            ("Redis", without_password(self.get("REDIS_URL"))),
            ("demo account", format!("{}   password: {}", self.get("DEMO_EMAIL"), self.get("DEMO_PASSWORD"))),
            ("API key", self.get("DEMO_API_KEY").to_owned()),
        ];
        rows.map(|(name, value)| format!("  {name:<14} {value}")).join("\n")
    }

    /// Log in, then a streaming completion. Needs curl and sed, nothing else.
    pub(super) fn curl(&self) -> String {
        let (api, model) = (self.get("API_URL"), self.model());
        let (email, password) = (self.get("DEMO_EMAIL"), self.get("DEMO_PASSWORD"));
        format!(
            r#"TOKEN=$(curl -s {api}/v1/auth/login -H 'content-type: application/json' \
  -d '{{"email":"{email}","password":"{password}"}}' | sed 's/.*"access_token" *: *"\([^"]*\)".*/\1/')
curl -N {api}/v1/chat/completions -H "authorization: Bearer $TOKEN" -H 'content-type: application/json' \
  -d '{{"model":"{model}","stream":true,"messages":[{{"role":"user","content":"What is ballast for?"}}]}}'"#
        )
    }

    fn python(&self) -> String {
        format!("  OpenAI(base_url=\"{}/v1\", api_key=\"{}\")", self.get("API_URL"), self.get("DEMO_API_KEY"))
    }

    fn model(&self) -> &str {
        if self.own_engine { "sim-small" } else { "YOUR-MODEL" }
    }
}

fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    match rest.rsplit_once('@') {
        Some((user, address)) => {
            format!("{scheme}://{}:***@{address}", user.split(':').next().unwrap_or_default())
        }
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_of_servers_are_not_shown() {
        assert_eq!(without_password("postgres://ballast:s3cr@t@h:1/d"), "postgres://ballast:***@h:1/d");
        assert_eq!(without_password("redis://:x@h:1/0"), "redis://:***@h:1/0");
        assert_eq!(without_password("redis://h:1"), "redis://h:1");
    }
}
