//! Processes, signals and file modes.

use std::fs::OpenOptions;
use std::io;
use std::process::Command;

/// Lets only this user open the file that is made with `options`.
pub fn owner_only(options: &mut OpenOptions) {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(options, 0o600);
    // Elsewhere a user's data folder is closed to other users already.
    #[cfg(not(unix))]
    let _ = options;
}

/// Lets the child live on when the terminal's foreground programs are interrupted or the terminal is closed.
pub fn detach(command: &mut Command) {
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(command, 0);
    #[cfg(windows)]
    std::os::windows::process::CommandExt::creation_flags(command, 0x0000_0200);
    #[cfg(not(any(unix, windows)))]
    let _ = command;
}

/// How hard to end a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// So that it can clean up.
    Asked,
    /// At once.
    Forced,
}

/// Ends process `pid` of this user.
///
/// # Errors
/// Those of the system, such as that there is no such process.
#[cfg(unix)]
pub fn end(pid: u32, how: End) -> io::Result<()> {
    use rustix::process::Pid;
    use rustix::process::Signal;
    let no_such = || io::Error::from(io::ErrorKind::NotFound);
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(no_such)?;
    let signal = match how {
        End::Asked => Signal::TERM,
        End::Forced => Signal::KILL,
    };
    rustix::process::kill_process(pid, signal).map_err(io::Error::from)
}

/// Ends process `pid` of this user.
///
/// # Errors
/// Those of the system, such as that there is no such process.
#[cfg(not(unix))]
pub fn end(pid: u32, how: End) -> io::Result<()> {
    let mut command = Command::new("taskkill");
    command.args(["/PID", &pid.to_string()]);
    if how == End::Forced {
        command.arg("/F");
    }
    let status = command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).status()?;
    if status.success() { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
}

/// Waits until somebody asks this process to end: Ctrl-C, and on Unix also SIGTERM and SIGHUP.
///
/// # Errors
/// If the system does not let signals be waited for.
#[cfg(unix)]
pub async fn asked_to_end() -> io::Result<()> {
    use tokio::signal::unix::SignalKind;
    use tokio::signal::unix::signal;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted,
        _ = terminate.recv() => Ok(()),
        _ = hang_up.recv() => Ok(()),
    }
}

/// Waits until somebody asks this process to end: Ctrl-C.
///
/// # Errors
/// If the system does not let signals be waited for.
#[cfg(not(unix))]
pub async fn asked_to_end() -> io::Result<()> {
    tokio::signal::ctrl_c().await
}
