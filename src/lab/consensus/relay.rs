//! The entry of a generated relay: dir-spec, "Consensus formats", from an `r` line to the next.

use crate::Random;
use crate::netdoc::base64;
use exitmark_relays::Flavor;
use std::net::{Ipv4Addr, Ipv6Addr};

/// The variable fields of a relay; the others are constant or random.
pub(super) struct Relay {
    pub(super) number: u32,
    pub(super) address: Ipv4Addr,
    pub(super) orport: u16,
    pub(super) dirport: u16,
    /// The address and port of the `a` line.
    pub(super) further: Option<(Ipv6Addr, u16)>,
}

impl Relay {
    pub(super) fn write(&self, out: &mut String, flavor: Flavor, draw: &mut Draw) {
        let Self {
            number,
            address,
            orport,
            dirport,
            ..
        } = self;
        // Entries are sorted by identity.
        let mut identity: [u8; 20] = draw.bytes();
        identity[..4].copy_from_slice(&number.to_be_bytes());
        let identity = base64(&identity);
        let digest: [u8; 32] = draw.bytes();
        let in_entry = match flavor {
            Flavor::Ns => format!(" {}", base64(&digest[..20])),
            Flavor::Microdesc => String::new(),
        };
        *out += &format!(
            "r lab{number:06} {identity}{in_entry} 2038-01-01 00:00:00 {address} {orport} {dirport}\n"
        );
        if let Some((address, port)) = self.further {
            *out += &format!("a [{address}]:{port}\n");
        }
        if flavor == Flavor::Microdesc {
            *out += &format!("m {}\n", base64(&digest));
        }
        out.push_str(
            "s Exit Fast Guard Running Stable V2Dir Valid\n\
             v Tor 0.4.8.13\n\
             pr Cons=1-2 Desc=1-2 DirCache=2 FlowCtrl=1-2 HSDir=2 HSIntro=4-5 HSRend=1-2 \
             Link=1-5 LinkAuth=1,3 Microdesc=1-2 Padding=2 Relay=1-4\n\
             w Bandwidth=7800\n",
        );
        if flavor == Flavor::Ns {
            out.push_str("p accept 80,443\n");
        }
    }
}

/// The random numbers of a generated network.
pub(super) struct Draw(pub(super) Random);

impl Draw {
    pub(super) fn number(&mut self) -> u64 {
        self.0.word()
    }

    pub(super) fn bytes<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.number().to_be_bytes()[0])
    }

    pub(super) fn pick(&mut self, from: [u16; 8]) -> u16 {
        from[usize::from(self.number().to_be_bytes()[0] >> 5)]
    }
}
