//! The archive with the ONNX project's tests of single operators.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;

/// The files of the archive by name, which begins with that of their test: the committed archive, or the one in the folder
/// `GALVATRON_FIXTURES`.
pub fn files() -> BTreeMap<String, Vec<u8>> {
    let path = match std::env::var_os("GALVATRON_FIXTURES") {
        Some(folder) => PathBuf::from(folder).join("onnx_node_tests.tar.gz"),
        None => PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/nodes/nodes.tar.gz")),
    };
    let packed = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut bytes).expect("the archive is compressed with gzip");
    unpacked(&bytes)
}

/// The plain files of a tar archive: a header of 512 bytes with a name and an octal size, then the content in such blocks.
fn unpacked(mut bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let text = |field: &[u8]| String::from_utf8_lossy(field).trim_end_matches(['\0', ' ']).trim().to_string();
    let mut files = BTreeMap::new();
    while bytes.len() >= 512 && bytes[0] != 0 {
        let (header, rest) = bytes.split_at(512);
        let size = usize::from_str_radix(&text(&header[124..136]), 8).expect("sizes are octal numbers");
        if matches!(header[156], 0 | b'0') {
            files.insert(text(&header[..100]).trim_start_matches("./").to_string(), rest[..size].to_vec());
        }
        bytes = &rest[size.next_multiple_of(512)..];
    }
    files
}
