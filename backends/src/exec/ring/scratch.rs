//! The scratch tensors of a ring at their places in a node's workspace.

use galvatron_ir::op::comm::{RingScratch, SCRATCH_ALIGNMENT};
use galvatron_ir::types::TensorType;

use crate::device::{BufferSpec, Span};

/// The tensors of a [`RingScratch`], part by part.
pub(super) struct Scratch {
    pub(super) blocks: Vec<[BufferSpec; 2]>,
    pub(super) moved: Vec<BufferSpec>,
    pub(super) mask: Option<BufferSpec>,
    pub(super) gradients: Option<[BufferSpec; 2]>,
    pub(super) wide: Vec<BufferSpec>,
}

impl Scratch {
    /// Places all tensors.
    ///
    /// # Errors
    /// When the workspace has not their bytes.
    pub(super) fn new(of: &RingScratch, workspace: Option<Span>) -> Result<Scratch, String> {
        let at = workspace.unwrap_or(Span { offset: 0, bytes: 0 });
        if at.bytes != of.bytes() {
            return Err(format!("it needs {} bytes of workspace, the plan has {}", of.bytes(), at.bytes));
        }
        let mut offset = at.offset;
        let mut place = |ty: &TensorType| {
            let spec = packed(ty, offset);
            offset += ty.bytes().next_multiple_of(SCRATCH_ALIGNMENT);
            spec
        };
        Ok(Scratch {
            blocks: of.blocks.iter().map(|pair| pair.each_ref().map(&mut place)).collect(),
            moved: of.moved.iter().map(&mut place).collect(),
            mask: of.mask.as_ref().map(&mut place),
            gradients: of.gradients.as_ref().map(|pair| pair.each_ref().map(&mut place)),
            wide: of.wide.iter().map(&mut place).collect(),
        })
    }
}

/// A whole tensor at an offset.
pub(super) fn packed(ty: &TensorType, offset: u64) -> BufferSpec {
    BufferSpec::whole(ty, offset)
}
