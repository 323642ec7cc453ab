//! Limits how long the cores may take to leave an idle state, while a worker needs that.
//!
//! A core without work enters an idle state. The deeper it is, the longer a wake-up takes: up to
//! hundreds of microseconds on hardware, tens in a virtual machine, where the hypervisor takes the
//! core away. The kernel chooses no state that takes longer than the least of all requests, each of
//! which is an open file (Documentation/power/pm_qos_interface.rst): so it ends with the process,
//! however that ends.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// The device whose open files are requests.
pub const CPU_LATENCY_DEVICE: &str = "/dev/cpu_dma_latency";
/// The name of the driver of idle states.
const DRIVER: &str = "/sys/devices/system/cpu/cpuidle/current_driver";

/// The driver of guests whose only idle state gives the core to the hypervisor. It says 1 µs, which
/// is wrong; only polling in its place is fast.
const HALTPOLL: &str = "haltpoll";
/// On hardware: above the 1 to 10 µs of the first state or two, and below the 30 to 800 µs of the
/// deeper ones, which save most of the energy. Without a state, all cores would poll.
const SHALLOW: Duration = Duration::from_micros(10);
/// The value of a request that requests nothing (PM_QOS_DEFAULT_VALUE).
const NO_REQUEST: i32 = -1;

/// A request to the kernel, which any number of threads share.
#[derive(Debug)]
pub struct CpuLatency {
    device: File,
    limit: i32,
    /// How many threads request it now.
    holders: Mutex<usize>,
}

impl CpuLatency {
    /// The limit that makes wake-ups fast on this machine. `None` if the kernel has no idle states
    /// to choose from, as in most virtual machines: a limit has no effect there.
    pub fn useful_limit() -> Option<Duration> {
        limit_for(fs::read_to_string(DRIVER).ok()?.trim())
    }

    /// Opens the device. Nothing is requested yet.
    ///
    /// # Errors
    /// The device does not exist, or may not be opened: only root may by default.
    pub fn open(limit: Duration) -> io::Result<Self> {
        let device = OpenOptions::new().write(true).open(CPU_LATENCY_DEVICE)?;
        Ok(Self::over(device, limit))
    }

    /// The same for any file.
    pub(super) fn over(device: File, limit: Duration) -> Self {
        Self {
            device,
            limit: i32::try_from(limit.as_micros()).unwrap_or(i32::MAX),
            holders: Mutex::new(0),
        }
    }

    /// Adds a thread to those that request the limit, or removes one of them.
    pub(crate) fn request(&self, wanted: bool) {
        let mut holders = self.holders.lock().unwrap_or_else(PoisonError::into_inner);
        let before = *holders;
        *holders = match wanted {
            true => before + 1,
            false => before.saturating_sub(1),
        };
        let value = match (before, *holders) {
            (0, 1) => self.limit,
            (1, 0) => NO_REQUEST,
            _ => return,
        };
        // The kernel refuses no value. Without an effect, wake-ups are as slow as before.
        let _ = (&self.device).write_all(&value.to_ne_bytes());
    }
}

/// The limit for this driver of idle states.
fn limit_for(driver: &str) -> Option<Duration> {
    match driver {
        "" | "none" => None,
        HALTPOLL => Some(Duration::ZERO),
        _ => Some(SHALLOW),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::OwnedFd;

    #[test]
    fn guests_poll_and_hardware_enters_shallow_states() {
        assert_eq!(limit_for("haltpoll"), Some(Duration::ZERO));
        assert_eq!(limit_for("intel_idle"), Some(Duration::from_micros(10)));
        assert_eq!(limit_for("acpi_idle"), Some(Duration::from_micros(10)));
        assert_eq!(limit_for("none"), None);
    }

    #[test]
    fn the_first_thread_requests_and_the_last_one_withdraws() {
        let (mut requests, device) = io::pipe().unwrap();
        let latency =
            CpuLatency::over(File::from(OwnedFd::from(device)), Duration::from_micros(10));
        latency.request(true);
        latency.request(true);
        latency.request(false);
        let mut value = [0; 4];
        requests.read_exact(&mut value).unwrap();
        assert_eq!(i32::from_ne_bytes(value), 10);
        latency.request(false);
        latency.request(true);
        drop(latency);
        let mut rest = Vec::new();
        requests.read_to_end(&mut rest).unwrap();
        // Nothing was written while one of the two threads still needed it.
        let values = rest.as_chunks::<4>().0.iter();
        let values: Vec<_> = values.map(|&value| i32::from_ne_bytes(value)).collect();
        assert_eq!(values, [NO_REQUEST, 10]);
    }
}
