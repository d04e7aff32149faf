//! Good plans verify; a plan that is damaged in its text is refused on the damaged line, under the code of what it breaks.

#[path = "plans/damage.rs"]
mod damage;
#[path = "plans/edit.rs"]
mod edit;
#[path = "plans/legal.rs"]
mod legal;
mod plans;

use edit::{Lines, Statement};
use galvatron_ir::text::print;
use plans::Job;
use std::sync::LazyLock;

/// GPT-2 on four ranks, every segment pinned: two ranks share the batch, two the weights.
static GPT2: LazyLock<Lines> = LazyLock::new(|| {
    let pins = "dp = 2\ntp = 2\nzero = 1\n";
    let strategy = format!("{pins}micro_batches = 2\n[embedding]\n{pins}[head]\n{pins}");
    let job = Job { model: "gpt2", train: "[optimizer]\nclip_norm = 1.0\n", ranks: 4, strategy: &strategy };
    let plan = job.compile(&mut |_, _| {}).expect("the pins can be met").module;
    Lines::new(&print(&plan))
});

/// The same on four ranks of which two share the batch and two the sequence, around a ring.
static RING: LazyLock<Lines> = LazyLock::new(|| {
    let strategy = "dp = 2\ncp = 2\ncp_kind = \"zigzag\"\nzero = 1\nmicro_batches = 1\n";
    let job = Job { model: "gpt2", train: "[optimizer]\nclip_norm = 1.0\n", ranks: 4, strategy };
    let plan = job.compile(&mut |_, _| {}).expect("the pins can be met").module;
    Lines::new(&print(&plan))
});

/// A mixture on four ranks, two of which share the experts, to which tokens travel.
static ROUTED: LazyLock<Lines> = LazyLock::new(|| {
    let strategy = "dp = 4\nep = 2\nep_kind = \"all_to_all\"\nzero = 1\nmicro_batches = 1\n";
    let job = Job { model: "mixtral", train: "[optimizer]\nclip_norm = 1.0\n", ranks: 4, strategy };
    let plan = job.compile(&mut |_, _| {}).expect("the pins can be met").module;
    Lines::new(&print(&plan))
});

/// Damages the plan and expects the first diagnostic under `code` on the line whose index the damage returns.
#[track_caller]
fn refused(code: &str, damage: impl FnOnce(&mut Lines) -> usize) {
    refused_in(&GPT2, code, damage);
}

/// The same for any plan.
#[track_caller]
fn refused_in(plan: &Lines, code: &str, damage: impl FnOnce(&mut Lines) -> usize) {
    let mut lines = plan.clone();
    let line = damage(&mut lines);
    let found = lines.diagnostics();
    let first = found.first().unwrap_or_else(|| panic!("the damaged plan passes: {}", lines.0[line]));
    assert_eq!((first.code, lines.line_of(first)), (code, Some(line)), "{first}\non: {}", lines.0[line]);
}

/// Removes a collective, so that everything behind it reads its operand; returns the line of the first reader.
fn skip(lines: &mut Lines, phase: &str, needles: &[&str]) -> usize {
    let line = lines.find(phase, needles);
    let Statement { results, operands, .. } = lines.statement(line);
    lines.remove(line);
    lines.redirect(line - 1, &results[0], &operands[0])
}

/// Swaps two operands of the first statement of a phase with the needles.
fn swap_operands(lines: &mut Lines, phase: &str, needles: &[&str], i: usize, j: usize) -> usize {
    let line = lines.find(phase, needles);
    lines.change(line, |s| s.operands.swap(i, j));
    line
}

/// Replaces a part of the first line of a phase with the needles.
fn replace(lines: &mut Lines, phase: &str, needles: &[&str], from: &str, to: &str) -> usize {
    let line = lines.find(phase, needles);
    lines.replace(line, from, to);
    line
}

#[test]
fn the_undamaged_plan_passes() {
    assert_eq!(GPT2.diagnostics(), []);
}

