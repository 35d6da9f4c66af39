//! The private networks that a data directory knows: one invite each, in `networks/NAME.invite`.

use std::path::Path;
use std::path::PathBuf;

use crate::config::datadir;
use crate::config::datadir::Visibility;
use crate::keys::BadNetworkName;
use crate::keys::check_network_name;
use crate::keys::invite::BadInvite;
use crate::keys::invite::Invite;

/// Why a network's file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum NetworkFileError {
    /// The name is none.
    #[error(transparent)]
    Name(#[from] BadNetworkName),
    /// There is one of this name, and its key must not be lost.
    #[error("network \"{name}\" is there already: `brigade network invite {name}` prints its invite")]
    Exists {
        /// The network.
        name: String,
    },
    /// The file holds no invite.
    #[error("{} is damaged: {source}", file.display())]
    Damaged {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        source: BadInvite,
    },
    /// The file cannot be read or written.
    #[error("{} cannot be used: {source}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// The invite kept for network `name` in the data directory `root`, if there is one.
///
/// # Errors
/// [`NetworkFileError`] if the name is none, or the file can't be read or is damaged.
pub fn read(root: &Path, name: &str) -> Result<Option<Invite>, NetworkFileError> {
    let file = file(root, name)?;
    match std::fs::read_to_string(&file) {
        Ok(text) => text.parse().map(Some).map_err(|source| NetworkFileError::Damaged { file, source }),
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(NetworkFileError::Io { file, source }),
    }
}

/// Keeps the invite of a new network.
///
/// # Errors
/// [`NetworkFileError::Exists`] if there is one of this name, else as [`keep`].
pub fn create(root: &Path, invite: &Invite) -> Result<(), NetworkFileError> {
    if file(root, invite.network())?.exists() {
        return Err(NetworkFileError::Exists { name: invite.network().to_owned() });
    }
    keep(root, invite)
}

/// Keeps the invite, replacing what was kept under its name. Only this user can read it.
///
/// # Errors
/// [`NetworkFileError::Io`].
pub fn keep(root: &Path, invite: &Invite) -> Result<(), NetworkFileError> {
    let file = file(root, invite.network())?;
    let folder = root.join("networks");
    std::fs::create_dir_all(&folder)
        .and_then(|()| datadir::replace(&file, format!("{invite}\n").as_bytes(), Visibility::Owner))
        .map_err(|source| NetworkFileError::Io { file, source })
}

fn file(root: &Path, name: &str) -> Result<PathBuf, BadNetworkName> {
    check_network_name(name)?;
    Ok(root.join("networks").join(format!("{name}.invite")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::NetworkSecret;

    fn invite(byte: u8) -> Invite {
        Invite::new("home".to_owned(), Some(NetworkSecret::new([byte; 32])), Vec::new()).unwrap()
    }

    #[test]
    fn a_network_is_kept_and_never_replaced_by_a_new_one() {
        let folder = tempfile::tempdir().unwrap();
        create(folder.path(), &invite(1)).unwrap();

        let again = create(folder.path(), &invite(2));

        assert!(matches!(again, Err(NetworkFileError::Exists { .. })));
        assert_eq!(read(folder.path(), "home").unwrap(), Some(invite(1)));
        assert_eq!(read(folder.path(), "other").unwrap(), None);
    }

    #[test]
    fn a_name_cannot_leave_the_folder() {
        let folder = tempfile::tempdir().unwrap();

        assert!(matches!(read(folder.path(), "../identity"), Err(NetworkFileError::Name(_))));
    }
}
