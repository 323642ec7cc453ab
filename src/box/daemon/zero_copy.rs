//! Decides whether the sockets are bound zero-copy, before the first one is bound.
//!
//! When the XDP program redirects a frame that was received zero-copy, the kernel copies it without
//! headroom. Some drivers cannot send such a frame and drop it silently. With such an egress NIC
//! the kernel engine cannot take over from a worker: `auto` binds in copy mode; where zero-copy is
//! required, the program hands every frame of the port to the worker or drops it.

use super::DaemonError;
use crate::settings::{Engine, ZeroCopy};
use exitmark_datapath::{PerRole, Role};
use std::fmt;

/// The explanation of a port's `cut` counter.
pub(super) const CUT: &str = "frames arrive shorter than their IP packet, and just as long as a \
    receive buffer may be: either the driver truncates them in zero-copy mode, which \
    datapath.zero_copy = \"off\" avoids, or the sender sends them truncated";

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Binding {
    /// Copy mode; with the lossy NIC if that is why.
    Copy(Option<Lossy>),
    /// Zero-copy if every port supports it, otherwise copy mode.
    Either,
    /// Zero-copy only; otherwise the start fails.
    ZeroCopy,
}

/// A NIC that drops frames redirected to it from a zero-copy port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lossy {
    pub(super) from: Role,
    pub(super) nic: String,
    pub(super) driver: String,
}

impl fmt::Display for Lossy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({}) drops frames that the XDP program redirects to it from a zero-copy {}",
            self.nic, self.driver, self.from
        )
    }
}

/// Chooses the mode by the settings and the NICs' drivers.
///
/// # Errors
/// `engine = "xdp"` and zero-copy are both required, which would lose every frame.
pub(super) fn choose(
    requested: ZeroCopy,
    engine: Engine,
    lossy: &PerRole<Option<Lossy>>,
) -> Result<Binding, DaemonError> {
    let first = lossy.iter().find_map(|(_, lossy)| lossy.clone());
    match (requested, first) {
        (ZeroCopy::Off, _) => Ok(Binding::Copy(None)),
        (ZeroCopy::Auto, None) => Ok(Binding::Either),
        (ZeroCopy::Auto, lossy) => Ok(Binding::Copy(lossy)),
        (ZeroCopy::Require, Some(lossy)) if engine == Engine::Xdp => {
            Err(DaemonError::Unmet(format!(
                "engine = \"xdp\" with datapath.zero_copy = \"require\" would forward nothing: \
                 {lossy}; set datapath.zero_copy to \"auto\", or engine to \"af_xdp\""
            )))
        }
        (ZeroCopy::Require, _) => Ok(Binding::ZeroCopy),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lossy() -> Lossy {
        Lossy {
            from: Role::Host,
            nic: "enp2s0".to_owned(),
            driver: "virtio_net".to_owned(),
        }
    }

    #[test]
    fn zero_copy_is_bound_only_where_redirects_survive_or_it_is_required() {
        use Engine::{AfXdp, Auto, Xdp};
        let copy = Binding::Copy(None);
        let spared = Binding::Copy(Some(lossy()));
        let zero_copy = Binding::ZeroCopy;
        for (requested, engine, sound, unsound) in [
            (ZeroCopy::Off, Auto, &copy, Some(&copy)),
            (ZeroCopy::Off, Xdp, &copy, Some(&copy)),
            (ZeroCopy::Auto, Auto, &Binding::Either, Some(&spared)),
            (ZeroCopy::Auto, AfXdp, &Binding::Either, Some(&spared)),
            (ZeroCopy::Auto, Xdp, &Binding::Either, Some(&spared)),
            (ZeroCopy::Require, Auto, &zero_copy, Some(&zero_copy)),
            (ZeroCopy::Require, AfXdp, &zero_copy, Some(&zero_copy)),
            (ZeroCopy::Require, Xdp, &zero_copy, None),
        ] {
            let none = PerRole::default();
            assert_eq!(&choose(requested, engine, &none).unwrap(), sound);
            let some = PerRole::from_fn(|role| (role == Role::Host).then(lossy));
            assert_eq!(
                choose(requested, engine, &some).ok().as_ref(),
                unsound,
                "{requested:?} {engine:?}"
            );
        }
    }

    #[test]
    fn the_refusal_names_port_nic_driver_and_what_to_set() {
        let some = PerRole::from_fn(|role| (role == Role::Host).then(lossy));
        let text = choose(ZeroCopy::Require, Engine::Xdp, &some)
            .unwrap_err()
            .to_string();
        for part in [
            "host",
            "enp2s0",
            "virtio_net",
            "datapath.zero_copy",
            "\"auto\"",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
