//! Changes the batch of a program that was exported for a fixed one.
//!
//! The batch is dimension 0 of every input. It is followed through the factor rules of the ops, through reshapes with baked-in
//! sizes by the position that their elements have in row-major order, and back to what is made without inputs (masks, positions,
//! constants that were expanded). A value *carries the batch* in a dimension if its parts along that dimension, as many as there
//! are samples, depend on one sample each. Then every such extent is scaled, and every op must give the scaled type again.

use crate::extents::{Changes, Extents};
use crate::rules::rule_of;
use galvatron_ir::op::Op;
use galvatron_ir::{Checked, Diagnostic, NodeId, Program, ValueId};
use std::collections::BTreeSet;

/// Makes a program for `from` samples one for `to` samples.
///
/// # Errors
/// Code `batch`, naming the first node that keeps the batch from being changed: it adds over samples or picks some, counts them, or
/// reads a constant that differs between them. The program is then unchanged.
pub fn rebatch(program: &mut Program, from: u64, to: u64) -> Checked<()> {
    assert!(from > 0 && to > 0, "invariant: a batch has a sample");
    let mut scaling = Scaling { extents: Extents::new(program, from, to) };
    scaling.follow();
    let changes = scaling.changes().map_err(|fault| vec![fault])?;
    changes.apply(program);
    Ok(())
}

/// The dimension of each value that carries the batch.
struct Scaling<'a> {
    extents: Extents<'a>,
}

