//! The data directory: everything that a peer keeps.
//!
//! | file | what |
//! |---|---|
//! | `VERSION` | the version of this layout; a newer one is refused |
//! | `identity` | the peer's secret key and its public one, by which damage is noticed; 0600 |
//! | `lock` | locked by the operating system while a peer runs; holds its process id |
//! | `boot` | how often a peer was started here |
//! | `run.json` | how to reach the running peer: [`RunFile`]; 0600, removed at a clean stop |
//! | `config.toml` | settings, written by people |
//! | `networks/` | an invite for each private network; 0600 |
//! | `blobs/` `log/` | weights and the credit log |
//!
//! Every file but `lock` is replaced atomically: written aside, synced, renamed.

use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;

use serde::Deserialize;
use serde::Serialize;

use crate::ids::PeerKey;
use crate::keys::Identity;
use crate::os;
use crate::os::DirLock;
use crate::os::LockError;

/// The version of the layout that this build writes.
pub const VERSION: u32 = 1;

/// The environment variable that names the data directory.
pub const VARIABLE: &str = "BRIGADE_DATA_DIR";

/// A data directory that this process alone uses as a peer, until it is dropped.
#[derive(Debug)]
pub struct DataDir {
    root: PathBuf,
    /// Holds the operating system's lock for as long as it is open.
    _lock: DirLock,
}

/// How the commands reach the peer that runs on a data directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunFile {
    /// Its process.
    pub pid: u32,
    /// Where its API listens, such as `127.0.0.1:2745`.
    pub api: String,
    /// What lets its own machine's commands in.
    pub token: String,
    /// Its key, in hexadecimal.
    pub peer: String,
    /// Addresses that it listens on for other peers.
    pub p2p: Vec<String>,
}

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// The platform has no place for it.
    #[error("there is no home directory to keep data in: give --data-dir or set {VARIABLE}")]
    NoHome,
    /// A file of it cannot be read or written.
    #[error("{} cannot be {what}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A newer build made it.
    #[error("{} has version {got}, and this brigade knows versions up to {VERSION}: use a newer brigade", root.display())]
    Newer {
        /// The data directory.
        root: PathBuf,
        /// Its version.
        got: u32,
    },
    /// A file of it is not what it should be. It is left as it is.
    #[error("{} is damaged: {fault}. It was left as it is; put a backup in its place, or remove it if it is of no use", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        fault: &'static str,
    },
    /// A peer runs on it.
    #[error("{} is in use by another brigade peer{}", root.display(), holder.map_or(String::new(), |pid| format!(", process {pid}")))]
    Locked {
        /// The data directory.
        root: PathBuf,
        /// The process that uses it, if it can be told.
        holder: Option<u32>,
    },
}

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visibility {
    /// Only the user whose peer it is.
    Owner,
    /// As the user's other files.
    Usual,
}

/// The data directory to use: `given`, else the environment's, else the platform's.
///
/// # Errors
/// [`DataDirError::NoHome`].
pub fn locate(given: Option<&Path>) -> Result<PathBuf, DataDirError> {
    if let Some(path) = given {
        return Ok(path.to_owned());
    }
    if let Some(path) = std::env::var_os(VARIABLE).filter(|path| !path.is_empty()) {
        return Ok(path.into());
    }
    let folders = directories::ProjectDirs::from("", "", "brigade").ok_or(DataDirError::NoHome)?;
    Ok(folders.data_dir().to_owned())
}

impl DataDir {
    /// Opens the data directory at `root` for a peer, making what is missing.
    ///
    /// # Errors
    /// [`DataDirError::Locked`] if a peer runs on it, [`DataDirError::Newer`], [`DataDirError::Damaged`] or
    /// [`DataDirError::Io`].
    pub fn open(root: &Path) -> Result<Self, DataDirError> {
        for folder in [root.to_owned(), root.join("blobs"), root.join("log")] {
            std::fs::create_dir_all(&folder).map_err(|source| failed(&folder, "made", source))?;
        }
        let root = std::path::absolute(root).map_err(|source| failed(root, "found", source))?;
        let lock = lock(&root)?;
        check_version(&root)?;
        Ok(Self { root, _lock: lock })
    }

