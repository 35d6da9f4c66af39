//! Lies that were found, kept on disk: what peers have signed, for whoever wants to look into it or to show it to others.
//!
//! One line of JSON each, in `lies.jsonl` of the data directory; when that has grown too long it becomes `lies.old.jsonl`, in the place
//! of the one before.

use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;

use crate::amounts::Bytes;
use crate::daemon::views::FoundLieView;

/// How long the file may get before another is begun (arbitrary: about a thousand lies).
const MAX_FILE: Bytes = Bytes::mib(4);

/// The lies that were found.
#[derive(Debug)]
pub(super) struct Evidence {
    new: PathBuf,
    old: PathBuf,
    longest: Bytes,
}

impl Evidence {
    /// Those kept in a directory.
    pub(super) fn of(directory: &Path) -> Self {
        let [new, old] = ["lies.jsonl", "lies.old.jsonl"].map(|name| directory.join(name));
        Self { new, old, longest: MAX_FILE }
    }

    /// Keeps one.
    pub(super) fn keep(&self, lie: &FoundLieView) -> io::Result<()> {
        if fs::metadata(&self.new).is_ok_and(|file| self.longest.0 <= file.len()) {
            fs::rename(&self.new, &self.old)?;
        }
        let mut line = serde_json::to_vec(lie)?;
        line.push(b'\n');
        let mut file = OpenOptions::new().create(true).append(true).open(&self.new)?;
        // A line that was cut off by a crash ends here.
        if !ends_with_newline(&self.new)? {
            file.write_all(b"\n")?;
        }
        file.write_all(&line)?;
        file.sync_data()
    }

    /// All of them, the oldest first. Lines that were cut off are passed over.
    pub(super) fn all(&self) -> Vec<FoundLieView> {
        let files = [&self.old, &self.new].into_iter().filter_map(|path| match fs::read(path) {
            Ok(file) => Some(file),
            Err(error) => {
                if error.kind() != io::ErrorKind::NotFound {
                    tracing::error!(%error, path = %path.display(), "lies that were found cannot be read");
                }
                None
            }
        });
        let lies = |file: Vec<u8>| -> Vec<FoundLieView> {
            file.split(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
        };
        files.flat_map(lies).collect()
    }
}

/// Whether a file ends with a whole line; an empty one does.
fn ends_with_newline(path: &Path) -> io::Result<bool> {
    use std::io::Read;
    use std::io::Seek;
    use std::io::SeekFrom;
    let mut file = File::open(path)?;
    if file.metadata()?.len() == 0 {
        return Ok(true);
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::views::LieView;

    fn lie(position: u32) -> FoundLieView {
        let lie = LieView {
            suspects: vec![("ab".to_owned(), "0..3".to_owned())],
            certainty: "proven".to_owned(),
            position,
            commitments: vec!["00".repeat(221)],
        };
        FoundLieView { found: 1_700_000_000, lie }
    }

    fn positions(evidence: &Evidence) -> Vec<u32> {
        evidence.all().iter().map(|found| found.lie.position).collect()
    }

    #[test]
    fn lies_are_there_again_after_a_restart_and_a_line_that_was_cut_off_costs_itself_only() {
        let folder = tempfile::tempdir().unwrap();
        let evidence = Evidence::of(folder.path());
        assert!(evidence.all().is_empty());
        evidence.keep(&lie(1)).unwrap();
        let file = folder.path().join("lies.jsonl");
        let whole = fs::read(&file).unwrap();
        fs::write(&file, [&whole[..], &whole[..40]].concat()).unwrap();

        let evidence = Evidence::of(folder.path());
        evidence.keep(&lie(2)).unwrap();

        assert_eq!(positions(&evidence), [1, 2]);
        assert_eq!(evidence.all()[0].lie, lie(1).lie);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let evidence = Evidence { longest: Bytes(2_000), ..Evidence::of(folder.path()) };

        (0..100).for_each(|position| evidence.keep(&lie(position)).unwrap());

        let kept = positions(&evidence);
        assert!((4..12).contains(&kept.len()), "{kept:?}");
        assert_eq!(kept.last(), Some(&99));
    }
}
