//! Receive offloads that change frames before XDP sees them, and must be off.
//!
//! Read with the `ethtool` crate; set by a message built here, since that crate cannot. Offloads
//! are read back after they are set: a driver may keep a setting without an error.
//!
//! Source: the kernel's Documentation/networking/ethtool-netlink.rst.

use super::{Nic, NicError, connect_ethtool, converse};
use ethtool::{EthtoolAttr, EthtoolFeatureAttr, EthtoolFeatureBit};
use futures_util::stream::StreamExt;
use netlink_packet_generic::{GenlFamily, GenlHeader, GenlMessage};
use rtnetlink::packet_core::{
    DecodeError, DefaultNla, Emitable, NLA_F_NESTED, NLM_F_ACK, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, ParseableParametrized,
};
use std::fmt;
use std::io;

/// A receive offload of a NIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// Strips 802.1Q VLAN tags (`NETIF_F_HW_VLAN_CTAG_RX`).
    RxVlan,
    /// Strips 802.1ad service VLAN tags.
    RxServiceVlan,
    /// Large receive offload: merges packets irreversibly.
    Lro,
    /// Generic receive offload in hardware: merges packets reversibly.
    GroHw,
}

impl Offload {
    /// Every offload, in the order of declaration.
    pub const ALL: [Self; 4] = [Self::RxVlan, Self::RxServiceVlan, Self::Lro, Self::GroHw];

    /// The kernel's name of the feature, as in `ethtool -K`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RxVlan => "rx-vlan-hw-parse",
            Self::RxServiceVlan => "rx-vlan-stag-hw-parse",
            Self::Lro => "rx-lro",
            Self::GroHw => "rx-gro-hw",
        }
    }

    /// Why a wire must not have the offload on.
    pub const fn harm(self) -> &'static str {
        match self {
            Self::RxVlan | Self::RxServiceVlan => {
                "VLAN tags that the NIC strips are invisible to XDP and would be lost on the wire"
            }
            Self::Lro | Self::GroHw => {
                "packets that the NIC merges differ from the ones that were sent, and are too long \
                 to be forwarded"
            }
        }
    }
}

impl fmt::Display for Offload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The state of an offload on a NIC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OffloadState {
    /// The kernel does not report the feature.
    #[default]
    Absent,
    /// On, and the driver cannot turn it off.
    FixedOn,
    /// Off, and the driver cannot turn it on.
    FixedOff,
    /// On; the driver can turn it off.
    On,
    /// Off; the driver can turn it on.
    Off,
}

impl OffloadState {
    /// Whether the offload is on, fixed or not. An absent one is off.
    pub const fn is_on(self) -> bool {
        matches!(self, Self::FixedOn | Self::On)
    }
}

/// The state of every offload on a NIC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads([OffloadState; Offload::ALL.len()]);

impl Offloads {
    /// Derives the states from the features that the driver can change, those that are on, and
    /// those that are fixed nevertheless.
    fn of(hardware: &[EthtoolFeatureBit], active: &[&str], fixed: &[&str]) -> Self {
        Self(Offload::ALL.map(|offload| {
            let name = offload.name();
            let Some(feature) = hardware.iter().find(|feature| feature.name == name) else {
                return OffloadState::Absent;
            };
            let can_change = feature.value && !fixed.contains(&name);
            match (can_change, active.contains(&name)) {
                (true, true) => OffloadState::On,
                (true, false) => OffloadState::Off,
                (false, true) => OffloadState::FixedOn,
                (false, false) => OffloadState::FixedOff,
            }
        }))
    }

    /// The same states, with one of them replaced.
    #[must_use]
    pub fn with(mut self, offload: Offload, state: OffloadState) -> Self {
        self.0[offload as usize] = state;
        self
    }

    /// The state of one offload; [`OffloadState::Absent`] if the kernel did not report it.
    pub const fn state(&self, offload: Offload) -> OffloadState {
        self.0[offload as usize]
    }

    /// The offloads that must be turned off for a wire.
    ///
    /// # Errors
    /// [`NicError::OffloadFixed`] with the first that is on and cannot be turned off.
    pub fn to_turn_off(&self, nic: &str) -> Result<Vec<Offload>, NicError> {
        let mut on = Offload::ALL.to_vec();
        on.retain(|&offload| self.state(offload).is_on());
        let mut fixed = on
            .iter()
            .filter(|&&one| self.state(one) == OffloadState::FixedOn);
        match fixed.next() {
            Some(&offload) => Err(NicError::OffloadFixed(nic.to_owned(), offload)),
            None => Ok(on),
        }
    }

