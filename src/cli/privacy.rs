//! What everybody should know before a first prompt leaves.

use std::path::Path;

use crate::cli::output;

const SENTENCE: &str = "Note: a peer that runs a layer of your prompt can reconstruct the prompt. By default prompts go only to this \
machine, to allow-listed peers and to members of the same private network; `--trust open` widens it.";

/// Says it at the first use of a data directory.
pub(crate) fn say_once(root: &Path) {
    let mark = root.join("privacy-note-shown");
    if mark.exists() {
        return;
    }
    output::note(SENTENCE);
    // Where it cannot be remembered it is said again.
    let _ = std::fs::write(mark, "");
}
