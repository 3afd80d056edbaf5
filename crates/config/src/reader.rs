//! Reads variables by the rules of the table and collects every problem on the way.

use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

use crate::{Environment, VARIABLES, Variable, Vars, WhenUnset};

/// One thing that is wrong with one variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The variable.
    pub name: &'static str,
    /// What is wrong and what to do; never holds the value of a secret.
    pub what: String,
}

/// Everything that is wrong with the configuration, in the order of the table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = self.0.len();
        writeln!(f, "the configuration has {n} problem{}:", if n == 1 { "" } else { "s" })?;
        for p in &self.0 {
            writeln!(f, "  {}: {}", p.name, p.what)?;
        }
        write!(f, "Every variable is described in docs/configuration.md; `ballast keygen` makes secrets.")
    }
}

impl Problems {
    /// Joins two reports; a variable that both complain about is named once.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        for p in other.0 {
            if !self.0.contains(&p) {
                self.0.push(p);
            }
        }
        self.0.sort_by_key(|p| position(p.name));
        self
    }
}

fn position(name: &str) -> usize {
    VARIABLES.iter().position(|v| v.name == name).unwrap_or(usize::MAX)
}

pub(crate) fn variable(name: &str) -> &'static Variable {
    VARIABLES.iter().find(|v| v.name == name).expect("every variable that is read stands in the table")
}

/// Reads variables one by one; see the `settings` module for how it is used.
pub(crate) struct Reader<'a> {
    vars: &'a dyn Vars,
    environment: Environment,
    problems: BTreeMap<usize, Problem>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(vars: &'a dyn Vars) -> Self {
        let mut reader = Self { vars, environment: Environment::Development, problems: BTreeMap::new() };
        // Without APP_ENV a process on Railway is taken for production: the strict side is the safe guess.
        let on_railway = vars.get("RAILWAY_ENVIRONMENT_NAME").is_some();
        reader.environment = match vars.get("APP_ENV") {
            None if on_railway => Environment::Production,
            None => Environment::Development,
            Some(text) => text.parse().unwrap_or_else(|what: String| {
                reader.problem("APP_ENV", what);
                Environment::Production
            }),
        };
        reader
    }

    pub(crate) fn environment(&self) -> Environment {
        self.environment
    }

    pub(crate) fn problem(&mut self, name: &'static str, what: impl Into<String>) {
        self.problems.entry(position(name)).or_insert(Problem { name, what: what.into() });
    }

    /// The text of a variable: what is set, or the default. `None` means unset (and reported, when required).
    fn text(&mut self, name: &'static str) -> Option<String> {
        let variable = variable(name);
        let deployed = self.environment.is_deployed();
        match (self.vars.get(name), &variable.default) {
            (Some(value), WhenUnset::Sample { sample, .. }) if deployed && value.contains(sample) => {
                self.problem(
                    name,
                    "this is the sample value for development; make one with `ballast keygen`",
                );
                None
            }
            (Some(value), _) => Some(value),
            (None, WhenUnset::Value(value)) => Some((*value).to_owned()),
            (None, WhenUnset::PerEnvironment { development, deployed: production }) => {
                Some((*if deployed { production } else { development }).to_owned())
            }
            (None, WhenUnset::Development(value)) if !deployed => Some((*value).to_owned()),
            (None, WhenUnset::Sample { value, .. }) if !deployed => Some((*value).to_owned()),
            (None, WhenUnset::Optional) => None,
            (None, _) => {
                self.problem(name, format!("is required: {}", variable.missing_hint()));
                None
            }
        }
    }

    /// A value of any type with a parser, or its default.
    pub(crate) fn get<T: FromStr<Err: fmt::Display>>(&mut self, name: &'static str) -> Option<T> {
        let text = self.text(name)?;
        self.parse(name, &text, |t| t.parse::<T>().map_err(|e| e.to_string()))
    }

    /// A duration such as `15m` or `250ms` between two bounds.
    pub(crate) fn duration(&mut self, name: &'static str, min: Duration, max: Duration) -> Option<Duration> {
        let text = self.text(name)?;
        self.parse(name, &text, |t| {
            let d =
                humantime::parse_duration(t).map_err(|_| "expected a duration such as 250ms, 15m or 30d")?;
            if (min..=max).contains(&d) {
                Ok(d)
            } else {
                let (min, max) = (humantime::format_duration(min), humantime::format_duration(max));
                Err(format!("must be between {min} and {max}"))
            }
        })
    }

    /// A whole number between two bounds.
    pub(crate) fn number(&mut self, name: &'static str, min: u64, max: u64) -> Option<u64> {
        let text = self.text(name)?;
        self.parse(name, &text, |t| match t.parse::<u64>() {
            Ok(n) if (min..=max).contains(&n) => Ok(n),
            _ => Err(format!("expected a whole number from {min} to {max}")),
        })
    }

    /// A value checked by a function of its own.
    pub(crate) fn with<T>(
        &mut self,
        name: &'static str,
        f: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let text = self.text(name)?;
        self.parse(name, &text, f)
    }

    /// A comma-separated list; unset is the empty list.
    pub(crate) fn list<T>(
        &mut self,
        name: &'static str,
        f: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        let Some(text) = self.text(name) else { return Some(Vec::new()) };
        self.parse(name, &text, |t| {
            t.split(',').map(str::trim).filter(|s| !s.is_empty()).map(&f).collect::<Result<Vec<_>, _>>()
        })
    }

    fn parse<T>(
        &mut self,
        name: &'static str,
        text: &str,
        f: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        match f(text) {
            Ok(value) => Some(value),
            Err(what) => {
                let shown = if variable(name).secret {
                    String::new()
                } else {
                    format!(" (it is {:?})", without_credentials(text).chars().take(80).collect::<String>())
                };
                self.problem(name, format!("{what}{shown}"));
                None
            }
        }
    }

    /// True when the variable is set to something.
    pub(crate) fn is_set(&self, name: &'static str) -> bool {
        debug_assert!(position(name) != usize::MAX || name.starts_with("RAILWAY_"));
        self.vars.get(name).is_some()
    }

    /// A variable that the platform sets and that needs no entry in the table.
    pub(crate) fn platform(&self, name: &str) -> Option<String> {
        self.vars.get(name)
    }

    /// Ends the reading: the value when there was no problem, or the whole report.
    pub(crate) fn finish<T>(self, value: Option<T>) -> Result<T, Problems> {
        match value {
            Some(value) if self.problems.is_empty() => Ok(value),
            _ => Err(Problems(self.problems.into_values().collect())),
        }
    }
}

/// A URL that is not a secret may hold one all the same, where that is a mistake: what stands in front of its `@`, or in its
/// query.
fn without_credentials(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let rest = rest.rsplit_once('@').map_or(rest.to_owned(), |(_, host)| format!("...@{host}"));
    let rest = rest.split_once('?').map_or(rest.as_str(), |(before, _)| before);
    format!("{scheme}://{rest}")
}
