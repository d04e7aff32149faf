//! `hw.toml`: the cluster that a plan is made for.

use galvatron_ir::cluster::{Cluster, DeviceKind, DeviceSpec, HostMemory, LinkLevel, MAX_WORLD};
use galvatron_ir::diagnostic::Checked;

use super::groups::{read_groups, write_group};
use super::levels::read_levels;
use super::set::{apply_overrides, parse_file, quoted};
use super::{Faults, Fields, Item, Wrong, integer_in, non_negative, number, one_of, positive, text};

/// Bytes or operations a second in one giga of them.
const GIGA: f64 = 1e9;

/// Bytes of a GiB.
pub(super) const GIB: f64 = (1u64 << 30) as f64;

/// Name of the links between nodes.
pub(super) const INTER_NODE: &str = "inter_node";

/// Bandwidth (bytes a second, as the file counts it) and latency (ns) of a `[links.*]` table.
pub(super) struct Link {
    bandwidth: f64,
    latency_ns: f64,
}

impl Link {
    /// A link from the figures of the file.
    pub(super) fn new(bandwidth_gbps: f64, latency_us: f64) -> Link {
        Link { bandwidth: bandwidth_gbps * GIGA, latency_ns: latency_us * 1e3 }
    }
}

/// One level as the file describes it.
pub(super) struct Tier {
    pub(super) name: String,
    /// Members of a group.
    pub(super) size: u32,
    /// The link of one member.
    pub(super) link: Option<Link>,
    /// Devices of a member.
    pub(super) sharers: u32,
}

/// Reads the text of `hw.toml`.
///
/// GB/s are 1e9 bytes a second, GiB are 2³⁰ bytes. The bandwidth of `[links.inter_node]`, per direction and node in the
/// file, is divided by the devices of a node. `[[level]]` says the same of any number of levels. A level of one member is left
/// out, unless nothing would be left. `[[group]]` says in what devices differ, `[host]` what of the host's memory a plan may use. All
/// faults are reported: syntax, unknown, missing and reserved keys, values out of range.
pub fn parse_cluster(text: &str) -> Checked<Cluster> {
    parse_cluster_with(text, &[])
}

/// The same with `key=value` overrides laid over the text, as [`super::train::parse_recipe`] has them.
///
/// # Errors
/// See [`parse_cluster`].
pub fn parse_cluster_with(text: &str, overrides: &[String]) -> Checked<Cluster> {
    let mut table = parse_file(text)?;
    let faults = Faults::default();
    apply_overrides(&mut table, overrides).into_iter().for_each(|fault| faults.push(fault));
    let mut root = Fields::root(&table, &faults);
    let name = root.read("name", self::text);
    let tiers = if root.has("level") { read_levels(&mut root) } else { read_nodes(&mut root) };
    let device = root.require_section("device").and_then(read_device);
    let world = tiers.as_ref().map(|tiers| tiers.iter().map(|tier| u64::from(tier.size)).product());
    let groups = read_groups(&mut root, world, device.as_ref());
    let host = if root.has("host") { root.section("host").and_then(read_host).map(Some) } else { Some(None) };
    root.known.push("host");
    root.reserve("efficiency");
    root.finish();
    let parts = tiers.zip(device).zip(groups).zip(host);
    let cluster = parts.map(|(((tiers, device), groups), host)| {
        let sizes: Vec<String> = tiers.iter().map(|tier| tier.size.to_string()).collect();
        let name = name.unwrap_or_else(|| format!("{} devices", sizes.join(" x ")));
        let levels = levels(tiers, &device);
        Cluster { name, device, groups, host, levels }
    });
    faults.check(cluster)
}

/// Keys of `hw.toml` that an override may name, up to their first dot.
pub const KEYS: [&str; 8] = ["name", "nodes", "devices_per_node", "device", "group", "host", "level", "links"];

