//! Reads constants of the file into static tensors.

use std::sync::Arc;

use super::super::weights::{ElementType, TensorRecord};
use super::cast::f16_to_f32;
use super::tensor::{StaticTensor, Values, check_shape, check_stored, with_values};
use galvatron_ir::types::bf16;

impl StaticTensor {
    /// The values of a constant of the file; none if they are in an external file or of a type not computed with.
    pub fn from_record(record: &TensorRecord) -> Option<Result<Self, String>> {
        let bytes = record.bytes()?;
        let shape: Vec<usize> = record.dims.iter().map(|&d| d as usize).collect();
        if let Err(what) = check_shape(&shape).and_then(|()| check_stored(&shape)) {
            return Some(Err(what));
        }
        let values = decode(record.dtype, bytes)?;
        if with_values!(&values, v => v.len()) != shape.iter().product::<usize>() {
            return Some(Err(format!("{} bytes for a constant of shape {shape:?}", bytes.len())));
        }
        Some(Self::new(shape.clone(), shape, values))
    }
}

/// The elements behind little-endian bytes, widened to one of the types that are computed with.
fn decode(dtype: ElementType, bytes: &[u8]) -> Option<Values> {
    macro_rules! read {
        ($type:ty, $variant:ident, $x:ident => $convert:expr) => {{
            let (chunks, _) = bytes.as_chunks::<{ size_of::<$type>() }>();
            let convert = |&b: &[u8; size_of::<$type>()]| {
                let $x = <$type>::from_le_bytes(b);
                $convert
            };
            Values::$variant(Arc::new(chunks.iter().map(convert).collect()))
        }};
    }
    Some(match dtype {
        ElementType::F32 => read!(f32, F32, x => x),
        ElementType::F64 => read!(f64, F64, x => x),
        ElementType::F16 => read!(u16, F32, x => f16_to_f32(x)),
        ElementType::Bf16 => read!(u16, F32, x => bf16::widen(x)),
        ElementType::I8 => read!(i8, I64, x => i64::from(x)),
        ElementType::I16 => read!(i16, I64, x => i64::from(x)),
        ElementType::I32 => read!(i32, I64, x => i64::from(x)),
        ElementType::I64 => read!(i64, I64, x => x),
        ElementType::U8 => read!(u8, I64, x => i64::from(x)),
        ElementType::U16 => read!(u16, I64, x => i64::from(x)),
        ElementType::U32 => read!(u32, I64, x => i64::from(x)),
        ElementType::U64 => read!(u64, I64, x => x as i64),
        ElementType::Bool => read!(u8, Bool, x => x != 0),
        ElementType::Other { .. } => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::super::weights::TensorContent;
    use super::*;

    fn read(dtype: ElementType, dims: &[u64], bytes: &'static [u8]) -> Option<Result<StaticTensor, String>> {
        let content = TensorContent::Values(bytes::Bytes::from_static(bytes));
        StaticTensor::from_record(&TensorRecord { name: String::new(), dtype, dims: dims.to_vec(), content })
    }

    #[test]
    fn narrow_types_are_widened() {
        let bytes = read(ElementType::U8, &[2], &[255, 1]).unwrap().unwrap();
        assert_eq!(bytes.ints().unwrap(), [255, 1]);
        let half = read(ElementType::F16, &[], &[0, 0x3c]).unwrap().unwrap();
        assert_eq!(half.stored_floats(), Some(&[1.0][..]));
    }

    #[test]
    fn types_that_are_not_computed_with_are_left_alone() {
        assert!(read(ElementType::Other { number: 17, bits: 8 }, &[1], &[0]).is_none());
        assert!(read(ElementType::I64, &[2], &[0; 8]).unwrap().is_err());
    }
}
