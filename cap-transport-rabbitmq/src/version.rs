//! Which version the broker has. The driver does not tell it, so a connection of its own gets as far as the broker's first
//! words, in which it is told.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;

use futures_io::{AsyncRead, AsyncWrite};
use lapin::protocol::{AMQPClass, connection, parse_class};
use lapin::types::AMQPValue;

/// What a client of AMQP 0-9-1 says first.
const GREETING: &[u8] = b"AMQP\x00\x00\x09\x01";
/// Type, channel and length of a frame.
const HEAD: usize = 7;
/// More than the broker's first frame ever has.
const MAX_FRAME: usize = 64 * 1024;

/// Of a broker that is RabbitMQ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(pub(crate) u32, pub(crate) u32);

impl Version {
    /// Whether a quorum queue knows `x-delivery-limit = -1` as *never*. Versions before take it for a limit that is
    /// passed at once, and have no limit unless one is asked for.
    pub(crate) fn knows_no_limit(self) -> bool {
        self >= Self(4, 0)
    }

    fn of(properties: &lapin::types::FieldTable) -> Option<Self> {
        let text = |name: &str| match properties.inner().get(name) {
            Some(AMQPValue::LongString(text)) => Some(text.to_string()),
            _ => None,
        };
        let version = text("version").filter(|_| text("product").as_deref() == Some("RabbitMQ"))?;
        let mut numbers = version.split('.').map_while(|number| number.parse().ok());
        Some(Self(numbers.next()?, numbers.next()?))
    }
}

/// Asks at the other end of a new stream; nothing if it is not RabbitMQ.
pub(crate) async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<Option<Version>> {
    let mut left = GREETING;
    while !left.is_empty() {
        let written = poll_fn(|cx| Pin::new(&mut stream).poll_write(cx, left)).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        left = &left[written..];
    }
    poll_fn(|cx| Pin::new(&mut stream).poll_flush(cx)).await?;
    let mut head = [0; HEAD];
    read_exact(&mut stream, &mut head).await?;
    let length = usize::try_from(u32::from_be_bytes([head[3], head[4], head[5], head[6]])).unwrap_or(usize::MAX);
    if length > MAX_FRAME {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "its first frame is none of AMQP 0-9-1"));
    }
    let mut payload = vec![0; length];
    read_exact(&mut stream, &mut payload).await?;
    match parse_class(payload.as_slice()) {
        Ok((_, AMQPClass::Connection(connection::AMQPMethod::Start(start)))) => {
            Ok(Version::of(&start.server_properties))
        }
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "it does not begin as AMQP 0-9-1 does")),
    }
}

async fn read_exact(stream: &mut (impl AsyncRead + Unpin), mut place: &mut [u8]) -> io::Result<()> {
    while !place.is_empty() {
        let read = poll_fn(|cx| Pin::new(&mut *stream).poll_read(cx, place)).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        place = &mut place[read..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use lapin::types::FieldTable;

    use super::*;

    fn told(product: &str, version: &str) -> Option<Version> {
        let mut properties = FieldTable::default();
        properties.insert("product".into(), AMQPValue::LongString(product.into()));
        properties.insert("version".into(), AMQPValue::LongString(version.into()));
        Version::of(&properties)
    }

    #[test]
    fn only_rabbitmq_from_4_on_knows_no_limit() {
        assert_eq!(told("RabbitMQ", "3.10.8"), Some(Version(3, 10)));
        assert!(!told("RabbitMQ", "3.13.7").unwrap().knows_no_limit());
        assert!(told("RabbitMQ", "4.0.0-rc.2").unwrap().knows_no_limit());
        assert_eq!((told("LavinMQ", "4.0.0"), told("RabbitMQ", "new")), (None, None));
    }
}
