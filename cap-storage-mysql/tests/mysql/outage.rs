//! A server of this test's own, which is killed, restarted and frozen while messages are published and worked on.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use cap_core::storage::{Inserted, Lane, Settlement, Storage, Table};
use cap_core::{ErrorKind, Status};
use cap_storage_mysql::{MySqlOptions, MySqlStorage};

use cap_testkit::storage::scene::{listed, message, node, request, succeeded};

/// Started by `scripts/backends`; it ends with this value.
pub(crate) struct Server {
    script: PathBuf,
    home: PathBuf,
    port: u16,
    options: String,
}

impl Server {
    /// # Panics
    /// When it cannot be started: these tests are never skipped.
    pub(crate) fn start(name: &str) -> Self {
        Self::start_with(name, String::new())
    }

    /// With further options of the server.
    ///
    /// # Panics
    /// When it cannot be started: these tests are never skipped.
    pub(crate) fn start_with(name: &str, options: String) -> Self {
        let script = std::env::var_os("CAP_TEST_BACKENDS").unwrap_or_else(|| {
            panic!(
                "CAP_TEST_BACKENDS is not set: this test starts a server of its own, to kill it, with the script that it \
                 names. `scripts/backends up mariadb`, then `eval \"$(scripts/backends env)\"`"
            )
        });
        let port = free_port();
        let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        let server = Self { script: script.into(), home, port, options };
        server.run("up");
        server
    }

    fn run(&self, command: &str) {
        let status = self.command(command).arg("mariadb").status().unwrap();
        assert!(status.success(), "scripts/backends {command} mariadb: {status}");
    }

    fn command(&self, command: &str) -> Command {
        let mut script = Command::new(&self.script);
        script.arg(command).env_remove("CAP_TEST_MYSQL_URL").env("CAP_BACKENDS_DIR", &self.home);
        script.env("CAP_BACKENDS_MARIADB_PORT", self.port.to_string());
        script.env("CAP_BACKENDS_MARIADB_OPTIONS", &self.options);
        script
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn url(&self) -> String {
        format!("mysql://cap:cap@127.0.0.1:{}/cap", self.port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.command("thaw").arg("mariadb").output());
        drop(self.command("down").args(["--purge", "mariadb"]).output());
        drop(std::fs::remove_dir_all(&self.home));
    }
}

/// A port that nobody listens at, and that the system gives to no outgoing connection meanwhile.
fn free_port() -> u16 {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let tried = std::iter::repeat_with(|| {
        let number = std::process::id() as usize * 31 + NEXT.fetch_add(1, Ordering::Relaxed);
        24_000 + u16::try_from(number % 4_000).unwrap()
    });
    let is_free = |port: &u16| std::net::TcpListener::bind(("127.0.0.1", *port)).is_ok();
    tried.take(4_000).find(is_free).expect("a free port below those of outgoing connections")
}

/// How long something may take on a busy machine, so that the server is ended when it never happens.
const PATIENCE: Duration = Duration::from_secs(240);

/// How far the two loops have come.
#[derive(Default)]
struct Progress {
    stored: AtomicUsize,
    settled: AtomicUsize,
    failed: AtomicUsize,
    is_over: AtomicBool,
    /// Nothing is published any more.
    is_published: AtomicBool,
}

impl Progress {
    /// Waits until both loops have worked again.
    async fn goes_on(&self) {
        let count = || (self.stored.load(Ordering::SeqCst), self.settled.load(Ordering::SeqCst));
        let before = count();
        self.is(|| count().0 >= before.0 + 20 && count().1 >= before.1 + 20).await;
    }

    /// Waits until something has failed twice.
    async fn fails(&self) {
        let before = self.failed.load(Ordering::SeqCst);
        self.is(|| self.failed.load(Ordering::SeqCst) >= before + 2).await;
    }

