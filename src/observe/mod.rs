//! What a running box tells of itself, and how that is shown.
//!
//! The daemon fills in a [`Report`]; everything here only reads it. No report has a place for
//! the address of a destination, so none can be shown.

mod human;
mod metrics;
mod report;
mod request;
mod text;
mod top;

pub use metrics::metrics;
pub use report::{
    AuditReport, ClassCount, DocumentSignatures, DropCount, EngineReport, FrameAudit, FrameCount,
    MalformedCount, OWN_RESOLVER, PortReport, RelaySetReport, RelaySource, Report, Residence,
    SteeringReport, SteeringState, Warning, WorkerReport,
};
pub use request::CaptureRequest;
pub use text::Text;
pub use top::{Top, watch};
