//! llama.cpp in a process of its own: `benches/llama/worker.mjs`.

use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::path::Path;
use std::process::Child;
use std::process::ChildStdin;
use std::process::ChildStdout;
use std::process::Command;
use std::process::Stdio;

use anyhow::Context;
use anyhow::bail;
use serde::Deserialize;
use serde_json::Value;
use serde_json::json;

/// Where the script and its packages are.
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/llama");

/// A running worker. It ends when this is dropped.
pub(crate) struct Worker {
    child: Child,
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

/// What the worker answers.
#[derive(Debug, Deserialize)]
struct Answer {
    ms: Option<f64>,
    about: Option<String>,
    error: Option<String>,
}

impl Worker {
    /// - `instructions`: which of llama.cpp's processor libraries; the best by default
    pub(crate) fn start(instructions: Option<&str>) -> anyhow::Result<Self> {
        let mut command = Command::new("node");
        command.current_dir(FOLDER).arg("worker.mjs").args(instructions).stdin(Stdio::piped()).stdout(Stdio::piped());
        if !Path::new(FOLDER).join("node_modules").exists() {
            bail!("llama.cpp is not there: run `npm install --ignore-scripts` in {FOLDER}");
        }
        let mut child = command.spawn().context("node cannot be started")?;
        let requests = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().context("no output")?);
        Ok(Self { child, requests, answers })
    }

    /// What llama.cpp says it computes with.
    pub(crate) fn about(&mut self) -> anyhow::Result<String> {
        Ok(self.ask(&json!({ "do": "about" }))?.about.unwrap_or_default())
    }

    /// Has something done; returns how many seconds it took.
    pub(crate) fn request(&mut self, request: &Value) -> anyhow::Result<f64> {
        Ok(self.ask(request)?.ms.context("no time")? / 1e3)
    }

    fn ask(&mut self, request: &Value) -> anyhow::Result<Answer> {
        let requests = self.requests.as_mut().context("the worker has ended")?;
        writeln!(requests, "{request}")?;
        requests.flush()?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        let answer: Answer =
            serde_json::from_str(&line).with_context(|| format!("llama.cpp on {request}: {line:?}"))?;
        match answer.error {
            Some(error) => bail!("llama.cpp on {request}: {error}"),
            None => Ok(answer),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.requests.take());
        if let Err(error) = self.child.wait() {
            eprintln!("the worker: {error}");
        }
    }
}
