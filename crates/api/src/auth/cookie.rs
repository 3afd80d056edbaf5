//! The refresh token in a cookie, for browsers that ask for it at login: no script can read it there.
//!
//! `__Host-` makes browsers insist on Secure, on Path=/ and on no Domain, so that no sister host can plant one (RFC 6265bis,
//! section 4.1.3.2). SameSite=Strict keeps it at home when another site makes the request; the check of Origin does the same
//! for other hosts of our own site, and for browsers that don't know SameSite: docs/decisions/0041-refresh-cookie.md.

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};

use super::RefreshSecret;
use crate::{AppState, Error, Result};

/// The cookie's name.
pub const COOKIE: &str = "__Host-refresh_token";

/// A header of an answer.
pub(crate) type SetCookie = [(HeaderName, HeaderValue); 1];

/// Puts a refresh token into the browser for as long as it lives.
pub(crate) fn set_cookie(token: &RefreshSecret, max_age_s: i64) -> SetCookie {
    cookie(&token.text(), max_age_s)
}

/// Takes it away.
pub(crate) fn clear_cookie() -> SetCookie {
    cookie("", 0)
}

fn cookie(value: &str, max_age_s: i64) -> SetCookie {
    let text = format!("{COOKIE}={value}; Path=/; Max-Age={max_age_s}; Secure; HttpOnly; SameSite=Strict");
    let mut value = HeaderValue::from_str(&text).expect("base64url and numbers are header text");
    value.set_sensitive(true);
    [(header::SET_COOKIE, value)]
}

/// The refresh token that the browser sent; `None` when it sent none. Only for a page whose origin is listed.
pub(crate) fn refresh_cookie(state: &AppState, headers: &HeaderMap) -> Result<Option<String>> {
    let lines = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes);
    let Some(value) = find(lines, COOKIE.as_bytes()).map_err(|Duplicate| {
        Error::bad_request("duplicate_cookie", "The refresh cookie was sent twice: only one can be yours.")
    })?
    else {
        return Ok(None);
    };
    require_listed_origin(state, headers)?;
    // What is not text is not a token either.
    Ok(Some(String::from_utf8_lossy(value).into_owned()))
}

/// Refuses what a page of somebody else might have made a browser send. Browsers name the origin in every POST; whoever does
/// not is no browser and has no use for cookies.
pub(crate) fn require_listed_origin(state: &AppState, headers: &HeaderMap) -> Result<()> {
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let listed = match (origins.next().and_then(|v| v.to_str().ok()), origins.next()) {
        (Some(origin), None) => {
            let config = &state.config;
            origin == config.public_url.origin().ascii_serialization()
                || config.cors_allowed_origins.iter().any(|o| o == origin)
        }
        _ => false,
    };
    if listed {
        Ok(())
    } else {
        let detail = "Cookies are for pages whose Origin is in CORS_ALLOWED_ORIGINS, or is the API's own.";
        Err(Error::forbidden("origin_refused", detail))
    }
}

/// A cookie that is there twice.
#[derive(Debug, PartialEq, Eq)]
struct Duplicate;

/// The value of one cookie in the `Cookie` headers of a request (RFC 6265, section 5.4): pairs, separated by `;`, with spaces
/// and tabs around names and values that do not count. Names are compared exactly; a pair without `=` is no cookie.
fn find<'a>(
    lines: impl Iterator<Item = &'a [u8]>,
    name: &[u8],
) -> std::result::Result<Option<&'a [u8]>, Duplicate> {
    let mut found = None;
    for pair in lines.flat_map(|line| line.split(|b| *b == b';')) {
        let Some(equals) = pair.iter().position(|b| *b == b'=') else { continue };
        if trim(&pair[..equals]) != name {
            continue;
        }
        if found.replace(trim(&pair[equals + 1..])).is_some() {
            return Err(Duplicate);
        }
    }
    Ok(found)
}

