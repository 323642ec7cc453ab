//! The report on a running box, and its output as text, metrics and live view.
//!
//! The daemon fills in a [`Report`]; this module only reads it. A report has no field for the
//! address of a destination, so no output can contain one. The only addresses in it are those of
//! the site: its hosts and its next hops.

mod human;
mod merge;
mod metrics;
mod report;
mod request;
mod site;
mod tap;
mod text;
mod top;

pub use metrics::metrics;
pub use report::{
    AuditReport, ClassCount, ConnectionClass, ConnectionsReport, DocumentSignatures, DropCount,
    EngineReport, FrameCount, LatencyReport, MalformedCount, MismatchCount, OWN_RESOLVER,
    PortReport, RelaySetReport, RelaySource, Report, SourceState, Warning, WorkerReport,
};
pub use request::CaptureRequest;
pub use site::{GroupReport, HostReport, NextHopReport, SteeringReport, SteeringState};
pub use tap::{LostCopies, TapReport};
pub use text::Text;
pub use top::{Top, watch};
