//! Matrix products through cuBLASLt: of f32, true f32 unless TF32 was asked for, or of bf16 with sums in f32; one plan a shape, made once and used again.
//!
//! Attributes have the types and sizes that `cublasLt.h` of version 13.10 gives them.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::Mutex;

use cudarc::cublaslt::{result, sys};
use cudarc::driver::sys::{CUdeviceptr, CUstream};

use galvatron_ir::types::DType;

use super::arena::{Arena, WORKSPACE_BYTES};
use super::command::{Epilogue, Matmul};
use super::gemm::{ColumnMajor, Stored};

/// What a plan depends on: the element type, extents, how operands are stored, and their alignments in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    dtype: DType,
    extents: [u64; 4],
    stored: [(bool, u64, u64); 3],
    alignments: [u32; 3],
    accumulates: bool,
    /// Address of the bias, 0 without one: the descriptor holds it.
    bias: CUdeviceptr,
}

/// A planned product: descriptors and the algorithm that the library chose.
struct Plan {
    operation: sys::cublasLtMatmulDesc_t,
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
}

/// The library's handle and the plans so far, of one device.
pub(super) struct Blas {
    handle: sys::cublasLtHandle_t,
    /// Whether operands of f32 are rounded to TF32.
    tf32: bool,
    plans: Mutex<BTreeMap<Key, std::sync::Arc<Plan>>>,
}

// SAFETY: the library allows calls with one handle from any thread; plans are only read once they are made.
unsafe impl Send for Blas {}
// SAFETY: as for `Send`.
unsafe impl Sync for Blas {}
// SAFETY: descriptors are read only after they were set.
unsafe impl Send for Plan {}
// SAFETY: as for `Send`.
unsafe impl Sync for Plan {}

/// A product that is ready to be launched.
pub(super) struct Planned {
    plan: std::sync::Arc<Plan>,
    addresses: [CUdeviceptr; 3],
    /// Factor of what the result holds, which is added.
    beta: f32,
    workspace: CUdeviceptr,
}

fn words(what: &str, error: result::CublasError) -> String {
    format!("cuBLASLt cannot {what}: {:?}", error.0)
}

/// The largest power of two, up to 256, that divides an address.
fn alignment(address: CUdeviceptr) -> u32 {
    1 << address.trailing_zeros().min(8)
}

impl Blas {
    /// A handle on the bound context.
    pub(super) fn new(tf32: bool) -> Result<Blas, String> {
        let handle = result::create_handle().map_err(|e| words("start", e))?;
        Ok(Blas { handle, tf32, plans: Mutex::default() })
    }

    /// Plans a product, or finds its plan.
    pub(super) fn plan(&self, matmul: &Matmul, arena: &Arena) -> Result<Planned, String> {
        let products = matmul.column_major();
        let addresses = [products.a, products.b, products.c].map(|side| arena.address(side.at));
        let of = |side: &Stored| (side.is_transposed, side.leading, side.batch);
        let key = Key {
            dtype: products.dtype,
            extents: [products.m, products.n, products.k, products.batch],
            stored: [of(&products.a), of(&products.b), of(&products.c)],
            alignments: addresses.map(alignment),
            accumulates: products.epilogue == Epilogue::Accumulate,
            bias: match products.epilogue {
                Epilogue::Bias(at, _) => arena.address(at),
                Epilogue::None | Epilogue::Accumulate => 0,
            },
        };
        let mut plans = self.plans.lock().expect("invariant: planning does not panic");
        let plan = match plans.get(&key) {
            Some(plan) => plan.clone(),
            None => {
                let plan = std::sync::Arc::new(Plan::new(self, &products, &key)?);
                plans.insert(key, plan.clone());
                plan
            }
        };
        let beta = if key.accumulates { 1.0 } else { 0.0 };
        Ok(Planned { plan, addresses, beta, workspace: arena.workspace() })
    }

