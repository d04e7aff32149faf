//! Optimizer states in host memory, and what can be wrong with that.

use super::fixture::{mlp, node, place, push, replace, value};
use super::{check, message};
use crate::cluster::{Cluster, DeviceKind, DeviceSpec, HostMemory, LinkLevel};
use crate::id::NodeId;
use crate::module::{Level, Module};
use crate::op::mem::{ToDevice, ToHost};
use crate::plan::{Memory, PhaseKind, Place, Region};

/// The momentum of the first weight lies in host memory.
fn hosted(level: Level) -> Module {
    let mut m = mlp(level);
    let state = value(&m, "m1");
    m.chunks[0].residents.iter_mut().filter(|r| r.value == state).for_each(|r| r.memory = Memory::Host);
    let (optimizer, update) = (node(&m, "w1n"), update_of(&m, "m1"));
    push(&mut m, PhaseKind::Step, "m1.device=m1", Some(ToDevice.into()), "m1", "[_, a1]");
    move_last(&mut m, optimizer);
    push(&mut m, PhaseKind::Step, "m1n.host=m1n", Some(ToHost.into()), "m1n", "[_, a1]");
    move_last(&mut m, update);
    read_instead(&mut m, optimizer, 2, "m1.device");
    read_instead(&mut m, update, 1, "m1n.host");
    if level == Level::Plan {
        place(&mut m);
    }
    m
}

fn move_last(m: &mut Module, before: NodeId) {
    super::fixture::move_last_before(m, PhaseKind::Step, before);
}

fn read_instead(m: &mut Module, node: NodeId, arg: usize, name: &str) {
    let value = value(m, name);
    m.chunks[0].graph.node_mut(node).args[arg] = value;
}

fn update_of(m: &Module, state: &str) -> NodeId {
    let (state, chunk) = (value(m, state), &m.chunks[0]);
    let mut step = chunk.phase(PhaseKind::Step).iter();
    let is_it = |n: &&NodeId| chunk.graph.node(**n).results.is_empty() && chunk.graph.node(**n).args[0] == state;
    *step.find(is_it).unwrap()
}

#[test]
fn a_state_that_is_copied_there_and_back_verifies() {
    for level in [Level::Sharded, Level::Plan] {
        check(hosted(level), |_| {}, &[]);
    }
    let m = hosted(Level::Plan);
    let place = |name: &str| m.chunks[0].graph.value(value(&m, name)).place;
    assert_eq!(place("m1n.host"), place("m1"), "the new value is written over the old one");
    assert!(m.stages[0].arena.host_bytes() > 0);
}

#[test]
fn only_copies_read_host_memory() {
    let direct = |m: &mut Module| read_instead(m, node(m, "w1n"), 2, "m1");
    check(hosted(Level::Sharded), direct, &["G0216 %w1n arg 2"]);
    let expected = "`%w1n`: operand 2, `%m1`, lies in host memory, which only `mem.to_device` reads; \
                    read `mem.to_device %m1` instead";
    assert_eq!(message(hosted(Level::Sharded), direct), expected);
}

#[test]
fn a_missing_copy_back_is_found() {
    let direct = |m: &mut Module| read_instead(m, update_of(m, "m1"), 1, "m1n");
    let expected = "`update %m1`: `%m1` lies in host memory, its new value `%m1n` does not; \
                    write the new value by `mem.to_host %m1n`";
    assert_eq!(message(hosted(Level::Sharded), direct), expected);
}

#[test]
fn copies_go_from_one_memory_to_the_other_and_keep_placements() {
    let back = |m: &mut Module| read_instead(m, node(m, "m1n.host"), 0, "m1n.host");
    check(hosted(Level::Sharded), back, &["G0201 %m1n.host arg 0"]);
    let of_device = |m: &mut Module| read_instead(m, node(m, "m1.device"), 0, "w1");
    check(hosted(Level::Sharded), of_device, &["G0207 %m1.device result 0", "G0216 %m1.device arg 0"]);
    let moved = |m: &mut Module| replace(m, "m1.device", "[_, _]");
    check(hosted(Level::Sharded), moved, &["G0203 %w1n arg 2", "G0216 %m1.device result 0"]);
}

#[test]
fn host_buffers_lie_in_host_regions() {
    let on_device = |m: &mut Module| {
        let value = value(m, "m1");
        m.chunks[0].graph.value_mut(value).place = Some(Place { region: Region::Persistent, offset: 0 });
    };
    let expected = "`%m1` outlives the step, so its region must be `host`";
    assert_eq!(message(hosted(Level::Plan), on_device), expected);
}

#[test]
fn a_plan_needs_no_more_host_memory_than_there_is() {
    let device = DeviceSpec {
        kind: DeviceKind::Cpu,
        memory_bytes: 1 << 30,
        f32_flops: 1e12,
        bf16_flops: 1e12,
        memory_bandwidth: 1e12,
    };
    let levels = vec![LinkLevel { name: "node".into(), size: 4, bandwidth: 1e9, latency_ns: 0.0 }];
    let of = |memory_bytes| {
        let host = Some(HostMemory { memory_bytes, bandwidth: 1e9, latency_ns: 0.0 });
        Cluster { name: "c".into(), device: device.clone(), groups: Vec::new(), host, levels: levels.clone() }
    };
    let needed = hosted(Level::Plan).stages[0].arena.host_bytes();
    check(hosted(Level::Plan), |m| m.cluster = Some(of(needed)), &[]);
    check(hosted(Level::Plan), |m| m.cluster = Some(of(needed - 1)), &["G0212 arena"]);
}
