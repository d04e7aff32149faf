//! The passes of galvatron: module in, module out; never a device, a file or ONNX.
//!
//! A forward program is canonicalised and rewritten, differentiated and given an optimizer ([`train`]), cut into repeated
//! layers ([`segment`]); the search decides a [`Strategy`](strategy::Strategy); mechanical passes apply it ([`apply`]).

pub mod apply;
pub mod batch;
pub mod canonicalize;
pub mod cost;
mod extents;
pub mod hetu;
pub mod joint;
pub mod manager;
pub mod pad;
pub mod precision;
pub mod rebatch;
pub mod recognize;
pub mod rewrite;
pub mod rules;
pub mod search;
pub mod segment;
pub mod strategy;
pub mod train;
