//! What is usually behind a port.

use super::row::Encryption;

/// The usual name of what is behind a port (IANA's Service Name and Transport Protocol Port Number
/// Registry, or common use where the two differ).
pub fn name(_port: u16) -> Option<&'static str> {
    None
}

/// Whether what is usually behind a port encrypts.
pub fn encryption(_port: u16) -> Encryption {
    Encryption::Unknown
}
