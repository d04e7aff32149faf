//! Finds tied weights that the exporter wrote twice: a matrix whose elements are those of another one, or of its transpose.
//!
//! Two trained matrices are taken for one weight if their elements have the same bits and this is no accident:
//!
//! - they have at least two extents above 1, and at least [`MIN_DISTINCT`] different elements. So vectors, and matrices of zeros,
//!   ones or an identity, are never tied, however alike they are initialised;
//! - they are equal up to a transpose, or one of them is looked up as a table (an embedding that is also the head), or one of
//!   them has a name that exporters give to what they make. Two named weights of layers stay apart: experts that were copied
//!   from one layer are equal, too, before they are trained.
//!
//! Only a few elements of matrices of one shape are read, until two of them agree; those two are compared in full. External
//! data is mapped. Matrices whose data is not there are left alone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use bytes::Bytes;

use super::super::reader::{OnnxModel, map};
use super::super::weights::{TensorContent, TensorRecord};
use super::roles::{Role, is_made_up};

/// Fewest different elements of a matrix that is known again by its content.
const MIN_DISTINCT: usize = 64;
/// Elements that are read of every candidate.
const N_SAMPLED: u64 = 64;
/// Elements that are looked at for different ones.
const N_COUNTED: usize = 1 << 12;
/// Edge of the blocks in which a matrix is compared with a transposed one, so that both stay in the cache.
const BLOCK: usize = 32;
/// Bytes of an element; parameters are f32.
const WIDTH: usize = 4;

/// An initializer that is a copy of another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tie {
    /// Index of the copy among the initializers.
    pub copy: usize,
    /// Index of what it is a copy of.
    pub of: usize,
    /// Whether it is transposed.
    pub transposed: bool,
}

/// The copies among the candidates, which are indices of f32 initializers. What keeps its name comes before what an exporter made
/// up, then the order of the file decides which of several equal ones is the original.
pub(super) fn find(model: &OnnxModel, roles: &[Role], candidates: impl Iterator<Item = usize>) -> Vec<Tie> {
    let mut groups: BTreeMap<Vec<u64>, Vec<usize>> = BTreeMap::new();
    for index in candidates {
        let record = &model.initializers[index];
        if record.dims.iter().filter(|&&d| d > 1).count() >= 2 {
            groups.entry(canonical(&record.dims)).or_default().push(index);
        }
    }
    let mut files = Files::default();
    let mut ties = Vec::new();
    for group in groups.values_mut().filter(|group| group.len() > 1) {
        group.sort_by_key(|&i| (is_made_up(&model.initializers[i].name), i));
        find_in(&Group { model, roles, members: group }, &mut files, &mut ties);
    }
    ties.sort_by_key(|tie| tie.copy);
    ties
}

/// Matrices of one shape up to a transpose.
struct Group<'a> {
    model: &'a OnnxModel,
    roles: &'a [Role],
    members: &'a [usize],
}

impl Group<'_> {
    fn record(&self, index: usize) -> &TensorRecord {
        &self.model.initializers[index]
    }

    /// Whether equal content means that they are one weight.
    fn is_no_accident(&self, a: usize, b: usize, transposed: bool) -> bool {
        let is_table = |i: usize| self.roles[i].table;
        let is_made = |i: usize| is_made_up(&self.record(i).name);
        transposed || is_table(a) || is_table(b) || is_made(a) || is_made(b)
    }
}

/// The shape without the order of two extents.
fn canonical(dims: &[u64]) -> Vec<u64> {
    let mut dims = dims.to_vec();
    if dims.len() == 2 {
        dims.sort_unstable();
    }
    dims
}

