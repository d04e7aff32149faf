//! The kernel of an expression as CUDA C++, and its launch.
//!
//! A thread takes packs of elements that lie one after the other, loads them all, computes, and stores; a rest of fewer elements
//! than a pack is taken one by one. The text names no offset and no extent, so that layers that compute alike share a kernel.

use std::fmt::Write;
use std::sync::Arc;

use galvatron_ir::types::DType;

use super::expression::{Expression, Index, Load, Step, Store, Value};
use crate::cuda::command::{Arg, Command, Launch, Place, blocks};
use crate::cuda::kernels::{FUNCTIONS, PRELUDE};
use crate::cuda::unit::{Generated, Unit};

/// What generated kernels use.
const FUSED: &str = include_str!("fused.cu");

/// Bytes that a pack is aligned to.
const PACK_BYTES: u64 = 16;

/// The launch of a kernel that computes an expression and writes some of its results.
pub(super) fn launch(expression: &Expression, stores: &[Store]) -> Command {
    let kernel = Kernel::new(expression, stores);
    let name = kernel.name();
    let source = format!("{PRELUDE}\n{FUNCTIONS}\n{FUSED}\n{}", kernel.text(&name));
    let unit = Unit::Generated(Arc::new(Generated { name: name.clone(), source }));
    let packs = kernel.packs();
    let grid = blocks(packs.max(expression.n - packs * kernel.width));
    Launch::grid(unit, name, grid, kernel.args(packs))
}

/// How a load is loaded in a pack.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    /// As a pack.
    Packed,
    /// Element by element.
    Single,
    /// Once, before the loop.
    Once,
}

struct Kernel<'a> {
    expression: &'a Expression,
    stores: &'a [Store],
    /// Elements of a pack.
    width: u64,
}

fn storage(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "float",
        DType::Bf16 => "bf16",
        DType::I64 => "i64",
        DType::Bool => "u8",
    }
}

/// The type of a value in a register.
fn register(dtype: DType) -> &'static str {
    if dtype == DType::Bf16 { "float" } else { storage(dtype) }
}

