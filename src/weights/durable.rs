//! Replaces files so that a crash leaves either the old or the new one.

use std::fs;
use std::fs::File;
use std::io;
use std::io::Write;
use std::path::Path;

/// Writes `bytes` aside at `temporary`, makes them durable, and renames them to `target` on the same file system.
pub(super) fn replace(temporary: &Path, target: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    drop(file);
    rename(temporary, target)
}

/// Gives a file whose bytes are durable its name, which lasts when this returns.
pub(super) fn rename(from: &Path, target: &Path) -> io::Result<()> {
    fs::rename(from, target)?;
    // The rename itself lasts once the directory is synced; where directories can't be opened, the system sees to it.
    if let Some(directory) = target.parent().and_then(|parent| File::open(parent).ok()) {
        directory.sync_all()?;
    }
    Ok(())
}
