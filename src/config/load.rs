//! Reads the configuration from its sources.

use std::path::Path;

use crate::config::BadConfig;
use crate::config::Config;
use crate::config::Machine;
use crate::config::Sources;
use crate::config::key;
use crate::config::networks;
use crate::config::networks::NetworkFileError;
use crate::config::settings::Settings;
use crate::config::settings::SettingsError;
use crate::keys::invite::Invite;

/// The environment variable that holds the API's key.
pub const API_KEY_VARIABLE: &str = "BRIGADE_API_KEY";

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The network's file.
    #[error(transparent)]
    Network(#[from] NetworkFileError),
    /// The API key's file.
    #[error("api-key-file: {0}")]
    ApiKey(#[from] key::BadApiKey),
    /// What they say.
    #[error(transparent)]
    Config(#[from] BadConfig),
}

/// The configuration that flags (with the environment in them), the file in the data directory `root` and the
/// defaults for `machine` make. An invite among them is kept in `root`.
///
/// # Errors
/// [`LoadError`] naming the setting or the file.
pub fn load(root: &Path, mut flags: Settings, machine: Machine) -> Result<Config, LoadError> {
    if flags.api_key_file.is_none() {
        flags.api_key = std::env::var(API_KEY_VARIABLE).ok().filter(|key| !key.is_empty());
    }
    let mut settings = flags.over(Settings::read(&root.join("config.toml"))?);
    if let (None, Some(file)) = (&settings.api_key, &settings.api_key_file) {
        settings.api_key = Some(key::read(file)?);
    }
    let invite = settings.invite.as_deref().and_then(|text| text.parse::<Invite>().ok());
    let name = settings.network.as_deref().or(invite.as_ref().map(Invite::network));
    let stored = name.map_or(Ok(None), |name| networks::read(root, name))?;
    let is_new = stored.is_none();
    let config = Config::try_from(Sources { settings, stored, machine })?;
    if let Some(invite) = invite.filter(|invite| is_new && invite.secret().is_some()) {
        networks::keep(root, &invite)?;
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amounts::Bytes;
    use crate::keys::NetworkSecret;

    const MACHINE: Machine = Machine { memory: Some(Bytes(1 << 30)), threads: 2 };

    #[test]
    fn an_invite_is_kept_for_the_next_start() {
        let folder = tempfile::tempdir().unwrap();
        let invite = Invite::new("home".to_owned(), Some(NetworkSecret::new([3; 32])), Vec::new()).unwrap();
        let first = Settings { invite: Some(invite.to_string()), ..Settings::default() };
        let second = Settings { network: Some("home".to_owned()), ..Settings::default() };

        let first = load(folder.path(), first, MACHINE).unwrap();
        let second = load(folder.path(), second, MACHINE).unwrap();

        assert_eq!(first.network, second.network);
        assert!(second.network.secret.is_some());
    }

    #[test]
    fn the_key_of_the_api_is_read_from_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        std::fs::write(&file, "0123456789abcdef\n").unwrap();
        let flags = Settings { api_key_file: Some(file), ..Settings::default() };

        let config = load(folder.path(), flags, MACHINE).unwrap();

        assert!(config.api.key.unwrap().matches(b"0123456789abcdef"));
    }
}
