//! Logs and metrics.
//!
//! Logs go to the standard error output. Prompts, token ids, tensors, keys and invites never enter either.

use std::fmt::Write;
use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::daemon::views::Metrics;

/// The environment variable that says what to log, in the form of `tracing`'s filters, such as `brigade=debug`.
pub const VARIABLE: &str = "BRIGADE_LOG";

/// How lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// A JSON object per line, for programs.
    Json,
}

/// Begins to log; `default` says what where the environment doesn't. Only the first call of a process counts.
pub fn init(default: &str, format: LogFormat) {
    let filter = EnvFilter::try_from_env(VARIABLE).unwrap_or_else(|_| EnvFilter::new(default));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let lines = lines.with_ansi(std::io::stderr().is_terminal());
    // A second subscriber is refused by the library; the first one stays.
    let _ = match format {
        LogFormat::Text => lines.with_target(false).try_init(),
        LogFormat::Json => lines.json().try_init(),
    };
}

/// The figures in the text format of Prometheus.
pub fn prometheus(metrics: &Metrics) -> String {
    let [requests, finished, failed] = metrics.requests;
    let figures = [
        ("brigade_peers", "gauge", "Connected peers.", metrics.peers),
        ("brigade_requests_total", "counter", "Requests of this peer's users.", requests),
        ("brigade_requests_finished_total", "counter", "Requests answered completely.", finished),
        ("brigade_requests_failed_total", "counter", "Requests that failed or were cancelled.", failed),
        ("brigade_tokens_total", "counter", "Tokens delivered to this peer's users.", metrics.tokens),
        ("brigade_mended_total", "counter", "Broken chains whose answers went on.", metrics.mended),
        ("brigade_leases_total", "counter", "Leases given by this peer.", metrics.leases),
        ("brigade_loads_total", "counter", "Unit ranges loaded by this peer.", metrics.loads),
        ("brigade_sessions", "gauge", "Sessions leased from this peer.", metrics.sessions),
        ("brigade_steps_total", "counter", "Steps computed by this peer.", metrics.steps),
        ("brigade_positions_total", "counter", "Positions computed by this peer.", metrics.positions),
        ("brigade_engine_busy_microseconds_total", "counter", "Time in the engine.", metrics.busy_micros),
        ("brigade_hop_payload_bytes_total", "counter", "Tensor bytes sent to other stages.", metrics.hop_payload_bytes),
        ("brigade_kv_bytes", "gauge", "Key/value cache in use.", metrics.kv_bytes),
        ("brigade_weights_sent_bytes_total", "counter", "Bytes of weights sent to others.", metrics.weights_sent_bytes),
        (
            "brigade_weights_received_bytes_total",
            "counter",
            "Bytes of weights that came from others.",
            metrics.weights_received_bytes,
        ),
    ];
    let mut text = String::new();
    for (name, kind, help, value) in figures {
        // Writing to a string cannot fail.
        let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_has_its_help_and_kind() {
        let metrics = Metrics { peers: 3, requests: [7, 5, 2], ..Metrics::default() };

        let text = prometheus(&metrics);

        assert!(text.contains("# TYPE brigade_peers gauge\nbrigade_peers 3\n"));
        assert!(text.contains("brigade_requests_failed_total 2\n"));
        assert_eq!(text.matches("# HELP").count(), text.matches("# TYPE").count());
    }
}