/// A ring runs over the axes of its sequence, computes the attention of the program, and takes keys that are cut.
#[test]
fn a_ring_that_is_none_is_refused() {
    assert_eq!(RING.diagnostics(), []);
    let in_phase = [("forward", "comm.ring_attention{"), ("backward", "comm.ring_attention_grad{")];
    for (phase, ring) in in_phase {
        refused_in(&RING, "G0206", |l| replace(l, phase, &[ring], "axes=[a1]", "axes=[a0]"));
        refused_in(&RING, "G0206", |l| replace(l, phase, &[ring], "axes=[a1]", "axes=[a0, a1]"));
        refused_in(&RING, "G0206", |l| replace(l, phase, &[ring], "axes=[a1]", "axes=[]"));
        refused_in(&RING, "G0207", |l| replace(l, phase, &[ring], "scale=0", "scale=1"));
        refused_in(&RING, "G0207", |l| replace(l, phase, &[ring], ", causal, zigzag", ""));
        refused_in(&RING, "G0110", |l| replace(l, phase, &[ring], ", causal", ""));
    }
    refused_in(&RING, "G0203", |l| {
        replace(l, "forward", &["comm.ring_attention{"], "comm.ring_attention{axes=[a1], ", "attention{");
        let line = l.find("forward", &["= attention{"]);
        l.replace(line, ", zigzag", "");
        line
    });
}

/// Tokens are routed over the axes of the experts, to compute the mixture of the program.
#[test]
fn tokens_that_go_elsewhere_are_refused() {
    assert_eq!(ROUTED.diagnostics(), []);
    let in_phase = [("forward", "comm.routed_moe{"), ("backward", "comm.routed_moe_grad{")];
    for (phase, routed) in in_phase {
        refused_in(&ROUTED, "G0206", |l| replace(l, phase, &[routed], "axes=[a1]", "axes=[a0]"));
        refused_in(&ROUTED, "G0206", |l| replace(l, phase, &[routed], "axes=[a1]", "axes=[a1, a0]"));
        refused_in(&ROUTED, "G0206", |l| replace(l, phase, &[routed], "axes=[a1]", "axes=[]"));
        refused_in(&ROUTED, "G0207", |l| replace(l, phase, &[routed], "activation=silu", "activation=gelu"));
        let plain = routed.trim_start_matches("comm.routed_");
        refused_in(&ROUTED, "G0203", |l| replace(l, phase, &[routed], &format!("{routed}axes=[a1], "), plain));
    }
}

#[test]
fn a_missing_collective_is_refused() {
    refused("G0203", |l| skip(l, "forward", &["= comm.all_reduce{axes=[a1]}"]));
    // The gradient of a layer norm is linear in what comes back to it, so its result is what the sum is missing from.
    refused("G0204", |l| skip(l, "backward", &["= comm.all_reduce{axes=[a1]}"]));
    refused("G0203", |l| skip(l, "reduce", &["= comm.reduce_scatter"]));
}

#[test]
fn a_doubled_collective_is_refused() {
    refused("G0206", |l| {
        let line = l.find("backward", &["= comm.all_reduce{axes=[a1]}"]);
        let mut second = l.statement(line);
        second.operands = second.results.clone();
        second.results = vec!["%twice".into()];
        l.redirect(line, &second.operands[0], "%twice");
        l.0.insert(line + 1, second.spell());
        line + 1
    });
}

#[test]
fn a_swapped_collective_is_refused() {
    refused("G0206", |l| replace(l, "forward", &["= comm.reduce_scatter"], "reduce_scatter", "all_gather"));
    refused("G0206", |l| replace(l, "forward", &["= comm.all_gather"], "all_gather", "shard"));
    let no_dim = |l: &mut Lines| replace(l, "forward", &["= comm.reduce_scatter{axes=[a1], dim=2}"], ", dim=2", "");
    refused("G0206", |l| {
        let line = no_dim(l);
        l.replace(line, "reduce_scatter", "all_reduce");
        line
    });
}

