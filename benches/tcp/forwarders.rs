//! The compared forwarders, and how each is started.

use crate::common::bpf;
use crate::common::exitmark::Variant;
use crate::sockets::Attached;
use exitmark_lab::site::Site;
use exitmark_lab::{Config, LabError, RunningBox};

/// The configurations of exitmark, a row each, with the names of the packet rate bench, which has
/// no return traffic.
#[rustfmt::skip]
const VARIANTS: [Variant; 4] = [
    Variant::new("exitmark-xdp", "xdp", ""),
    Variant::new("exitmark-af_xdp", "af_xdp", "spill = false\ninbound = \"xdp\""),
    Variant::new("exitmark-af_xdp-spill", "af_xdp", "spill = true\ninbound = \"xdp\""),
    // Both ways through user space.
    Variant::new("exitmark-af_xdp-both", "af_xdp", "spill = false\ninbound = \"af_xdp\""),
];

pub(crate) enum Forwarder {
    Exitmark(Variant),
    /// XDP redirects every frame to the other side without parsing it.
    Wire,
    /// The same wire, with engine connect on the host; `true`: for the connections measured, else
    /// for those of another user.
    Connect(bool),
}

/// What runs until it is dropped.
pub(crate) enum Running {
    Wire,
    Box(RunningBox),
    Sockets { _attached: Attached },
}

impl Running {
    pub(crate) fn stop(self) -> Result<(), LabError> {
        match self {
            Self::Box(running) => running.stop_well().map(drop),
            Self::Wire | Self::Sockets { .. } => Ok(()),
        }
    }
}

pub(crate) fn all() -> Vec<Forwarder> {
    let exitmarks = VARIANTS.into_iter().map(Forwarder::Exitmark);
    let others = [
        Forwarder::Wire,
        Forwarder::Connect(true),
        Forwarder::Connect(false),
    ];
    exitmarks.chain(others).collect()
}

impl Forwarder {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Exitmark(variant) => variant.name,
            Self::Wire => "wire",
            Self::Connect(true) => "exitmark-connect",
            Self::Connect(false) => "exitmark-connect-other",
        }
    }

    pub(crate) fn marks(&self) -> bool {
        matches!(self, Self::Exitmark(_) | Self::Connect(true))
    }

    /// Starts it in the middle of the site; returns when it is ready to forward. The wire has no
    /// process, and ends with the site.
    pub(crate) fn start(&self, site: &Site, compiled: &[u8]) -> Result<Running, LabError> {
        match self {
            Self::Exitmark(variant) => {
                // The web server is not a relay.
                let mark = format!("[mark]\ndscp = {}", crate::mark::DSCP);
                let config = Config::default().more(mark);
                variant.start(&site.middle, config).map(Running::Box)
            }
            Self::Wire => {
                wire(site, compiled)?;
                Ok(Running::Wire)
            }
            Self::Connect(is_of_tor) => {
                wire(site, compiled)?;
                let _attached = Attached::start(site, *is_of_tor)?;
                Ok(Running::Sockets { _attached })
            }
        }
    }
}

fn wire(site: &Site, compiled: &[u8]) -> Result<(), LabError> {
    let programs = bpf::load(compiled, 1)?;
    bpf::attach_wire(&programs, &site.middle, "host0", "uplink0")
}
