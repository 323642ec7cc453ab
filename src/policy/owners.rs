//! Which group of hosts an address belongs to.

use super::GroupNumber;

/// The kind of an address: of both, or of Tor traffic only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressKind {
    /// Carries exit traffic, and relay traffic too unless the host has relay addresses.
    Clearnet,
    /// Carries Tor traffic only.
    Relay,
}

/// The group that an address belongs to, and the address' kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner(u8);

/// Beside the number of a group: the address carries Tor traffic only.
const OWNER_OF_RELAY: u8 = 0x80;

impl Owner {
    /// Makes an owner from its two parts.
    pub const fn new(group: GroupNumber, kind: AddressKind) -> Self {
        Self(match kind {
            AddressKind::Clearnet => group.to_u8(),
            AddressKind::Relay => group.to_u8() | OWNER_OF_RELAY,
        })
    }

    /// The group.
    #[inline]
    pub const fn group(self) -> GroupNumber {
        GroupNumber::from_u8(self.0 & !OWNER_OF_RELAY)
    }

    /// Whether the address carries Tor traffic only.
    #[inline]
    pub const fn is_of_relay(self) -> bool {
        self.0 & OWNER_OF_RELAY != 0
    }

    pub(super) const fn to_u8(self) -> u8 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_has_a_group_and_a_kind() {
        for number in 0..128 {
            let kind = [AddressKind::Clearnet, AddressKind::Relay][usize::from(number % 2)];
            let owner = Owner::new(GroupNumber::from_u8(number / 2), kind);
            assert_eq!(owner.group(), GroupNumber::from_u8(number / 2));
            assert_eq!(owner.is_of_relay(), number % 2 == 1);
        }
    }
}
