//! What differs between operating systems: locks, signals, processor features, memory. The one place for such calls.

use std::collections::BTreeSet;
use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::fs::TryLockError;
use std::io;
use std::io::Read;
use std::io::Seek;
use std::io::SeekFrom;
use std::io::Write;
use std::net::IpAddr;
use std::num::NonZero;
use std::path::Path;

use crate::amounts::Bytes;
use crate::wire::profile::cpu;

/// The longest process id that is read from a lock file.
const MAX_PID_DIGITS: u64 = 20;

/// The lock on a data directory, held for the life of the process; the system frees it however the process ends.
#[derive(Debug)]
pub struct DirLock {
    _file: File,
}

/// Why a data directory could not be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it.
    #[error("another peer runs on this data directory{}", pid.map(|pid| format!(" (process {pid})")).unwrap_or_default())]
    Held {
        /// Which process, if it could be told.
        pid: Option<u32>,
    },
    /// The lock file cannot be used.
    #[error("cannot lock {path}")]
    Io {
        /// The lock file.
        path: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl DirLock {
    /// Locks `directory` by the file `lock` in it, and writes this process' id there.
    ///
    /// # Errors
    /// [`LockError::Held`] if another process has it.
    pub fn acquire(directory: &Path) -> Result<Self, LockError> {
        let path = directory.join("lock");
        let failed = |source| LockError::Io { path: path.display().to_string(), source };
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(failed)?;
        match lock(&file) {
            Ok(()) => {}
            Err(Refusal::Held) => return Err(LockError::Held { pid: pid_in(&mut file) }),
            Err(Refusal::Io(source)) => return Err(failed(source)),
        }
        write_pid(&mut file).map_err(failed)?;
        Ok(Self { _file: file })
    }
}

enum Refusal {
    Held,
    Io(io::Error),
}

fn lock(file: &File) -> Result<(), Refusal> {
    file.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => Refusal::Held,
        TryLockError::Error(error) => Refusal::Io(error),
    })
}

fn pid_in(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(MAX_PID_DIGITS).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

fn write_pid(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    write!(file, "{}", std::process::id())?;
    file.flush()
}

/// Makes a file readable and writable by its owner alone. Where there are no such permissions, the user's own
/// directory protects it.
///
/// # Errors
/// If the file system refuses.
pub fn set_private_permissions(path: &Path) -> io::Result<()> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))
    }
    #[cfg(not(unix))]
    {
        fs::metadata(path).map(|_| ())
    }
}

/// Lets the file that is made with `options` be its owner's alone from its first moment, where there are such
/// permissions.
pub fn private_from_the_start(options: &mut OpenOptions) -> &mut OpenOptions {
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600)
    }
    #[cfg(not(unix))]
    {
        options
    }
}

/// Waits until the user or the system asks the process to end: Ctrl-C, or SIGTERM where there is one.
///
/// # Errors
/// If signals cannot be waited for.
pub async fn shutdown_requested() -> io::Result<()> {
    #[cfg(unix)]
    {
        use tokio::signal::unix::SignalKind;
        use tokio::signal::unix::signal;
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        tokio::select! {
            _ = interrupt.recv() => Ok(()),
            _ = terminate.recv() => Ok(()),
        }
    }
    #[cfg(not(unix))]
    {
        tokio::signal::ctrl_c().await
    }
}

/// Makes a child the head of a process group of its own, so that a terminal's Ctrl-C does not reach it and
/// [`end_group`] reaches all that it starts.
pub fn in_own_group(command: &mut std::process::Command) -> &mut std::process::Command {
    #[cfg(unix)]
    {
        use std::os::unix::process::CommandExt;
        command.process_group(0)
    }
    #[cfg(not(unix))]
    {
        command
    }
}

/// How a process is asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It may clean up first.
    Asked,
    /// At once.
    Killed,
}

