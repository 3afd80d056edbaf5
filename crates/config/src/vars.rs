//! Where variables come from: the process environment, or a map in tests.

use std::collections::BTreeMap;

/// A source of variables. An empty value counts as not set, so that `NAME=` in a file means "the default".
pub trait Vars {
    /// The value of `name`, if it is set.
    fn get(&self, name: &str) -> Option<String>;
}

/// The process environment: the only place in the project that reads it.
#[derive(Debug, Clone, Copy)]
pub struct EnvVars;

impl Vars for EnvVars {
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the environment")]
    fn get(&self, name: &str) -> Option<String> {
        // A value that is not UTF-8 cannot be meant; lossy text fails in the parser with the variable's name.
        std::env::var_os(name).map(|v| v.to_string_lossy().trim().to_owned()).filter(|v| !v.is_empty())
    }
}

/// Variables from a map, for tests and tools.
#[derive(Debug, Clone, Default)]
pub struct MapVars(BTreeMap<String, String>);

impl MapVars {
    /// Sets one variable.
    pub fn set(&mut self, name: &str, value: &str) -> &mut Self {
        self.0.insert(name.to_owned(), value.to_owned());
        self
    }
}

impl<const N: usize> From<[(&str, &str); N]> for MapVars {
    fn from(pairs: [(&str, &str); N]) -> Self {
        Self(pairs.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect())
    }
}

impl Vars for MapVars {
    fn get(&self, name: &str) -> Option<String> {
        self.0.get(name).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty())
    }
}
