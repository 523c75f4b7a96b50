//! `rateguard healthcheck`: asks the admin port whether the gateway is ready, for images that hold no curl. Shell.
#![allow(clippy::disallowed_methods, reason = "shell: asks a running gateway over its admin port")]

use std::net::SocketAddr;
use std::time::Duration;

use super::client::{Client, Connections, Patience, ToolError};

/// Wait for the whole check: Docker's default of 30 s would hide a gateway that hangs.
const CHECK_WAIT: Duration = Duration::from_secs(2);

/// Ok when `GET http://admin/readyz` answers 200 within 2 s; the error says what came instead.
pub fn run(admin: SocketAddr) -> Result<(), ToolError> {
    let url = format!("http://{admin}/readyz");
    let client = Client::new(&url, &[], Connections::Fresh, Patience::Within(CHECK_WAIT))?;
    let answer = client.fetch().map_err(|cause| ToolError::Unreachable { url: url.clone(), cause })?;
    match (answer.status, answer.detail) {
        (200, _) => Ok(()),
        (status, Some(detail)) => Err(ToolError::NotReady(format!("{url} answered {status}: {detail}"))),
        (status, None) => Err(ToolError::NotReady(format!("{url} answered {status}"))),
    }
}
