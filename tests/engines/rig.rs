//! Runs single frames through the kernel engine and reads its counters.

use exitmark_datapath::{Buffers, Counter, IncomingLink, Kernel, KernelCounts, Links, Ran, Role};
use exitmark_lab::cases::CaseTable;
use exitmark_lab::kernel::KernelEngine;
use exitmark_lab::{Netns, is_root};
use exitmark_policy::Snapshot;
use std::sync::Arc;

/// Runs a test in a network namespace of its own, if this machine supports them.
pub(crate) fn in_namespace(test: impl FnOnce() + Send + 'static) {
    if is_root() {
        Netns::new("engines").unwrap().run(test);
    }
}

pub(crate) struct Rig {
    pub(crate) kernel: Kernel,
    pub(crate) links: Links,
    counted: KernelCounts,
}

impl Rig {
    pub(crate) fn new(
        buffers: Buffers,
        snapshot: &Snapshot,
        incoming: Option<IncomingLink>,
    ) -> Self {
        let engine = KernelEngine::new(buffers, snapshot, incoming).unwrap();
        Self {
            kernel: engine.kernel,
            links: engine.links,
            counted: KernelCounts::default(),
        }
    }

    /// A rig with the configuration of a table of cases, and its snapshot.
    pub(crate) fn of(table: &CaseTable, buffers: Buffers) -> (Self, Arc<Snapshot>) {
        let settings = table.settings().unwrap();
        let snapshot = Arc::new(table.snapshot(&settings));
        let incoming = table.incoming(&settings);
        let rig = Self::new(buffers, &snapshot, incoming);
        table.steer(&settings, &rig.links);
        (rig, snapshot)
    }

    /// The same for the program for several buffers, which samples every frame.
    pub(crate) fn sampling(table: &CaseTable) -> (Self, Arc<Snapshot>) {
        let (rig, snapshot) = Self::of(table, Buffers::Several);
        rig.links.sample(1);
        (rig, snapshot)
    }

    /// Runs one frame through the program. Returns the result and what it added to the counters.
    pub(crate) fn run(&mut self, ingress: Role, frame: &[u8]) -> (Ran, Counted) {
        self.run_split(ingress, frame, frame.len())
    }

    /// As [`Rig::run`], with `first` bytes of the frame in the first buffer.
    pub(crate) fn run_split(
        &mut self,
        ingress: Role,
        frame: &[u8],
        first: usize,
    ) -> (Ran, Counted) {
        let ran = self.kernel.run_split(ingress, frame, first).unwrap();
        let after = self.kernel.counts().unwrap();
        let before = std::mem::replace(&mut self.counted, after.clone());
        (ran, Counted { before, after })
    }
}

pub(crate) struct Counted {
    before: KernelCounts,
    after: KernelCounts,
}

impl Counted {
    pub(crate) fn of(&self, counter: Counter) -> u64 {
        self.after.tally.of(counter) - self.before.tally.of(counter)
    }

    pub(crate) fn to_stack(&self, role: Role) -> u64 {
        self.after.to_stack[role] - self.before.to_stack[role]
    }

    pub(crate) fn spilled(&self, role: Role) -> u64 {
        self.after.spilled[role] - self.before.spilled[role]
    }

    /// Asserts that the frame was received once and left once, by these ports.
    #[track_caller]
    pub(crate) fn assert_forwarded(&self, from: Role, to: Role, what: &str) {
        for role in Role::ALL {
            let (received, sent) = (u64::from(role == from), u64::from(role == to));
            assert_eq!(self.of(Counter::Received(role)), received, "{what}: {role}");
            assert_eq!(self.of(Counter::Forwarded(role)), sent, "{what}: {role}");
        }
    }
}
