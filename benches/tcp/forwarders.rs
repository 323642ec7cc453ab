//! The compared forwarders, and how each is started.

use crate::common::bpf;
use crate::common::exitmark::{self, Variant};
use ::exitmark_lab::LabError;
use ::exitmark_lab::site::{OR_PORT, RELAY_V4, RELAY_V6, Site};

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
}

/// A running forwarder.
pub(crate) enum Running {
    Exitmark(exitmark::Running),
    /// In the kernel; ends with the site.
    Wire,
}

/// All forwarders, in the order of the table.
pub(crate) fn all() -> Vec<Forwarder> {
    let exitmarks = VARIANTS.into_iter().map(Forwarder::Exitmark);
    exitmarks.chain([Forwarder::Wire]).collect()
}

impl Forwarder {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Exitmark(variant) => variant.name,
            Self::Wire => "wire",
        }
    }

    /// Whether it marks exit traffic.
    pub(crate) fn marks(&self) -> bool {
        matches!(self, Self::Exitmark(_))
    }

    /// Starts it in the middle of the site; returns when it is ready to forward.
    pub(crate) fn start(&self, site: &Site, compiled: &[u8]) -> Result<Running, LabError> {
        match self {
            Self::Exitmark(variant) => {
                let text = configuration(site)?;
                variant.start(&site.middle, &text).map(Running::Exitmark)
            }
            Self::Wire => {
                let programs = bpf::load(compiled, 1)?;
                bpf::attach_wire(&programs, &site.middle, "host0", "uplink0")?;
                Ok(Running::Wire)
            }
        }
    }
}

impl Running {
    pub(crate) fn stop(self) -> Result<(), LabError> {
        match self {
            Self::Exitmark(running) => running.stop(),
            Self::Wire => Ok(()),
        }
    }
}

/// The site's configuration, with its relay listed; the web server is not a relay.
fn configuration(site: &Site) -> Result<String, LabError> {
    let failed = |error| LabError(format!("cannot write the site's configuration: {error}"));
    let directory = tempfile::tempdir().map_err(failed)?;
    let relays = format!("extra = [\"{RELAY_V4}:{OR_PORT}\", \"[{RELAY_V6}]:{OR_PORT}\"]\n");
    let mark = format!("[mark]\ndscp = {}\n", crate::mark::DSCP);
    let path = site.configuration(directory.path(), &relays, &mark)?;
    std::fs::read_to_string(path).map_err(failed)
}