#[test]
fn a_collective_over_the_wrong_axis_is_refused() {
    refused("G0206", |l| replace(l, "backward", &["= comm.all_reduce{axes=[a1]}"], "[a1]", "[a0]"));
    refused("G0206", |l| replace(l, "backward", &["= comm.all_reduce{axes=[a1]}"], "[a1]", "[a0, a1]"));
    refused("G0206", |l| replace(l, "backward", &["= comm.all_reduce{axes=[a1]}"], "[a1]", "[mb]"));
}

#[test]
fn a_collective_along_the_wrong_dimension_is_refused() {
    refused("G0206", |l| replace(l, "forward", &["= comm.all_gather", "dim=2"], "dim=2", "dim=1"));
    refused("G0206", |l| replace(l, "forward", &["= comm.reduce_scatter", "dim=2"], "dim=2", "dim=1"));
}

#[test]
fn a_partial_sum_declared_as_full_is_refused() {
    refused("G0204", |l| replace(l, "forward", &["= einsum", "]+a1 "], "]+a1 ", "] "));
    refused("G0204", |l| replace(l, "backward", &["= einsum", "]+mb.a0 "], "]+mb.a0 ", "]+mb "));
}

#[test]
fn a_loss_scaled_by_the_count_of_one_rank_is_refused() {
    refused("G0203", |l| skip(l, "prologue", &["= comm.all_reduce", "of=%label_count "]));
}

#[test]
fn a_loss_scaled_by_the_count_of_one_micro_batch_is_refused() {
    refused("G0206", |l| {
        let [count, sum] = [["= count_labels"], ["= comm.all_reduce"]].map(|needles| {
            let line = l.find("prologue", &needles);
            l.remove(line)
        });
        let labels = l.find("forward", &["= load{input=\"labels\""]);
        let mut count = Lines(vec![count]).statement(0);
        count.operands = l.statement(labels).results;
        count.tail = count.tail.replace("]+a0 ", "]+mb.a0 ");
        l.0.insert(labels + 1, count.spell());
        l.0.insert(labels + 2, sum);
        labels + 2
    });
}

#[test]
fn a_changed_constant_is_refused() {
    refused("G0207", |l| replace(l, "forward", &["= layer_norm{eps="], "eps=9.99", "eps=9.98"));
    refused("G0207", |l| replace(l, "forward", &["= attention{"], ", causal", ""));
    refused("G0207", |l| replace(l, "forward", &["= iota{"], "start=0", "start=1"));
    refused("G0207", |l| replace(l, "step", &["= opt.adamw"], "beta1=0.9", "beta1=0.99"));
    refused("G0207", |l| replace(l, "backward", &["= cross_entropy_grad"], "ignore=-100", "ignore=0"));
}

#[test]
fn another_contraction_is_refused() {
    refused("G0207", |l| replace(l, "forward", &["= gelu_tanh"], "gelu_tanh", "gelu"));
    refused("G0110", |l| replace(l, "forward", &["bshd,hdn->bsn"], "->bsn", "->nsb"));
}

#[test]
fn a_dropped_gradient_of_a_tied_weight_is_refused() {
    refused("G0207", |l| {
        let line = l.find("backward", &["= add_n %d.model.lm_head.weight"]);
        l.change(line, |s| drop(s.operands.pop()));
        line
    });
    refused("G0207", |l| {
        let sum = l.find("backward", &["= add_n %d.model.lm_head.weight"]);
        let Statement { results, operands, .. } = l.statement(sum);
        l.remove(sum);
        l.redirect(sum - 1, &results[0], &operands[1])
    });
}

