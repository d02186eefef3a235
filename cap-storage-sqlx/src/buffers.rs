//! Memory that a connection keeps.

use sqlx::Connection;

/// Contents of more than this many bytes together leave buffers behind that are not kept.
const LARGE: usize = 1 << 20;

/// Gives the memory of the connection's buffers back, if so many bytes went through them.
pub fn shrink(connection: &mut impl Connection, bytes: usize) {
    if bytes > LARGE {
        connection.shrink_buffers();
    }
}