    /// Launches a planned product.
    pub(super) fn launch(&self, planned: &Planned, stream: CUstream) -> Result<(), String> {
        let (one, beta) = (1.0f32, planned.beta);
        let [a, b, c] = planned.addresses;
        let [a_layout, b_layout, c_layout] = planned.plan.layouts;
        // SAFETY: the addresses are parts of the arena with these layouts; the workspace has its size; scalars live in the call.
        let launched = unsafe {
            result::matmul(
                self.handle,
                planned.plan.operation,
                (&raw const one).cast(),
                (&raw const beta).cast(),
                a as *const c_void,
                a_layout,
                b as *const c_void,
                b_layout,
                c as *const c_void,
                c_layout,
                c as *mut c_void,
                c_layout,
                &planned.plan.algorithm,
                planned.workspace as *mut c_void,
                WORKSPACE_BYTES as usize,
                stream.cast(),
            )
        };
        launched.map_err(|e| words("multiply", e))
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        // SAFETY: the handle is destroyed once.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

impl Plan {
    fn new(blas: &Blas, products: &ColumnMajor, key: &Key) -> Result<Plan, String> {
        let (handle, f32_type) = (blas.handle, sys::cudaDataType_t::CUDA_R_32F);
        let compute = match blas.tf32 && products.dtype == DType::F32 {
            true => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F_FAST_TF32,
            false => sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
        };
        let operation = result::create_matmul_desc(compute, f32_type).map_err(|e| words("describe a product", e))?;
        let transposes = [
            (sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA, products.a.is_transposed),
            (sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSB, products.b.is_transposed),
        ];
        for (attribute, is_transposed) in transposes {
            let value = i32::from(is_transposed);
            // SAFETY: the attribute is an `int`: 0 as stored, 1 transposed.
            unsafe { result::set_matmul_desc_attribute(operation, attribute, (&raw const value).cast(), 4) }
                .map_err(|e| words("describe a product", e))?;
        }
        if key.bias != 0 {
            add_bias(operation, key.bias)?;
        }
        let ColumnMajor { m, n, k, .. } = *products;
        let layout = |side, extents| layout(products.dtype, side, extents, products.batch);
        let layouts = [layout(&products.a, (m, k))?, layout(&products.b, (k, n))?, layout(&products.c, (m, n))?];
        let preference = preference(key.alignments, products.dtype)?;
        let [a, b, c] = layouts;
        // SAFETY: all descriptors are alive.
        let found = unsafe { result::get_matmul_algo_heuristic(handle, operation, a, b, c, c, preference) };
        // SAFETY: the preference is destroyed once.
        let _ = unsafe { result::destroy_matmul_pref(preference) };
        let what = || format!("find a way to multiply [{m}, {k}] by [{k}, {n}], {} times", products.batch);
        let algorithm = found.map_err(|e| words(&what(), e))?.algo;
        Ok(Plan { operation, layouts, algorithm })
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: each descriptor is destroyed once.
        unsafe {
            let _ = result::destroy_matmul_desc(self.operation);
            self.layouts.iter().for_each(|&layout| {
                let _ = result::destroy_matrix_layout(layout);
            });
        }
    }
}

/// Has a bias of one element for each row of the result added.
fn add_bias(operation: sys::cublasLtMatmulDesc_t, bias: CUdeviceptr) -> Result<(), String> {
    use sys::cublasLtMatmulDescAttributes_t as Attribute;
    let failed = |e| words("describe a bias", e);
    let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
    let attribute = Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE;
    // SAFETY: the attribute is a `uint32_t`, as the enum is.
    unsafe { result::set_matmul_desc_attribute(operation, attribute, (&raw const epilogue).cast(), 4) }
        .map_err(failed)?;
    let attribute = Attribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER;
    // SAFETY: the attribute is a pointer; the bias lies in the arena, which outlives the plans.
    unsafe { result::set_matmul_desc_attribute(operation, attribute, (&raw const bias).cast(), 8) }.map_err(failed)
}

/// The layout of what is stored of an operand with these extents.
fn layout(
    dtype: DType,
    stored: &Stored,
    (rows, cols): (u64, u64),
    batch: u64,
) -> Result<sys::cublasLtMatrixLayout_t, String> {
    let (rows, cols) = if stored.is_transposed { (cols, rows) } else { (rows, cols) };
    let is_half = dtype == DType::Bf16;
    let element = if is_half { sys::cudaDataType_t::CUDA_R_16BF } else { sys::cudaDataType_t::CUDA_R_32F };
    let failed = |e| words("describe a matrix", e);
    let layout = result::create_matrix_layout(element, rows, cols, stored.leading as i64).map_err(failed)?;
    let (count, step) = (batch as i32, stored.batch as i64);
    let count_attribute = sys::cublasLtMatrixLayoutAttribute_t::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT;
    let step_attribute = sys::cublasLtMatrixLayoutAttribute_t::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET;
    // SAFETY: the attribute is an `int32_t`.
    unsafe { result::set_matrix_layout_attribute(layout, count_attribute, (&raw const count).cast(), 4) }
        .map_err(failed)?;
    // SAFETY: the attribute is an `int64_t`.
    unsafe { result::set_matrix_layout_attribute(layout, step_attribute, (&raw const step).cast(), 8) }
        .map_err(failed)?;
    Ok(layout)
}

/// What the library may use: the workspace, the alignments that there are, and for bf16 no partial sums that were rounded to it.
fn preference([a, b, c]: [u32; 3], dtype: DType) -> Result<sys::cublasLtMatmulPreference_t, String> {
    use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
    let failed = |e| words("state a preference", e);
    let preference = result::create_matmul_pref().map_err(failed)?;
    let workspace = WORKSPACE_BYTES;
    let bytes = Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
    // SAFETY: the attribute is a `uint64_t`.
    unsafe { result::set_matmul_pref_attribute(preference, bytes, (&raw const workspace).cast(), 8) }
        .map_err(failed)?;
    let alignments = [
        (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, a),
        (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, b),
        (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, c),
        (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, c),
    ];
    let reduction = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
    let reduction = (Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reduction);
    let is_half = dtype == DType::Bf16;
    for (attribute, value) in alignments.into_iter().chain(is_half.then_some(reduction)) {
        // SAFETY: the attribute is a `uint32_t`.
        unsafe { result::set_matmul_pref_attribute(preference, attribute, (&raw const value).cast(), 4) }
            .map_err(failed)?;
    }
    Ok(preference)
}
