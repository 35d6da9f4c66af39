//! One generation: the requester's and the stage's state machines. Pure.
//!
//! ```text
//!  requester ──Offer──▶ every stage       each stage opens its hop downstream, waits for its upstream's
//!            ◀─Accept── every stage       when its hop is `Opened` and its upstream is attached
//!            ──Feed───▶ driver ──Frame──▶ … ──Frame──▶ tail
//!            ◀─Token──────────────────────────────────┤
//!                       driver ◀──TokenFrame──────────┘
//!            ──Settle─▶ every stage       the signed entry; ◀─Settled─ what the stage counted
//! ```
//!
//! When a stage is lost, or a hop between two that live:
//!
//! ```text
//!            ──Offer──────▶ whoever takes the lost one's place
//!            ──Reconfigure▶ the others    each stops, closes its hops, opens those of the newer chain
//!            ◀─Accept, Rejoined─ all      how much each has in its cache and journal; tokens that only the driver heard
//!            ──Resume─────▶ every stage   how much of its cache stays, and what the next one lacks: journals are sent again
//!            ──Feed───────▶ driver        the accepted tokens from there
//! ```
//!
//! [`requester::Requester`] leads one generation; [`replicas::Replicas`] shows what several of the same bring, compared;
//! [`stage::LeasedStage`] serves one stage of one. Each takes what happened and
//! the time, and answers with effects to be performed in order. Neither knows who carries its messages.

pub mod blame;
pub mod ending;
pub mod outcome;
pub mod replicas;
pub mod requester;
pub mod stage;
pub mod step;
pub mod streams;
pub mod text;
