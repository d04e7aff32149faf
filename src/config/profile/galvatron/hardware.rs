//! What was measured of the machine: bandwidths and times of collectives, and what they cost where they overlap with computation.

use super::{MIB, is_group, ms, numbers, unknown, value};
use crate::config::Faults;
use crate::config::profile::file::{bandwidth, slowdown};
use crate::config::set::Table;
use galvatron_ir::profile::{
    Collective, CollectiveBandwidth, CollectiveTimes, Layout, PointToPoint, Profile, TimePoint,
};

/// Most MB of a message.
const MAX_MB: u64 = 1 << 20;

/// `allreduce_bandwidth_NnodesGgpus_per_node.json`: bus GB/s of all-reduces by ranks; `consec_1` are neighbours, `consec_0` are not.
pub fn read_bandwidth(table: &Table, faults: &Faults, profile: &mut Profile) {
    for (key, (_, item)) in table {
        let layout = |consecutive| match consecutive {
            0 => Some(Layout::Strided),
            1 => Some(Layout::Consecutive),
            _ => None,
        };
        let found = numbers::<2>(key, "allreduce_size_{}_consec_{}").filter(|[ranks, _]| is_group(*ranks));
        let Some((ranks, layout)) = found.and_then(|[ranks, c]| Some((ranks as u32, layout(c)?))) else {
            unknown(faults, table, key, "`allreduce_size_N_consec_0`, `allreduce_size_N_consec_1`");
            continue;
        };
        if let Some(bus_bandwidth_gbps) = value(faults, key, item, bandwidth) {
            let kind = Collective::AllReduce;
            profile.bandwidths.push(CollectiveBandwidth { kind, ranks, layout, bus_bandwidth_gbps });
        }
    }
}

/// `p2p_bandwidth_NnodesGgpus_per_node.json`: GB/s between neighbouring stages by their number.
pub fn read_point_to_point(table: &Table, faults: &Faults, profile: &mut Profile) {
    for (key, (_, item)) in table {
        let Some([stages]) = numbers::<1>(key, "pp_size_{}").filter(|[stages]| is_group(*stages)) else {
            unknown(faults, table, key, "`pp_size_N`");
            continue;
        };
        if let Some(bandwidth_gbps) = value(faults, key, item, bandwidth) {
            profile.point_to_point.push(PointToPoint { stages: stages as u32, bandwidth_gbps });
        }
    }
}

/// `sp_time_NnodesGgpus_per_node.json`: ms of all-reduces and all-to-alls of neighbours by ranks and size.
pub fn read_times(table: &Table, faults: &Faults, profile: &mut Profile) {
    for (key, (_, item)) in table {
        let sized = |kind, pattern| numbers::<2>(key, pattern).map(|[ranks, mb]| (kind, ranks, mb));
        let found = sized(Collective::AllReduce, "allreduce_size_{}_{}MB_time")
            .or_else(|| sized(Collective::AllToAll, "all2all_size_{}_{}MB_time"));
        let Some((kind, ranks, mb)) = found.filter(|&(_, n, mb)| is_group(n) && (1..=MAX_MB).contains(&mb)) else {
            unknown(faults, table, key, "`allreduce_size_N_MMB_time`, `all2all_size_N_MMB_time`");
            continue;
        };
        if let Some(time_ns) = value(faults, key, item, ms) {
            let point = TimePoint { bytes: mb * MIB as u64, time_ns };
            times_of(profile, kind, ranks as u32).push(point);
        }
    }
}

fn times_of(profile: &mut Profile, kind: Collective, ranks: u32) -> &mut Vec<TimePoint> {
    let at = profile.collectives.iter().position(|c| (c.kind, c.ranks) == (kind, ranks)).unwrap_or_else(|| {
        let layout = Layout::Consecutive;
        profile.collectives.push(CollectiveTimes { kind, ranks, layout, times: Vec::new() });
        profile.collectives.len() - 1
    });
    &mut profile.collectives[at].times
}

/// `overlap_coefficient.json`: how many times longer computation and communication take at the same time.
pub fn read_overlap(table: &Table, faults: &Faults, profile: &mut Profile) {
    for (key, (_, item)) in table {
        match key.as_str() {
            "overlap_coe" => profile.overlap_slowdown_ratio = value(faults, key, item, slowdown),
            _ => unknown(faults, table, key, "`overlap_coe`"),
        }
    }
}
