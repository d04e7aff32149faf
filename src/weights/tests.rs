//! Weights by any spelling of their names, from files and from a seed.

use super::archive::PIECE;
use super::*;
use galvatron_backends::exec::WeightSource;
use galvatron_ir::module::Initializer;
use galvatron_ir::types::TensorType;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use std::path::{Path, PathBuf};

fn scratch(name: &str, bytes: &[u8]) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("galvatron-weights-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

fn initializer(name: &str, file: &str, offset: u64, n: u64) -> Initializer {
    Initializer { name: name.into(), file: file.into(), offset, ty: TensorType::f32([n]), start: None }
}

/// A safetensors file of one tensor of three elements.
fn archive(name: &str, dtype: Dtype, data: &[u8]) -> Vec<u8> {
    let view = TensorView::new(dtype, vec![3], data).unwrap();
    safetensors::serialize([(name, view)], None).unwrap()
}

fn singles(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn no_plan() -> PlanWeights {
    PlanWeights::new(Path::new(""), None)
}

#[test]
fn weights_are_read_at_their_offset_and_not_beyond_the_end() {
    let n = PIECE / 4 + 3;
    let bytes: Vec<u8> = (0..n + 1).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let path = scratch("plain.bin", &bytes);
    let weights = PlanWeights::new(Path::new(""), Some(&path));
    let read = weights.read(&initializer("w", "w.bin", 4, n as u64)).unwrap();
    assert!(read.iter().enumerate().all(|(i, &v)| v == (i + 1) as f32) && read.len() == n);
    let fault = weights.read(&initializer("w", "w.bin", 8, n as u64)).unwrap_err().to_string();
    assert!(fault.contains("beyond its end"), "{fault}");
}

#[test]
fn a_file_that_is_missing_is_named_with_where_it_was_looked_for() {
    let fault =
        PlanWeights::new(Path::new("plans/p.gir"), None).read(&initializer("w", "m.weights", 0, 4)).unwrap_err();
    let expected = "its file does not exist; looked for `plans/m.weights`, `m.weights`; name it with `--weights`";
    assert!(fault.to_string().contains(expected), "{fault}");
}

#[test]
fn a_safetensors_file_is_read_by_name_and_a_cut_one_refused() {
    let bytes = archive("w", Dtype::F32, &singles(&[1.0, 2.0, 3.0]));
    let (path, cut) = (scratch("whole", &bytes), scratch("cut", &bytes[..bytes.len() - 4]));
    let open = |path: &Path| TensorFile::open(path, no_plan());
    assert_eq!(open(&path).unwrap().read(&initializer("w", "", 0, 3)).unwrap(), [1.0, 2.0, 3.0]);
    assert!(open(&path).unwrap().read(&initializer("w", "", 0, 2)).is_err());
    assert!(open(&path).unwrap().read(&initializer("other", "", 0, 3)).is_err());
    assert!(open(&cut).err().unwrap().contains("follow"));
}

#[test]
fn the_files_of_an_index_are_one_checkpoint() {
    scratch("a.safetensors", &archive("h.0.w", Dtype::F32, &singles(&[1.0, 2.0, 3.0])));
    scratch("b.safetensors", &archive("h.1.w", Dtype::BF16, &[0x80, 0x3F, 0x00, 0xC0, 0x40, 0x40]));
    let index = r#"{"weight_map": {"h.0.w": "a.safetensors", "h.1.w": "b.safetensors"}}"#;
    let path = scratch("model.safetensors.index.json", index.as_bytes());
    for path in [path.as_path(), path.parent().unwrap()] {
        let weights = TensorFile::open(path, no_plan()).unwrap();
        assert_eq!(weights.read(&initializer("transformer.h.0.w", "", 0, 3)).unwrap(), [1.0, 2.0, 3.0]);
        assert_eq!(weights.read(&initializer("transformer.h.1.w", "", 0, 3)).unwrap(), [1.0, -2.0, 3.0]);
    }
}

#[test]
fn a_safetensors_file_of_the_plan_says_its_element_type() {
    let path = scratch("half.safetensors", &archive("w", Dtype::F16, &[0x00, 0x3C, 0x00, 0xC0, 0x00, 0x38]));
    let offset = std::fs::metadata(&path).unwrap().len() - 6;
    let weights = PlanWeights::new(&path, None);
    let read = |offset| weights.read(&initializer("w", "half.safetensors", offset, 3));
    assert_eq!(read(offset).unwrap(), [1.0, -2.0, 0.5]);
    assert!(read(offset - 2).unwrap_err().to_string().contains("no tensor of 3 elements"));
}

#[test]
fn tensors_without_a_file_need_a_seed() {
    let gain = initializer("ln.weight", "", 0, 3);
    assert!(no_plan().read(&gain).unwrap_err().to_string().contains("names no file"));
    assert_eq!(no_plan().or_fresh(1).read(&gain).unwrap(), [1.0; 3]);
}
