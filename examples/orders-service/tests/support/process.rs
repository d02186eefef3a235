//! One process of the service, and what it says.

use std::io::{BufRead as _, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use super::wait_until;

pub(crate) struct Process {
    name: String,
    child: Child,
    said: Arc<Mutex<String>>,
}

impl Process {
    pub(crate) fn start(arguments: &[&str], database: &str, broker: &str, version: &str) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_orders-service"))
            .args(arguments)
            .env("DATABASE_URL", database)
            .env("AMQP_URL", broker)
            .env("CAP_VERSION", version)
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let said = Arc::new(Mutex::new(String::new()));
        listen(child.stdout.take().expect("piped"), Arc::clone(&said));
        listen(child.stderr.take().expect("piped"), Arc::clone(&said));
        Self { name: arguments.join(" "), child, said }
    }

    /// All that it has said so far.
    pub(crate) fn said(&self) -> String {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until it has said a line with `words` in it; answers the line.
    pub(crate) fn wait_for(&self, words: &str) -> String {
        let line = || self.said().lines().find(|line| line.contains(words)).map(str::to_owned);
        wait_until(&format!("`{}` says {words:?}", self.name), || line().is_some());
        line().expect("it is there")
    }

    /// SIGKILL.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("ended");
    }

    /// Sends a signal by which a process is asked to end, and waits until it has.
    pub(crate) fn ask_to_stop(&mut self, signal: &str) -> ExitStatus {
        let told = Command::new("kill").args([signal, &self.child.id().to_string()]).status();
        assert!(told.expect("`kill` runs").success());
        self.ended()
    }

    /// Waits until it has ended.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until(&format!("`{}` ends", self.name), || {
            status = self.child.try_wait().expect("its status");
            status.is_some()
        });
        status.expect("it has ended")
    }
}

impl Drop for Process {
    /// No test leaves a process behind; a test that failed shows what its processes said.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            println!("`{}` said:\n{}", self.name, self.said());
        }
    }
}

fn listen(output: impl Read + Send + 'static, said: Arc<Mutex<String>>) {
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
            said.push_str(&line);
            said.push('\n');
        }
    });
}
