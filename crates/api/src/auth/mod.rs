//! Who is asking: access tokens, API keys, passwords, and the gate in front of everything.

mod api_key;
mod cache;
mod gate;
mod keyring;
mod password;
#[cfg(test)]
mod properties;
mod refresh;
pub(crate) mod revocation;

pub use api_key::hex;
pub use api_key::{ApiKeySecret, KeyRecords, Known, Record, overrides};
pub(crate) use gate::Credential;
pub use gate::{PUBLIC_ROUTES, gate};
pub use keyring::{AccessToken, Claims, Keyring};
pub use password::Passwords;
pub use password::hash_now as hash_password;
pub use refresh::RefreshSecret;
pub use revocation::{Marks, mark_all};