    /// Queries the NIC with this name. If the kernel does not support the query, all are absent.
    pub(super) async fn look(name: &str) -> Result<Self, NicError> {
        let mut ethtool = connect_ethtool()?;
        let Ok(mut replies) = ethtool.feature().get(Some(name)).execute().await else {
            return Ok(Self::default());
        };
        let (mut hardware, mut active, mut fixed) = (Vec::new(), Vec::new(), Vec::new());
        while let Some(Ok(reply)) = replies.next().await {
            for attribute in reply.payload.nlas {
                match attribute {
                    EthtoolAttr::Feature(EthtoolFeatureAttr::Hw(bits)) => hardware = bits,
                    EthtoolAttr::Feature(EthtoolFeatureAttr::Active(bits)) => active = bits,
                    EthtoolAttr::Feature(EthtoolFeatureAttr::NoChange(bits)) => fixed = bits,
                    _ => {}
                }
            }
        }
        Ok(Self::of(&hardware, &names(&active), &names(&fixed)))
    }
}

fn names(bits: &[EthtoolFeatureBit]) -> Vec<&str> {
    bits.iter().map(|bit| bit.name.as_str()).collect()
}

impl Nic {
    /// Turns an offload on or off, and reads it back.
    ///
    /// # Errors
    /// CAP_NET_ADMIN is missing, or the driver did not change the offload.
    pub fn set_offload(&self, offload: Offload, on: bool) -> Result<(), NicError> {
        converse(async {
            let answer = ask(self.index, offload, on).await?;
            let after = Offloads::look(&self.name).await?;
            verdict(&self.name, offload, on, answer, after.state(offload))
        })
    }
}

/// The result of a change, by the kernel's answer and the state that was read back.
fn verdict(
    nic: &str,
    offload: Offload,
    on: bool,
    answer: Result<(), io::Error>,
    after: OffloadState,
) -> Result<(), NicError> {
    let reason = match answer {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            format!("{error}; that requires CAP_NET_ADMIN")
        }
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            format!("{error}; the driver changes it only while no XDP program is attached")
        }
        Err(error) => error.to_string(),
        Ok(()) if after.is_on() == on => return Ok(()),
        Ok(()) => "the kernel reported success, but the driver did not change it".to_owned(),
    };
    Err(NicError::Offload {
        name: nic.to_owned(),
        offload,
        wanted: if on { "on" } else { "off" },
        reason,
    })
}

const FEATURES_SET: u8 = 12;
const FEATURES_HEADER: u16 = 1;
const FEATURES_WANTED: u16 = 3;
const HEADER_DEV_INDEX: u16 = 1;
const HEADER_FLAGS: u16 = 3;
const FLAG_OMIT_REPLY: u32 = 1 << 1;
const BITSET_BITS: u16 = 3;
const BITSET_BITS_BIT: u16 = 1;
const BIT_NAME: u16 = 2;
const BIT_VALUE: u16 = 3;

/// The request to change one feature of a NIC.
#[derive(Debug)]
struct SetFeature(Vec<DefaultNla>);

impl SetFeature {
    fn new(ifindex: u32, offload: Offload, on: bool) -> Self {
        let mut name = offload.name().as_bytes().to_vec();
        name.push(0);
        let mut bit = vec![DefaultNla::new(BIT_NAME, name)];
        if on {
            bit.push(DefaultNla::new(BIT_VALUE, Vec::new()));
        }
        let bits = nested(BITSET_BITS, &[nested(BITSET_BITS_BIT, &bit)]);
        let flags = FLAG_OMIT_REPLY.to_ne_bytes().to_vec();
        let header = [
            DefaultNla::new(HEADER_DEV_INDEX, ifindex.to_ne_bytes().to_vec()),
            DefaultNla::new(HEADER_FLAGS, flags),
        ];
        Self(vec![
            nested(FEATURES_HEADER, &header),
            nested(FEATURES_WANTED, &[bits]),
        ])
    }
}

fn nested(kind: u16, inner: &[DefaultNla]) -> DefaultNla {
    let mut bytes = vec![0; inner.buffer_len()];
    inner.emit(&mut bytes);
    DefaultNla::new(kind | NLA_F_NESTED, bytes)
}

impl GenlFamily for SetFeature {
    fn family_name() -> &'static str {
        "ethtool"
    }

    fn command(&self) -> u8 {
        FEATURES_SET
    }

    fn version(&self) -> u8 {
        1
    }
}

impl Emitable for SetFeature {
    fn buffer_len(&self) -> usize {
        self.0.as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        self.0.as_slice().emit(buffer);
    }
}

