//! The NIC settings that the box changed, in a pinned map that lasts as long as its links.

use super::super::Role;
use super::contract::ROLES;
use super::pin_error::{PinError, as_io, pin, refused};
use super::{new_array, slot};
use libbpf_rs::{MapCore, MapFlags, MapHandle};
use std::os::fd::AsFd;
use std::path::Path;

/// The settings changed on a NIC, to be restored when the box is detached from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Undo {
    /// The interface index of the NIC.
    pub ifindex: u32,
    /// The inode number of the network namespace to which `ifindex` belongs.
    pub netns: u64,
    /// The changed settings, one bit each.
    pub changed: u64,
}

impl Undo {
    /// Promiscuous mode was turned on. The code that changes the NIC defines the other bits.
    pub const PROMISCUOUS: u64 = 1;
    const BYTES: u32 = 24;

    /// A record of an older build has two numbers: it changed only promiscuous mode.
    fn of_bytes(value: &[u8]) -> Option<Self> {
        let (numbers, _) = value.as_chunks::<8>();
        let number = |at: usize| numbers.get(at).map(|bytes| u64::from_ne_bytes(*bytes));
        let ifindex = u32::try_from(number(0)?).ok()?;
        (ifindex != 0).then_some(Self {
            ifindex,
            netns: number(1)?,
            changed: number(2).unwrap_or(Self::PROMISCUOUS),
        })
    }

    fn to_bytes(undo: Option<Self>) -> Vec<u8> {
        let numbers = undo.map_or([0; 3], |undo| {
            [u64::from(undo.ifindex), undo.netns, undo.changed]
        });
        numbers.map(u64::to_ne_bytes).concat()
    }
}

/// Opens or makes the pinned map, which only user space reads. Converts a map of another build
/// with another value size.
pub(super) fn undo_map(path: &Path) -> Result<MapHandle, PinError> {
    let failed = |doing| {
        let refused = refused(doing, path);
        move |error| refused(as_io(error))
    };
    let mut kept = Vec::new();
    if path.exists() {
        let map = MapHandle::from_pinned_path(path).map_err(failed("open"))?;
        if map.value_size() == Undo::BYTES {
            return Ok(map);
        }
        kept.extend(Role::ALL.map(|role| (role, read_undo(&map, role))));
    }
    let map = new_array("exitmark_undo", Undo::BYTES, ROLES).map_err(failed("make"))?;
    for (role, undo) in kept {
        write_undo(&map, role, undo).map_err(failed("write to"))?;
    }
    pin(map.as_fd(), path)?;
    Ok(map)
}

pub(super) fn read_undo(map: &MapHandle, role: Role) -> Option<Undo> {
    let value = map.lookup(&slot(role.index()), MapFlags::ANY).ok()??;
    Undo::of_bytes(&value)
}

pub(super) fn write_undo(map: &MapHandle, role: Role, undo: Option<Undo>) -> libbpf_rs::Result<()> {
    map.update(&slot(role.index()), &Undo::to_bytes(undo), MapFlags::ANY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let undo = Undo {
            ifindex: 7,
            netns: 4_026_531_840,
            changed: 0b10110,
        };
        let bytes = Undo::to_bytes(Some(undo));
        assert_eq!(bytes.len(), Undo::BYTES as usize);
        assert_eq!(Undo::of_bytes(&bytes), Some(undo));
        assert_eq!(Undo::of_bytes(&Undo::to_bytes(None)), None);
        // Of a later build, as far as it is known here; of an older one; too short.
        assert_eq!(Undo::of_bytes(&[&bytes[..], &[9; 8]].concat()), Some(undo));
        let older = Undo {
            changed: Undo::PROMISCUOUS,
            ..undo
        };
        assert_eq!(Undo::of_bytes(&bytes[..16]), Some(older));
        assert_eq!(Undo::of_bytes(&bytes[..8]), None);
    }
}
