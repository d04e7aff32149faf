//! Mechanical passes from a training program and a strategy to a plan. They decide nothing.

pub(crate) mod bucket;
mod buffers;
mod checkpoint;
mod collectives;
mod held;
mod offload;
pub(crate) mod overlap;
mod schedule;
pub(crate) mod shard;
mod split;

pub use bucket::bucket_reductions;
pub use buffers::assign_buffers;
pub use checkpoint::insert_recomputation;
pub use collectives::lower_reshards;
pub use offload::offload;
pub use overlap::overlap;
pub use schedule::schedule;
pub(crate) use schedule::{in_flight, passes, run_alike};
pub use shard::shard;

use crate::rules::Rules;
use crate::strategy::Strategy;
use galvatron_ir::Module;

/// From level `training` to level `plan`: all passes of this room in order.
pub fn apply(module: &mut Module, strategy: &Strategy, rules: &Rules) {
    order(module, strategy, rules);
    finish(module, strategy);
}

/// The passes that say what runs when.
pub(crate) fn order(module: &mut Module, strategy: &Strategy, rules: &Rules) {
    shard(module, strategy, rules);
    insert_recomputation(module, strategy);
    offload(module, strategy);
    lower_reshards(module);
    bucket_reductions(module);
    schedule(module, strategy);
}

/// The passes that say what runs beside what, and where everything lies.
pub(crate) fn finish(module: &mut Module, strategy: &Strategy) {
    overlap(module, strategy);
    assign_buffers(module);
}
