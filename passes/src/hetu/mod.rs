//! Plans for the runtime of Hetu-Galvatron (PKU-DAIR; Miao et al., VLDB 2023): what its cost model says of a plan ([`price`]), and the
//! plan that its formulas find fastest ([`fastest`](mod@fastest)).
//!
//! Its runtime trains on PyTorch, whose memory no plan of ours describes. So such plans are chosen by what was measured there, with
//! the formulas, the memory rule and the strategies that it has.

pub mod fastest;
mod language;
pub mod price;
mod stage;

pub use fastest::{NoPlan, Request, fastest};
pub use price::{Costs, Plan, PlanPrice, Price, Release, Strategy, Vocabulary, memory_mb_for, usable_mb};
