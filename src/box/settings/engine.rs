//! The engine, and the keys that only some engines have.

use super::SettingsError;
use exitmark_service::config::value;
use serde::{Deserialize, Serialize};

/// The engine that decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// `AfXdp` if every port is bound zero-copy, otherwise `Xdp`.
    #[default]
    Auto,
    /// Workers in user space; the kernel takes over what they cannot keep up with.
    AfXdp,
    /// The XDP program in the kernel.
    Xdp,
    /// On the Tor host itself: programs at `connect(2)` change the sockets of tor's connections.
    Connect,
}

impl Engine {
    /// The engine's name in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::AfXdp => "af_xdp",
            Self::Xdp => "xdp",
            Self::Connect => "connect",
        }
    }
}

/// A key or table that an engine refuses.
struct Refused {
    key: &'static str,
    /// The one value that is accepted; empty if the key must be left out.
    except: &'static str,
    /// Why the key is refused, and what to use instead.
    reason: &'static str,
}

const fn refused(key: &'static str, reason: &'static str) -> Refused {
    Refused {
        key,
        except: "",
        reason,
    }
}

const OF_A_BOX: [Refused; 24] = [
    refused(
        "ports",
        "are the NICs of a box in front of the Tor host, and engine = \"connect\" uses no NIC: \
         remove [ports], or set another engine",
    ),
    refused(
        "wire",
        "is two NICs of a box in front of the Tor host, and engine = \"connect\" uses no NIC: \
         remove [[wire]], or set another engine",
    ),
    refused(
        "host.name",
        "is of a group of hosts behind a box; engine = \"connect\" judges the connections of one tor \
         host, this machine: remove the key",
    ),
    refused(
        "host.addresses",
        "is how a box recognises the Tor host's frames; engine = \"connect\" recognises tor's \
         connections by tor.users or tor.cgroups: remove the key",
    ),
    refused(
        "host.relay_addresses",
        "is how a box recognises relay traffic; the address from which engine = \"connect\" opens \
         relay connections is steer.source: remove the key",
    ),
    refused(
        "host.listeners",
        "is how a box recognises answers; engine = \"connect\" judges only connections that tor \
         opens, and none that it accepts: remove the key",
    ),
    refused(
        "host.mac",
        "is of the Tor host's frames, and engine = \"connect\" handles no frames: remove the key",
    ),
    refused(
        "host.vlan",
        "is of the Tor host's frames, and engine = \"connect\" handles no frames: remove the key",
    ),
    refused(
        "host.mark",
        "is of a group of hosts behind a box; engine = \"connect\" has one group: set the keys in \
         [mark]",
    ),
    refused(
        "host.steer",
        "is of a group of hosts behind a box; with engine = \"connect\" the Tor host's own routes \
         choose the next hop: set steer.source, steer.fwmark or steer.interface",
    ),
    refused(
        "host.uplink",
        "is the network of a box's uplink, and engine = \"connect\" handles no frames: remove the key",
    ),
    refused(
        "host.dscp",
        "is the mark of a host that is patched to set one; engine = \"connect\" sets mark.dscp \
         itself: remove the key",
    ),
    refused(
        "host.tos",
        "is the mark of a host that is patched to set one; engine = \"connect\" sets mark.tos \
         itself: remove the key",
    ),
    Refused {
        key: "classify_by",
        except: "relay-set",
        reason: "needs a host that is patched to set a mark; engine = \"connect\" sets it itself, \
                 by the relay set: remove the key",
    },
    Refused {
        key: "mark.protocols",
        except: "tcp",
        reason: "is more than engine = \"connect\" judges, which is TCP, all that Tor exits carry: \
                 remove the key",
    },
    refused(
        "mark.at_uplink",
        "is about frames that a box forwards; engine = \"connect\" marks sockets, and with mode = \
         \"audit\" none: remove the key",
    ),
    refused(
        "steer.next_hop",
        "is the router to which a box sends frames; with engine = \"connect\" the Tor host's own \
         routes choose it, by steer.source, steer.fwmark or steer.interface: set one of these",
    ),
    refused(
        "steer.enabled",
        "is about frames that a box steers; engine = \"connect\" steers by steer.source, \
         steer.fwmark or steer.interface, and without these nothing: remove the key",
    ),
    refused(
        "steer.vlan",
        "is of the frames that a box steers, and engine = \"connect\" handles no frames; a VLAN \
         interface of this machine can be steer.interface: remove the key",
    ),
    refused(
        "steer.pcp",
        "is of the frames that a box steers, and engine = \"connect\" handles no frames: remove the \
         key",
    ),
    refused(
        "steer.on_unavailable",
        "is about frames that a box cannot steer; engine = \"connect\" never refuses a connection, \
         and counts those that it could not steer: remove the key",
    ),
    refused(
        "tap",
        "is about the copies of frames that a box forwards, and engine = \"connect\" forwards none: \
         remove [tap]",
    ),
    refused(
        "uplink",
        "is the network of a box's uplink, and engine = \"connect\" handles no frames: remove \
         [uplink]",
    ),
    refused(
        "datapath",
        "is about frames that a box forwards, and engine = \"connect\" forwards none: remove \
         [datapath]",
    ),
];

const OF_CONNECT: [Refused; 4] = [
    refused(
        "tor",
        "is whose connections engine = \"connect\" judges, on the Tor host itself; a box recognises \
         the host by host.addresses: remove [tor], or set engine = \"connect\"",
    ),
    refused(
        "steer.fwmark",
        "is the mark of sockets that engine = \"connect\" sets, on the Tor host itself; a box \
         steers by ports.incoming and steer.next_hop: set these, or engine = \"connect\"",
    ),
    refused(
        "steer.interface",
        "is the NIC of sockets that engine = \"connect\" sets, on the Tor host itself; that of a \
         box is ports.incoming: set this, or engine = \"connect\"",
    ),
    refused(
        "mark.overwrite",
        "is about the sockets of engine = \"connect\", on the Tor host itself; a box always \
         replaces the DSCP of exit frames: remove the key",
    ),
];

/// Refuses the keys in the file (`given`) that this engine does not have.
pub(super) fn check_keys(engine: Engine, given: &toml::Table) -> Result<(), SettingsError> {
    let refused: &[Refused] = match engine {
        Engine::Connect => &OF_A_BOX,
        Engine::Auto | Engine::AfXdp | Engine::Xdp => &OF_CONNECT,
    };
    if engine == Engine::Connect
        && let Some(toml::Value::Array(groups)) = given.get("host")
    {
        let reason = "are groups of hosts behind a box; engine = \"connect\" judges the connections \
                      of one Tor host, this machine: write [host], or set another engine";
        return Err(value(
            "host",
            format_args!("{} groups", groups.len()),
            reason,
        ));
    }
    for Refused {
        key,
        except,
        reason,
    } in refused
    {
        let found = match key.split_once('.') {
            Some((table, name)) => given.get(table).and_then(|table| table.get(name)),
            None => given.get(*key),
        };
        if let Some(found) = found
            && found.as_str() != Some(except)
        {
            return Err(value(key, found, reason));
        }
    }
    Ok(())
}
