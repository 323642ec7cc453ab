//! Findings on the tap. It is needed for the copies only, so what keeps it from sending is a warning.

use super::{Finding, word};
use exitmark_nic::{Nic, NicError, is_link_local};

/// The NIC of the tap.
#[derive(Clone, Debug)]
pub(super) struct TapFacts {
    name: String,
    /// `None` if no NIC has this name.
    nic: Result<Option<Nic>, String>,
}

impl TapFacts {
    pub(super) fn look(name: &str) -> Self {
        let nic = match Nic::look(name) {
            Ok(nic) => Ok(Some(nic)),
            Err(NicError::Missing(_)) => Ok(None),
            Err(error) => Err(error.to_string()),
        };
        Self {
            name: name.to_owned(),
            nic,
        }
    }

    #[cfg(test)]
    pub(super) const fn of(name: String, nic: Option<Nic>) -> Self {
        Self { name, nic: Ok(nic) }
    }
}

pub(super) fn judge(tap: &TapFacts) -> Vec<Finding> {
    const LOSS: &str = "exit packets are not copied; the wire forwards without the tap";
    let subject = &tap.name;
    let nic = match &tap.nic {
        Ok(Some(nic)) => nic,
        Ok(None) => {
            return vec![Finding::warning(subject, "tap: no NIC has this name").because(LOSS)];
        }
        Err(reason) => return vec![Finding::fault(subject, reason)],
    };
    let state = if !nic.is_up {
        Finding::warning(subject, "tap: down")
            .because(LOSS)
            .mended_by(format!("ip link set dev {} up", word(subject)))
    } else if !nic.has_carrier {
        Finding::warning(subject, "tap: up, no carrier").because(LOSS)
    } else {
        Finding::ok(subject, "tap: up, carrier")
    };
    let mut findings = vec![state];
    if let Err(refused) = nic.refuse_bundles() {
        let finding = Finding::fault(subject, refused.to_string());
        findings.push(match refused {
            NicError::Member(..) => {
                finding.mended_by(format!("ip link set dev {} nomaster", word(subject)))
            }
            _ => finding,
        });
    }
    let addresses = nic.addresses.iter();
    findings.extend(addresses.filter(|one| !is_link_local(one)).map(|address| {
        Finding::fault(subject, format!("tap: has the address {address}"))
            .because(
                "the tap is for copies only, and this machine would send its own packets there",
            )
            .mended_by(format!("ip addr del {address} dev {}", word(subject)))
    }));
    findings
}