impl Kernel<'_> {
    fn new<'a>(expression: &'a Expression, stores: &'a [Store]) -> Kernel<'a> {
        let types = expression.loads.iter().map(|load| load.dtype).chain(stores.iter().map(|store| store.dtype));
        let has_half = types.into_iter().any(|dtype| dtype == DType::Bf16);
        Kernel { expression, stores, width: if has_half { 8 } else { 4 } }
    }

    fn access(&self, load: &Load) -> Access {
        match load.index {
            Index::Each => Access::Packed,
            Index::One => Access::Once,
            Index::Row(period) if period.is_multiple_of(self.width) && is_aligned(load.at.offset) => Access::Packed,
            _ => Access::Single,
        }
    }

    /// Number of packs: all that are full, if what is taken in packs begins where packs may.
    fn packs(&self) -> u64 {
        let each = self.expression.loads.iter().filter(|load| load.index == Index::Each).map(|load| load.at);
        let aligned = each.chain(self.stores.iter().map(|store| store.at)).all(|at| is_aligned(at.offset));
        if aligned { self.expression.n / self.width } else { 0 }
    }

    /// The name, from a hash of the text (FNV-1a).
    fn name(&self) -> String {
        let text = self.text("");
        let hash = |base: u64| text.bytes().fold(base, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
        format!("fused_{:016x}", hash(0xcbf2_9ce4_8422_2325))
    }

    fn args(&self, packs: u64) -> Vec<Arg> {
        let mut args = vec![Arg::Int(self.expression.n as i64), Arg::Int(packs as i64)];
        for load in &self.expression.loads {
            args.push(Arg::At(Place::Arena(load.at.offset)));
            match &load.index {
                Index::Each | Index::One => {}
                Index::Row(extent) | Index::Column(extent) => args.push(Arg::Int(*extent as i64)),
                Index::Walk(walk) => args.push(walk.arg().expect("invariant: its rank was checked")),
            }
        }
        args.extend(self.stores.iter().map(|store| Arg::At(Place::Arena(store.at.offset))));
        args
    }

    fn text(&self, name: &str) -> String {
        let mut text = self.element(name);
        self.write_kernel(name, &mut text).expect("invariant: a string takes all that is written");
        text
    }

    /// The function of one element of each operand and result.
    fn element(&self, name: &str) -> String {
        let Expression { loads, steps, .. } = self.expression;
        let operands = loads.iter().enumerate().map(|(i, load)| format!("{} x{i}", storage(load.dtype)));
        let results = self.stores.iter().enumerate().map(|(i, store)| format!("{}& y{i}", storage(store.dtype)));
        let parameters = operands.chain(results).collect::<Vec<_>>().join(", ");
        let mut body = String::new();
        for (i, step) in steps.iter().enumerate() {
            body += &format!("    {} v{i} = {};\n", register(step.dtype), self.step(step));
        }
        for (i, store) in self.stores.iter().enumerate() {
            let value = format!("v{}", store.step);
            let stored = if store.dtype == DType::Bf16 { format!("narrow<bf16>({value})") } else { value };
            body += &format!("    y{i} = {stored};\n");
        }
        format!("__device__ __forceinline__ void {name}_of({parameters}) {{\n{body}}}\n\n")
    }

    /// What a step computes; what is to be bf16 is rounded, as a node by itself rounds it.
    fn step(&self, step: &Step) -> String {
        let name = |value: &Value| match *value {
            Value::Computed(i) => format!("v{i}"),
            Value::Loaded(i) if self.expression.loads[i].dtype == DType::Bf16 => format!("wide(x{i})"),
            Value::Loaded(i) => format!("x{i}"),
        };
        let value = step.function.applied(&step.args.iter().map(name).collect::<Vec<_>>());
        if step.dtype == DType::Bf16 { format!("fused_rounded({value})") } else { value }
    }

    fn write_kernel(&self, name: &str, text: &mut String) -> std::fmt::Result {
        let (width, loads) = (self.width, &self.expression.loads);
        writeln!(text, "KERNEL {name}({}) {{", self.parameters())?;
        for (i, load) in self.loads_by(Access::Once) {
            writeln!(text, "    {} x{i} = a{i}[0];", storage(load.dtype))?;
        }
        writeln!(text, "    FOR_EACH(pack, packs) {{\n        i64 i = {width} * pack;")?;
        for (i, load) in self.loads_by(Access::Packed) {
            let (ty, place) = (storage(load.dtype), place(i, &load.index, "i"));
            writeln!(text, "        Elements<{ty}, {width}> x{i} = fused_load<{width}>(a{i} + {place});")?;
        }
        for (i, store) in self.stores.iter().enumerate() {
            writeln!(text, "        Elements<{}, {width}> y{i};", storage(store.dtype))?;
        }
        let in_pack = |(i, load): (usize, &Load)| match self.access(load) {
            Access::Packed => format!("x{i}.at[k]"),
            Access::Once => format!("x{i}"),
            Access::Single => format!("a{i}[{}]", place(i, &load.index, "i + k")),
        };
        let results = (0..self.stores.len()).map(|i| format!("y{i}.at[k]"));
        let call = loads.iter().enumerate().map(in_pack).chain(results).collect::<Vec<_>>().join(", ");
        writeln!(text, "#pragma unroll\n        for (int k = 0; k < {width}; k++) {name}_of({call});")?;
        for i in 0..self.stores.len() {
            writeln!(text, "        fused_store(r{i} + i, y{i});")?;
        }
        let alone = |(i, load): (usize, &Load)| match load.index {
            Index::One => format!("x{i}"),
            _ => format!("a{i}[{}]", place(i, &load.index, "i")),
        };
        let results = (0..self.stores.len()).map(|i| format!("r{i}[i]"));
        let call = loads.iter().enumerate().map(alone).chain(results).collect::<Vec<_>>().join(", ");
        writeln!(text, "    }}\n    FOR_EACH(rest, n - {width} * packs) {{\n        i64 i = {width} * packs + rest;")?;
        writeln!(text, "        {name}_of({call});\n    }}\n}}")
    }

    fn loads_by(&self, access: Access) -> impl Iterator<Item = (usize, &Load)> {
        self.expression.loads.iter().enumerate().filter(move |(_, load)| self.access(load) == access)
    }

    fn parameters(&self) -> String {
        let mut parameters = vec!["i64 n".to_string(), "i64 packs".into()];
        for (i, load) in self.expression.loads.iter().enumerate() {
            parameters.push(format!("const {}* a{i}", storage(load.dtype)));
            match load.index {
                Index::Each | Index::One => {}
                Index::Row(_) | Index::Column(_) => parameters.push(format!("i64 n{i}")),
                Index::Walk(_) => parameters.push(format!("Walk<1> n{i}")),
            }
        }
        let results = self.stores.iter().enumerate().map(|(i, store)| format!("{}* r{i}", storage(store.dtype)));
        parameters.into_iter().chain(results).collect::<Vec<_>>().join(", ")
    }
}

fn is_aligned(offset: u64) -> bool {
    offset.is_multiple_of(PACK_BYTES)
}

/// The number of the element of operand `operand` that belongs to element `i`.
fn place(operand: usize, index: &Index, i: &str) -> String {
    match index {
        Index::Each => i.into(),
        Index::One => "0".into(),
        Index::Row(_) => format!("fused_mod({i}, n{operand})"),
        Index::Column(_) => format!("fused_div({i}, n{operand})"),
        Index::Walk(_) => format!("fused_place(n{operand}, {i})"),
    }
}
