//! The models of all engines.

use std::{collections::HashSet, time::Duration};

use bytes::Bytes;
use futures_util::future::join_all;
use http::HeaderValue;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::{Answer, Engines, Fault, Request, Timer, Want, engine::Engine};

/// An engine that does not list its models within this time is left out.
const LIST_TIME: Duration = Duration::from_secs(5);

#[derive(Deserialize)]
struct List {
    data: Vec<Value>,
}

impl Engines {
    /// The models: what the engine says, if there is only one, or the union of all lists. A model that several engines have is
    /// described by the one that would be asked first. Engines that fail are left out, unless all do.
    ///
    /// # Errors
    /// The first engine's, when none answers.
    pub async fn models(&self, request: Request) -> Result<Answer, Fault> {
        if self.is_single() {
            return self.call(request, Want::Json).await;
        }
        Ok(document(&json!({"object": "list", "data": self.union(&request).await?})))
    }

    /// One model, by its id.
    ///
    /// # Errors
    /// As [`Self::models`], and when there is no such model.
    pub async fn model(&self, request: Request, id: &str) -> Result<Answer, Fault> {
        if self.is_single() {
            return self.call(request, Want::Json).await;
        }
        let found = self.union(&request).await?.into_iter().find(|model| model["id"] == id);
        found.map(|model| document(&model)).ok_or_else(|| Fault::UnknownModel(id.into()))
    }

    async fn union(&self, request: &Request) -> Result<Vec<Value>, Fault> {
        let lists = join_all(self.list.iter().map(|engine| list(engine, request))).await;
        let mut lists: Vec<_> = lists.into_iter().collect();
        if lists.iter().all(Result::is_err) {
            return Err(lists.swap_remove(0).err().unwrap_or(Fault::BreakerOpen));
        }
        let (mut seen, mut models) = (HashSet::new(), Vec::new());
        for (position, list) in lists.into_iter().enumerate() {
            let list = list.unwrap_or_else(|fault| {
                let engine = &self.list[position].name;
                tracing::warn!(%engine, fault = %fault.code(), cause = fault.cause(), "an engine does not list its models");
                Vec::new()
            });
            for model in list {
                let Some(id) = model["id"].as_str() else { continue };
                let has_it = self.candidates(id).is_some_and(|who| who.contains(&position));
                if has_it && seen.insert(id.to_owned()) {
                    models.push(model);
                }
            }
        }
        Ok(models)
    }
}

async fn list(engine: &Engine, request: &Request) -> Result<Vec<Value>, Fault> {
    if engine.breaker.is_open() {
        return Err(Fault::BreakerOpen);
    }
    let request = Request { path: ["models".into()].into(), ..request.clone() };
    let answer = timeout(LIST_TIME, engine.attempt(&request, Want::Json)).await;
    let Answer::Whole { body, .. } = answer.unwrap_or(Err(Fault::Timeout(Timer::Response)))? else {
        return Err(Fault::Unexpected("it is an event stream"));
    };
    let list: List =
        serde_json::from_slice(&body).map_err(|_| Fault::Unexpected("it is no list of models"))?;
    Ok(list.data)
}

fn document(value: &Value) -> Answer {
    Answer::Whole {
        content_type: HeaderValue::from_static("application/json"),
        body: Bytes::from(value.to_string()),
    }
}
