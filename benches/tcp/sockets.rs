//! Engine connect on the host of a site, for the connections of this process.

use exitmark_datapath::{Cgroup, Connect, ConnectLinks, Pins, cgroup_mount};
use exitmark_lab::LabError;
use exitmark_lab::site::Site;
use exitmark_policy::packet::Dscp;
use exitmark_policy::{
    Actions, AtUplink, ClassifyBy, EndpointSet, Group, Intent, Mode, Rules, Snapshot, SocketRules,
    Steer,
};
use std::collections::BTreeSet;
use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A user that this process is not.
const ANOTHER: u32 = 0x4000_0000;
/// As many endpoints as relays of a full consensus, at addresses of RFC 2544.
const RELAYS: u32 = 10_000;

/// The attached programs. Dropping it detaches them.
pub(crate) struct Attached {
    _links: ConnectLinks,
    _cgroup: OwnCgroup,
}

impl Attached {
    /// Attaches to a cgroup with this process alone, whose connections are of a user of tor or of
    /// another user.
    pub(crate) fn start(site: &Site, is_of_tor: bool) -> Result<Self, LabError> {
        let cgroup = OwnCgroup::enter()?;
        let path = cgroup.path.clone();
        // Its namespace has a BPF file system of its own.
        let links = site.host.run(move || attach(&path, is_of_tor));
        Ok(Self {
            _links: links?,
            _cgroup: cgroup,
        })
    }
}

fn attach(path: &Path, is_of_tor: bool) -> Result<ConnectLinks, LabError> {
    let pins = Pins::open(Path::new("/sys/fs/bpf/exitmark")).map_err(failed)?;
    let connect = Connect::load(true).map_err(failed)?;
    let user = if is_of_tor {
        nix::unistd::Uid::effective().as_raw()
    } else {
        ANOTHER
    };
    connect.set_users(&BTreeSet::from([user])).map_err(failed)?;
    connect.publish(&snapshot()?).map_err(failed)?;
    let cgroup = Cgroup::open(path).map_err(failed)?;
    connect.attach(&pins, &[cgroup]).map_err(failed)
}

fn snapshot() -> Result<Snapshot, LabError> {
    let tor = Group::new(
        "tor",
        Actions::new(Intent {
            mode: Mode::Enforce,
            mark: Dscp::AF11,
            at_uplink: AtUplink::Keep,
            steer: Steer::Off,
        }),
    );
    let rules = Rules::new(ClassifyBy::RelaySet, vec![tor], SocketRules::default());
    let relay = |number: u32| {
        let address = std::net::Ipv4Addr::from(0xc612_0000 + number);
        exitmark_policy::Endpoint::new(address.into(), 9001)
    };
    let relays = EndpointSet::new((0..RELAYS).map(relay)).map_err(failed)?;
    Ok(Snapshot::new(1, Arc::new(rules), relays))
}

/// A cgroup that this process is in until it is dropped.
struct OwnCgroup {
    path: PathBuf,
    before: PathBuf,
}

impl OwnCgroup {
    fn enter() -> Result<Self, LabError> {
        let mount = cgroup_mount().map_err(failed)?;
        let groups = fs::read_to_string("/proc/self/cgroup").map_err(failed)?;
        let own = groups.lines().find_map(|line| line.strip_prefix("0::/"));
        let before = mount.join(own.unwrap_or_default());
        let path = mount.join(format!("exitmark-bench-{}", std::process::id()));
        fs::create_dir(&path).map_err(failed)?;
        let entered = Self { path, before };
        entered.turn_to(&entered.path)?;
        Ok(entered)
    }

    fn turn_to(&self, path: &Path) -> Result<(), LabError> {
        fs::write(path.join("cgroup.procs"), std::process::id().to_string()).map_err(failed)
    }
}

impl Drop for OwnCgroup {
    fn drop(&mut self) {
        let _ = self.turn_to(&self.before);
        let _ = fs::remove_dir(&self.path);
    }
}

fn failed(error: impl Display) -> LabError {
    LabError(format!("engine connect: {error}"))
}
