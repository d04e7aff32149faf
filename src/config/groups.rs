//! `[[group]]` of `hw.toml`: devices that differ, in the order of the ranks.

use super::cluster::{GIB, memory};
use super::set::quoted;
use super::{Fields, Item, Wrong, integer_in, number, text};
use galvatron_ir::cluster::{DeviceGroup, DeviceSpec, MAX_WORLD};

/// The groups of a file, which together have `world` devices; none where all devices are equal. What a group does not say it has as
/// the device has it. `None` where something is wrong, then there is a fault.
pub(super) fn read_groups(
    root: &mut Fields<'_>,
    world: Option<u64>,
    device: Option<&DeviceSpec>,
) -> Option<Vec<DeviceGroup>> {
    let (mut groups, mut n_grouped) = (Some(Vec::new()), Some(0));
    for (index, mut fields) in root.sections("group").into_iter().enumerate() {
        let group = read_group(&mut fields, index, device);
        fields.finish();
        n_grouped = n_grouped.zip(group.as_ref()).map(|(n, group)| n + u64::from(group.count));
        groups = groups.zip(group).map(|(groups, group)| [groups, vec![group]].concat());
    }
    match (n_grouped, world) {
        (Some(n), Some(world)) if n != world && root.has("group") => {
            let message = format!("the groups have {n} devices, the cluster has {world}");
            let help = "the counts of the groups, in the order of the ranks, sum up to the number of devices";
            root.faults.push(root.fault("group", "bad-value", message).help(help));
            None
        }
        _ => groups,
    }
}

fn read_group(fields: &mut Fields<'_>, index: usize, device: Option<&DeviceSpec>) -> Option<DeviceGroup> {
    let count = fields.require("count", integer_in(1..=MAX_WORLD));
    let name = fields.read("name", text).unwrap_or_else(|| format!("group {index}"));
    let memory_bytes = fields.read("memory_gib", memory).or(device.map(|device| device.memory_bytes));
    let speed = fields.read("speed", factor).unwrap_or(1.0);
    Some(DeviceGroup { name, count: count? as u32, memory_bytes: memory_bytes?, speed })
}

/// How many times as fast as the device.
fn factor(item: &Item) -> Result<f64, Wrong> {
    number(item, "a number from 0.001 to 1000", |speed| (1e-3..=1e3).contains(&speed))
}

/// A group as `hw.toml` has it.
pub(super) fn write_group(group: &DeviceGroup, device: &DeviceSpec) -> String {
    let DeviceGroup { name, count, memory_bytes, speed } = group;
    let mut out = format!("[[group]]\nname = {}\ncount = {count}\n", quoted(name));
    if *memory_bytes != device.memory_bytes {
        out += &format!("memory_gib = {:?}\n", *memory_bytes as f64 / GIB);
    }
    if *speed != 1.0 {
        out += &format!("speed = {speed:?}\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use crate::config::cluster::{parse_cluster, parse_cluster_with, to_toml};

    const FOUR: &str = "nodes = 1\ndevices_per_node = 4\n[device]\nkind = \"cpu\"\nmemory_gib = 2\npeak_tflops.f32 = 0.5\n\
                        memory_bandwidth_gbps = 20\n[links.intra_node]\nbandwidth_gbps = 4\nlatency_us = 10\n";

    const GROUPS: &str = "[[group]]\ncount = 3\n[[group]]\nname = \"old\"\ncount = 1\nmemory_gib = 0.5\nspeed = 0.25\n";

    /// The text under each fault's span with its message and help.
    fn faults(groups: &str) -> Vec<String> {
        let text = format!("{FOUR}{groups}");
        let place = |f: &galvatron_ir::Diagnostic| f.span.clone().map_or("", |s| &text[s]).to_string();
        let faults = parse_cluster(&text).unwrap_err();
        faults.iter().map(|f| format!("{}|{}|{}", place(f), f.message, f.help.as_deref().unwrap_or(""))).collect()
    }

    #[test]
    fn what_a_group_does_not_say_is_as_the_device() {
        let cluster = parse_cluster(&format!("{FOUR}{GROUPS}")).unwrap();
        let groups: Vec<_> =
            cluster.groups.iter().map(|g| (g.name.as_str(), g.count, g.memory_bytes, g.speed)).collect();
        assert_eq!(groups, [("group 0", 3, 2 << 30, 1.0), ("old", 1, 1 << 29, 0.25)]);
        assert_eq!(cluster.check(), Ok(()));
        assert!(parse_cluster(FOUR).unwrap().groups.is_empty());
    }

    #[test]
    fn what_is_written_is_the_same_cluster_under_other_memory_too() {
        let cluster = parse_cluster(&format!("{FOUR}{GROUPS}")).unwrap();
        let written = to_toml(&cluster);
        assert_eq!(parse_cluster(&written), Ok(cluster));
        let larger = parse_cluster_with(&written, &["device.memory_gib=4".to_string()]).unwrap();
        assert_eq!(larger.groups.iter().map(|g| g.memory_bytes).collect::<Vec<_>>(), [4 << 30, 1 << 29]);
    }

    #[test]
    fn groups_are_supposed_in_one_line() {
        let set = "group=[{count=3}, {count=1, speed=0.6}]".to_string();
        let cluster = parse_cluster_with(FOUR, &[set]).unwrap();
        assert_eq!(cluster.groups.iter().map(|g| (g.count, g.speed)).collect::<Vec<_>>(), [(3, 1.0), (1, 0.6)]);
    }

    #[test]
    fn faults_are_placed() {
        let help = "the counts of the groups, in the order of the ranks, sum up to the number of devices";
        let short = faults(&GROUPS.replace("count = 3", "count = 2"));
        assert_eq!(short.len(), 1, "{short:?}");
        assert!(short[0].ends_with(&format!("|the groups have 3 devices, the cluster has 4|{help}")), "{short:?}");
        assert_eq!(
            faults(&GROUPS.replace("count = 3", "cuont = 3").replace("= 0.25", "= 0")),
            [
                "[[group]]|`group[0].count` is missing|",
                "cuont|unknown key `group[0].cuont`|did you mean `group[0].count`?",
                "0|`group[1].speed`: expected a number from 0.001 to 1000, found 0|",
            ]
        );
        assert_eq!(
            faults(&GROUPS.replace("= 0.5", "= -1").replace("count = 1", "count = 0")),
            [
                "0|`group[1].count`: expected an integer from 1 to 65536, found 0|",
                "-1|`group[1].memory_gib`: expected a positive number of GiB, at most 1048576, found -1|",
            ]
        );
    }
}