/// The text of a cluster, its links as `[[level]]`. A group says in what it differs from the device.
pub fn to_toml(cluster: &Cluster) -> String {
    let device = &cluster.device;
    let mut out = format!("name = {}\n[device]\nkind = \"{}\"\n", quoted(&cluster.name), device.kind.name());
    let (f32, bf16) = (device.f32_flops / 1e12, device.bf16_flops / 1e12);
    out += &format!("memory_gib = {:?}\n", device.memory_bytes as f64 / GIB);
    out += &format!("peak_tflops = {{ f32 = {f32:?}, bf16 = {bf16:?} }}\n");
    out += &format!("memory_bandwidth_gbps = {:?}\n", device.memory_bandwidth / GIGA);
    cluster.groups.iter().for_each(|group| out += &write_group(group, device));
    if let Some(HostMemory { memory_bytes, bandwidth, latency_ns }) = cluster.host {
        let (gib, gbps, latency_us) = (memory_bytes as f64 / GIB, bandwidth / GIGA, latency_ns / 1e3);
        out += &format!("[host]\nmemory_gib = {gib:?}\nbandwidth_gbps = {gbps:?}\nlatency_us = {latency_us:?}\n");
    }
    let mut sharers = 1.0;
    for LinkLevel { name, size, bandwidth, latency_ns } in cluster.levels.iter().rev() {
        let (gbps, latency_us) = (bandwidth * sharers / GIGA, latency_ns / 1e3);
        out += &format!("[[level]]\nname = {}\nsize = {size}\n", quoted(name));
        out += &format!("bandwidth_gbps = {gbps:?}\nlatency_us = {latency_us:?}\n");
        sharers *= f64::from(*size);
    }
    out
}

/// The levels of `nodes`, `devices_per_node` and `[links]`, slowest first.
fn read_nodes(root: &mut Fields<'_>) -> Option<Vec<Tier>> {
    root.known.push("level");
    let nodes = root.require("nodes", integer_in(1..=MAX_WORLD));
    let per_node = root.require("devices_per_node", integer_in(1..=MAX_WORLD));
    check_world(root, nodes, per_node);
    let [inter, intra] = read_links(root, nodes, per_node);
    let (nodes, per_node) = (nodes? as u32, per_node? as u32);
    let tier = |name: &str, size, link, sharers| Tier { name: name.into(), size, link, sharers };
    Some(vec![tier(INTER_NODE, nodes, inter, per_node), tier("intra_node", per_node, intra, 1)])
}

fn check_world(root: &Fields<'_>, nodes: Option<u64>, per_node: Option<u64>) {
    let world = nodes.unwrap_or(1) * per_node.unwrap_or(1);
    if world > MAX_WORLD {
        let message = format!("{world} devices (`nodes` x `devices_per_node`): expected at most {MAX_WORLD}");
        root.faults.push(root.fault("nodes", "bad-value", message));
    }
}

fn read_device(mut fields: Fields<'_>) -> Option<DeviceSpec> {
    let kinds = [("cpu", Some(DeviceKind::Cpu)), ("cuda", Some(DeviceKind::Cuda))];
    let kind = fields.require("kind", one_of(&kinds));
    let memory_bytes = fields.require("memory_gib", memory);
    let peak = fields.require_section("peak_tflops").and_then(read_peak);
    let memory_bandwidth = fields.require("memory_bandwidth_gbps", positive);
    fields.reserve("efficiency");
    fields.finish();
    let (f32_flops, bf16_flops) = peak?;
    let memory_bandwidth = memory_bandwidth? * GIGA;
    Some(DeviceSpec { kind: kind?, memory_bytes: memory_bytes?, f32_flops, bf16_flops, memory_bandwidth })
}

fn read_host(mut fields: Fields<'_>) -> Option<HostMemory> {
    let memory_bytes = fields.require("memory_gib", memory);
    let bandwidth = fields.require("bandwidth_gbps", positive);
    let latency_us = fields.require("latency_us", non_negative);
    fields.finish();
    let Link { bandwidth, latency_ns } = Link::new(bandwidth?, latency_us?);
    Some(HostMemory { memory_bytes: memory_bytes?, bandwidth, latency_ns })
}

