//! `[[level]]` of `hw.toml`: any number of link levels, from the devices outwards.

use super::cluster::{Link, Tier};
use super::{Fields, Item, Wrong, integer_in, number, text};
use galvatron_ir::cluster::MAX_WORLD;

/// The levels of a file, slowest first; the product of their sizes is at most [`MAX_WORLD`].
///
/// `bandwidth_gbps` is that of one member's link per direction. The devices of a member share it, and where a level is
/// oversubscribed k times, only one k-th of it can be used by all members at once, which is what training does. Keys that say
/// the same otherwise (`nodes`, `devices_per_node`, `links`) are faults beside it.
pub(super) fn read_levels(root: &mut Fields<'_>) -> Option<Vec<Tier>> {
    for key in ["nodes", "devices_per_node", "links"] {
        root.known.push(key);
        if root.has(key) {
            let message = format!("`{key}` stands beside `level`, which says the same");
            root.faults.push(root.fault(key, "bad-value", message));
        }
    }
    let (mut tiers, mut inside): (Vec<Tier>, u64) = (Vec::new(), 1);
    let sections = root.sections("level");
    let n_levels = sections.len();
    for mut fields in sections {
        let known: Vec<&str> = tiers.iter().map(|t| t.name.as_str()).collect();
        let tier = read_level(&mut fields, &known, inside);
        fields.finish();
        if let Some(tier) = tier {
            inside *= u64::from(tier.size);
            tiers.push(tier);
        }
    }
    if n_levels == 0 {
        root.faults.push(root.fault("level", "bad-value", "`level`: expected at least one level"));
    }
    tiers.reverse();
    (!tiers.is_empty()).then_some(tiers)
}

/// One level outside of `inside` devices.
fn read_level(fields: &mut Fields<'_>, known: &[&str], inside: u64) -> Option<Tier> {
    let name = fields.require("name", text);
    let size = fields.require("size", integer_in(1..=MAX_WORLD));
    let bandwidth = fields.require("bandwidth_gbps", super::positive);
    let latency_us = fields.require("latency_us", super::non_negative);
    let oversubscription = fields.read("oversubscription", oversubscription);
    if let Some(name) = name.as_ref().filter(|name| known.contains(&name.as_str())) {
        let message = format!("`{}`: a level before it has the name `{name}`", fields.name("name"));
        fields.faults.push(fields.fault("name", "bad-value", message));
    }
    let world = size.unwrap_or(1) * inside;
    if world > MAX_WORLD {
        let message = format!("{world} devices up to `{}`: expected at most {MAX_WORLD}", fields.path);
        fields.faults.push(fields.fault("size", "bad-value", message));
        return None;
    }
    let bandwidth_gbps = bandwidth? / oversubscription.unwrap_or(1.0);
    let link = Some(Link::new(bandwidth_gbps, latency_us?));
    Some(Tier { name: name?, size: size? as u32, link, sharers: inside as u32 })
}

/// How many times more the members' links carry together than the level.
fn oversubscription(item: &Item) -> Result<f64, Wrong> {
    number(item, "a number from 1 to 1000", |ratio| (1.0..=1000.0).contains(&ratio))
}

#[cfg(test)]
mod tests {
    use crate::config::cluster::parse_cluster;
    use galvatron_ir::cluster::LinkLevel;

    const DEVICE: &str =
        "[device]\nkind = \"cuda\"\nmemory_gib = 40\npeak_tflops.f32 = 19.5\nmemory_bandwidth_gbps = 1555\n";

    const RACKS: &str = "[[level]]\nname = \"node\"\nsize = 8\nbandwidth_gbps = 300\nlatency_us = 3\n\
                         [[level]]\nname = \"rack\"\nsize = 4\nbandwidth_gbps = 200\nlatency_us = 8\n\
                         [[level]]\nname = \"hall\"\nsize = 2\nbandwidth_gbps = 800\nlatency_us = 12\noversubscription = 2.0\n";

    /// The text under each fault's span with its message.
    fn faults(levels: &str) -> Vec<String> {
        let text = format!("{levels}{DEVICE}");
        let faults = parse_cluster(&text).unwrap_err();
        let place = |f: &galvatron_ir::Diagnostic| f.span.clone().map_or("", |s| &text[s]).to_string();
        faults.iter().map(|f| format!("{}|{}", place(f), f.message)).collect()
    }

    #[test]
    fn levels_are_read_from_the_devices_outwards() {
        let cluster = parse_cluster(&format!("{RACKS}{DEVICE}")).unwrap();
        assert_eq!((cluster.world(), cluster.name.as_str()), (64, "2 x 4 x 8 devices"));
        let level =
            |name: &str, size, bandwidth, latency_ns| LinkLevel { name: name.into(), size, bandwidth, latency_ns };
        // 800 GB/s of a rack of 32 devices, of which half can be used.
        let hall = level("hall", 2, 12.5e9, 12_000.0);
        assert_eq!(cluster.levels, [hall, level("rack", 4, 25e9, 8000.0), level("node", 8, 300e9, 3000.0)]);
    }

    #[test]
    fn two_levels_are_what_nodes_and_links_say() {
        let links = "nodes = 4\ndevices_per_node = 8\n[links.intra_node]\nbandwidth_gbps = 300\nlatency_us = 3\n\
                     [links.inter_node]\nbandwidth_gbps = 200\nlatency_us = 8\n";
        let levels = RACKS.split("[[level]]\nname = \"hall\"").next().unwrap();
        let levels = levels.replace("\"node\"", "\"intra_node\"").replace("\"rack\"", "\"inter_node\"");
        let read = |text: &str| parse_cluster(&format!("{text}{DEVICE}")).unwrap();
        assert_eq!(read(links), read(&levels));
    }

    #[test]
    fn levels_of_one_member_are_left_out() {
        let one = RACKS.replace("size = 4", "size = 1");
        let names: Vec<String> =
            parse_cluster(&format!("{one}{DEVICE}")).unwrap().levels.into_iter().map(|l| l.name).collect();
        assert_eq!(names, ["hall", "node"]);
    }

    #[test]
    fn faults_are_placed() {
        assert_eq!(faults(&format!("nodes = 2\n{RACKS}")), ["2|`nodes` stands beside `level`, which says the same"]);
        assert_eq!(faults("level = []\n"), ["[]|`level`: expected at least one level"]);
        assert_eq!(
            faults(&RACKS.replace("\"hall\"", "\"rack\"").replace("= 2.0", "= 0.5")),
            [
                "\"rack\"|`level[2].name`: a level before it has the name `rack`",
                "0.5|`level[2].oversubscription`: expected a number from 1 to 1000, found 0.5",
            ]
        );
        assert_eq!(
            faults(&RACKS.replace("size = 4", "size = 16384")),
            ["16384|131072 devices up to `level[1]`: expected at most 65536"]
        );
    }
}
