//! Where the parts of the stack listen.

use anyhow::Result;
use devstack::ports::free_port;

use crate::ui::Ui;

/// Ports on 127.0.0.1.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ports {
    pub(super) api: u16,
    pub(super) admin: u16,
    pub(super) worker: u16,
    pub(super) engine: u16,
}

impl Ports {
    /// The usual ports, or those that the user names; another one for each that is taken, and says so.
    pub(super) fn pick(ui: &Ui) -> Result<Self> {
        let mut taken: Vec<u16> = Vec::new();
        let mut pick = |name: &str, preferred: Option<u16>| -> Result<u16> {
            let mut port = free_port(preferred)?;
            while taken.contains(&port) {
                port = free_port(None)?;
            }
            taken.push(port);
            if let Some(preferred) = preferred.filter(|preferred| *preferred != port) {
                ui.step(&format!("port {preferred} is taken: {name} uses {port}"));
            }
            Ok(port)
        };
        Ok(Self {
            api: pick("the API", Some(wish("PORT").unwrap_or(8080)))?,
            admin: pick("the API's metrics", Some(wish("ADMIN_PORT").unwrap_or(9090)))?,
            worker: pick("the worker", Some(wish("WORKER_PORT").unwrap_or(8081)))?,
            engine: pick("the engine", None)?,
        })
    }
}

fn wish(name: &str) -> Option<u16> {
    std::env::var(name).ok()?.parse().ok()
}
