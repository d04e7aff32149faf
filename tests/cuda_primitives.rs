//! The emulated instructions of tensor cores have the registers that the PTX ISA gives them: what the emulator shows of kernels
//! is worth no more than that.

#[allow(dead_code)]
#[path = "support/emulated.rs"]
mod emulated;

use galvatron_backends::cuda::Family;
use galvatron_backends::cuda::command::{Arg, Command, Launch, Place};
use galvatron_ir::types::bf16;

/// Lanes of a warp.
const LANES: usize = 32;

/// Runs a kernel of `primitives.cu` by one warp on buffers that lie behind each other; what they hold then.
fn run(entry: &str, shared_bytes: u32, buffers: &[Vec<u8>], ints: &[i64]) -> Option<Vec<Vec<u8>>> {
    let program = emulated::program()?;
    let starts = buffers.iter().scan(0, |end, buffer| {
        let start = *end;
        *end = (start + buffer.len()).next_multiple_of(64);
        Some(start)
    });
    let starts: Vec<usize> = starts.collect();
    let mut arena = vec![0; starts.last()? + buffers.last()?.len()];
    for (&start, buffer) in starts.iter().zip(buffers) {
        arena[start..start + buffer.len()].copy_from_slice(buffer);
    }
    let pointers = starts.iter().map(|&start| Arg::At(Place::Arena(start as u64)));
    let launch = Launch {
        unit: Family::AttentionBf16.into(),
        entry: entry.into(),
        grid: [1, 1, 1],
        block: LANES as u32,
        shared_bytes,
        args: pointers.chain(ints.iter().map(|&v| Arg::Int(v))).collect(),
    };
    let arena = emulated::after(program, &arena, &[Command::Launch(launch)]);
    Some(starts.iter().zip(buffers).map(|(&start, buffer)| arena[start..start + buffer.len()].to_vec()).collect())
}

/// A small whole number that tells elements apart, exact in bf16: products of 16 are exact in f32.
fn number(row: usize, column: usize) -> f32 {
    ((7 * row + 3 * column + row * column) % 31) as f32 - 15.0
}

fn halves(bytes: &[u8]) -> Vec<u16> {
    bytes.as_chunks().0.iter().map(|c| u16::from_ne_bytes(*c)).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|c| f32::from_ne_bytes(*c)).collect()
}

/// Bytes of halves, two to a register, the first one lowest.
fn bytes_of(halves: &[u16]) -> Vec<u8> {
    halves.iter().flat_map(|half| half.to_le_bytes()).collect()
}

/// Figures "Fragment layout for matrix A, B, C of m16n8k16" of the PTX ISA, as (row, column) of an element of a lane.
fn place_in_a(lane: usize, i: usize) -> (usize, usize) {
    let (group, in_group) = (lane / 4, lane % 4);
    let is_low = i < 2 || (4..6).contains(&i);
    (if is_low { group } else { group + 8 }, in_group * 2 + (i & 1) + if i < 4 { 0 } else { 8 })
}

fn place_in_b(lane: usize, i: usize) -> (usize, usize) {
    (lane % 4 * 2 + (i & 1) + if i < 2 { 0 } else { 8 }, lane / 4)
}

fn place_in_c(lane: usize, i: usize) -> (usize, usize) {
    (if i < 2 { lane / 4 } else { lane / 4 + 8 }, lane % 4 * 2 + (i & 1))
}

/// The elements of all lanes, `n` each.
fn fragments<T>(n: usize, place: fn(usize, usize) -> (usize, usize), at: impl Fn(usize, usize) -> T) -> Vec<T> {
    let elements = (0..LANES).flat_map(|lane| (0..n).map(move |i| place(lane, i)));
    elements.map(|(row, column)| at(row, column)).collect()
}

