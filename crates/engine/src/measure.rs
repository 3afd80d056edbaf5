//! What is measured of each exchange with an engine.

use std::{
    collections::HashSet,
    sync::{PoisonError, RwLock},
    time::Duration,
};

use tokio::time::Instant;

use crate::Usage;

/// An exchange that is over.
#[derive(Debug)]
pub struct Exchange<'a> {
    /// `chat`, `embeddings` and such: `gen_ai.operation.name` of OpenTelemetry.
    pub operation: &'static str,
    /// The model that was asked for.
    pub model: &'a str,
    /// Who answered, or was asked last.
    pub engine: &'a str,
    /// How it ended; `ok` when all went well.
    pub outcome: &'static str,
    /// When it began.
    pub began: Instant,
    /// When the first event came and when the last one, and how many came; for streams.
    pub events: Option<(Instant, Instant, u64)>,
    /// What it cost.
    pub usage: Usage,
}

impl Exchange<'_> {
    /// OpenTelemetry's names for generative AI clients, <https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/>,
    /// as Prometheus writes them. Never by user: that would be a time series each.
    pub(crate) fn record(&self, models: &Models, took: Duration) {
        let labels = [
            ("gen_ai_operation_name", self.operation.to_owned()),
            ("gen_ai_request_model", models.label(self.model, self.outcome == "ok")),
            ("engine", self.engine.to_owned()),
            ("outcome", self.outcome.to_owned()),
        ];
        metrics::histogram!("gen_ai_client_operation_duration_seconds", &labels).record(took);
        if let Some((first, last, count)) = self.events {
            let until_first = first.duration_since(self.began);
            metrics::histogram!("gen_ai_client_time_to_first_chunk_seconds", &labels).record(until_first);
            if count > 1 {
                let per_chunk = last.duration_since(first).as_secs_f64() / (count - 1) as f64;
                metrics::histogram!("gen_ai_client_time_per_output_chunk_seconds", &labels).record(per_chunk);
            }
        }
        for (kind, tokens) in [("input", self.usage.prompt), ("output", self.usage.completion)] {
            // What used none says nothing of how much is used.
            if tokens > 0 {
                let mut labels = labels.to_vec();
                labels.push(("gen_ai_token_type", kind.to_owned()));
                metrics::histogram!("gen_ai_client_token_usage", &labels).record(tokens as f64);
            }
        }
    }
}

/// Names of models that may become metric labels. A client may ask for any name, and each would be a time series for ever:
/// only names that the engine answered to are used, and only so many.
#[derive(Debug, Default)]
pub(crate) struct Models(RwLock<HashSet<Box<str>>>);

impl Models {
    const MANY: usize = 64;

    fn label(&self, model: &str, answered: bool) -> String {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if known.contains(model) {
            return model.to_owned();
        }
        let full = known.len() >= Self::MANY;
        drop(known);
        if answered && !full && !model.is_empty() {
            self.0.write().unwrap_or_else(PoisonError::into_inner).insert(model.into());
            return model.to_owned();
        }
        "other".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invented_models_do_not_become_labels() {
        let models = Models::default();
        assert_eq!(models.label("invented", false), "other");
        assert_eq!(models.label("real", true), "real");
        assert_eq!(models.label("real", false), "real");
        for i in 0..200 {
            models.label(&format!("m{i}"), true);
        }
        assert_eq!(models.0.read().unwrap().len(), Models::MANY);
        assert_eq!(models.label("late", true), "other");
    }
}