impl Scaling<'_> {
    /// Finds the dimensions, forwards from the inputs and back from their readers, until nothing is added.
    fn follow(&mut self) {
        let program = self.extents.program;
        for input in &program.inputs {
            if program.graph.value(input.value).ty.rank() > 0 {
                self.extents.dims.insert(input.value, 0);
            }
        }
        let weights: BTreeSet<ValueId> = program.weights.iter().map(|w| w.value).collect();
        loop {
            let known = self.extents.dims.len();
            for &node in &program.body {
                self.go_forward(node);
            }
            for &node in program.body.iter().rev() {
                self.go_back(node, &weights);
            }
            if self.extents.dims.len() == known {
                return;
            }
        }
    }

    fn go_forward(&mut self, id: NodeId) {
        let node = self.extents.program.graph.node(id);
        let carrier = node.args.iter().enumerate().find_map(|(i, arg)| Some((i, *self.extents.dims.get(arg)?)));
        let Some((operand, dim)) = carrier else { return };
        for (result, dim) in node.results.iter().zip(self.extents.results_of(id, operand, dim)) {
            if let Some(dim) = dim {
                self.extents.dims.entry(*result).or_insert(dim);
            }
        }
    }

    /// Operands that are made without inputs carry the batch where a result does, unless the op takes them as they are.
    fn go_back(&mut self, id: NodeId, weights: &BTreeSet<ValueId>) {
        let node = self.extents.program.graph.node(id);
        let carrier = node.results.iter().enumerate().find_map(|(i, r)| Some((i, *self.extents.dims.get(r)?)));
        let Some((result, dim)) = carrier else { return };
        if self.scaled_op(id).is_ok() {
            return;
        }
        for (&arg, dim) in node.args.iter().zip(self.extents.operands_of(id, result, dim)) {
            if let Some(dim) = dim.filter(|_| !weights.contains(&arg)) {
                self.extents.dims.entry(arg).or_insert(dim);
            }
        }
    }

    fn changes(&self) -> Result<Changes, Diagnostic> {
        let Extents { program, dims, .. } = &self.extents;
        if let Some(weight) = program.weights.iter().find(|w| dims.contains_key(&w.value)) {
            let name = &program.graph.value(weight.value).name;
            return Err(self.fault(format!("the stored tensor `{name}` has a part for each sample")));
        }
        let mut ops = Vec::new();
        for &id in &program.body {
            if !self.extents.touches(id) {
                continue;
            }
            let node = program.graph.node(id);
            let name = node.results.first().map_or("", |&r| program.graph.value(r).name.as_str());
            let at_node = |why: String| self.fault(format!("`{name}` (`{}`) {why}", node.op.mnemonic()));
            self.check_carriers(id).map_err(at_node)?;
            ops.push((id, self.scaled_op(id).map_err(at_node)?));
        }
        Ok(Changes { types: self.extents.types(), ops })
    }

    fn fault(&self, why: String) -> Diagnostic {
        let Extents { from, to, .. } = self.extents;
        let message = format!("the model was exported for a batch of {from} and cannot have one of {to}: {why}");
        Diagnostic::new("batch", message).help("export the model with a dynamic batch, or leave `batch.global` out")
    }

    /// Every operand that carries the batch must give it to every result, in the dimension that is known.
    fn check_carriers(&self, id: NodeId) -> Result<(), String> {
        let node = self.extents.program.graph.node(id);
        for (operand, arg) in node.args.iter().enumerate() {
            let Some(&dim) = self.extents.dims.get(arg) else { continue };
            for (result, found) in node.results.iter().zip(self.extents.results_of(id, operand, dim)) {
                match (found, self.extents.dims.get(result)) {
                    (Some(found), Some(&known)) if found == known => {}
                    _ => return Err("mixes samples, or picks some of them".into()),
                }
            }
        }
        Ok(())
    }

    /// The op for the new batch; what is made without operands must be the same for every sample.
    fn scaled_op(&self, id: NodeId) -> Result<Op, String> {
        if self.extents.program.graph.node(id).args.is_empty() {
            self.check_source(id)?;
        }
        self.extents.scaled_op(id)
    }

    fn check_source(&self, id: NodeId) -> Result<(), String> {
        let program = self.extents.program;
        let (node, rule) = (program.graph.node(id), rule_of(program, id));
        for (result, dims) in node.results.iter().zip(&rule.results) {
            let Some(&dim) = self.extents.dims.get(result) else { continue };
            if !dims[dim].first().is_some_and(|&f| rule.is_shardable(f)) {
                return Err("differs from sample to sample".into());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use galvatron_ir::text::{parse, print};

    /// A program over `x` f32[BATCH, 3, 4] and the weight `w` f32[4, 4] that ends in the value `y`.
    fn module(batch: u64, body: &str) -> galvatron_ir::Module {
        let lines: String = body.lines().map(|line| format!("    {}\n", line.trim())).collect();
        let text = format!(
            "gir 1\nmodule @m level=graph {{\n  initializer \"w\" = {{file=\"none\", offset=0}} f32[4, 4]\n  program {{\n    \
             input %x = \"x\": f32[{batch}, 3, 4]\n    weight %w = \"w\": f32[4, 4]\n{lines}    output \"y\" %y\n  }}\n}}\n"
        );
        parse(&text).unwrap_or_else(|faults| panic!("{}\n{text}", faults[0]))
    }

    /// A body for two samples becomes the one for six, and back.
    fn check(two: &str, six: &str) {
        for (from, to, before, after) in [(2, 6, two, six), (6, 2, six, two)] {
            let mut module = module(from, before);
            rebatch(&mut module.program, from, to).unwrap();
            assert_eq!(print(&module), print(&super::tests::module(to, after)));
        }
    }

    fn fault(from: u64, body: &str) -> String {
        let mut module = module(from, body);
        let before = module.clone();
        let fault = rebatch(&mut module.program, from, 5).unwrap_err()[0].message.clone();
        assert_eq!(module, before, "a program that is refused is unchanged");
        fault
    }

    #[test]
    fn reshapes_with_baked_in_sizes_are_scaled() {
        check(
            "%r = reshape{shape=[6, 4]} %x: f32[6, 4]
             %m = einsum{spec=\"ij,jk->ik\"} %r, %w: f32[6, 4]
             %y = reshape{shape=[2, 3, 2, 2]} %m: f32[2, 3, 2, 2]",
            "%r = reshape{shape=[18, 4]} %x: f32[18, 4]
             %m = einsum{spec=\"ij,jk->ik\"} %r, %w: f32[18, 4]
             %y = reshape{shape=[6, 3, 2, 2]} %m: f32[6, 3, 2, 2]",
        );
    }

    #[test]
    fn masks_and_expanded_constants_are_scaled_with_their_readers() {
        check(
            "%i = iota{shape=[2, 3], dim=1, start=0, step=1}: i64[2, 3]
             %e = embedding %w, %i: f32[2, 3, 4]
             %y = add %x, %e: f32[2, 3, 4]",
            "%i = iota{shape=[6, 3], dim=1, start=0, step=1}: i64[6, 3]
             %e = embedding %w, %i: f32[6, 3, 4]
             %y = add %x, %e: f32[6, 3, 4]",
        );
    }

    #[test]
    fn a_batch_of_one_is_found_where_its_extent_is_left_out() {
        let body = |r: u64, b: u64| {
            format!(
                "%r = reshape{{shape=[{r}, 4]}} %x: f32[{r}, 4]
                 %m = einsum{{spec=\"ij,jk->ik\"}} %r, %w: f32[{r}, 4]
                 %b = reshape{{shape=[{b}, 3, 4]}} %m: f32[{b}, 3, 4]
                 %t = full{{dtype=f32, shape=[1, 3, 4], value=1.0}}: f32[1, 3, 4]
                 %y = add %b, %t: f32[{b}, 3, 4]"
            )
        };
        let mut one = module(1, &body(3, 1));
        rebatch(&mut one.program, 1, 4).unwrap();
        assert_eq!(print(&one), print(&module(4, &body(12, 4))));
    }

    #[test]
    fn what_ties_samples_together_is_refused_by_name() {
        let why = "`s` (`reduce_sum`) mixes samples";
        assert!(fault(2, "%s = reduce_sum{dims=[0]} %x: f32[3, 4]\n%y = add %x, %s: f32[2, 3, 4]").contains(why));
        let why = "`s` (`slice`) mixes samples, or picks some of them";
        assert!(
            fault(2, "%s = slice{dim=0, start=0, len=1} %x: f32[1, 3, 4]\n%y = add %x, %s: f32[2, 3, 4]").contains(why)
        );
        let counted = "%i = iota{shape=[2, 3], dim=0, start=0, step=1}: i64[2, 3]
                       %e = embedding %w, %i: f32[2, 3, 4]\n%y = add %x, %e: f32[2, 3, 4]";
        assert!(fault(2, counted).contains("`i` (`iota`) differs from sample to sample"));
    }
}
