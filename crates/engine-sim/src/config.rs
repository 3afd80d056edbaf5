//! What the engine does when a request asks for nothing in particular.

use std::time::Duration;

use crate::Fault;

/// Defaults of one simulated engine.
#[derive(Debug, Clone)]
pub struct SimConfig {
    /// From the request to the first token.
    pub first_token_delay: Duration,
    /// Between two tokens. Zero: as fast as the reader reads.
    pub token_interval: Duration,
    /// Length of a completion, unless the request's own limit is lower.
    pub tokens: usize,
    /// Same seed and same request: same answer.
    pub seed: u64,
    /// The key to ask for (`Authorization: Bearer ...`). `None`: no authentication.
    pub api_key: Option<String>,
    /// A fault in every request.
    pub fault: Option<Fault>,
}

impl Default for SimConfig {
    /// What feels like a small model: the first token after 150 ms, then 40 tokens per second.
    fn default() -> Self {
        Self {
            first_token_delay: Duration::from_millis(150),
            token_interval: Duration::from_millis(25),
            tokens: 60,
            seed: 0,
            api_key: None,
            fault: None,
        }
    }
}

impl SimConfig {
    /// No delays: for tests and for load.
    pub fn instant() -> Self {
        Self { first_token_delay: Duration::ZERO, token_interval: Duration::ZERO, ..Self::default() }
    }
}

/// Command line options of a simulated engine; where it listens is up to the command that embeds them.
#[derive(Debug, Clone, clap::Args)]
pub struct SimArgs {
    /// Milliseconds from the request to the first token
    #[arg(long, value_name = "MS", default_value_t = 150)]
    pub first_token_ms: u64,
    /// Milliseconds between two tokens; 0 sends as fast as the reader reads
    #[arg(long, value_name = "MS", default_value_t = 25)]
    pub token_interval_ms: u64,
    /// Tokens in an answer, unless the request asks for fewer
    #[arg(long, value_name = "N", default_value_t = 60)]
    pub tokens: usize,
    /// Same seed and same request: same answer
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Ask for this API key; without it every request is let in
    #[arg(long, value_name = "KEY")]
    pub api_key: Option<String>,
    /// Misbehave in every request, e.g. stall:5 or status:503; an unknown name lists the known ones
    #[arg(long, value_name = "NAME[:ARG]")]
    pub fault: Option<Fault>,
}

impl From<SimArgs> for SimConfig {
    fn from(args: SimArgs) -> Self {
        Self {
            first_token_delay: Duration::from_millis(args.first_token_ms),
            token_interval: Duration::from_millis(args.token_interval_ms),
            tokens: args.tokens,
            seed: args.seed,
            api_key: args.api_key,
            fault: args.fault,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Command {
        #[command(flatten)]
        sim: SimArgs,
    }

    fn config(args: &[&str]) -> Result<SimConfig, clap::Error> {
        let args = std::iter::once("engine-sim").chain(args.iter().copied());
        <Command as clap::Parser>::try_parse_from(args).map(|command| command.sim.into())
    }

    #[test]
    fn the_command_line_has_the_same_defaults_as_the_library() {
        let (given, default) = (config(&[]).unwrap(), SimConfig::default());
        assert_eq!(format!("{given:?}"), format!("{default:?}"));
    }

    #[test]
    fn faults_are_checked_on_the_command_line() {
        assert_eq!(config(&["--fault", "stall:9"]).unwrap().fault, Some(Fault::Stall(9)));
        assert!(config(&["--fault", "stal"]).unwrap_err().to_string().contains("known: refuse"));
    }
}
