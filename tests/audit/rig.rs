//! Runs frames through an engine that samples every one.

use crossbeam::channel::Receiver;
use exitmark_box::audit::{Moment, Sampler};
use exitmark_box::observe::CaptureRequest;
use exitmark_box::settings::Settings;
use exitmark_datapath::memory::HeapMemory;
use exitmark_datapath::{
    Buffers, Forwarder, KnownHost, Links, Outbox, Role, SAMPLE_BYTES, Sample, Samples,
};
use exitmark_lab::cases::{CaseTable, tables};
use exitmark_lab::frames::FROM;
use exitmark_lab::kernel::KernelEngine;
use exitmark_lab::{Netns, is_root};
use exitmark_policy::Snapshot;
use std::sync::Arc;
use std::time::Duration;

/// The arrival time of all of the worker's frames.
pub(crate) const NOON: Duration = Duration::from_secs(43_200);

/// A capture of every frame, without payload and addresses.
pub(crate) const PLAIN: CaptureRequest = CaptureRequest {
    frames: 1_000,
    seconds: 60,
    one_in: 1,
    with_payload: false,
    with_addresses: false,
};

/// [`PLAIN`] with these parts.
pub(crate) const fn showing(with_payload: bool, with_addresses: bool) -> CaptureRequest {
    CaptureRequest {
        with_payload,
        with_addresses,
        ..PLAIN
    }
}

/// The host of the first table, as if it had sent a frame.
pub(crate) fn ground_host() -> KnownHost {
    KnownHost {
        address: [192, 0, 2, 10].into(),
        mac: FROM,
        changes: 0,
    }
}

/// The first table's site: every class, steering, mark AF11.
pub(crate) struct Ground {
    pub(crate) table: CaseTable,
    pub(crate) settings: Settings,
    pub(crate) snapshot: Arc<Snapshot>,
}

pub(crate) fn ground() -> Ground {
    on(tables().swap_remove(0))
}

pub(crate) fn on(table: CaseTable) -> Ground {
    let settings = table.settings().unwrap();
    let snapshot = Arc::new(table.snapshot(&settings));
    Ground {
        table,
        settings,
        snapshot,
    }
}

impl Ground {
    /// A sampler that captures, with or without a current relay set, and the pieces of its file.
    pub(crate) fn capturing(
        &self,
        links: Arc<Links>,
        request: CaptureRequest,
        knows_relays: bool,
    ) -> (Sampler, Receiver<Vec<u8>>) {
        let moment = Moment {
            monotonic: NOON,
            wall: Duration::ZERO,
        };
        let mut sampler = Sampler::new(links, Arc::clone(&self.snapshot), 4096);
        let pieces = sampler.capture(request, moment, knows_relays).unwrap();
        (sampler, pieces)
    }

    pub(crate) fn links(&self) -> Links {
        self.table.links(&self.settings)
    }

    /// A worker's samples of these frames.
    pub(crate) fn by_worker(&self, links: &Arc<Links>, frames: &[(Role, Vec<u8>)]) -> Vec<Sample> {
        links.sample(1);
        let samples = Arc::<Samples>::default();
        let mut forwarder = Forwarder::new(Arc::clone(&self.snapshot), Arc::clone(links))
            .sampled_into(Arc::clone(&samples));
        let mut collected = Vec::new();
        for (ingress, frame) in frames {
            let (mut memory, mut pool) = HeapMemory::new(8, 4096);
            let mut arrived = memory.load(frame, &mut pool);
            let mut outbox = Outbox::default();
            forwarder.process_batch(*ingress, &mut arrived, &mut memory, &mut outbox, NOON);
            collected.push(samples.next().unwrap());
        }
        assert!(samples.next().is_none() && samples.lost() == 0);
        collected
    }

    /// The kernel engine's samples of these frames; `None` without root.
    pub(crate) fn by_kernel(&self, frames: &[(Role, Vec<u8>)]) -> Option<Vec<Sample>> {
        let (snapshot, frames) = (Arc::clone(&self.snapshot), frames.to_vec());
        let incoming = self.table.incoming(&self.settings);
        is_root().then(|| {
            Netns::new("audit").unwrap().run(move || {
                let engine = KernelEngine::new(Buffers::Several, &snapshot, incoming);
                let KernelEngine { kernel, links } = engine.unwrap();
                links.sample(1);
                let mut samples = kernel.samples().unwrap();
                for (ingress, frame) in &frames {
                    kernel.run(*ingress, frame).unwrap();
                }
                let collected: Vec<_> = samples.take(frames.len() + 1).collect();
                assert_eq!((collected.len(), samples.lost()), (frames.len(), 0));
                collected
            })
        })
    }
}

/// The part of a frame that a sample contains.
pub(crate) fn beginning(frame: &[u8]) -> &[u8] {
    &frame[..frame.len().min(SAMPLE_BYTES)]
}