    async fn is(&self, there: impl Fn() -> bool) {
        let waiting = async {
            while !there() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.expect("the loops do not come as far as they should");
    }

    fn note<T>(&self, outcome: cap_core::Result<T>) -> Option<T> {
        match outcome {
            Ok(value) => Some(value),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
                self.failed.fetch_add(1, Ordering::SeqCst);
                None
            }
        }
    }
}

/// Publishes one after the other; answers those that are told to be stored.
async fn publish(storage: MySqlStorage, progress: Arc<Progress>) -> BTreeSet<String> {
    let mut stored = BTreeSet::new();
    for number in 0.. {
        if progress.is_over.load(Ordering::SeqCst) {
            break;
        }
        let id = format!("m{number}");
        if let Some(inserted) = progress.note(storage.insert(Table::Outbox, vec![message(&id)], None).await) {
            assert!(matches!(inserted[..], [Inserted::Stored(_)]));
            stored.insert(id);
            progress.stored.fetch_add(1, Ordering::SeqCst);
        }
    }
    stored
}

/// Claims and settles, as the engine does: what has no answer is tried again, or given back.
async fn work(storage: MySqlStorage, progress: Arc<Progress>) {
    let node = node(&storage).await;
    loop {
        let is_published = progress.is_published.load(Ordering::SeqCst);
        let claim = request(node, Lane::Outbox, 10);
        let Some(claimed) = progress.note(storage.claim(claim.clone()).await) else {
            while progress.note(storage.release(Table::Outbox, claim.claim).await).is_none() {}
            continue;
        };
        let settle = |record: &cap_core::storage::Record| Settlement {
            record: record.id,
            token: claim.claim.token,
            state: succeeded(),
        };
        let settlements: Vec<_> = claimed.records.iter().map(settle).collect();
        while progress.note(storage.settle(Table::Outbox, settlements.clone()).await).is_none() {}
        progress.settled.fetch_add(settlements.len(), Ordering::SeqCst);
        if is_published && settlements.is_empty() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_restarted_and_frozen_comes_back_and_nothing_is_lost() {
    let server = tokio::task::spawn_blocking(|| Server::start("outage")).await.unwrap();
    let options = || {
        MySqlOptions::new(server.url())
            .connect_timeout(Duration::from_secs(1))
            .statement_timeout(Duration::from_secs(1))
            .pool_size(3)
    };
    let [publisher, worker] = [options(), options()].map(|options| MySqlStorage::connect_lazy(options).unwrap());
    publisher.prepare().await.unwrap();
    let progress = Arc::new(Progress::default());
    let publishing = tokio::spawn(publish(publisher.clone(), Arc::clone(&progress)));
    let working = tokio::spawn(work(worker, Arc::clone(&progress)));

    progress.goes_on().await;
    for (break_it, mend_it) in [("kill", "restart"), ("stop", "restart"), ("freeze", "thaw")] {
        tokio::task::block_in_place(|| server.run(break_it));
        progress.fails().await;
        tokio::task::block_in_place(|| server.run(mend_it));
        progress.goes_on().await;
    }
    progress.is_over.store(true, Ordering::SeqCst);
    let stored = publishing.await.unwrap();
    progress.is_published.store(true, Ordering::SeqCst);
    working.await.unwrap();

    let mut found = BTreeSet::new();
    let mut after = None;
    loop {
        let query = cap_core::storage::Query { after, limit: 1000, ..Default::default() };
        let page = publisher.list(Table::Outbox, query).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.id);
        for record in &page {
            assert_eq!(record.status, Status::Succeeded, "{record:?}");
            assert!(found.insert(record.message_id.to_string()), "twice: {record:?}");
        }
    }
    let lost: Vec<_> = stored.difference(&found).collect();
    assert!(lost.is_empty(), "told to be stored, and not there: {lost:?}");
    assert!(!listed(&publisher, Table::Outbox).await.is_empty());
    publisher.pool().close().await;
    tokio::task::block_in_place(|| drop(server));
}
