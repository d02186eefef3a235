//! Whether there is a queue for what the service publishes: looked at when the engine starts, and whenever somebody asks.

use cap_core::{Error, ErrorKind, Result, Topic, Transport};

use crate::engine::Engine;
use crate::options::Options;

const ADVICE: &str =
    "start a consumer of each once, which makes its queue; until then what is published waits in the outbox";

/// Those of the published topics that have no queue now.
pub(crate) async fn unrouted(engine: &Engine) -> Result<Vec<Topic>> {
    engine.transport.unrouted(engine.published.clone()).await
}

/// Refuses a check that is required and that the transport does not offer. It touches nothing.
pub(crate) async fn check_support(transport: &dyn Transport, options: &Options) -> Result<()> {
    if !options.require_routes || transport.capabilities().checks_routes {
        return Ok(());
    }
    // The transport's own refusal may know how it is enabled.
    let refusal = transport.unrouted(Vec::new()).await.err();
    let why = refusal.as_ref().map_or("this backend does not declare the capability", Error::reason);
    let reason = format!("{why}; the option `require_routes` demands it");
    Err(Error::new(ErrorKind::Unsupported, "tell which topics have no queue on", transport.describe(), reason))
}

/// Logs the published topics that have no queue, or refuses to start because of them. What the engine itself consumes
/// must have been subscribed.
pub(crate) async fn check(engine: &Engine) -> Result<()> {
    let required = engine.options.require_routes;
    if engine.published.is_empty() {
        if required {
            tracing::warn!("`require_routes` is set, but no topic was given to `publishes`: no route is checked");
        }
        return Ok(());
    }
    if !engine.transport.capabilities().checks_routes {
        tracing::info!(
            cap.transport = engine.transport.describe(),
            "cannot tell whether there are queues for the topics that are published"
        );
        return Ok(());
    }
    match unrouted(engine).await {
        Ok(topics) if topics.is_empty() => Ok(()),
        Ok(topics) if required => {
            let reason = format!("there is no queue for {}: {ADVICE}", named(&topics));
            Err(Error::new(ErrorKind::Unroutable, "start", "the engine", reason))
        }
        Ok(topics) => {
            tracing::warn!(cap.topics = named(&topics), "there is no queue for topics that are published: {ADVICE}");
            Ok(())
        }
        Err(error) if required => Err(error),
        Err(error) => {
            tracing::warn!(error.message = %error, "could not check whether there are queues for the topics that are published");
            Ok(())
        }
    }
}

/// All of them, for people.
fn named(topics: &[Topic]) -> String {
    let quoted: Vec<String> = topics.iter().map(|topic| format!("`{topic}`")).collect();
    quoted.join(", ")
}
