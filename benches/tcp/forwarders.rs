//! The compared forwarders, and how each is started.

use crate::common::bpf;
use crate::common::exitmark::Variant;
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
}

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

    pub(crate) fn marks(&self) -> bool {
        matches!(self, Self::Exitmark(_))
    }

    /// Starts it in the middle of the site; returns when it is ready to forward. The wire has no
    /// process, and ends with the site.
    pub(crate) fn start(
        &self,
        site: &Site,
        compiled: &[u8],
    ) -> Result<Option<RunningBox>, LabError> {
        match self {
            Self::Exitmark(variant) => {
                // The web server is not a relay.
                let mark = format!("[mark]\ndscp = {}", crate::mark::DSCP);
                let config = Config::default().more(mark);
                variant.start(&site.middle, config).map(Some)
            }
            Self::Wire => {
                let programs = bpf::load(compiled, 1)?;
                bpf::attach_wire(&programs, &site.middle, "host0", "uplink0")?;
                Ok(None)
            }
        }
    }
}