fn find_in(group: &Group<'_>, files: &mut Files, ties: &mut Vec<Tie>) {
    let mut originals: BTreeMap<Vec<u32>, Vec<(usize, bool)>> = BTreeMap::new();
    for &index in group.members {
        let record = group.record(index);
        let Some(content) = files.content(record) else { continue };
        let views = orientations(&record.dims).map(|flipped| (sample(&content, &record.dims, flipped), flipped));
        let views: Vec<(Vec<u32>, bool)> = views.collect();
        let known = views.iter().flat_map(|(sample, flipped)| {
            originals.get(sample).into_iter().flatten().map(|&(of, as_stored)| (of, as_stored != *flipped))
        });
        let known: Vec<(usize, bool)> = known.collect();
        let tie = known.into_iter().find(|&(of, transposed)| {
            group.is_no_accident(index, of, transposed)
                && has_distinct(&content, MIN_DISTINCT)
                && files.content(group.record(of)).is_some_and(|o| is_equal(&content, &o, &record.dims, transposed))
        });
        match tie {
            Some((of, transposed)) => ties.push(Tie { copy: index, of, transposed }),
            None => originals.entry(views[0].0.clone()).or_default().push((index, views[0].1)),
        }
    }
}

/// The ways to read a matrix such that two of them that are equal up to a transpose are read alike: as stored, transposed
/// (wide matrices are read as stored, tall ones transposed), or both for a square one.
fn orientations(dims: &[u64]) -> impl Iterator<Item = bool> {
    let both = match dims {
        [rows, columns] if rows == columns => [Some(false), Some(true)],
        [rows, columns] => [Some(rows > columns), None],
        _ => [Some(false), None],
    };
    both.into_iter().flatten()
}

/// The same few elements of every matrix of a shape: `flipped` reads `[c, r]` as `[r, c]`.
fn sample(content: &[u8], dims: &[u64], flipped: bool) -> Vec<u32> {
    let rows = dims[0];
    let columns = dims[1..].iter().product::<u64>();
    let (wide_rows, wide_columns) = if flipped { (columns, rows) } else { (rows, columns) };
    let spread = |k: u64, n: u64| k.wrapping_mul(0x9E37_79B9_7F4A_7C15) % n;
    let at = |k: u64| {
        let (i, j) = (spread(2 * k + 1, wide_rows), spread(2 * k + 2, wide_columns));
        if flipped { j * columns + i } else { i * columns + j }
    };
    (0..N_SAMPLED).map(|k| element(content, at(k) as usize)).collect()
}

/// The bits of an element.
fn element(content: &[u8], at: usize) -> u32 {
    let bytes = &content[WIDTH * at..WIDTH * (at + 1)];
    u32::from_le_bytes(bytes.try_into().expect("invariant: an element has four bytes"))
}

/// Whether there are so many different elements among some that lie evenly in the tensor.
pub(super) fn has_distinct(content: &[u8], at_least: usize) -> bool {
    let n = content.len() / WIDTH;
    let counted = n.min(N_COUNTED);
    let mut seen = BTreeSet::new();
    (0..counted).any(|k| {
        seen.insert(element(content, (k as u128 * n as u128 / counted as u128) as usize));
        seen.len() >= at_least
    })
}

/// Whether `a`, of shape `dims`, has the elements of `b` or of its transpose.
fn is_equal(a: &[u8], b: &[u8], dims: &[u64], transposed: bool) -> bool {
    if !transposed {
        return a == b;
    }
    let (rows, columns) = (dims[0] as usize, dims[1] as usize);
    let starts = |n: usize| (0..n).step_by(BLOCK);
    starts(rows).all(|row| {
        starts(columns).all(|column| {
            (row..rows.min(row + BLOCK)).all(|i| {
                (column..columns.min(column + BLOCK)).all(|j| element(a, i * columns + j) == element(b, j * rows + i))
            })
        })
    })
}

/// Maps of external files by name; nothing for those that cannot be read.
#[derive(Default)]
pub(super) struct Files(BTreeMap<String, Option<Bytes>>);