fn trim(mut bytes: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = bytes {
        bytes = rest;
    }
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn find_in<'a>(line: &'a str, name: &str) -> std::result::Result<Option<&'a str>, Duplicate> {
        let found = find(std::iter::once(line.as_bytes()), name.as_bytes())?;
        Ok(found.map(|value| std::str::from_utf8(value).unwrap()))
    }

    #[test]
    fn only_the_cookie_of_exactly_this_name_counts() {
        for (line, value) in [
            ("a=1", Some("1")),
            ("b=2; a=1; c=3", Some("1")),
            ("b=2;a=1;c=3", Some("1")),
            ("  a = 1 \t; b=2", Some("1")),
            ("a=", Some("")),
            ("a=1=2", Some("1=2")),
            ("a=\"1\"", Some("\"1\"")),
            ("a", None),
            ("A=1", None),
            ("aa=1; xa=1; a.=1", None),
            ("b=a=1", None),
            ("b=\"; c=\"", None),
            ("=1", None),
            ("", None),
            (";;;=;", None),
        ] {
            assert_eq!(find_in(line, "a"), Ok(value), "{line:?}");
        }
        assert_eq!(find_in("a=1; a=1", "a"), Err(Duplicate));
        assert_eq!(find([b"a=1".as_slice(), b"b=2; a=2"].into_iter(), b"a"), Err(Duplicate));
        assert_eq!(find([b"b=1".as_slice(), b"a=2"].into_iter(), b"a"), Ok(Some(b"2".as_slice())));
    }

    #[test]
    fn the_cookie_has_every_attribute_that_its_prefix_asks_for() {
        let [(name, value)] = set_cookie(&RefreshSecret::generate().unwrap(), 60);
        let text = value.to_str().unwrap();
        assert_eq!(name, "set-cookie");
        assert!(text.starts_with("__Host-refresh_token=rt_"), "{text}");
        for attribute in ["Path=/", "Secure", "HttpOnly", "SameSite=Strict", "Max-Age=60"] {
            assert!(text.split("; ").any(|part| part == attribute), "{text}");
        }
        assert!(!text.contains("Domain"));
        let [(_, cleared)] = clear_cookie();
        assert!(cleared.to_str().unwrap().starts_with("__Host-refresh_token=; Path=/; Max-Age=0;"));
    }

    proptest! {
        /// What a browser joins is taken apart again, whatever the other cookies are.
        #[test]
        fn what_was_joined_is_found_and_twice_is_refused(
            pairs in prop::collection::vec(
                (prop_oneof![Just(COOKIE.to_owned()), "[!#$%&'*+.^_`|~0-9A-Za-z-]{1,12}"], "[!#-+\\--:<-\\[\\]-~]{0,24}"),
                0..8,
            ),
            split in 0usize..8,
            separator in prop_oneof![Just("; "), Just(";"), Just(" ;\t")],
        ) {
            let joined = |part: &[(String, String)]| {
                part.iter().map(|(n, v)| format!("{n}={v}")).collect::<Vec<_>>().join(separator)
            };
            let (one, two) = pairs.split_at(split.min(pairs.len()));
            let lines = [joined(one), joined(two)];
            let wanted: Vec<_> = pairs.iter().filter(|(n, _)| n == COOKIE).map(|(_, v)| v.as_bytes()).collect();
            let found = find(lines.iter().map(String::as_bytes), COOKIE.as_bytes());
            prop_assert_eq!(found, match wanted.as_slice() {
                [] => Ok(None),
                [value] => Ok(Some(*value)),
                _ => Err(Duplicate),
            });
        }

        /// Any bytes, and any bytes around what we look for: no panic, and never a value with a separator in it.
        #[test]
        fn no_bytes_whatever_confuse_it(
            before in prop::collection::vec(any::<u8>(), 0..64),
            after in prop::collection::vec(any::<u8>(), 0..64),
        ) {
            let line = [before, COOKIE.as_bytes().to_vec(), after].concat();
            if let Ok(Some(value)) = find(std::iter::once(line.as_slice()), COOKIE.as_bytes()) {
                prop_assert!(!value.contains(&b';'));
                prop_assert_eq!(trim(value), value);
            }
        }
    }
}
