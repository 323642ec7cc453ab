//! A capture of sampled frames of every wire, as one file.

use super::capabilities;
use super::wires::Wires;
use crate::audit::{CapturePart, CaptureTotals};
use crate::observe::CaptureRequest;
use crossbeam::channel::{self, Receiver, Select};
use exitmark_service::process;
use std::sync::Arc;
use std::thread;

/// The type of an interface statistics block.
const STATISTICS: u32 = 5;

impl Wires {
    /// Captures sampled frames of every wire, as one file.
    pub(super) fn capture(
        &self,
        request: CaptureRequest,
        knows_relays: bool,
    ) -> Result<Receiver<Vec<u8>>, String> {
        if let [one] = self.all.as_slice() {
            return one
                .audit
                .capture(request, CapturePart::default(), knows_relays);
        }
        let totals = Arc::<CaptureTotals>::default();
        let captures = self.all.iter().map(|wire| {
            let part = CapturePart {
                wire: wire.name().to_owned(),
                totals: Arc::clone(&totals),
            };
            wire.audit.capture(request, part, knows_relays)
        });
        match captures.collect::<Result<_, _>>() {
            Ok(captures) => merged(captures, totals),
            Err(refused) => {
                // Those that have begun.
                totals.end();
                Err(refused)
            }
        }
    }
}

/// Merges the captures of a request. Each begins with the same header, and each piece is whole blocks
/// of the pcapng file (IETF draft-ietf-opsawg-pcapng section 3.1).
fn merged(
    mut captures: Vec<Receiver<Vec<u8>>>,
    totals: Arc<CaptureTotals>,
) -> Result<Receiver<Vec<u8>>, String> {
    let (pieces, read) = channel::bounded(1);
    let merge = move || {
        process::keep_or_say(capabilities::NONE);
        let mut begun = vec![false; captures.len()];
        let mut has_header = false;
        let mut statistics = None;
        while !captures.is_empty() {
            let mut waiting = Select::new();
            for capture in &captures {
                waiting.recv(capture);
            }
            let ready = waiting.select();
            let number = ready.index();
            let Ok(piece) = ready.recv(&captures[number]) else {
                captures.remove(number);
                begun.remove(number);
                continue;
            };
            let is_header = !std::mem::replace(&mut begun[number], true);
            if is_header && std::mem::replace(&mut has_header, true) {
                continue;
            }
            // The last ones are of all captures.
            if piece.first_chunk() == Some(&STATISTICS.to_ne_bytes()) {
                statistics = Some(piece);
            } else if pieces.send(piece).is_err() {
                totals.end();
                return;
            }
        }
        let _ = statistics.map(|piece| pieces.send(piece));
    };
    let thread = thread::Builder::new().name("exitmark-capture".to_owned());
    match thread.spawn(merge) {
        Ok(_) => Ok(read),
        Err(error) => Err(format!("cannot start a capture: {error}")),
    }
}
