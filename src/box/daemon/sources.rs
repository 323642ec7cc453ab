//! Checks the addresses of `steer.source`: answers to them arrive only if the box's own stack answers
//! ARP and neighbour discovery for them, and if the network routes them to the box.

use super::DaemonError;
use super::wire::Wire;
use crate::machine::{Misplaced, SourceNetwork, TcpSocket, listener, ss_filter};
use crate::observe::Warning;
use crate::settings::Settings;
use exitmark_datapath::{Counter, Tally};
use exitmark_nic::{LocalNic, Nic, NicError};
use exitmark_policy::{Group, Rules};
use ipnet::IpNet;

/// The kinds of the alarms.
const SOURCE_MISSING: &str = "source_missing";
const SOURCE_UNANSWERED: &str = "source_unanswered";
/// How many frames must leave translated, over at least [`LOOKS`] checks, while none comes back.
const UNANSWERED: u64 = 100;
const LOOKS: u32 = 60;

/// The alarms on the addresses of `steer.source`: what one wire sends may be answered by another.
#[derive(Debug, Default)]
pub(super) struct Sources {
    answers: Answers,
    /// Kind and text.
    alarms: Vec<(&'static str, String)>,
}

/// Frames that left with an address of `steer.source`, and those that came back to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Translated {
    out: u64,
    back: u64,
}

impl Translated {
    /// Adds what a wire has counted.
    pub(super) fn add(&mut self, tally: &Tally) {
        self.out += tally.of(Counter::Translated);
        self.back += tally.of(Counter::TranslatedBack);
    }
}

/// Whether relays answer.
#[derive(Clone, Copy, Debug, Default)]
struct Answers {
    last: Option<Translated>,
    /// The counters when the last answer arrived, or at the first check.
    since: Translated,
    /// The number of checks since then.
    looks: u32,
}

impl Answers {
    /// Compares with the last check; returns whether answers are missing.
    fn look(&mut self, now: Translated) -> bool {
        let last = self.last.replace(now);
        // A counter that decreases was started anew by another build.
        if last.is_none_or(|last| now.back != last.back || now.out < last.out) {
            (self.since, self.looks) = (now, 0);
        } else {
            self.looks = self.looks.saturating_add(1);
        }
        self.looks >= LOOKS && now.out - self.since.out >= UNANSWERED
    }
}

/// An address that no router can resolve.
struct Missing {
    address: IpNet,
    /// The interface on which it belongs; an error with the commands that create it.
    interface: Result<String, NicError>,
}

impl Missing {
    /// The addresses of these rules that are missing on these NICs, each an `incoming`.
    fn all(rules: &Rules, incoming: &[&Nic]) -> Result<Vec<Self>, NicError> {
        let networks = SourceNetwork::all(rules);
        if networks.is_empty() {
            return Ok(Vec::new());
        }
        let nics = LocalNic::all()?;
        let mut missing = Vec::new();
        for network in networks {
            let interfaces = match network.interfaces(incoming) {
                Ok(interfaces) => interfaces,
                Err(error @ NicError::NoVlan { .. }) => {
                    let address = network.sources.first().copied();
                    missing.extend(address.map(|address| Self {
                        address,
                        interface: Err(error),
                    }));
                    continue;
                }
                Err(error) => return Err(error),
            };
            for address in network.sources {
                let misplaced = Misplaced::of(address, &interfaces, &nics);
                let unreachable = misplaced.filter(|one| one.is_unreachable(address));
                missing.extend(unreachable.map(|misplaced| Self {
                    address,
                    interface: Ok(misplaced.interface),
                }));
            }
        }
        Ok(missing)
    }

    /// The finding and its remedy, if an address is missing.
    fn text(missing: &[Self]) -> Option<String> {
        let first = missing.first()?;
        let address = first.address.addr();
        let more = match missing.len() {
            1 => String::new(),
            count => format!(" and {} more of steer.source", count - 1),
        };
        let (on, remedy) = match &first.interface {
            Ok(interface) => {
                let length = if address.is_ipv4() { 24 } else { 64 };
                let remedy = format!(
                    "`ip addr add {address}/{length} dev {interface}`, with the network's own length"
                );
                (format!(" on {interface}"), remedy)
            }
            Err(error) => (String::new(), error.to_string()),
        };
        Some(format!(
            "the box does not have the address {address}{more} (steer.source){on}: no router can \
             resolve it, so relays' answers do not arrive; {remedy}"
        ))
    }
}

/// The finding that answers are missing, and its remedy.
fn unanswered(interface: &str) -> String {
    format!(
        "relay traffic leaves by {interface} with an address of steer.source, and for a minute no \
         answer has come back to it, so relay connections fail; correct steer.source, or let the \
         router on {interface} accept the address as a source and route it to the box; with mode = \
         \"audit\" and `exitmark reload` relay traffic leaves by the uplink meanwhile"
    )
}

