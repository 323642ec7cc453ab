//! Lost frames, by the kernel's drop counters at the ends of the cables.

use crate::site::{BOX_INCOMING, BOX_UPLINK, FAR_END, Site};
use exitmark_lab::{LabError, Netns};

/// Frames that a cable dropped. The receiving end of a veth pair queues 256; further frames count
/// as dropped at the sending end, independent of the sender.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Drops {
    /// Between the generator and the box.
    pub(crate) before_box: u64,
    /// Between the box and the sinks.
    pub(crate) after_box: u64,
}

impl Drops {
    pub(crate) fn read(site: &Site) -> Result<Self, LabError> {
        let uplink = sending_drops(&site.middle, BOX_UPLINK)?;
        let incoming = sending_drops(&site.middle, BOX_INCOMING)?;
        Ok(Self {
            before_box: sending_drops(&site.host, FAR_END)?,
            after_box: uplink + incoming,
        })
    }

    /// The drops since `before`.
    pub(crate) fn since(&self, before: &Self) -> Self {
        Self {
            before_box: self.before_box - before.before_box,
            after_box: self.after_box - before.after_box,
        }
    }
}

fn sending_drops(netns: &Netns, interface: &str) -> Result<u64, LabError> {
    let text = netns.ip(&format!("-s -j link show dev {interface}"))?;
    serde_json::from_str::<serde_json::Value>(&text)
        .ok()
        .and_then(|links| links.pointer("/0/stats64/tx/dropped")?.as_u64())
        .ok_or_else(|| {
            LabError(format!(
                "`ip` prints no drop counters of {interface}: {text}"
            ))
        })
}
