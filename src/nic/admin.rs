//! Sets interfaces up and down (IFF_UP, netdevice(7)).

use super::link::name_at;
use super::{Nic, NicError, connect, converse};
use rtnetlink::packet_route::link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute};
use rtnetlink::{LinkMessageBuilder, LinkUnspec};

/// Sets the interface with this index up or down, for a wire: set up, it is silent, without an IPv6
/// link-local address. Set down, it loses its routes and its global IPv6 addresses
/// (keep_addr_on_down in the kernel's networking/ip-sysctl).
///
/// # Errors
/// [`NicError::Up`] or [`NicError::Down`]: CAP_NET_ADMIN is missing, the interface is gone, or the
/// driver refuses.
pub fn set_admin(index: u32, up: bool) -> Result<(), NicError> {
    match up {
        true => set_up(index, false),
        false => {
            let failed = |reason| NicError::Down(name_at(index), reason);
            converse(change(LinkUnspec::new_with_index(index).down(), failed))
        }
    }
}

fn set_up(index: u32, may_send: bool) -> Result<(), NicError> {
    let failed = |reason| NicError::Up(name_at(index), reason);
    converse(async {
        if !may_send {
            let silent = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
            let silent = LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![silent])]);
            let silent = LinkUnspec::new_with_index(index).append_extra_attribute(silent);
            // A kernel without IPv6 refuses this, and makes no address.
            let _ = change(silent, failed).await;
        }
        change(LinkUnspec::new_with_index(index).up(), failed).await
    })
}

async fn change(
    change: LinkMessageBuilder<LinkUnspec>,
    failed: impl FnOnce(String) -> NicError,
) -> Result<(), NicError> {
    let done = connect()?.link().set(change.build()).execute().await;
    done.map_err(|error| failed(error.to_string()))
}

impl Nic {
    /// Sets the NIC up. Unless it may send by itself, it gets no IPv6 link-local address: a wire
    /// must be silent, but neighbour discovery on `incoming` needs one (RFC 4861 section 7.2.2).
    ///
    /// # Errors
    /// [`NicError::Up`]: CAP_NET_ADMIN is missing, the NIC is gone, or the driver refuses.
    pub fn set_up(&self, may_send: bool) -> Result<(), NicError> {
        set_up(self.index, may_send)
    }

    /// Sets the NIC down and up again. veth determines only then whether it accepts redirected
    /// frames, which depends on its peer.
    ///
    /// # Errors
    /// As [`set_admin`].
    pub fn set_up_anew(&self, may_send: bool) -> Result<(), NicError> {
        set_admin(self.index, false)?;
        self.set_up(may_send)
    }
}
