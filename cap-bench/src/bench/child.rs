//! A benchmark's own child process: this program again, told by JSON what to do.

use std::process::Stdio;

use serde::Serialize;
use tokio::io::AsyncReadExt as _;
use tokio::process::{Child, Command};

use crate::backend::Fallible;

/// Starts it on the same backends. It ends when its stdin does, or when it is dropped.
pub(crate) fn start(bench: &str, backends: [&str; 2], told: &impl Serialize) -> Fallible<Child> {
    let [storage, transport] = backends;
    let child = Command::new(std::env::current_exe()?)
        .args([bench, "--storage", storage, "--transport", transport, "--child", &serde_json::to_string(told)?])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    Ok(child)
}

/// In the child: until the parent has gone.
pub(crate) async fn parent_is_gone() {
    let _ = tokio::io::stdin().read_u8().await;
}
