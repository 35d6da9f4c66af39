//! What differs between operating systems: locks, signals, processor features, memory.

use crate::amounts::Bytes;

pub mod process;

/// What the machine is taken to have where the system doesn't say (arbitrary, small on purpose).
const UNKNOWN_MEMORY: Bytes = Bytes::mib(4_096);

/// The memory that this process may use: the machine's, or its container's if that is less.
pub fn total_memory() -> Bytes {
    let machine = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| mem_total(&text));
    let group = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|text| text.trim().parse().ok());
    machine.into_iter().chain(group.map(Bytes)).min().unwrap_or(UNKNOWN_MEMORY)
}

fn mem_total(text: &str) -> Option<Bytes> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(Bytes(kib.saturating_mul(1_024)))
}
