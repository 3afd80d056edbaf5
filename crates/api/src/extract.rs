//! Extractors whose refusals are problem documents.

use std::{fmt, marker::PhantomData};

use axum::{
    extract::{FromRequest, FromRequestParts, OptionalFromRequest, Request, rejection::JsonRejection},
    http::{StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use http_body::Body as _;
use serde::{
    Deserialize, Deserializer, Serialize,
    de::{DeserializeOwned, MapAccess, Visitor, value::MapAccessDeserializer},
};

use crate::{AppState, Error, body};

/// A JSON body, in both directions.
#[derive(Debug, Clone, Copy)]
pub struct Json<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = Error;

    async fn from_request(request: Request, state: &S) -> Result<Self, Error> {
        let Object(body) = read(request, state).await?;
        Ok(Self(body))
    }
}

impl<T: DeserializeOwned> OptionalFromRequest<AppState> for Json<T> {
    type Rejection = Error;

    /// `None` for `null`, and when there is no body at all, whatever the content type says.
    async fn from_request(request: Request, state: &AppState) -> Result<Option<Self>, Error> {
        if request.body().size_hint().exact() == Some(0) {
            return Ok(None);
        }
        let body: Option<Object<T>> = read(request, state).await?;
        Ok(body.map(|Object(body)| Self(body)))
    }
}

#[expect(clippy::disallowed_types, reason = "this is what Json is made of")]
async fn read<S: Send + Sync, B: DeserializeOwned>(request: Request, state: &S) -> Result<B, Error> {
    body::refuse_compressed(request.headers())?;
    match <axum::Json<B> as FromRequest<S>>::from_request(request, state).await {
        Ok(axum::Json(body)) => Ok(body),
        Err(rejection) => Err(refuse(&rejection)),
    }
}

/// A JSON object and nothing else: serde alone also reads a list, field by field (and still does within the object).
struct Object<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields<T>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>> Visitor<'de> for Fields<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        deserializer.deserialize_map(Fields(PhantomData))
    }
}

fn refuse(rejection: &JsonRejection) -> Error {
    match rejection {
        JsonRejection::MissingJsonContentType(_) => Error::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_media_type",
            "The body must be JSON, with `Content-Type: application/json`.",
        ),
        JsonRejection::JsonSyntaxError(e) => Error::bad_request("malformed_json", plain(&e.body_text())),
        JsonRejection::JsonDataError(e) => {
            let text = plain(&e.body_text());
            Error::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", text)
        }
        other if other.status() == StatusCode::PAYLOAD_TOO_LARGE => Error::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "body_too_large",
            "The body is larger than this route accepts.",
        ),
        other => body::incomplete(other),
    }
}

/// serde's text says where and what; axum's prefix says nothing more. Values are cut, because they may be secrets.
fn plain(text: &str) -> String {
    let text = text
        .trim_start_matches("Failed to parse the request body as JSON: ")
        .trim_start_matches("Failed to deserialize the JSON body into the target type: ");
    let mut out = String::new();
    // `invalid type: string "hunter2", expected u32`: what stands in quotes came from the client.
    for (i, part) in text.split('"').enumerate() {
        out.push_str(if i % 2 == 1 { "…" } else { part });
    }
    out.chars().take(300).collect()
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        match serde_json::to_vec(&self.0) {
            Ok(bytes) => ([(header::CONTENT_TYPE, "application/json")], bytes).into_response(),
            Err(error) => Error::internal(error).into_response(),
        }
    }
}

/// A path parameter. What cannot be parsed cannot exist: 404.
#[derive(Debug, Clone, Copy)]
pub struct Path<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = Error;

    #[expect(clippy::disallowed_types, reason = "this is the wrapper that answers problem+json")]
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let axum::extract::Path(value) = axum::extract::Path::<T>::from_request_parts(parts, state)
            .await
            .map_err(|_| Error::not_found())?;
        Ok(Self(value))
    }
}

/// Query parameters.
#[derive(Debug, Clone, Copy)]
pub struct Query<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Error;

    #[expect(clippy::disallowed_types, reason = "this is the wrapper that answers problem+json")]
    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Error> {
        let axum::extract::Query(value) =
            axum::extract::Query::<T>::from_request_parts(parts, state)
                .await
                .map_err(|e| Error::bad_request("invalid_query", plain(&e.body_text())))?;
        Ok(Self(value))
    }
}

/// Text as the database can hold it: Postgres has no NUL.
pub fn text(field: &'static str, value: &str, min: usize, max: usize) -> Result<String, Error> {
    let value = value.trim();
    let length = value.chars().count();
    if value.contains('\0') {
        return Err(Error::invalid(field, "must not contain NUL"));
    }
    if !(min..=max).contains(&length) {
        return Err(Error::invalid(field, format!("must have {min} to {max} characters")));
    }
    Ok(value.to_owned())
}
