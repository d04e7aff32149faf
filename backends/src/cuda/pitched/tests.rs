//! Products in parts make what whole products make, on an arena of f32.

use super::*;

/// The arena and the scratch memory, an f32 for each element of bf16.
struct Memory {
    arena: Vec<f32>,
    scratch: Vec<f32>,
}

impl Memory {
    fn at(&mut self, place: Place, index: u64) -> &mut f32 {
        match place {
            Place::Arena(offset) => &mut self.arena[(offset / 2 + index) as usize],
            Place::Scratch(offset) => &mut self.scratch[(offset / 2 + index) as usize],
            Place::Fault => panic!("no matrix is there"),
        }
    }

    fn run(&mut self, step: &Step) {
        match step {
            Step::Copy { shape: [rows, cols], from, to } => {
                for (i, j) in (0..*rows).flat_map(|i| (0..*cols).map(move |j| (i, j))) {
                    let value = *self.at(from.place, i * from.steps[0] + j * from.steps[1]);
                    *self.at(to.place, i * to.steps[0] + j * to.steps[1]) = value;
                }
            }
            Step::Product(Matmul { m, n, k, a, b, c, epilogue, .. }) => {
                for (i, j) in (0..*m).flat_map(|i| (0..*n).map(move |j| (i, j))) {
                    let term = |memory: &mut Memory, l| {
                        *memory.at(a.at, i * a.row + l * a.col) * *memory.at(b.at, l * b.row + j * b.col)
                    };
                    let sum: f32 = (0..*k).map(|l| term(self, l)).sum();
                    let result = self.at(c.at, i * c.row + j * c.col);
                    *result = if *epilogue == Epilogue::Accumulate { *result + sum } else { sum };
                }
            }
        }
    }
}

/// A matrix after `elements` elements, row-major or not, with no room between its rows.
fn matrix(elements: u64, rows: u64, cols: u64, is_row_major: bool) -> Matrix {
    let (row, col) = if is_row_major { (cols, 1) } else { (1, rows) };
    Matrix { at: Place::Arena(2 * elements), row, col, batch: 0 }
}

/// Runs a product whole and in parts of scratch memory of `capacity` bytes; how many parts there were.
fn parts_agree([m, n, k]: [u64; 3], majors: [bool; 3], capacity: u64) -> usize {
    let (a, b, c) =
        (matrix(0, m, k, majors[0]), matrix(m * k, k, n, majors[1]), matrix(m * k + k * n, m, n, majors[2]));
    let whole = Matmul { dtype: DType::Bf16, m, n, k, batch: 1, a, b, c, epilogue: Epilogue::None };
    let steps = in_parts(&whole, capacity).expect("one matrix is ragged and there is room");
    let values = |i| ((i * 7919) % 5) as f32 - 2.0;
    let arena: Vec<f32> = (0..m * k + k * n + m * n).map(values).collect();
    let mut expected = Memory { arena, scratch: vec![f32::NAN; (capacity / 2) as usize] };
    let mut actual = Memory { arena: expected.arena.clone(), scratch: expected.scratch.clone() };
    expected.run(&Step::Product(whole));
    steps.iter().for_each(|step| actual.run(step));
    assert!(expected.arena == actual.arena, "[{m}, {n}, {k}] {majors:?}");
    steps.iter().filter(|step| matches!(step, Step::Copy { .. })).count()
}

#[test]
fn parts_make_the_whole_product() {
    // A row of 513 elements takes 1040 bytes with room; where it is the summed dimension's the other one is cut.
    let capacity = 140_000;
    assert_eq!(parts_agree([304, 513, 512], [true, false, true], capacity), 3);
    assert_eq!(parts_agree([513, 304, 512], [true, true, false], capacity), 3);
    assert_eq!(parts_agree([304, 512, 513], [true, true, true], capacity), 3);
    assert_eq!(parts_agree([512, 304, 513], [false, false, true], capacity), 3);
    assert_eq!(parts_agree([513, 512, 304], [false, true, true], capacity), 5);
    assert_eq!(parts_agree([512, 513, 304], [true, true, false], capacity), 5);
}

#[test]
fn what_is_aligned_small_or_ragged_twice_is_left_whole() {
    let (m, n, k) = (1024, 512, 512);
    let of = |dtype, m, n, k| {
        let (a, b, c) = (matrix(0, m, k, true), matrix(m * k, k, n, true), matrix(m * k + k * n, m, n, true));
        in_parts(&Matmul { dtype, m, n, k, batch: 1, a, b, c, epilogue: Epilogue::None }, SCRATCH_BYTES).is_some()
    };
    assert!(!of(DType::Bf16, m, n, k));
    assert!(of(DType::Bf16, m, n, k + 1));
    assert!(!of(DType::F32, m, n, k + 1));
    assert!(!of(DType::Bf16, 64, 64, 65));
    // Both b and c have rows of n elements.
    assert!(!of(DType::Bf16, m, n + 1, k));
}