#[test]
fn a_micro_batch_that_is_not_accumulated_is_refused() {
    refused("G0209", |l| {
        let line = l.find("backward", &["accumulate "]);
        let accumulator = l.statement(line).operands[0].clone();
        l.remove(line);
        l.find("", &["resident accumulator", &format!("{accumulator}:")])
    });
    refused("G0206", |l| {
        let line = l.find("backward", &["accumulate "]);
        let operands = l.statement(line).operands;
        let reduce = l.find("reduce", &[]);
        l.redirect(reduce - 1, &operands[0], &operands[1])
    });
    refused("G0209", |l| {
        let line = l.find("backward", &["accumulate "]);
        l.0.insert(line, l.0[line].clone());
        line + 1
    });
}

#[test]
fn a_sum_read_before_its_last_micro_batch_is_refused() {
    refused("G0208", |l| {
        let line = l.find("reduce", &["= comm.reduce_scatter"]);
        let moved = l.remove(line);
        let first = l.find("backward", &[]);
        l.0.insert(first, moved);
        first
    });
}

#[test]
fn buffers_that_overlap_are_refused() {
    refused("G0213", |l| {
        let at = |l: &Lines, line: usize| {
            let place = l.0[line].split_once(" at ").expect("the value has a place").1;
            place.split([',', ' ']).next().expect("a place has no spaces").to_string()
        };
        let victim = l.find("forward", &["= gelu_tanh"]);
        let line = l.find("forward", &["= einsum", "kn->bsn", ".mlp.c_proj.weight"]);
        let (from, to) = (at(l, line), at(l, victim));
        l.replace(line, &from, &to);
        line
    });
    refused("G0213", |l| {
        let line = l.find("", &["resident state"]);
        let place = l.0[line].split_once(" at ").expect("the state has a place").1.to_string();
        l.replace(line, &place, "persistent+0");
        line
    });
}

#[test]
fn a_place_outside_the_arena_is_refused() {
    let place = |l: &mut Lines, to: &str| {
        let line = l.find("forward", &["= gelu_tanh"]);
        let from = l.0[line].split_once("transient+").expect("the value has a place").1;
        let from = from.split([',', ' ']).next().expect("a place has no spaces").to_string();
        l.replace(line, &format!("transient+{from}"), to);
        line
    };
    refused("G0212", |l| place(l, "transient+1073741824"));
    refused("G0212", |l| place(l, "transient+4"));
    refused("G0212", |l| {
        replace(l, "forward", &["workspace=transient+"], "workspace=transient+", "workspace=transient+4")
    });
    refused("G0212", |l| {
        let line = l.find("forward", &["workspace=transient+"]);
        let cut = l.0[line].find(" workspace=").expect("the line was found by it");
        l.0[line].truncate(cut);
        line
    });
}

#[test]
fn a_weight_updated_twice_is_refused() {
    refused("G0209", |l| {
        let line = l.find("step", &["update "]);
        l.0.insert(line, l.0[line].clone());
        line + 1
    });
}

#[test]
fn a_missing_update_is_refused() {
    refused("G0210", |l| {
        let line = l.find("step", &["update "]);
        let weight = l.statement(line).operands[0].clone();
        l.remove(line);
        l.0.iter().position(|l| l.contains(&format!("    update {weight} ="))).expect("the program updates it")
    });
}

#[test]
fn an_update_with_another_value_is_refused() {
    refused("G0209", |l| swap_values(l, ".m, "));
    refused("G0209", |l| skip(l, "step", &["= comm.all_gather", ".new"]));
}

/// Gives a state the new value of the next statement's state.
fn swap_values(lines: &mut Lines, needle: &str) -> usize {
    let line = lines.find("step", &["update ", needle]);
    let other = lines.statement(line + 1).operands[1].clone();
    lines.change(line, |s| s.operands[1] = other);
    line
}

#[test]
fn operands_in_another_order_are_refused() {
    refused("G0207", |l| swap_operands(l, "reduce", &["of=%loss "], 0, 1));
    refused("G0207", |l| swap_operands(l, "forward", &["= attention{"], 1, 2));
    refused("G0207", |l| swap_operands(l, "step", &["= opt.adamw"], 2, 3));
    refused("G0207", |l| swap_operands(l, "step", &["= opt.adamw"], 4, 5));
}