impl ParseableParametrized<[u8], GenlHeader> for SetFeature {
    fn parse_with_param(_: &[u8], _: GenlHeader) -> Result<Self, DecodeError> {
        // The request asks the kernel not to reply with this message.
        Ok(Self(Vec::new()))
    }
}

/// Asks the kernel to change an offload; the inner result is its answer.
async fn ask(ifindex: u32, offload: Offload, on: bool) -> Result<io::Result<()>, NicError> {
    let failed = |error| NicError::Netlink(io::Error::other(error));
    let (connection, mut handle, _) = genetlink::new_connection().map_err(NicError::Netlink)?;
    tokio::spawn(connection);
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_ACK;
    let request = GenlMessage::from_payload(SetFeature::new(ifindex, offload, on));
    let message = NetlinkMessage::new(header, NetlinkPayload::from(request));
    let mut answers = handle.request(message).await.map_err(failed)?;
    while let Some(answer) = answers.next().await {
        let answer = answer.map_err(|error| NicError::Netlink(io::Error::other(error)))?;
        if let NetlinkPayload::Error(error) = answer.payload {
            return Ok(error.code.map_or(Ok(()), |_| Err(error.to_io())));
        }
    }
    Ok(Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bits(features: &[(&str, bool)]) -> Vec<EthtoolFeatureBit> {
        // The type has no public constructor.
        let mut bits = Vec::new();
        for (index, &(name, value)) in (1..).zip(features) {
            let name = name.to_owned();
            bits.push(EthtoolFeatureBit { index, name, value });
        }
        bits
    }

    #[test]
    fn a_table_of_features_is_read() {
        use OffloadState::{Absent, FixedOff, FixedOn, Off, On};
        let hardware = bits(&[
            ("rx-vlan-hw-parse", true),
            ("rx-vlan-stag-hw-parse", true),
            ("rx-lro", false),
            ("rx-gro", true),
        ]);
        let read = Offloads::of(&hardware, &["rx-vlan-hw-parse", "rx-gro"], &[]);
        assert_eq!(read.0, [On, Off, FixedOff, Absent]);
        let active = ["rx-vlan-hw-parse", "rx-lro"];
        let fixed = ["rx-vlan-hw-parse", "rx-vlan-stag-hw-parse"];
        let read = Offloads::of(&hardware, &active, &fixed);
        assert_eq!(read.0, [FixedOn, FixedOff, FixedOn, Absent]);
    }

    #[test]
    fn offloads_that_are_on_are_turned_off_or_refused() {
        for offload in Offload::ALL {
            let with = |state| Offloads::default().with(offload, state);
            use OffloadState::{Absent, FixedOff, Off};
            for state in [Absent, FixedOff, Off] {
                assert!(with(state).to_turn_off("nic0").unwrap().is_empty());
            }
            let on = with(OffloadState::On).to_turn_off("nic0").unwrap();
            assert_eq!(on, [offload]);
            let error = with(OffloadState::FixedOn).to_turn_off("nic0").unwrap_err();
            let said = error.to_string();
            for words in ["nic0", offload.name(), offload.harm()] {
                assert!(said.contains(words), "{said}");
            }
        }
    }

    #[test]
    fn a_change_must_be_confirmed_by_the_state_read_back() {
        let judge = |answer: Result<(), io::Error>, on, after| {
            verdict("nic0", Offload::RxVlan, on, answer, after).map_err(|error| error.to_string())
        };
        assert_eq!(judge(Ok(()), false, OffloadState::Off), Ok(()));
        assert_eq!(judge(Ok(()), true, OffloadState::On), Ok(()));
        let kept = judge(Ok(()), false, OffloadState::On).unwrap_err();
        assert!(kept.contains("the driver did not change it"), "{kept}");
        let command = "`ethtool -K nic0 rx-vlan-hw-parse off`";
        assert!(kept.contains(command), "{kept}");
        let lost = judge(Ok(()), true, OffloadState::Absent).unwrap_err();
        assert!(lost.contains("rx-vlan-hw-parse on`"), "{lost}");
        let denied = io::Error::from_raw_os_error(libc::EPERM);
        let denied = judge(Err(denied), false, OffloadState::On).unwrap_err();
        assert!(denied.contains("CAP_NET_ADMIN"), "{denied}");
        let busy = io::Error::from_raw_os_error(libc::EBUSY);
        let busy = judge(Err(busy), false, OffloadState::Off).unwrap_err();
        assert!(busy.contains("no XDP program"), "{busy}");
        assert!(!busy.contains("CAP_"), "{busy}");
    }
}
