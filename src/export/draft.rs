//! What the exported files will hold, before anything is written: the pieces of the model, and what lies beside it.

use super::matching::Trained;
use super::sites::{Place, Site};
use super::splice::{Pieces, splice};
use super::tensor::{Whereto, with_elements};
use crate::import::onnx::weights::{InitializerSource, TensorContent, TensorFile};
use galvatron_ir::diagnostic::Diagnostic;
use std::collections::BTreeMap;
use std::ops::Range;

/// Most bytes of a protobuf message that its libraries read.
pub(super) const MAX_MODEL_BYTES: u64 = i32::MAX as u64;
/// Fewest bytes of a tensor that leaves a model that is too large.
const MIN_MOVED_BYTES: u64 = 1024;
/// Tensors beside the model begin at multiples of this, the large ones at multiples of what can be mapped on any system.
const ALIGNMENT: u64 = 64;
const LARGE_ALIGNMENT: u64 = 1 << 16;
const MIN_LARGE_BYTES: u64 = 1 << 20;

/// Where the elements of a tensor that is written come from.
pub(super) enum Elements<'a> {
    /// From the checkpoint.
    Trained(&'a Trained<'a>),
    /// From the original.
    Inside(Range<usize>),
    /// From a file beside the original.
    Beside(InitializerSource),
}

/// The files to be written.
pub(super) struct Draft<'a> {
    /// The model.
    pub model: Pieces,
    /// The elements that pieces and `beside` name by number.
    pub elements: Vec<Elements<'a>>,
    /// What lies beside the model: number of the elements, first byte, and how many.
    pub beside: Vec<(usize, u64, u64)>,
}

/// What a draft is made of.
pub(super) struct Drafting<'a> {
    /// The original.
    pub file: &'a TensorFile,
    /// Its tensors.
    pub sites: &'a [Site],
    /// What they become, by their index.
    pub trained: &'a BTreeMap<usize, Trained<'a>>,
    /// Name of the file beside the model.
    pub location: &'a str,
}

impl<'a> Drafting<'a> {
    /// The files; a model that would be larger than `max_bytes` keeps its tensors beside it.
    ///
    /// # Errors
    /// Code `onnx-size` if it is too large even so, `onnx-format` for an original that is damaged where nothing else reads it,
    /// and those of tensors beside it.
    pub(super) fn draft(&self, max_bytes: u64) -> Result<Draft<'a>, Diagnostic> {
        let as_it_is = self.assemble(false)?;
        let draft = if as_it_is.model.n_bytes <= max_bytes { as_it_is } else { self.assemble(true)? };
        if draft.model.n_bytes <= max_bytes {
            return Ok(draft);
        }
        let message = format!("the model has {} bytes without its weights, more than {max_bytes}", draft.model.n_bytes);
        Err(Diagnostic::new("onnx-size", message))
    }

    fn assemble(&self, is_moved: bool) -> Result<Draft<'a>, Diagnostic> {
        let mut draft = Draft { model: Pieces::default(), elements: Vec::new(), beside: Vec::new() };
        let mut new = BTreeMap::new();
        let mut end = 0;
        for (index, site) in self.sites.iter().enumerate() {
            let Some((elements, n_bytes)) = self.elements(index, site, is_moved)? else { continue };
            let moves = is_moved && matches!(site.place, Place::Initializer(_)) && n_bytes >= MIN_MOVED_BYTES;
            let number = draft.elements.len();
            draft.elements.push(elements);
            let mut whereto = Whereto::Inside;
            if moves || site.is_external {
                let alignment = if n_bytes >= MIN_LARGE_BYTES { LARGE_ALIGNMENT } else { ALIGNMENT };
                let start = u64::next_multiple_of(end, alignment);
                draft.beside.push((number, start, n_bytes));
                whereto = Whereto::Beside(self.location, start);
                end = start + n_bytes;
            }
            new.insert(site.at.start, with_elements(&self.file.bytes, site.at.clone(), number, n_bytes, whereto)?);
        }
        draft.model = splice(&self.file.bytes, &mut new)?;
        Ok(draft)
    }

    /// The elements of a tensor that is written anew, and their bytes; nothing for one that stays as it is.
    fn elements(&self, index: usize, site: &Site, is_moved: bool) -> Result<Option<(Elements<'a>, u64)>, Diagnostic> {
        if let Some(trained) = self.trained.get(&index) {
            let n_bytes = trained.stored.elements() * trained.record.dtype.bits() / 8;
            return Ok(Some((Elements::Trained(trained), n_bytes)));
        }
        let moves = is_moved && matches!(site.place, Place::Initializer(_));
        if !moves && !site.is_external {
            return Ok(None);
        }
        Ok(match self.file.tensor_at(site.at.clone())?.content {
            TensorContent::External(source) => {
                let n_bytes = source.bytes;
                Some((Elements::Beside(source), n_bytes))
            }
            TensorContent::InFile(source, _) if source.bytes >= MIN_MOVED_BYTES => {
                let start = source.offset as usize;
                Some((Elements::Inside(start..start + source.bytes as usize), source.bytes))
            }
            TensorContent::InFile(..) | TensorContent::Values(_) => None,
        })
    }
}
