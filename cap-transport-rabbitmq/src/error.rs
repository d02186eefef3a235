//! What RabbitMQ and the network say, as errors that a person can act on.

use cap_core::{Error, ErrorKind};
use lapin::ErrorKind as Cause;
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::uri::{AMQPScheme, AMQPUri};

use crate::address::host_of;

/// How far connecting had come when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Resolve,
    Dial,
    Tls,
    Handshake,
}

pub(crate) const ACCESS_REFUSED: u16 = 403;
pub(crate) const NOT_FOUND: u16 = 404;
pub(crate) const PRECONDITION_FAILED: u16 = 406;
const NOT_ALLOWED: u16 = 530;

pub(crate) fn unavailable(operation: &'static str, subject: impl Into<String>, reason: impl Into<String>) -> Error {
    Error::new(ErrorKind::Unavailable, operation, subject, reason)
}

pub(crate) fn stopped(operation: &'static str, subject: impl Into<String>) -> Error {
    Error::new(ErrorKind::Stopped, operation, subject, "the transport is closed")
}

/// The code and the text with which the broker closed a channel or the connection.
pub(crate) fn reply(error: &lapin::Error) -> Option<(u16, &str)> {
    match error.kind() {
        Cause::ProtocolError(reply) => Some((reply.get_id(), reply.get_message().as_str())),
        _ => None,
    }
}

/// Why connecting failed, told apart by how far it had come and what the broker replied.
pub(crate) fn connect(uri: &AMQPUri, stage: Stage, cause: lapin::Error) -> Error {
    let authority = &uri.authority;
    let refuse = |kind, reason: String| Error::new(kind, "connect to", place(uri), reason).because(cause.clone());
    match (stage, reply(&cause)) {
        (Stage::Resolve, _) => {
            refuse(ErrorKind::Unavailable, format!("the host name `{}` does not resolve: {cause}", authority.host))
        }
        (Stage::Dial, _) => {
            refuse(ErrorKind::Unavailable, format!("the host is not reachable, or nothing listens there: {cause}"))
        }
        (Stage::Tls, _) => tls(uri, cause),
        (Stage::Handshake, Some((ACCESS_REFUSED, text))) => {
            let user = &authority.userinfo.username;
            refuse(ErrorKind::Rejected, format!("user `{user}` and the password do not belong together: {text}"))
        }
        (Stage::Handshake, Some((NOT_ALLOWED, text))) if is_limit(text) => {
            refuse(ErrorKind::Unavailable, format!("there are as many connections as are allowed: {text}"))
        }
        (Stage::Handshake, Some((NOT_ALLOWED, text))) => {
            let (vhost, user) = (&uri.vhost, &authority.userinfo.username);
            let reason = format!("virtual host `{vhost}` does not exist, or user `{user}` may not use it: {text}");
            refuse(ErrorKind::Rejected, reason)
        }
        (Stage::Handshake, Some((code, text))) => refuse(ErrorKind::Rejected, format!("it refused: {code} {text}")),
        // With TLS 1.3 the client is told only now that its certificate is wanted, or that nobody trusts it.
        (Stage::Handshake, None) if is_alert(&cause.to_string()) => tls(uri, cause),
        (Stage::Handshake, None) if uri.scheme == AMQPScheme::AMQPS => {
            let reason = format!(
                "it ended the handshake ({cause}): does it ask for a client certificate, and does it trust \
                                  the one that it is shown (`certificate_file`)?"
            );
            refuse(ErrorKind::Unavailable, reason)
        }
        (Stage::Handshake, None) => {
            let reason =
                format!("it ended the handshake ({cause}): is it RabbitMQ, and is TLS on or off on both sides?");
            refuse(ErrorKind::Unavailable, reason)
        }
    }
}

/// Whether the broker's words are of a limit that somebody has set for a virtual host, a user or a node.
fn is_limit(text: &str) -> bool {
    text.contains("limit") && text.contains("reached")
}

/// Whether the other side refuses the client's certificate, or that there is none.
fn is_alert(text: &str) -> bool {
    text.contains("received fatal alert")
}

/// Kind and host, for people.
fn place(uri: &AMQPUri) -> String {
    format!("rabbitmq {}/{}", host_of(uri), if uri.vhost == "/" { "" } else { &uri.vhost })
}

fn tls(uri: &AMQPUri, cause: lapin::Error) -> Error {
    let text = cause.to_string();
    // What rustls says of a certificate, whatever is wrong with it.
    let (kind, reason) = match text.contains("certificate") || text.contains("UnknownIssuer") {
        _ if is_alert(&text) => {
            (ErrorKind::Rejected, format!("it does not take the client's certificate (`certificate_file`): {text}"))
        }
        true => (ErrorKind::Rejected, format!("its certificate is not trusted (option `ca_file`): {text}")),
        false => (ErrorKind::Unavailable, format!("the TLS handshake failed, is this a TLS port? {text}")),
    };
    Error::new(kind, "connect to", place(uri), reason).because(cause)
}

