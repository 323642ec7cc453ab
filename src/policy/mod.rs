//! What shall happen to a frame, and why.
//!
//! Pure functions of bytes, settings, relay set and time; nothing here asks the system
//! anything, allocates on the packet path, or knows what a NIC is.

mod endpoint;

pub use endpoint::{Endpoint, EndpointSet, EndpointSetError, MAX_ENDPOINTS};