    /// The process of the peer that runs on the data directory at `root`, if one does. Its number is `None` inside
    /// if it cannot be told.
    pub fn holder(root: &Path) -> Option<Option<u32>> {
        match lock(root) {
            Err(DataDirError::Locked { holder, .. }) => Some(holder),
            _ => None,
        }
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where weights are kept.
    pub fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    /// Where the credit log is kept.
    pub fn log(&self) -> PathBuf {
        self.root.join("log")
    }

    /// The peer's identity, made at the first call ever.
    ///
    /// # Errors
    /// [`DataDirError::Damaged`] or [`DataDirError::Io`]; an identity that is there is never replaced.
    pub fn identity(&self) -> Result<Identity, DataDirError> {
        let path = self.root.join("identity");
        match std::fs::read_to_string(&path) {
            Ok(text) => read_identity(&text).map_err(|fault| DataDirError::Damaged { path, fault }),
            Err(source) if source.kind() == io::ErrorKind::NotFound => new_identity(&path),
            Err(source) => Err(failed(&path, "read", source)),
        }
    }

    /// Counts this start, and syncs the count to disk. The first is 1.
    ///
    /// # Errors
    /// [`DataDirError::Damaged`] or [`DataDirError::Io`].
    pub fn next_boot(&self) -> Result<u64, DataDirError> {
        let path = self.root.join("boot");
        let last = match std::fs::read_to_string(&path) {
            Ok(text) => text.trim().parse::<u64>().ok().filter(|boot| *boot < u64::MAX),
            Err(source) if source.kind() == io::ErrorKind::NotFound => Some(0),
            Err(source) => return Err(failed(&path, "read", source)),
        };
        let Some(last) = last else {
            return Err(DataDirError::Damaged { path, fault: "it should hold one number" });
        };
        let boot = last + 1;
        replace(&path, format!("{boot}\n").as_bytes(), Visibility::Usual)
            .map_err(|source| failed(&path, "written", source))?;
        Ok(boot)
    }
}

impl RunFile {
    /// What stands in the data directory `root`. It may be stale: a peer that was killed leaves it behind, so whoever
    /// reads it must see whether that peer answers.
    ///
    /// # Errors
    /// [`DataDirError::Io`]; a file that is not of the form counts as none.
    pub fn read(root: &Path) -> Result<Option<Self>, DataDirError> {
        let path = root.join("run.json");
        match std::fs::read(&path) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(source) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(failed(&path, "read", source)),
        }
    }

    /// Puts it into the data directory `root`, for this user alone.
    ///
    /// # Errors
    /// [`DataDirError::Io`].
    pub fn write(&self, root: &Path) -> Result<(), DataDirError> {
        let path = root.join("run.json");
        let text = serde_json::to_vec_pretty(self).map_err(|fault| failed(&path, "written", fault.into()))?;
        replace(&path, &text, Visibility::Owner).map_err(|source| failed(&path, "written", source))
    }

    /// Removes it from the data directory `root`, if it is there.
    ///
    /// # Errors
    /// [`DataDirError::Io`].
    pub fn remove(root: &Path) -> Result<(), DataDirError> {
        let path = root.join("run.json");
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(failed(&path, "removed", source)),
            _ => Ok(()),
        }
    }
}

/// Replaces `path` as one: whoever reads it sees the old contents or `bytes`, also after a crash.
///
/// # Errors
/// Those of the file system, such as a full disk; `path` is then as it was.
pub fn replace(path: &Path, bytes: &[u8], visibility: Visibility) -> io::Result<()> {
    let aside = path.with_extension(format!("{}.new", std::process::id()));
    let written = write_synced(&aside, bytes, visibility).and_then(|()| std::fs::rename(&aside, path));
    if written.is_err() {
        // The first fault is the one to report; what is left aside is overwritten next time.
        let _ = std::fs::remove_file(&aside);
    }
    written?;
    sync_folder(path)
}

fn write_synced(path: &Path, bytes: &[u8], visibility: Visibility) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    if visibility == Visibility::Owner {
        os::private_from_the_start(&mut options);
    }
    let mut file = options.open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// A rename lasts once its folder is synced. Not every system can open a folder; those sync renames by themselves.
fn sync_folder(path: &Path) -> io::Result<()> {
    match path.parent().map(File::open) {
        Some(Ok(folder)) if cfg!(unix) => folder.sync_all(),
        _ => Ok(()),
    }
}

fn lock(root: &Path) -> Result<DirLock, DataDirError> {
    DirLock::acquire(root).map_err(|fault| match fault {
        LockError::Held { pid } => DataDirError::Locked { root: root.to_owned(), holder: pid },
        LockError::Io { path, source } => failed(Path::new(&path), "locked", source),
    })
}

fn check_version(root: &Path) -> Result<(), DataDirError> {
    let path = root.join("VERSION");
    match std::fs::read_to_string(&path) {
        Ok(text) => match text.trim().parse::<u32>() {
            Ok(VERSION) => Ok(()),
            Ok(got) if got > VERSION => Err(DataDirError::Newer { root: root.to_owned(), got }),
            _ => Err(DataDirError::Damaged { path, fault: "it should hold the version of the data, a number from 1" }),
        },
        Err(source) if source.kind() == io::ErrorKind::NotFound => {
            replace(&path, format!("{VERSION}\n").as_bytes(), Visibility::Usual)
                .map_err(|source| failed(&path, "written", source))
        }
        Err(source) => Err(failed(&path, "read", source)),
    }
}

const IDENTITY_KIND: &str = "brigade-identity-1";