#[test]
fn products_have_the_registers_of_the_isa() {
    let a = |row, k| number(row, k);
    let b = |k, column| number(k + 5, column);
    let sum = |row, column| number(column, row);
    let operands = [
        bytes_of(&fragments(8, place_in_a, |row, k| bf16::round(a(row, k)))),
        bytes_of(&fragments(4, place_in_b, |k, column| bf16::round(b(k, column)))),
        fragments(4, place_in_c, sum).into_iter().flat_map(f32::to_ne_bytes).collect(),
    ];
    let Some(found) = run("test_mma", 0, &operands, &[]) else { return };
    let product = |row, column| sum(row, column) + (0..16).map(|k| a(row, k) * b(k, column)).sum::<f32>();
    assert_eq!(floats(&found[2]), fragments(4, place_in_c, product));
}

#[test]
fn matrices_are_loaded_into_the_registers_of_the_isa() {
    let at = |matrix: usize, row: usize, column: usize| (64 * matrix + 8 * row + column) as u16;
    let rows: Vec<u16> = (0..LANES * 8).map(|i| at(i / 64, i / 8 % 8, i % 8)).collect();
    let registers = vec![0; LANES * 16];
    let Some(found) = run("test_load", 512, &[bytes_of(&rows), registers.clone(), registers], &[]) else { return };
    let place = |lane: usize, i: usize| (i / 2, lane / 4, lane % 4 * 2 + i % 2);
    let elements: Vec<_> = (0..LANES).flat_map(|lane| (0..8).map(move |i| place(lane, i))).collect();
    let plain: Vec<u16> = elements.iter().map(|&(matrix, row, column)| at(matrix, row, column)).collect();
    let transposed: Vec<u16> = elements.iter().map(|&(matrix, row, column)| at(matrix, column, row)).collect();
    assert_eq!(halves(&found[1]), plain);
    assert_eq!(halves(&found[2]), transposed);
}

#[test]
fn pairs_are_rounded_to_nearest_with_the_first_one_lowest() {
    let numbers = [1.0, -2.5, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, -1e-40, 3.4e38, f32::INFINITY, f32::NEG_INFINITY];
    let operands = [numbers.iter().flat_map(|v: &f32| v.to_ne_bytes()).collect(), vec![0; 2 * numbers.len()]];
    let Some(found) = run("test_pack", 0, &operands, &[numbers.len() as i64 / 2]) else { return };
    assert_eq!(halves(&found[1]), numbers.map(bf16::round));
}

/// c = a b^T rounded, then d = c b: tiles of shared memory, sums that become operands, rows that are stored.
#[test]
fn rounded_sums_are_the_operands_of_the_next_product() {
    let matrix = |shift| (0..32 * 64).map(|i| number(i / 64 + shift, i % 64) / 8.0).collect::<Vec<f32>>();
    let (a, b) = (matrix(0), matrix(11));
    let c_at = |i: usize| (0..64).map(|k| a[i / 32 * 64 + k] * b[i % 32 * 64 + k]).sum::<f32>();
    let c: Vec<u16> = (0..32 * 32).map(|i| bf16::round(c_at(i))).collect();
    let d_at =
        |i: usize| (0..32).map(|k| f64::from(bf16::widen(c[i / 64 * 32 + k])) * f64::from(b[k * 64 + i % 64])).sum();
    let d: Vec<f64> = (0..32 * 64).map(d_at).collect();
    let rounded = |m: &[f32]| bytes_of(&m.iter().map(|&v| bf16::round(v)).collect::<Vec<u16>>());
    let operands = [rounded(&a), rounded(&b), vec![0; 2 * c.len()], vec![0; 2 * d.len()]];
    let Some(found) = run("test_products", 2 * 2 * 32 * 72, &operands, &[]) else { return };
    assert_eq!(halves(&found[2]), c);
    for (i, (&f, &e)) in halves(&found[3]).iter().zip(&d).enumerate() {
        let f = f64::from(bf16::widen(f));
        assert!((f - e).abs() <= e.abs() / 256.0 + 1e-3, "element {i} is {f}, not {e}");
    }
}
