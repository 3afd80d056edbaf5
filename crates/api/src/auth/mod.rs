//! Who is asking: access tokens, API keys, passwords, and the gate in front of everything.

mod api_key;
mod cache;
mod cookie;
mod gate;
mod guessable;
mod keyring;
mod password;
#[cfg(test)]
mod properties;
mod refresh;
pub(crate) mod revocation;

pub use api_key::hex;
pub use api_key::{ApiKeySecret, KeyRecords, Known, Record, overrides};
pub use cookie::COOKIE;
pub(crate) use cookie::{SetCookie, clear_cookie, refresh_cookie, require_listed_origin, set_cookie};
pub(crate) use gate::Credential;
pub use gate::PUBLIC_ROUTES;
pub(crate) use gate::gate;
pub use keyring::{AccessToken, Claims, Keyring};
pub use password::hash_now as hash_password;
pub use password::{Compared, Passwords};
pub use refresh::RefreshSecret;
pub use revocation::{Marks, mark_all};