/// Ends every process of the group that `leader` heads. That there is none any more is no error.
///
/// # Errors
/// If the system refuses.
pub fn end_group(leader: u32, ending: Ending) -> io::Result<()> {
    #[cfg(unix)]
    {
        use rustix::process::Pid;
        use rustix::process::Signal;
        let group = i32::try_from(leader).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
        let signal = match ending {
            Ending::Asked => Signal::TERM,
            Ending::Killed => Signal::KILL,
        };
        match rustix::process::kill_process_group(group, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
    #[cfg(windows)]
    {
        let mut command = std::process::Command::new("taskkill");
        command.args(["/T", "/PID", &leader.to_string()]);
        if ending == Ending::Killed {
            command.arg("/F");
        }
        command.output().map(|_| ())
    }
}

/// Ends one process. That there is none any more is no error.
///
/// # Errors
/// If the system refuses.
pub fn end_process(pid: u32, ending: Ending) -> io::Result<()> {
    #[cfg(unix)]
    {
        use rustix::process::Pid;
        use rustix::process::Signal;
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
        let signal = match ending {
            Ending::Asked => Signal::TERM,
            Ending::Killed => Signal::KILL,
        };
        match rustix::process::kill_process(pid, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
    #[cfg(windows)]
    {
        let mut command = std::process::Command::new("taskkill");
        command.args(["/PID", &pid.to_string()]);
        if ending == Ending::Killed {
            command.arg("/F");
        }
        command.output().map(|_| ())
    }
}

/// Lets this process stand still until another lets it go on.
///
/// # Errors
/// If the system refuses, or knows no such thing.
#[cfg(feature = "faults")]
pub fn stop_this_process() -> io::Result<()> {
    #[cfg(unix)]
    {
        use rustix::process::Signal;
        /// Within this time the signal has reached every thread, also on a busy machine; until then this one does nothing (arbitrary).
        const DELIVERY: std::time::Duration = std::time::Duration::from_millis(250);
        rustix::process::kill_process(rustix::process::getpid(), Signal::STOP)?;
        std::thread::sleep(DELIVERY);
        Ok(())
    }
    #[cfg(not(unix))]
    {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Asks the system to back memory with large pages where it can, before anything is written there. A system that knows no such thing does not mind.
///
/// - `memory`: may be uninitialised; nothing is read or written
pub fn prefer_large_pages(memory: &mut [std::mem::MaybeUninit<u8>]) {
    #[cfg(target_os = "linux")]
    {
        let page = rustix::param::page_size();
        let skipped = memory.as_ptr().align_offset(page).min(memory.len());
        let length = (memory.len() - skipped) / page * page;
        let start = memory[skipped..].as_mut_ptr().cast();
        // SAFETY: the pages lie within `memory`, which the caller has to itself; the advice changes no contents. A kernel without
        // large pages refuses, and small ones do as well.
        let _ = unsafe { rustix::mm::madvise(start, length, rustix::mm::Advice::LinuxHugepage) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = memory;
}

/// Gives back the memory of whole pages of a mapped file; they are read from the file again when looked at.
pub fn release_file_pages(map: &memmap2::Mmap, range: std::ops::Range<usize>) {
    #[cfg(unix)]
    {
        let page = rustix::param::page_size();
        let (start, end) = (range.start.next_multiple_of(page), range.end.min(map.len()) / page * page);
        if start < end {
            let advice = memmap2::UncheckedAdvice::DontNeed;
            // SAFETY: the map is read-only and backed by a file, so dropped pages come back as they were. A system that
            // refuses keeps them, which does no harm.
            let _ = unsafe { map.unchecked_advise_range(advice, start, end - start) };
        }
    }
    #[cfg(not(unix))]
    let _ = (map, range);
}

/// Bytes that this process may still write where `path` is; `None` where that cannot be told.
pub fn free_space(path: &Path) -> Option<Bytes> {
    #[cfg(unix)]
    {
        let room = rustix::fs::statvfs(path).ok()?;
        Some(Bytes(room.f_bavail.saturating_mul(room.f_frsize)))
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        None
    }
}

/// Fills `buffer` with what stands at `offset`, wherever the file's own cursor is.
///
/// # Errors
/// What the system says; `UnexpectedEof` if the file is shorter.
pub fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    #[cfg(unix)]
    {
        std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset)
    }
    #[cfg(windows)]
    {
        let (mut rest, mut at) = (buffer, offset);
        while !rest.is_empty() {
            match std::os::windows::fs::FileExt::seek_read(file, rest, at)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => {
                    rest = &mut rest[count..];
                    at += count as u64;
                }
            }
        }
        Ok(())
    }
}

/// Writes all of `bytes` at `offset`, wherever the file's own cursor is.
///
/// # Errors
/// What the system says; `StorageFull` if there is no room.
pub fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    #[cfg(unix)]
    {
        std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
    }
    #[cfg(windows)]
    {
        let (mut rest, mut at) = (bytes, offset);
        while !rest.is_empty() {
            match std::os::windows::fs::FileExt::seek_write(file, rest, at)? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                count => {
                    rest = &rest[count..];
                    at += count as u64;
                }
            }
        }
        Ok(())
    }
}

/// Whether a process of this id runs, as far as can be told.
pub fn is_running(pid: u32) -> bool {
    #[cfg(unix)]
    {
        let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) else {
            return false;
        };
        // A process of another user runs, too.
        !matches!(rustix::process::test_kill_process(pid), Err(rustix::io::Errno::SRCH))
    }
    #[cfg(not(unix))]
    {
        let _ = pid;
        true
    }
}

/// How many cores this process may use.
pub fn cores() -> u16 {
    let count = std::thread::available_parallelism().map_or(1, NonZero::get);
    u16::try_from(count).unwrap_or(u16::MAX)
}

/// How many physical cores this process may use: two threads of one core compute hardly more than one. Where the machine does
/// not say which belong together, all count.
pub fn physical_cores() -> u16 {
    let own =
        |cpu: u32| fs::read_to_string(format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")).ok();
    let physical = fs::read_to_string("/proc/self/status").ok().and_then(|status| {
        let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
        let cores = cpu_list(allowed)?.into_iter().map(own).collect::<Option<BTreeSet<String>>>()?;
        u16::try_from(cores.len()).ok()
    });
    physical.map_or_else(cores, |physical| physical.clamp(1, cores()))
}

/// Reads a list such as `0-3,8`.
fn cpu_list(list: &str) -> Option<Vec<u32>> {
    let mut cpus = Vec::new();
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        // More than any machine has would be a wrong reading.
        cpus.extend((first..=last).take(1 << 16));
    }
    Some(cpus)
}

/// The machine's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// All of it (or what this process' group may use, if that is less).
    pub total: Bytes,
    /// What could be taken without swapping.
    pub available: Bytes,
}

/// The machine's memory; `None` where it cannot be told, and the user must say how much to offer.
pub fn memory() -> Option<Memory> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let mut memory = read_meminfo(&text)?;
    if let Some((limit, used)) = group_limit() {
        memory.total = Bytes(memory.total.0.min(limit));
        memory.available = Bytes(memory.available.0.min(limit.saturating_sub(used)));
    }
    Some(memory)
}

