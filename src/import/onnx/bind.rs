//! Binds the symbolic extents of a model's inputs to numbers.

use std::collections::BTreeMap;

use galvatron_ir::diagnostic::{Checked, Diagnostic};
use galvatron_ir::recipe::Recipe;
use galvatron_ir::types::{DType, TensorType};

use super::reader::{Dimension, OnnxModel, ValueType};
use super::weights::{ElementType, checked_dims};

/// The types of the inputs, without symbols.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bindings {
    /// Axis 0 of every input: the samples that the file was exported for, or if that is open, those of one optimizer step.
    pub global_batch: u64,
    /// Extent of axis 1 of the first integer input; 0 where there is none.
    pub sequence: u64,
    /// Types of the inputs, in the order of the file.
    pub inputs: Vec<TensorType>,
}

/// Gives every symbol of the inputs a number.
///
/// Axis 0 of every input is the batch. Other symbols take the number that `dims` gives them by name; a symbol at axis 1 of
/// an integer input is otherwise the sequence.
///
/// # Errors
/// Code `batch` where batch or sequence are missing or contradict the file, `onnx-symbol` for a symbol without a number,
/// `onnx-dtype` for inputs of types that the IR lacks, `onnx-dims` for inputs of absurd extents.
pub(super) fn bind(model: &OnnxModel, recipe: &Recipe) -> Checked<Bindings> {
    let mut faults = Vec::new();
    let batch = batch(model, recipe).unwrap_or_else(|fault| {
        faults.push(fault);
        1
    });
    let mut symbols: BTreeMap<String, u64> = recipe.dims.iter().cloned().collect();
    faults.extend(bind_sequence(model, recipe, &mut symbols));
    let mut types = Vec::new();
    for input in &model.inputs {
        match input_type(input, batch, &symbols) {
            Ok(ty) => types.push(ty),
            Err(fault) => faults.push(fault),
        }
    }
    if !faults.is_empty() {
        faults.dedup();
        return Err(faults);
    }
    let sequence = types.iter().find(|t| t.dtype == DType::I64 && t.rank() >= 2).map_or(0, |t| t.shape[1]);
    Ok(Bindings { global_batch: batch, sequence, inputs: types })
}

/// The types of inputs none of whose extents is a symbol, whatever their first extents are.
///
/// # Errors
/// Code `onnx-symbol` for a symbol, `onnx-dtype` for inputs of types that the IR lacks.
pub(super) fn fixed(model: &OnnxModel) -> Checked<Bindings> {
    let (mut inputs, mut faults) = (Vec::new(), Vec::new());
    for input in &model.inputs {
        let symbol = input.dims.iter().flatten().enumerate().find_map(|(axis, dim)| match dim {
            Dimension::Symbol(symbol) => Some(unbound(&input.name, axis, symbol)),
            Dimension::Fixed(_) => None,
        });
        match symbol.map_or_else(|| input_type(input, 1, &BTreeMap::new()), Err) {
            Ok(ty) => inputs.push(ty),
            Err(fault) => faults.push(fault),
        }
    }
    if faults.is_empty() { Ok(Bindings { global_batch: 1, sequence: 0, inputs }) } else { Err(faults) }
}

fn batch(model: &OnnxModel, recipe: &Recipe) -> Result<u64, Diagnostic> {
    let firsts = model.inputs.iter().filter_map(|input| Some((input, input.dims.as_ref()?.first()?)));
    let mut fixed = firsts.filter_map(|(input, dim)| match dim {
        Dimension::Fixed(n) => Some((&input.name, *n)),
        Dimension::Symbol(_) => None,
    });
    let Some((name, n)) = fixed.next() else {
        return recipe.global_batch.ok_or_else(|| {
            Diagnostic::new("batch", "the batch of the model is symbolic and `batch.global` is not given")
                .help("give it as `--set batch.global=N`")
        });
    };
    if let Some((other, m)) = fixed.find(|&(_, m)| m != n) {
        let message = format!("inputs `{name}` and `{other}` have batches of {n} and {m} samples");
        return Err(Diagnostic::new("batch", message).help("axis 0 of every input must be the batch"));
    }
    match n {
        0 => Err(Diagnostic::new("batch", format!("input `{name}` has a batch of 0 samples"))),
        n => Ok(n),
    }
}

/// Binds the free symbols at axis 1 of the integer inputs to the sequence.
fn bind_sequence(model: &OnnxModel, recipe: &Recipe, symbols: &mut BTreeMap<String, u64>) -> Option<Diagnostic> {
    let tokens = model.inputs.iter().filter(|input| is_integer(input.dtype));
    let free = tokens.filter_map(|input| match input.dims.as_ref()?.get(1)? {
        Dimension::Symbol(symbol) if !symbols.contains_key(symbol) => Some((input.name.clone(), symbol.clone())),
        _ => None,
    });
    let free: Vec<_> = free.collect();
    let (name, symbol) = free.first()?;
    let Some(sequence) = recipe.sequence else {
        let message = format!("axis 1 of input `{name}` is the symbol `{symbol}` and `batch.sequence` is not given");
        return Some(Diagnostic::new("batch", message).help("give it as `--set batch.sequence=N`"));
    };
    symbols.extend(free.into_iter().map(|(_, symbol)| (symbol, sequence)));
    None
}

