//! The servers themselves, attacked through `scripts/backends`, whose path `CAP_TEST_BACKENDS` names.

use std::path::PathBuf;
use std::time::Duration;

use tokio::process::Command;

use crate::backend::Fallible;

/// Names the script.
pub(crate) const SCRIPT: &str = "CAP_TEST_BACKENDS";
/// Names the servers that it has started with clocks that can be set.
const CLOCKS: &str = "CAP_BACKENDS_CLOCKS";
/// Names the servers that have a disk of their own.
const DISKS: &str = "CAP_BACKENDS_DISKS";
/// Names the servers that have a second one beside them.
const STANDBYS: &str = "CAP_BACKENDS_STANDBYS";

/// The script and the servers that it may attack.
#[derive(Debug, Clone)]
pub(crate) struct Servers {
    script: PathBuf,
    /// Its names of the broker and of the database.
    pub(crate) names: Vec<&'static str>,
    /// Those of these whose clocks can be set.
    clocks: Vec<&'static str>,
    /// Those whose disks can be filled.
    disks: Vec<&'static str>,
    /// Those that have a second one beside them.
    standbys: Vec<&'static str>,
}

/// The name of the second server beside one.
pub(crate) fn standby_of(server: &str) -> String {
    format!("{server}_standby")
}

impl Servers {
    /// The servers that this storage and this transport have, by their names in the script.
    pub(crate) fn names(storage: &str, transport: &str) -> Vec<&'static str> {
        let known = [
            ("mariadb", storage == "mysql"),
            ("mongo", storage == "mongo"),
            ("postgres", storage == "postgres"),
            ("rabbitmq", transport == "rabbitmq"),
            ("kafka", transport == "kafka"),
        ];
        known.into_iter().filter(|(_, used)| *used).map(|(name, _)| name).collect()
    }

    /// `None` if there is no script, or none of the servers is a process of its own.
    pub(crate) fn found(storage: &str, transport: &str) -> Option<Self> {
        let script = PathBuf::from(std::env::var_os(SCRIPT)?);
        let names = Self::names(storage, transport);
        let named_by = |variable| {
            let told = std::env::var(variable).unwrap_or_default();
            names.iter().copied().filter(|name| told.split([',', ' ']).any(|named| named == *name)).collect()
        };
        let (clocks, disks, standbys) = (named_by(CLOCKS), named_by(DISKS), named_by(STANDBYS));
        (!names.is_empty()).then_some(Self { script, names, clocks, disks, standbys })
    }

    /// Runs the script and waits for its end.
    pub(crate) async fn run(&self, command: &str, server: &str) -> Fallible {
        self.run_with(command, server, &[]).await
    }

    /// The same, with more to say.
    pub(crate) async fn run_with(&self, command: &str, server: &str, more: &[&str]) -> Fallible {
        let output = Command::new(&self.script).args([command, server]).args(more).output().await?;
        if !output.status.success() {
            let told = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(format!("{} {command} {server}: {}: {told}", self.script.display(), output.status).into());
        }
        Ok(())
    }

    /// Kills a server and starts it again.
    pub(crate) async fn restart(&self, server: &str) -> Fallible {
        self.run("kill", server).await?;
        self.run("restart", server).await
    }

    /// A server whose clock can be set: the database.
    pub(crate) fn clock(&self) -> Option<&'static str> {
        self.clocks.first().copied()
    }

    /// Lets its clock go wrong by so many seconds, and that of the one beside it.
    pub(crate) async fn set_clock(&self, server: &str, seconds: i64) -> Fallible {
        let seconds = seconds.to_string();
        self.run_with("clock", server, &[&seconds]).await?;
        match self.standby() == Some(server) {
            true => self.run_with("clock", &standby_of(server), &[&seconds]).await,
            false => Ok(()),
        }
    }

    /// A server whose disk can be filled: the database.
    pub(crate) fn disk(&self) -> Option<&'static str> {
        self.disks.first().copied()
    }

    /// A server that has a second one beside it: the database.
    pub(crate) fn standby(&self) -> Option<&'static str> {
        self.standbys.first().copied()
    }

    /// Stops a server for a while.
    pub(crate) async fn freeze(&self, server: &str, pause: Duration) -> Fallible {
        self.run("freeze", server).await?;
        tokio::time::sleep(pause).await;
        self.run("thaw", server).await
    }

    /// Whatever was done to them: they run and answer afterwards. One that was not frozen cannot be thawed, which is
    /// no failure; one that runs is left alone by `up`.
    pub(crate) async fn heal(&self) -> Fallible {
        for server in &self.disks {
            self.run("free", server).await?;
        }
        for server in &self.names {
            let _ = self.run("thaw", server).await;
            self.run("up", server).await?;
        }
        Ok(())
    }
}