impl Files {
    /// The elements of a tensor, if they are all there.
    pub fn content(&mut self, record: &TensorRecord) -> Option<Bytes> {
        match &record.content {
            TensorContent::InFile(_, bytes) | TensorContent::Values(bytes) => Some(bytes.clone()),
            TensorContent::External(source) => {
                let file = self.0.entry(source.file.clone()).or_insert_with(|| map(Path::new(&source.file)).ok());
                let end = usize::try_from(source.offset.checked_add(source.bytes)?).ok()?;
                let file = file.as_ref().filter(|file| end <= file.len())?;
                Some(file.slice(source.offset as usize..end))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::Builder;
    use super::super::roles::roles;
    use super::*;

    /// Elements that are all different.
    fn counted(i: i64, j: i64) -> f32 {
        (100 * i + j) as f32
    }

    /// The ties among all initializers: `copy=of`, with a quote for a transposed copy.
    fn ties(builder: &Builder) -> String {
        let model = builder.read();
        let name = |i: usize| model.initializers[i].name.as_str();
        let found = find(&model, &roles(&model), 0..model.initializers.len());
        let shown = |t: &Tie| format!("{}={}{}", name(t.copy), name(t.of), if t.transposed { "'" } else { "" });
        found.iter().map(shown).collect::<Vec<_>>().join(" ")
    }

    fn tied_head(head: &str) -> Builder {
        let nodes = ["e = Gather wte ids".to_string(), format!("y = MatMul e {head}")];
        Builder::new(&[&nodes[0], &nodes[1]]).input("ids", 7, "batch 4")
    }

    #[test]
    fn a_transposed_copy_is_found_whatever_comes_first() {
        let head = |b: Builder| b.elements("val_7", 9, 12, |i, j| counted(j, i));
        assert_eq!(ties(&head(tied_head("val_7").elements("wte", 12, 9, counted))), "val_7=wte'");
        assert_eq!(ties(&head(tied_head("val_7")).elements("wte", 12, 9, counted)), "val_7=wte'");
    }

    #[test]
    fn square_matrices_are_compared_both_ways() {
        let model = |transposed: bool| {
            let element = move |i, j| if transposed { counted(j, i) } else { counted(i, j) };
            tied_head("head").elements("wte", 40, 40, counted).elements("head", 40, 40, element)
        };
        assert_eq!((ties(&model(true)), ties(&model(false))), ("head=wte'".into(), "head=wte".into()));
    }

    #[test]
    fn one_different_element_keeps_them_apart() {
        let other = |i, j| if (i, j) == (8, 11) { -1.0 } else { counted(j, i) };
        assert_eq!(ties(&tied_head("head").elements("wte", 12, 9, counted).elements("head", 9, 12, other)), "");
    }

    #[test]
    fn what_is_initialised_alike_is_not_tied() {
        for element in [|_, _| 0.0, |_, _| 1.0, |i, j| f32::from(i == j), |_, j| j as f32] {
            assert_eq!(ties(&tied_head("head").elements("wte", 50, 50, element).elements("head", 50, 50, element)), "");
        }
        let biases = Builder::new(&["a = Add x b.0", "y = Add a b.1"]);
        assert_eq!(ties(&biases.elements("b.0", 1, 90, counted).elements("b.1", 1, 90, counted)), "");
    }

    #[test]
    fn named_weights_of_layers_stay_apart() {
        let layers = |second: &str| {
            let nodes = ["a = MatMul x e.0".to_string(), format!("y = MatMul a {second}")];
            let builder = Builder::new(&[&nodes[0], &nodes[1]]);
            builder.elements("e.0", 9, 9, counted).elements(second, 9, 9, counted)
        };
        assert_eq!((ties(&layers("e.1")), ties(&layers("onnx::MatMul_9"))), ("".into(), "onnx::MatMul_9=e.0".into()));
    }

    #[test]
    fn data_that_is_not_there_is_left_alone() {
        assert_eq!(ties(&tied_head("head").external("wte", &[12, 9]).external("head", &[9, 12])), "");
    }
}