/// Bytes of a number of GiB, at least one byte and at most 2²⁰ GiB.
pub(super) fn memory(item: &Item) -> Result<u64, Wrong> {
    let (least, most) = (1.0 / GIB, (1u64 << 20) as f64);
    let gib = number(item, "a positive number of GiB, at most 1048576", |value| (least..=most).contains(&value))?;
    Ok((gib * GIB) as u64)
}

/// Peak floating-point operations a second in f32 and bf16.
fn read_peak(mut fields: Fields<'_>) -> Option<(f64, f64)> {
    let f32_tflops = fields.require("f32", positive);
    let bf16_tflops = fields.read("bf16", positive);
    fields.finish();
    Some((f32_tflops? * 1e12, bf16_tflops.or(f32_tflops)? * 1e12))
}

/// Links between nodes and inside a node, with a fault for one that the cluster needs and the file lacks.
fn read_links(root: &mut Fields<'_>, nodes: Option<u64>, per_node: Option<u64>) -> [Option<Link>; 2] {
    let needed = [nodes.is_some_and(|n| n > 1), per_node.is_some_and(|n| n > 1)];
    if needed.contains(&true) && !root.has("links") {
        root.need("links");
        return [None, None];
    }
    let Some(mut fields) = root.section("links") else {
        return [None, None];
    };
    let mut read = |key, needed| {
        let section = if needed { fields.require_section(key) } else { fields.section(key) };
        section.and_then(read_link)
    };
    let links = [read(INTER_NODE, needed[0]), read("intra_node", needed[1])];
    fields.finish();
    links
}

fn read_link(mut fields: Fields<'_>) -> Option<Link> {
    let bandwidth = fields.require("bandwidth_gbps", positive);
    let latency_us = fields.require("latency_us", non_negative);
    fields.reserve("efficiency");
    fields.finish();
    Some(Link::new(bandwidth?, latency_us?))
}

