//! Files of weights that are not there, or end too early. Planning needs no weights, but a run does.

use std::collections::BTreeMap;

use galvatron_ir::module::{Initializer, Module};

/// One sentence for each file that lacks elements of the model.
pub(super) fn warnings(module: &Module) -> Vec<String> {
    let mut files: BTreeMap<&str, Vec<&Initializer>> = BTreeMap::new();
    for initializer in module.initializers.iter().filter(|i| !i.file.is_empty()) {
        files.entry(&initializer.file).or_default().push(initializer);
    }
    files.into_iter().filter_map(|(file, tensors)| warning(file, tensors)).collect()
}

fn warning(file: &str, mut tensors: Vec<&Initializer>) -> Option<String> {
    let length = std::fs::metadata(file).ok().filter(|found| found.is_file()).map(|found| found.len());
    tensors.retain(|t| length.is_none_or(|length| t.offset.saturating_add(t.ty.bytes()) > length));
    let first = tensors.first()?;
    let what = match length {
        None => "does not exist".into(),
        Some(length) => format!("ends after {length} bytes"),
    };
    let others = match tensors.len() {
        1 => String::new(),
        n => format!(" and {} more", n - 1),
    };
    Some(format!("`{file}` {what}: it lacks `{}`{others}; a run needs that, or `--init`", first.name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use galvatron_ir::types::TensorType;

    /// Tensors of 16 bytes at these places.
    fn check(places: &[(&str, &str, u64)], expected: &[&str]) {
        let mut module = Module::new("m");
        module.initializers.extend(places.iter().map(|&(name, file, offset)| {
            let (name, file, ty) = (name.into(), file.into(), TensorType::f32([4]));
            Initializer { name, file, offset, ty, start: None }
        }));
        assert_eq!(warnings(&module), expected);
    }

    #[test]
    fn each_file_that_lacks_tensors_is_named_once() {
        let lacks = "`no/a` does not exist: it lacks `v` and 1 more; a run needs that, or `--init`";
        let other = "`no/b` does not exist: it lacks `u`; a run needs that, or `--init`";
        check(&[("v", "no/a", 0), ("u", "no/b", 0), ("w", "no/a", 16), ("stored nowhere", "", 0)], &[lacks, other]);
    }

    #[test]
    fn a_file_that_ends_too_early_lacks_what_is_behind() {
        let path = std::env::temp_dir().join(format!("galvatron-absent-{}", std::process::id()));
        std::fs::write(&path, [0; 40]).unwrap();
        let file = path.to_str().unwrap();
        let ends = format!("`{file}` ends after 40 bytes: it lacks `w`; a run needs that, or `--init`");
        check(&[("u", file, 0), ("v", file, 24), ("w", file, 25)], &[&ends]);
        check(&[("u", file, 0), ("v", file, 24)], &[]);
        std::fs::remove_file(path).unwrap();
    }
}
