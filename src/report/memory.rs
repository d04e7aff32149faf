//! What stages need of the memory that their devices have, in words: of one device where all have the same, otherwise stage by stage.

use super::amount;
use galvatron_ir::headroom::StageMemory;

/// Whether the devices of some stages have less memory than others.
fn differs(stages: &[StageMemory]) -> bool {
    stages.iter().any(|stage| stage.memory_bytes != stages[0].memory_bytes)
}

/// The largest arena and the memory of a device, or those of each stage, where devices differ: `1.20 GiB of 2.00 GiB a device`.
pub fn memory_of(stages: &[StageMemory]) -> String {
    let of = |s: &StageMemory| format!("{} of {}", amount(s.peak_bytes), amount(s.memory_bytes));
    match stages.iter().max_by_key(|s| s.peak_bytes) {
        Some(_) if differs(stages) => list(stages, of),
        Some(largest) => of(largest),
        None => String::new(),
    }
}

/// The same without what it is a part of.
pub fn peaks_of(stages: &[StageMemory]) -> String {
    match stages.iter().map(|s| s.peak_bytes).max() {
        Some(_) if differs(stages) => list(stages, |s| amount(s.peak_bytes)),
        Some(largest) => amount(largest),
        None => String::new(),
    }
}

/// The memory of a device, or of those of each stage.
pub fn limits_of(stages: &[StageMemory]) -> String {
    match stages.first() {
        Some(_) if differs(stages) => list(stages, |s| amount(s.memory_bytes)),
        Some(first) => amount(first.memory_bytes),
        None => String::new(),
    }
}

/// `stage 0 …, stage 1 …`
fn list(stages: &[StageMemory], of: impl Fn(&StageMemory) -> String) -> String {
    stages.iter().map(|s| format!("stage {} {}", s.stage, of(s))).collect::<Vec<_>>().join(", ")
}

/// That not even the smallest plan fits, whose stages these are.
pub fn no_plan_message(stages: &[StageMemory]) -> String {
    let Some(worst) = stages.iter().max_by_key(|s| s.excess_bytes()) else { return "no plan fits".into() };
    let (needed, has) = (amount(worst.peak_bytes), amount(worst.memory_bytes));
    match differs(stages) {
        true => format!("no plan fits: the smallest needs {needed} a device of stage {}, which has {has}", worst.stage),
        false => format!("no plan fits: the smallest needs {needed} a device, which has {has}"),
    }
}

/// The memory that would be enough for the smallest plan, as `hw.toml` has it.
pub fn enough_memory(stages: &[StageMemory]) -> String {
    let gib = |bytes: u64| format!("memory_gib = {:.4}", bytes as f64 / f64::from(1 << 30) + 5e-5);
    let lacking = stages.iter().filter(|s| !s.fits());
    match differs(stages) {
        true => lacking.map(|s| format!("{} for stage {}", gib(s.peak_bytes), s.stage)).collect::<Vec<_>>().join(", "),
        false => gib(lacking.map(|s| s.peak_bytes).max().unwrap_or(0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stages(all: &[(u64, u64)]) -> Vec<StageMemory> {
        let stage = |(stage, &(peak, memory)): (usize, &(u64, u64))| StageMemory {
            stage,
            peak_bytes: peak << 30,
            memory_bytes: memory << 30,
        };
        all.iter().enumerate().map(stage).collect()
    }

    #[test]
    fn equal_devices_are_one() {
        let all = stages(&[(3, 4), (5, 4), (6, 4)]);
        assert_eq!(memory_of(&all), "6.00 GiB of 4.00 GiB");
        assert_eq!((peaks_of(&all), limits_of(&all)), ("6.00 GiB".into(), "4.00 GiB".into()));
        assert_eq!(no_plan_message(&all), "no plan fits: the smallest needs 6.00 GiB a device, which has 4.00 GiB");
        assert_eq!(enough_memory(&all), "memory_gib = 6.0000");
    }

    #[test]
    fn devices_that_differ_are_told_apart() {
        let all = stages(&[(3, 4), (5, 4), (9, 6)]);
        assert_eq!(
            memory_of(&all),
            "stage 0 3.00 GiB of 4.00 GiB, stage 1 5.00 GiB of 4.00 GiB, stage 2 9.00 GiB of 6.00 GiB"
        );
        assert_eq!(limits_of(&all), "stage 0 4.00 GiB, stage 1 4.00 GiB, stage 2 6.00 GiB");
        assert!(no_plan_message(&all).ends_with("needs 9.00 GiB a device of stage 2, which has 6.00 GiB"));
        assert_eq!(enough_memory(&all), "memory_gib = 5.0000 for stage 1, memory_gib = 9.0000 for stage 2");
    }
}