/// What the machine is taken to have where the system doesn't say (arbitrary, small on purpose).
const UNKNOWN_MEMORY: Bytes = Bytes::mib(4_096);

/// The memory that this process may use: the machine's, or its container's if that is less.
pub fn total_memory() -> Bytes {
    memory().map_or(UNKNOWN_MEMORY, |memory| memory.total)
}

fn read_meminfo(text: &str) -> Option<Memory> {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(Bytes(kibibytes.saturating_mul(1024)))
    };
    Some(Memory { total: field("MemTotal")?, available: field("MemAvailable")? })
}

/// The limit and use of the control group, as containers have it (cgroup v2).
fn group_limit() -> Option<(u64, u64)> {
    let number = |name| fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok()?.trim().parse::<u64>().ok();
    Some((number("memory.max")?, number("memory.current")?))
}

/// The processor's features that kernels may use, as bits of [`cpu`].
pub fn cpu_features() -> u32 {
    let found = [
        (cpu::AVX2_FMA, has_avx2_fma()),
        (cpu::AVX512, has_avx512()),
        (cpu::AVX512_VNNI, has_avx512_vnni()),
        (cpu::AMX_INT8, has_flag("amx_int8")),
        (cpu::NEON, cfg!(target_arch = "aarch64")),
        (cpu::NEON_DOTPROD, has_neon_dotprod()),
    ];
    found.into_iter().filter(|(_, here)| *here).fold(0, |bits, (bit, _)| bits | bit)
}

#[cfg(target_arch = "x86_64")]
fn has_avx2_fma() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
}

#[cfg(target_arch = "x86_64")]
fn has_avx512_vnni() -> bool {
    is_x86_feature_detected!("avx512vnni")
}

#[cfg(not(target_arch = "x86_64"))]
const fn has_avx2_fma() -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
const fn has_avx512() -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
const fn has_avx512_vnni() -> bool {
    false
}

#[cfg(target_arch = "aarch64")]
fn has_neon_dotprod() -> bool {
    std::arch::is_aarch64_feature_detected!("dotprod")
}

#[cfg(not(target_arch = "aarch64"))]
const fn has_neon_dotprod() -> bool {
    false
}

/// Whether the kernel names a processor feature that stable Rust cannot ask for. It must also switch AMX on for a
/// process, which is the engine's to ask.
fn has_flag(name: &str) -> bool {
    let Ok(text) = fs::read_to_string("/proc/cpuinfo") else {
        return false;
    };
    let flags = text.lines().find(|line| line.starts_with("flags"));
    flags.is_some_and(|line| line.split_whitespace().any(|flag| flag == name))
}