fn is_integer(dtype: ElementType) -> bool {
    matches!(dtype, ElementType::I64 | ElementType::I32)
}

fn input_type(input: &ValueType, batch: u64, symbols: &BTreeMap<String, u64>) -> Result<TensorType, Diagnostic> {
    let name = &input.name;
    let dtype = match input.dtype {
        ElementType::F32 => DType::F32,
        ElementType::Bool => DType::Bool,
        dtype if is_integer(dtype) => DType::I64,
        other => {
            let message = format!("input `{name}` holds {} elements", other.name());
            return Err(Diagnostic::new("onnx-dtype", message).help("export the model in single precision"));
        }
    };
    let dims = input.dims.as_ref().ok_or_else(|| {
        let message = format!("the file does not say how many dimensions the input `{name}` has");
        Diagnostic::new("onnx-symbol", message)
    })?;
    let extent = |(axis, dim): (usize, &Dimension)| match dim {
        Dimension::Fixed(n) => Ok(*n),
        Dimension::Symbol(_) if axis == 0 => Ok(batch),
        Dimension::Symbol(symbol) => symbols.get(symbol).copied().ok_or_else(|| unbound(name, axis, symbol)),
    };
    let shape: Vec<u64> = dims.iter().enumerate().map(extent).collect::<Result<_, _>>()?;
    let signed: Option<Vec<i64>> = shape.iter().map(|&d| i64::try_from(d).ok()).collect();
    if signed.and_then(|dims| checked_dims(&dims)).is_none() {
        return Err(Diagnostic::new("onnx-dims", format!("input `{name}` has shape {shape:?}")));
    }
    Ok(TensorType::new(dtype, shape))
}

fn unbound(input: &str, axis: usize, symbol: &str) -> Diagnostic {
    let message = format!("axis {axis} of input `{input}` is the symbol `{symbol}`, which has no value");
    Diagnostic::new("onnx-symbol", message).help(format!("give it as `--set dims.{symbol}=N`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(name: &str, dtype: ElementType, dims: &str) -> ValueType {
        let dim = |text: &str| text.parse().map_or_else(|_| Dimension::Symbol(text.into()), Dimension::Fixed);
        ValueType { name: name.into(), dtype, dims: Some(dims.split_whitespace().map(dim).collect()) }
    }

    fn check(inputs: Vec<ValueType>, recipe: &Recipe) -> Result<Bindings, String> {
        let model = OnnxModel {
            file: "m.onnx".into(),
            producer: String::new(),
            opsets: BTreeMap::new(),
            inputs,
            outputs: Vec::new(),
            initializers: Vec::new(),
            value_types: BTreeMap::new(),
            nodes: Vec::new(),
        };
        bind(&model, recipe).map_err(|faults| faults.iter().map(|f| format!("{f}\n")).collect())
    }

    fn recipe(batch: Option<u64>, sequence: Option<u64>) -> Recipe {
        Recipe { global_batch: batch, sequence, ..Recipe::default() }
    }

    #[test]
    fn batch_and_sequence_bind_every_integer_input() {
        let tokens = input("ids", ElementType::I64, "batch seq");
        let mask = input("mask", ElementType::I32, "b s");
        let bound = check(vec![tokens, mask], &recipe(Some(6), Some(9))).unwrap();
        assert_eq!((bound.global_batch, bound.sequence), (6, 9));
        assert_eq!(bound.inputs, [TensorType::i64([6, 9]), TensorType::i64([6, 9])]);
    }

    #[test]
    fn named_extents_overrule_the_sequence() {
        let ids = [input("ids", ElementType::I64, "batch seq"), input("dec", ElementType::I64, "batch dec_seq")];
        let named = Recipe { dims: vec![("dec_seq".into(), 3)], ..recipe(Some(2), Some(9)) };
        let bound = check(ids.to_vec(), &named).unwrap();
        assert_eq!(bound.inputs[1], TensorType::i64([2, 3]));
        let image = input("x", ElementType::F32, "batch 3 side");
        assert!(check(vec![image], &recipe(Some(2), Some(9))).unwrap_err().contains("--set dims.side=N"));
    }

    #[test]
    fn missing_extents_name_their_key() {
        let ids = input("ids", ElementType::I64, "batch seq");
        let fault = check(vec![ids], &recipe(None, None)).unwrap_err();
        assert!(fault.contains("batch.global=N") && fault.contains("batch.sequence=N"), "{fault}");
    }

    #[test]
    fn a_static_batch_is_the_batch() {
        let x = input("x", ElementType::F32, "8 16");
        assert_eq!(check(vec![x.clone()], &recipe(None, None)).unwrap().global_batch, 8);
        assert_eq!(check(vec![x], &recipe(Some(16), None)).unwrap().global_batch, 8);
        assert!(
            check(vec![input("x", ElementType::F32, "0 16")], &recipe(None, None)).unwrap_err().contains("0 samples")
        );
    }

    #[test]
    fn other_element_types_are_refused() {
        let fault = check(vec![input("x", ElementType::F16, "8 16")], &recipe(None, None)).unwrap_err();
        assert!(fault.starts_with("error[onnx-dtype]: input `x` holds float16"), "{fault}");
    }
}