fn read_identity(text: &str) -> Result<Identity, &'static str> {
    let mut words = text.split_ascii_whitespace();
    let (Some(IDENTITY_KIND), Some(secret), Some(public), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err("it is no brigade identity");
    };
    let secret = data_encoding::HEXLOWER.decode(secret.as_bytes()).map_err(|_| "its secret key is ill-formed")?;
    let secret = zeroize::Zeroizing::new(secret);
    let secret: &[u8; 32] = secret.as_slice().try_into().map_err(|_| "its secret key has the wrong length")?;
    let identity = Identity::from_secret_bytes(secret);
    if public.parse::<PeerKey>() != Ok(identity.peer()) {
        return Err("its secret and public keys do not belong together");
    }
    Ok(identity)
}

fn new_identity(path: &Path) -> Result<Identity, DataDirError> {
    let mut random = [0; 32];
    getrandom::fill(&mut random).map_err(|fault| failed(path, "made", fault.into()))?;
    let identity = Identity::generate(random);
    let secret = zeroize::Zeroizing::new(data_encoding::HEXLOWER.encode(identity.secret_bytes().as_slice()));
    let text = zeroize::Zeroizing::new(format!("{IDENTITY_KIND} {} {}\n", *secret, identity.peer()));
    replace(path, text.as_bytes(), Visibility::Owner).map_err(|source| failed(path, "written", source))?;
    Ok(identity)
}

fn failed(path: &Path, what: &'static str, source: io::Error) -> DataDirError {
    DataDirError::Io { path: path.to_owned(), what, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run_file() -> RunFile {
        RunFile {
            pid: 7,
            api: "127.0.0.1:2745".to_owned(),
            token: "secret".to_owned(),
            peer: "ab".repeat(32),
            p2p: vec!["/ip4/127.0.0.1/tcp/1".to_owned()],
        }
    }

    #[test]
    fn a_second_peer_is_refused_and_told_who_is_first() {
        let folder = tempfile::tempdir().unwrap();
        let first = DataDir::open(folder.path()).unwrap();

        let fault = DataDir::open(folder.path()).unwrap_err();

        assert!(fault.to_string().contains(&format!("process {}", std::process::id())), "{fault}");
        drop(first);
        assert!(DataDir::open(folder.path()).is_ok());
    }

    #[test]
    fn the_identity_stays_and_the_boot_number_rises() {
        let folder = tempfile::tempdir().unwrap();
        let start = || {
            let data = DataDir::open(folder.path()).unwrap();
            (data.identity().unwrap().peer(), data.next_boot().unwrap())
        };

        let (first, second) = (start(), start());

        assert_eq!(first.0, second.0);
        assert_eq!((first.1, second.1), (1, 2));
    }

    #[test]
    fn a_damaged_identity_is_an_error_and_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir::open(folder.path()).unwrap();
        data.identity().unwrap();
        let path = folder.path().join("identity");
        let whole = std::fs::read_to_string(&path).unwrap();

        for damaged in ["", "nonsense", &whole[..60], &whole.replace(IDENTITY_KIND, "other"), &swap_a_digit(&whole)] {
            std::fs::write(&path, damaged).unwrap();
            assert!(matches!(data.identity(), Err(DataDirError::Damaged { .. })), "{damaged}");
            assert_eq!(std::fs::read_to_string(&path).unwrap(), damaged);
        }
    }

    fn swap_a_digit(identity: &str) -> String {
        let place = IDENTITY_KIND.len() + 5;
        let other = if &identity[place..=place] == "0" { "1" } else { "0" };
        format!("{}{other}{}", &identity[..place], &identity[place + 1..])
    }

    #[test]
    fn a_newer_layout_is_refused_by_both_numbers() {
        let folder = tempfile::tempdir().unwrap();
        drop(DataDir::open(folder.path()).unwrap());
        std::fs::write(folder.path().join("VERSION"), "9\n").unwrap();

        let fault = DataDir::open(folder.path()).unwrap_err().to_string();

        assert!(fault.contains("version 9") && fault.contains("up to 1"), "{fault}");
    }

    #[cfg(unix)]
    #[test]
    fn secrets_are_for_their_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let data = DataDir::open(folder.path()).unwrap();
        data.identity().unwrap();
        run_file().write(folder.path()).unwrap();

        for name in ["identity", "run.json"] {
            let mode = std::fs::metadata(folder.path().join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
    }

    #[test]
    fn a_run_file_comes_and_goes_as_one() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(RunFile::read(folder.path()).unwrap(), None);

        run_file().write(folder.path()).unwrap();
        assert_eq!(RunFile::read(folder.path()).unwrap(), Some(run_file()));
        RunFile::remove(folder.path()).unwrap();
        RunFile::remove(folder.path()).unwrap();

        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_run_file_cut_short_counts_as_none() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("run.json"), "{\"pid\": 7").unwrap();

        assert_eq!(RunFile::read(folder.path()).unwrap(), None);
    }
}