/// Addresses of bridges to containers and virtual machines on this machine, which nobody else can reach. IPv4, where
/// the kernel tells (Linux).
pub fn bridge_addresses() -> BTreeSet<IpAddr> {
    let bridge = |name: &str| Path::new("/sys/class/net").join(name).join("bridge").is_dir();
    let routes = fs::read_to_string("/proc/net/route").unwrap_or_default();
    let local = fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
    let networks: Vec<_> = routes.lines().filter_map(read_route).filter(|route| bridge(route.interface)).collect();
    let on_bridge = |ip: &u32| networks.iter().any(|route| route.mask != 0 && ip & route.mask == route.network);
    local_addresses(&local).into_iter().filter(on_bridge).map(|ip| IpAddr::V4(ip.into())).collect()
}

struct Route<'a> {
    interface: &'a str,
    network: u32,
    mask: u32,
}

/// A line of `/proc/net/route`: addresses are hexadecimal in the machine's byte order.
fn read_route(line: &str) -> Option<Route<'_>> {
    let fields: Vec<_> = line.split_whitespace().collect();
    let number = |index: usize| u32::from_str_radix(fields.get(index)?, 16).ok();
    let ordered = |value: u32| u32::from_be_bytes(value.to_ne_bytes());
    Some(Route { interface: fields.first()?, network: ordered(number(1)?), mask: ordered(number(7)?) })
}

/// The addresses that `/proc/net/fib_trie` calls local hosts: each stands in the line before `/32 host LOCAL`.
fn local_addresses(text: &str) -> BTreeSet<u32> {
    let lines: Vec<_> = text.lines().collect();
    let local = lines.windows(2).filter(|pair| pair[1].contains("/32 host LOCAL"));
    local
        .filter_map(|pair| pair[0].split_whitespace().last()?.parse::<std::net::Ipv4Addr>().ok())
        .map(u32::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors_are_read_as_the_kernel_writes_them() {
        assert_eq!(cpu_list("\t0-2,8,10-11\n"), Some(vec![0, 1, 2, 8, 10, 11]));
        assert_eq!(cpu_list("0-x"), None);
        assert!((1..=cores()).contains(&physical_cores()));
    }

    #[test]
    fn a_directory_is_locked_once_and_the_second_learns_by_whom() {
        let directory = tempfile::tempdir().unwrap();
        let first = DirLock::acquire(directory.path()).unwrap();

        let second = DirLock::acquire(directory.path()).unwrap_err();

        assert!(matches!(second, LockError::Held { pid: Some(pid) } if pid == std::process::id()), "{second}");
        drop(first);
        assert!(DirLock::acquire(directory.path()).is_ok());
    }

    #[test]
    fn a_directory_that_is_not_there_is_told_from_one_that_is_taken() {
        let directory = tempfile::tempdir().unwrap();

        let error = DirLock::acquire(&directory.path().join("nowhere")).unwrap_err();

        assert!(matches!(error, LockError::Io { .. }), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn private_files_are_their_owners_alone() {
        use std::os::unix::fs::PermissionsExt;
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::set_permissions(file.path(), fs::Permissions::from_mode(0o644)).unwrap();

        set_private_permissions(file.path()).unwrap();

        assert_eq!(fs::metadata(file.path()).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[cfg(unix)]
    #[test]
    fn ending_a_group_ends_what_its_leader_started() {
        let mut command = std::process::Command::new("sh");
        command.args(["-c", "sleep 600 & wait"]);
        let mut child = in_own_group(&mut command).spawn().unwrap();
        assert!(is_running(child.id()));

        end_group(child.id(), Ending::Killed).unwrap();

        assert!(!child.wait().unwrap().success());
        end_group(child.id(), Ending::Asked).unwrap();
    }

    #[test]
    fn memory_is_read_from_the_kernels_table() {
        let text = "MemTotal:       16384 kB\nMemFree:         1 kB\nMemAvailable:    8192 kB\n";

        assert_eq!(read_meminfo(text), Some(Memory { total: Bytes::mib(16), available: Bytes::mib(8) }));
        assert_eq!(read_meminfo("MemTotal: many"), None);
    }

    #[test]
    fn the_kernels_tables_of_routes_and_addresses_are_understood() {
        let line = "docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0";
        let trie = "  |-- 172.17.0.1\n     /32 host LOCAL\n  |-- 172.17.255.255\n     /32 link BROADCAST\n";
        let route = read_route(line).unwrap();
        let addresses = local_addresses(trie);

        assert_eq!(addresses.len(), 1);
        #[cfg(target_endian = "little")]
        assert!(route.interface == "docker0" && addresses.iter().all(|ip| ip & route.mask == route.network));
    }

    #[test]
    fn this_machine_has_cores_and_says_which_features() {
        assert!(cores() >= 1);
        assert_eq!(cpu_features() & !cpu::NAMES.iter().fold(0, |bits, (bit, _)| bits | bit), 0);
    }
}
