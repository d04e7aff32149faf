//! Roofline times of ops: the longer of arithmetic and memory traffic, plus the launch.

use galvatron_ir::cluster::{DeviceKind, DeviceSpec};
use galvatron_ir::op::{Op, Work};
use galvatron_ir::types::{DType, TensorType};

/// What a device reaches of its data sheet. Orientation from published MFU and kernel measurements; a profile replaces it.
struct Efficiency {
    /// Share of peak that large matrix products reach.
    matmul: f64,
    /// Bytes per flop-time at which matrix products reach half of that share: small products are slower.
    half_flops: f64,
    /// Share of memory bandwidth that streaming kernels reach.
    bandwidth: f64,
    /// Share of peak of element-wise arithmetic.
    vector: f64,
    /// Nanoseconds to start a kernel.
    launch_ns: f64,
}

fn efficiency(kind: DeviceKind) -> Efficiency {
    match kind {
        DeviceKind::Cuda => {
            Efficiency { matmul: 0.75, half_flops: 2e8, bandwidth: 0.8, vector: 0.25, launch_ns: 3_000.0 }
        }
        DeviceKind::Cpu => Efficiency { matmul: 0.75, half_flops: 2e5, bandwidth: 0.6, vector: 0.12, launch_ns: 400.0 },
    }
}

/// Nanoseconds of one op on local types; views and sources of nothing are free.
pub fn op_ns(device: &DeviceSpec, op: &Op, args: &[&TensorType], results: &[&TensorType]) -> u64 {
    let work = op.work(args, results);
    if work == Work::default() {
        return 0;
    }
    let is_half = args.iter().chain(results).any(|t| t.dtype == DType::Bf16);
    let peak = if is_half { device.bf16_flops } else { device.f32_flops };
    let e = efficiency(device.kind);
    let flops = work.matmul_flops as f64;
    let share = e.matmul * flops / (flops + e.half_flops);
    let matmul = if flops > 0.0 { flops / (peak * share) } else { 0.0 };
    let vector = work.flops as f64 / (device.f32_flops * e.vector);
    let memory = work.bytes as f64 / (device.memory_bandwidth * e.bandwidth);
    ((matmul + vector).max(memory) * 1e9 + e.launch_ns) as u64
}

/// Nanoseconds to read and write some bytes.
pub fn copy_ns(device: &DeviceSpec, bytes: u64) -> u64 {
    let e = efficiency(device.kind);
    (bytes as f64 / (device.memory_bandwidth * e.bandwidth) * 1e9 + e.launch_ns) as u64
}