#[test]
fn a_parameter_read_after_its_update_is_refused() {
    refused("G0208", |l| {
        let shard = l.find("step", &["= comm.shard"]);
        let mut late = l.statement(shard);
        late.results = vec!["%late".into()];
        let update = l.find("step", &[&format!("update {}, ", late.operands[0])]);
        l.0.insert(update + 1, late.spell());
        update + 1
    });
}

#[test]
fn a_copy_of_another_weight_is_refused() {
    refused("G0207", |l| {
        let resident = |l: &Lines, part: usize| l.find("", &["resident parameter", &format!("c_attn.weight.{part}:")]);
        let (a, b) = (resident(l, 0), resident(l, 1));
        l.replace(
            a,
            "of=%model.transformer.h.0.attn.c_attn.weight.0 ",
            "of=%model.transformer.h.0.attn.c_attn.weight.1 ",
        );
        l.replace(
            b,
            "of=%model.transformer.h.0.attn.c_attn.weight.1 ",
            "of=%model.transformer.h.0.attn.c_attn.weight.0 ",
        );
        l.find("forward", &["%model.transformer.h.0.attn.c_attn.weight.0:"])
    });
}

#[test]
fn a_wrong_slice_of_a_stored_weight_is_refused() {
    let slice = |l: &mut Lines, start: &str| {
        let line = l.0.iter().position(|l| l.contains("slice{dim=1, start=48, len=48}")).expect("qkv is cut in three");
        l.replace(line, "start=48", start);
        line
    };
    refused("G0214", |l| slice(l, "start=0"));
    refused("G0214", |l| slice(l, "start=120"));
    refused("G0214", |l| slice(l, "start=49") + 1);
}

#[test]
fn a_load_of_other_data_is_refused() {
    refused("G0207", |l| replace(l, "forward", &["= load{input=\"labels\""], "labels\"", "input_ids\""));
    refused("G0204", |l| replace(l, "forward", &["= load{input=\"labels\""], "@[mb.a0", "@[a0.mb"));
    refused("G0204", |l| replace(l, "forward", &["= load{input=\"labels\""], "@[mb.a0", "@[a0"));
    refused("G0203", |l| {
        replace(l, "forward", &["= load{input=\"labels\""], "@[mb.a0", "@[mb.a1");
        l.find("forward", &["= cross_entropy"])
    });
}

#[test]
fn a_norm_of_one_ranks_gradients_is_refused() {
    refused("G0203", |l| {
        let total = l.find("reduce", &["= add_n ", "of=%grad_squares_total"]);
        let reduced = l.statement(total).operands;
        let bucket = l.find("reduce", &["= comm.all_reduce", &format!("{},", reduced[1])]);
        let Statement { results, operands, .. } = l.statement(bucket);
        let i = results.iter().position(|r| *r == reduced[1]).expect("the bucket was found by it");
        l.redirect(bucket, &reduced[1], &operands[i])
    });
}

#[test]
fn a_schedule_without_a_micro_batch_is_refused() {
    let schedule = |l: &mut Lines, from: &str, to: &str| {
        let line = l.0.iter().position(|l| l.starts_with("  schedule ")).expect("a plan has a schedule");
        l.replace(line, from, to);
        line
    };
    refused("G0211", |l| schedule(l, " F0.1 B0.1", ""));
    refused("G0211", |l| schedule(l, " B0.1", ""));
    refused("G0211", |l| schedule(l, " F0.1 B0.1", " B0.1 F0.1"));
    refused("G0211", |l| schedule(l, " R0 S0", " S0 R0"));
    refused("G0211", |l| schedule(l, " B0.1", " B0.1 F0.1 B0.1"));
    refused("G0211", |l| schedule(l, " S0", ""));
}
