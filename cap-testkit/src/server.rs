//! Real servers for tests: where one is, and what is done to it.
//!
//! A test names its [`Server`] and takes the URL from an environment variable. Without it the test fails: one that is skipped
//! in silence tests nothing. Faults go through a script, whose path `CAP_TEST_BACKENDS` holds and which is called with a
//! command and the server's name; in this project it is `scripts/backends`. A script of yours needs the commands that your
//! tests use.
//!
//! ```no_run
//! use cap_testkit::server::{self, Server};
//!
//! const SERVER: Server = Server {
//!     variable: "CAP_TEST_MYDB_URL",
//!     name: "mydb",
//!     hint: "set it to a server of yours, for a user who may create databases: mydb://user:password@localhost/mydb",
//! };
//!
//! # async fn example() -> cap_core::Result<()> {
//! let url = SERVER.url();
//! // Nobody else uses the server meanwhile: other tests hold `server::lock().read_owned()`.
//! let alone = server::lock().write_owned().await;
//! SERVER.run(&["kill", "restart"], Some(alone)).await?;
//! # Ok(())
//! # }
//! ```

use std::ffi::OsString;
use std::process::{Command, Stdio};
use std::sync::{Arc, OnceLock};

use cap_core::{Error, ErrorKind, Result};
use tokio::sync::{OwnedRwLockWriteGuard, RwLock};

pub use crate::address::Address;

/// Names the script that attacks the servers.
pub const SCRIPT: &str = "CAP_TEST_BACKENDS";

/// A server that tests need.
#[derive(Debug, Clone, Copy)]
pub struct Server {
    /// The environment variable with its URL.
    pub variable: &'static str,
    /// Its name for the script.
    pub name: &'static str,
    /// What else can be done when the variable is not set, as a clause: which server will do, with which rights.
    pub hint: &'static str,
}

impl Server {
    /// Its URL.
    ///
    /// # Panics
    /// When the variable is not set.
    pub fn url(&self) -> String {
        self.value(self.variable)
    }

    /// Something more about it, which has a variable of its own.
    ///
    /// # Panics
    /// When the variable is not set.
    pub fn value(&self, variable: &str) -> String {
        std::env::var(variable).unwrap_or_else(|_| {
            let Self { name, hint, .. } = self;
            panic!(
                "{variable} is not set, and these tests are never skipped. Start a server and say where it is:\n    \
                 scripts/backends up {name}\n    eval \"$(scripts/backends env)\"\nOr {hint}"
            )
        })
    }

    /// Whether there is a script to attack it with.
    pub fn is_ours(&self) -> bool {
        std::env::var_os(SCRIPT).is_some()
    }

    /// Does these to it, one after the other: `kill`, `restart`, `freeze`, `thaw`. All are done, whoever stops waiting for
    /// them: a server that was killed is started again even for a test that has failed meanwhile. The guard of the
    /// [`lock`] is kept as long.
    ///
    /// # Errors
    /// `Internal` when there is no script, or a command fails; those after it are left out.
    pub async fn run(&self, commands: &[&str], alone: Option<OwnedRwLockWriteGuard<()>>) -> Result<()> {
        let calls = commands.iter().map(|command| vec![(*command).into(), self.name.into()]);
        self.call(calls.collect(), alone).await
    }

    /// Calls its own client with these arguments.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub async fn client(&self, arguments: &[&str]) -> Result<()> {
        let words = ["client", self.name].into_iter().chain(arguments.iter().copied());
        self.call(vec![words.map(OsString::from).collect()], None).await
    }

    async fn call(&self, calls: Vec<Vec<OsString>>, alone: Option<OwnedRwLockWriteGuard<()>>) -> Result<()> {
        let failed = |reason: String| Error::new(ErrorKind::Internal, "attack", self.name, reason);
        let script = std::env::var_os(SCRIPT).ok_or_else(|| {
            failed(format!(
                "{SCRIPT} is not set: it names the script that kills and restarts servers, as scripts/backends"
            ))
        })?;
        let running = tokio::task::spawn_blocking(move || {
            let _alone = alone;
            calls.iter().try_for_each(|words| call(&script, words))
        });
        running.await.map_err(|panic| failed(panic.to_string()))?.map_err(failed)
    }
}

fn call(script: &OsString, words: &[OsString]) -> std::result::Result<(), String> {
    let output = Command::new(script).args(words).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{}: {error}", script.display()))?;
    if !output.status.success() {
        let told = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{} {words:?}: {}: {told}", script.display(), output.status));
    }
    Ok(())
}

/// The lock that a test takes for itself before it attacks the server, and that all others of the same process share.
pub fn lock() -> Arc<RwLock<()>> {
    static LOCK: OnceLock<Arc<RwLock<()>>> = OnceLock::new();
    Arc::clone(LOCK.get_or_init(Arc::default))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "CAP_TEST_NOWHERE_URL is not set, and these tests are never skipped")]
    fn without_its_variable_a_test_fails() {
        let server = Server { variable: "CAP_TEST_NOWHERE_URL", name: "nowhere", hint: "give up" };
        server.url();
    }

    #[test]
    fn a_command_that_fails_is_named_with_what_it_said() {
        let words = ["-c", "echo it is not up >&2; exit 3"].map(OsString::from);
        let error = call(&"sh".into(), &words).unwrap_err();
        assert!(error.contains("exit status: 3") && error.contains("it is not up"), "{error}");
        assert_eq!(call(&"sh".into(), &["-c", "exit 0"].map(OsString::from)), Ok(()));
    }
}