/// Levels with more than one member; a single device gets one level of one member.
fn levels(tiers: Vec<Tier>, device: &DeviceSpec) -> Vec<LinkLevel> {
    let single = tiers.iter().all(|tier| tier.size == 1);
    let last = tiers.len() - 1;
    let own_memory = || Link { bandwidth: device.memory_bandwidth, latency_ns: 0.0 };
    let counts = |(i, tier): &(usize, Tier)| tier.size > 1 || (single && *i == last);
    let level = |(_, tier): (usize, Tier)| {
        let link = tier.link.unwrap_or_else(own_memory);
        let bandwidth = link.bandwidth / f64::from(tier.sharers);
        LinkLevel { name: tier.name, size: tier.size, bandwidth, latency_ns: link.latency_ns }
    };
    tiers.into_iter().enumerate().filter(counts).map(level).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO_NODES: &str = r#"
name = "2 nodes x 8 A100-40GB"
nodes = 2
devices_per_node = 8
[device]
kind = "cuda"                 # or "cpu"
memory_gib = 40.0             # what the plan may use
peak_tflops = { bf16 = 312.0, f32 = 19.5 }
memory_bandwidth_gbps = 1555.0          # GB/s, 1e9
[links.intra_node]
bandwidth_gbps = 300.0        # GB/s per direction and device
latency_us = 3.0
[links.inter_node]
bandwidth_gbps = 25.0         # GB/s per direction and node
latency_us = 8.0
"#;

    const ONE: &str = "nodes = 1\ndevices_per_node = 1\n[device]\nkind = \"cpu\"\nmemory_gib = 2\n\
                       peak_tflops.f32 = 0.5\nmemory_bandwidth_gbps = 20\n";

    /// The text under each fault's span with its code and message.
    fn faults(text: &str) -> Vec<String> {
        let faults = parse_cluster(text).unwrap_err();
        let place = |f: &galvatron_ir::diagnostic::Diagnostic| f.span.clone().map_or("", |s| &text[s]).to_string();
        faults.iter().map(|f| format!("{}|{}|{}", f.code, place(f), f.message)).collect()
    }

    #[test]
    fn units_are_converted() {
        let cluster = parse_cluster(TWO_NODES).unwrap();
        assert_eq!(cluster.world(), 16);
        assert_eq!(cluster.device.memory_bytes, 40 << 30);
        assert_eq!((cluster.device.f32_flops, cluster.device.bf16_flops), (19.5e12, 312e12));
        assert_eq!(cluster.device.memory_bandwidth, 1555e9);
        let level =
            |name: &str, size, bandwidth, latency_ns| LinkLevel { name: name.into(), size, bandwidth, latency_ns };
        assert_eq!(cluster.levels, [level("inter_node", 2, 25e9 / 8.0, 8000.0), level("intra_node", 8, 300e9, 3000.0)]);
    }

    #[test]
    fn what_is_written_is_the_same_cluster() {
        let with_host = format!("{TWO_NODES}[host]\nmemory_gib = 1.5\nbandwidth_gbps = 20\nlatency_us = 10\n");
        for text in [TWO_NODES, ONE, &with_host] {
            let cluster = parse_cluster(text).unwrap();
            assert_eq!(parse_cluster(&to_toml(&cluster)), Ok(cluster));
        }
    }

    #[test]
    fn overrides_lie_over_the_text() {
        let sets = ["nodes=4".to_string(), "links.inter_node.bandwidth_gbps=50".to_string()];
        let cluster = parse_cluster_with(TWO_NODES, &sets).unwrap();
        assert_eq!((cluster.world(), cluster.levels[0].bandwidth), (32, 50e9 / 8.0));
        assert!(parse_cluster_with(TWO_NODES, &["device.memory=4".to_string()]).is_err());
    }

    #[test]
    fn levels_of_one_member_are_left_out() {
        let names = |text: &str| -> Vec<(String, u32)> {
            parse_cluster(text).unwrap().levels.into_iter().map(|l| (l.name, l.size)).collect()
        };
        assert_eq!(names(&TWO_NODES.replace("nodes = 2", "nodes = 1")), [("intra_node".into(), 8)]);
        assert_eq!(names(&TWO_NODES.replace("per_node = 8", "per_node = 1")), [("inter_node".into(), 2)]);
        assert_eq!(names(ONE), [("intra_node".into(), 1)]);
    }

    #[test]
    fn bf16_defaults_to_f32() {
        assert_eq!(parse_cluster(ONE).unwrap().device.bf16_flops, 0.5e12);
    }

    #[test]
    fn all_faults_are_collected_in_order() {
        let text = "nodes = 0\ndevices_per_nod = 8\n[device]\nkind = \"tpu\"\nmemory_gib = -1\n\
                    peak_tflops = { bf16 = inf }\n[host]\nmemory_gib = 0\nlatency_us = 1\n";
        assert_eq!(
            faults(text),
            [
                "bad-value|0|`nodes`: expected an integer from 1 to 65536, found 0",
                "unknown-key|devices_per_nod|unknown key `devices_per_nod`",
                "missing-key|device|`device.memory_bandwidth_gbps` is missing",
                "bad-value|\"tpu\"|`device.kind`: expected one of `cpu`, `cuda`, found \"tpu\"",
                "bad-value|-1|`device.memory_gib`: expected a positive number of GiB, at most 1048576, found -1",
                "missing-key|peak_tflops|`device.peak_tflops.f32` is missing",
                "bad-value|inf|`device.peak_tflops.bf16`: expected a positive number, found inf",
                "missing-key|host|`host.bandwidth_gbps` is missing",
                "bad-value|0|`host.memory_gib`: expected a positive number of GiB, at most 1048576, found 0",
                "missing-key||`devices_per_node` is missing",
            ]
        );
    }

    #[test]
    fn needed_links_must_be_given() {
        assert_eq!(faults(&ONE.replace("nodes = 1", "nodes = 2")), ["missing-key||`links` is missing"]);
        let without = TWO_NODES.split("[links.inter_node]").next().unwrap();
        assert_eq!(faults(without), ["missing-key|links|`links.inter_node` is missing"]);
    }

    #[test]
    fn world_is_bounded() {
        let text = TWO_NODES.replace("nodes = 2", "nodes = 65536");
        assert_eq!(
            faults(&text),
            ["bad-value|65536|524288 devices (`nodes` x `devices_per_node`): expected at most 65536"]
        );
    }
}
