// What generated element-wise kernels use.

// N elements that lie one after the other, loaded and stored in units of at most 16 bytes.
template <class T, int N> struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Elements {
    T at[N];
};

template <int N, class T> __device__ __forceinline__ Elements<T, N> fused_load(const T* from) { return *(const Elements<T, N>*)from; }
template <int N, class T> __device__ __forceinline__ void fused_store(T* to, const Elements<T, N>& pack) {
    *(Elements<T, N>*)to = pack;
}

// The nearest value of bf16.
__device__ __forceinline__ float fused_rounded(float v) { return wide(narrow<bf16>(v)); }

// Towards zero; NaN becomes 0.
__device__ __forceinline__ i64 fused_truncated(float v) { return v != v ? 0 : (i64)v; }

__device__ __forceinline__ i64 fused_integer_add(i64 a, i64 b) { return (i64)((u64)a + (u64)b); }
__device__ __forceinline__ i64 fused_integer_sub(i64 a, i64 b) { return (i64)((u64)a - (u64)b); }
__device__ __forceinline__ i64 fused_integer_mul(i64 a, i64 b) { return (i64)((u64)a * (u64)b); }
// Towards zero; 0 where it has no value.
__device__ __forceinline__ i64 fused_integer_div(i64 a, i64 b) {
    return b == 0 || (b == -1 && (u64)a == 0x8000000000000000ull) ? 0 : a / b;
}
__device__ __forceinline__ i64 fused_integer_max(i64 a, i64 b) { return a > b ? a : b; }
__device__ __forceinline__ i64 fused_integer_min(i64 a, i64 b) { return a < b ? a : b; }
__device__ __forceinline__ i64 fused_integer_mod(i64 a, i64 b) { return integer_modulo(a, b); }
__device__ __forceinline__ i64 fused_integer_rem(i64 a, i64 b) { return integer_rest(a, b); }

// Remainder and quotient of numbers that are not negative, in 32 bits where both fit.
__device__ __forceinline__ i64 fused_mod(i64 i, i64 n) { return (i | n) >> 32 ? i % n : (i64)((u32)i % (u32)n); }
__device__ __forceinline__ i64 fused_div(i64 i, i64 n) { return (i | n) >> 32 ? i / n : (i64)((u32)i / (u32)n); }

__device__ __forceinline__ i64 fused_place(const Walk<1>& walk, i64 i) {
    i64 at[1];
    places(walk, i, at);
    return at[0];
}