/// Why a declaration or another call on a channel failed. `advice` says what to do if what is declared exists otherwise.
pub(crate) fn call(operation: &'static str, subject: String, cause: lapin::Error, advice: &str) -> Error {
    let Cause::ProtocolError(error) = cause.kind() else {
        return unavailable(operation, subject, cause.to_string()).because(cause);
    };
    let text = error.get_message().as_str();
    let AMQPErrorKind::Soft(soft) = error.kind() else {
        return unavailable(operation, subject, format!("the broker closed the connection: {text}")).because(cause);
    };
    let (kind, reason) = match soft {
        AMQPSoftError::PRECONDITIONFAILED if is_limit(text) => {
            (ErrorKind::Environment, format!("there is as much as is allowed: {text}"))
        }
        AMQPSoftError::PRECONDITIONFAILED => (ErrorKind::Rejected, format!("it exists otherwise: {text}; {advice}")),
        AMQPSoftError::ACCESSREFUSED => (ErrorKind::Environment, format!("the user has not the right to: {text}")),
        AMQPSoftError::RESOURCELOCKED => (ErrorKind::Environment, text.to_owned()),
        _ => (ErrorKind::Rejected, text.to_owned()),
    };
    Error::new(kind, operation, subject, reason).because(cause)
}

/// What an operation would wait for is refused where somebody sets up a connection and looks on.
pub(crate) fn in_setup(error: Error) -> Error {
    match error.kind() {
        ErrorKind::Environment => {
            let (operation, subject) = (error.operation().to_owned(), error.subject().to_owned());
            Error::new(ErrorKind::Rejected, operation, subject, error.reason()).because(error.clone())
        }
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use lapin::protocol::{AMQPError, AMQPHardError};

    use super::*;

    fn soft(kind: AMQPSoftError, text: &str) -> lapin::Error {
        Cause::ProtocolError(AMQPError::new(kind.into(), text.into())).into()
    }

    #[test]
    fn a_missing_right_is_waited_for_except_where_somebody_sets_up_the_connection() {
        let error = call("bind", "queue `a`".into(), soft(AMQPSoftError::ACCESSREFUSED, "x"), "");
        assert_eq!(error.kind(), ErrorKind::Environment);
        assert_eq!(in_setup(error).kind(), ErrorKind::Rejected);
        let error = call("declare", "queue `a`".into(), soft(AMQPSoftError::PRECONDITIONFAILED, "x"), "");
        assert_eq!(error.kind(), ErrorKind::Rejected);
        let text = "PRECONDITION_FAILED - cannot declare queue 'a': queue limit in vhost '/' (1) is reached";
        let error = call("declare", "queue `a`".into(), soft(AMQPSoftError::PRECONDITIONFAILED, text), "delete it");
        assert_eq!(error.kind(), ErrorKind::Environment);
        assert!(!error.reason().contains("delete it"), "{error}");
    }

    #[test]
    fn connect_errors_are_told_apart() {
        let uri: AMQPUri = "amqp://u:s3cret@b/shop".parse().unwrap();
        let hard = |text: &str| {
            let error = AMQPError::new(AMQPHardError::NOTALLOWED.into(), text.into());
            Cause::ProtocolError(error).into()
        };
        let limit = "NOT_ALLOWED - access to vhost 'shop' refused for user 'u': connection limit (5) is reached";
        let io = |text: &str| lapin::Error::from(std::io::Error::other(text.to_owned()));
        let cases = [
            (Stage::Resolve, io("no such host"), ErrorKind::Unavailable, "resolve"),
            (Stage::Dial, io("refused"), ErrorKind::Unavailable, "reachable"),
            (Stage::Tls, io("invalid peer certificate: UnknownIssuer"), ErrorKind::Rejected, "ca_file"),
            (Stage::Tls, io("received corrupt message"), ErrorKind::Unavailable, "TLS port"),
            (Stage::Handshake, soft(AMQPSoftError::ACCESSREFUSED, "x"), ErrorKind::Rejected, "password"),
            (Stage::Handshake, hard("x"), ErrorKind::Rejected, "`shop`"),
            (Stage::Handshake, hard(limit), ErrorKind::Unavailable, "as many connections as are allowed"),
            (Stage::Tls, io("received fatal alert: UnknownCA"), ErrorKind::Rejected, "certificate_file"),
            (
                Stage::Handshake,
                io("received fatal alert: CertificateRequired"),
                ErrorKind::Rejected,
                "certificate_file",
            ),
            (Stage::Handshake, io("reset"), ErrorKind::Unavailable, "handshake"),
        ];
        for (stage, cause, kind, word) in cases {
            let error = connect(&uri, stage, cause);
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.reason().contains(word) && !error.to_string().contains("s3cret"), "{error}");
        }
    }
}
