//! What is asked.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

/// What a client may say to the engine. Everything else, credentials and cookies above all, stays here.
pub const FORWARDED: [HeaderName; 2] = [header::ACCEPT_LANGUAGE, HeaderName::from_static("openai-beta")];

/// An engine's name, as in the configuration: in metrics, logs and usage rows.
pub type Name = Arc<str>;

/// A request to an engine. Nothing of a client's is in it but the body and a few headers.
#[derive(Debug, Clone)]
pub struct Request {
    pub(crate) method: Method,
    pub(crate) path: Box<[Box<str>]>,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) model: Box<str>,
    pub(crate) only: Option<Box<str>>,
    pub(crate) asked: Asked,
}

/// What kind of answer will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// An event stream.
    Stream,
    /// A JSON document.
    Json,
    /// Whatever the engine sends.
    Either,
}

/// Tells which engine was asked last, also when the call was cancelled in the middle. Clones tell the same.
#[derive(Clone, Default)]
pub struct Asked(Arc<Mutex<Option<Name>>>);

impl Asked {
    /// The engine's name; `None` when none was asked.
    pub fn name(&self) -> Option<Name> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set(&self, name: &Name) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(name.clone());
    }
}

impl fmt::Debug for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.name(), f)
    }
}

impl Request {
    /// `POST` of a JSON body to `path`, given in segments, below the engine's base URL. The current span is its trace context.
    pub fn post<'a>(path: impl IntoIterator<Item = &'a str>, body: Bytes) -> Self {
        let mut request = Self::new(Method::POST, path, body);
        request.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        request
    }

    /// `GET` of `path`, given in segments, below the engine's base URL.
    pub fn get<'a>(path: impl IntoIterator<Item = &'a str>) -> Self {
        Self::new(Method::GET, path, Bytes::new())
    }

    fn new<'a>(method: Method, path: impl IntoIterator<Item = &'a str>, body: Bytes) -> Self {
        let path = path.into_iter().map(Into::into).collect();
        let headers = HeaderMap::new();
        Self { method, path, headers, body, model: "".into(), only: None, asked: Asked::default() }.traced()
    }

    /// The current span is its trace context, in place of the one in which it was made.
    #[must_use]
    pub fn traced(mut self) -> Self {
        if let Some(Ok(context)) = runtime::trace_context::current().map(HeaderValue::try_from) {
            self.headers.insert("traceparent", context);
        }
        self
    }

    /// The model that the body asks for: it decides which engines may answer.
    #[must_use]
    pub fn model(mut self, model: &str) -> Self {
        self.model = model.into();
        self
    }

    /// This engine alone may answer, whatever the model.
    #[must_use]
    pub fn only(mut self, engine: &str) -> Self {
        self.only = Some(engine.into());
        self
    }

    /// Takes over what may be taken over of a client's headers.
    #[must_use]
    pub fn client_headers(mut self, client: &HeaderMap) -> Self {
        for name in FORWARDED {
            if let Some(value) = client.get(&name) {
                self.headers.insert(name, value.clone());
            }
        }
        self
    }

    /// The id under which both sides log it.
    #[must_use]
    pub fn request_id(mut self, id: &str) -> Self {
        if let Ok(id) = HeaderValue::from_str(id) {
            self.headers.insert("x-request-id", id);
        }
        self
    }

    /// Tells, now and later, which engine was asked.
    pub fn asked(&self) -> Asked {
        self.asked.clone()
    }
}