impl Sources {
    /// Looks at the box's addresses and the counters again, once a second; logs what changes.
    pub(super) fn look(&mut self, wires: &[Wire], translated: Translated) {
        let Some(first) = wires.first() else {
            return;
        };
        let rules = &first.settings.rules;
        let incoming: Vec<_> = wires.iter().filter_map(Wire::incoming_nic).collect();
        let missing = match Missing::all(rules, &incoming) {
            Ok(missing) => Missing::text(&missing),
            Err(error) => {
                tracing::warn!("the box's addresses cannot be read: {error}");
                self.alarm(SOURCE_MISSING).cloned()
            }
        };
        let are_unanswered = self.answers.look(translated);
        let unanswered = match first.settings.incoming() {
            Some(incoming) if are_unanswered && rules.groups().iter().any(Group::translates) => {
                Some(unanswered(&incoming.interface))
            }
            _ => None,
        };
        let mut alarms = Vec::new();
        for (kind, now) in [(SOURCE_MISSING, missing), (SOURCE_UNANSWERED, unanswered)] {
            match (self.alarm(kind), &now) {
                (before, Some(text)) if before != Some(text) => tracing::error!("ALARM: {text}"),
                (Some(_), None) => tracing::info!("alarm cleared: {kind}"),
                _ => {}
            }
            alarms.extend(now.map(|text| (kind, text)));
        }
        self.alarms = alarms;
    }

    fn alarm(&self, kind: &str) -> Option<&String> {
        let mut alarms = self.alarms.iter();
        alarms.find(|(one, _)| *one == kind).map(|(_, text)| text)
    }

    pub(super) fn warnings(&self) -> impl Iterator<Item = Warning> {
        let alarms = self.alarms.iter();
        alarms.map(|(kind, text)| Warning::new(kind, true, text.clone()))
    }
}

/// Refuses a program of the box that listens at an address of `steer.source`.
pub(super) fn refuse_listener(settings: &Settings) -> Result<(), DaemonError> {
    let rules = &settings.rules;
    if !rules.groups().iter().any(Group::translates) {
        return Ok(());
    }
    let sockets = TcpSocket::all().unwrap_or_else(|error| {
        tracing::warn!("whether programs listen at steer.source cannot be read: {error}");
        Vec::new()
    });
    let Some(local) = listener(rules, &sockets) else {
        return Ok(());
    };
    Err(DaemonError::Unmet(format!(
        "a program of the box listens at {local}, an address of steer.source, where it cannot serve \
         relays: their segments go to the Tor host; `ss -ltnp src {}` shows the program: let it \
         listen at another address, or change steer.source",
        ss_filter(local.ip().into())
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In which checks answers are missing, given pairs of frames out and back since the last one.
    fn alarms(seconds: &[(u64, u64)]) -> Vec<usize> {
        let mut answers = Answers::default();
        let mut now = Translated { out: 1000, back: 0 };
        assert!(!answers.look(now), "counts of another process");
        let mut look = |&(out, back): &(u64, u64)| {
            now.out += out;
            now.back += back;
            answers.look(now)
        };
        let found = seconds.iter().map(&mut look).collect::<Vec<_>>();
        let found = found.iter().enumerate().filter(|(_, is_alarm)| **is_alarm);
        found.map(|(second, _)| second).collect()
    }

    #[test]
    fn a_minute_without_an_answer_is_an_alarm_until_the_first_one() {
        let mut seconds = vec![(50, 0); 62];
        seconds.extend([(0, 0), (50, 1), (50, 0)]);
        assert_eq!(alarms(&seconds), [59, 60, 61, 62]);
    }

    #[test]
    fn few_frames_and_answered_ones_are_no_alarm() {
        for seconds in [
            &[(0, 0); 200][..],
            &[(1, 0); 99],
            &[(900, 0); 59],
            &[(900, 1); 200],
            &[&[(900, 0); 50][..], &[(0, 1)], &[(900, 0); 59]].concat(),
        ] {
            assert_eq!(alarms(seconds), [0; 0], "{seconds:?}");
        }
        // A quiet host.
        assert_eq!(alarms(&[(1, 0); 101]), [99, 100]);
    }

    #[test]
    fn counters_of_another_build_are_no_alarm() {
        let mut answers = Answers::default();
        for out in [5000].into_iter().chain(0..u64::from(LOOKS)) {
            assert!(!answers.look(Translated { out, back: 7 }), "{out}");
        }
    }

    #[test]
    fn a_missing_address_is_reported_with_the_interface_on_which_it_belongs() {
        let missing = |address: &str, interface| Missing {
            address: address.parse().unwrap(),
            interface,
        };
        let v6 = missing("2001:db8:3::10/128", Ok("incoming0.30".to_owned()));
        let text = Missing::text(&[v6, missing("203.0.113.10/32", Ok(String::new()))]).unwrap();
        for part in [
            "2001:db8:3::10 and 1 more of steer.source (steer.source) on incoming0.30: no router",
            "`ip addr add 2001:db8:3::10/64 dev incoming0.30`",
        ] {
            assert!(text.contains(part), "no `{part}` in: {text}");
        }
        let error = NicError::NoVlan {
            nic: "incoming0".to_owned(),
            tags: vec![30],
            outer: None,
        };
        let text = Missing::text(&[missing("203.0.113.10/32", Err(error))]).unwrap();
        for part in ["203.0.113.10", "ip link add link incoming0", "ip addr add"] {
            assert!(text.contains(part), "no `{part}` in: {text}");
        }
        assert_eq!(Missing::text(&[]), None);
    }
}
