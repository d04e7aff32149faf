// What all kernel sources share; it stands in front of each of them.

typedef long long i64;
typedef unsigned long long u64;
typedef unsigned int u32;
typedef unsigned short u16;
typedef unsigned char u8;

#define KERNEL extern "C" __global__ void
#define NEG_INFINITY (-__int_as_float(0x7f800000))

// The dynamic shared memory of a block, as floats.
#ifndef DYNAMIC
#define DYNAMIC(NAME) extern __shared__ float NAME[]
#endif

// Work items of this thread: first, first + stride, … below n.
#define FOR_EACH(i, n) \
    for (i64 i = blockIdx.x * (i64)blockDim.x + threadIdx.x; i < (n); i += gridDim.x * (i64)blockDim.x)

// The upper half of an f32. Arithmetic is in f32: elements are widened when they are read and rounded when they are written.
struct bf16 {
    u16 bits;
};

__device__ __forceinline__ float wide(float v) { return v; }
__device__ __forceinline__ float wide(bf16 v) { return __int_as_float((int)((u32)v.bits << 16)); }

// Rounds to nearest, ties to even; NaN stays NaN.
template <class T> __device__ __forceinline__ T narrow(float v);
template <> __device__ __forceinline__ float narrow<float>(float v) { return v; }
template <> __device__ __forceinline__ bf16 narrow<bf16>(float v) {
#ifdef __CUDA_ARCH__
    bf16 rounded;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(rounded.bits) : "f"(v));
    return rounded;
#else
    u32 bits = (u32)__float_as_int(v);
    if (v != v) return {(u16)(bits >> 16 | 0x40)};
    return {(u16)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16)};
#endif
}

// Defines a kernel for f32 and the same, with the suffix _bf16, for bf16: DEFINE(type, suffix).
#define FOR_FLOATS(DEFINE) DEFINE(float, ) DEFINE(bf16, _bf16)

// The elements in 16 bytes.
template <class T> struct alignas(16) Pack {
    static const int N = 16 / sizeof(T);
    T of[N];
};

// Vectors of 16 bytes are used where all pointers allow them.
__device__ __forceinline__ bool is_vector(const void* p) { return ((u64)p & 15) == 0; }

template <class... P> __device__ __forceinline__ bool are_vectors(const P*... p) { return (is_vector(p) && ...); }

// N neighbouring elements, widened: one, or those of whole packs.
template <int N, class T> __device__ __forceinline__ void load(float (&v)[N], const T* from) {
    if constexpr (N == 1) {
        v[0] = wide(*from);
    } else {
        constexpr int M = Pack<T>::N;
#pragma unroll
        for (int i = 0; i < N / M; i++) {
            Pack<T> pack = ((const Pack<T>*)from)[i];
#pragma unroll
            for (int j = 0; j < M; j++) v[M * i + j] = wide(pack.of[j]);
        }
    }
}

// A word of neighbouring elements, the first one lowest.
__device__ __forceinline__ u32 word(const float* from) { return (u32)__float_as_int(*from); }
__device__ __forceinline__ u32 word(const bf16* from) { return from[0].bits | (u32)from[1].bits << 16; }

// The words are put together first: compilers make eight stores of eight halves, but one of four words.
template <class T> __device__ __forceinline__ void store_pack(T* to, const Pack<T>& pack) {
    constexpr int N = Pack<T>::N / 4;
    *(uint4*)to = {word(pack.of), word(pack.of + N), word(pack.of + 2 * N), word(pack.of + 3 * N)};
}

template <int N, class T> __device__ __forceinline__ void store(T* to, const float (&v)[N]) {
    if constexpr (N == 1) {
        *to = narrow<T>(v[0]);
    } else {
        constexpr int M = Pack<T>::N;
#pragma unroll
        for (int i = 0; i < N / M; i++) {
            Pack<T> pack;
#pragma unroll
            for (int j = 0; j < M; j++) pack.of[j] = narrow<T>(v[M * i + j]);
            store_pack(to + M * i, pack);
        }
    }
}

// A number of elements, as a type.
template <int N> struct Count {
    static constexpr int value = N;
};

// Calls f(first, Count<N>) for this thread's groups of N elements where vectors may be used, and f(first, Count<1>) for single
// elements else and at the end; the threads of the grid share the n elements.
template <int N, class F> __device__ __forceinline__ void for_groups(i64 n, bool vectors, F f) {
    i64 n_groups = vectors ? n / N : 0;
    FOR_EACH(i, n_groups) f(N * i, Count<N>());
    FOR_EACH(j, n - N * n_groups) f(N * n_groups + j, Count<1>());
}

// A loop over an index space with a step along each dimension for each of N tensors.
template <int N> struct Walk {
    i64 rank;
    i64 size[8];
    i64 step[N][8];
};

// The places of the N elements of index `index`.
template <int N> __device__ __forceinline__ void places(const Walk<N>& walk, i64 index, i64 (&at)[N]) {
    for (int t = 0; t < N; t++) at[t] = 0;
    if (index >> 31) {
        for (int d = (int)walk.rank - 1; d >= 0; d--) {
            i64 own = index % walk.size[d];
            index /= walk.size[d];
            for (int t = 0; t < N; t++) at[t] += own * walk.step[t][d];
        }
        return;
    }
    u32 rest = (u32)index;
    for (int d = (int)walk.rank - 1; d >= 0; d--) {
        // An extent beyond 32 bits has nothing to divide away.
        u32 extent = walk.size[d] >> 31 ? 0x7fffffffu : (u32)walk.size[d];
        u32 own = rest % extent;
        rest /= extent;
        for (int t = 0; t < N; t++) at[t] += (i64)own * walk.step[t][d];
    }
}

// Whether groups of n neighbouring indices are neighbours, or one element, in every tensor, at multiples of n elements.
template <int N> __device__ __forceinline__ bool walks_packs(const Walk<N>& walk, i64 n) {
    int last = (int)walk.rank - 1;
    bool fits = walk.size[last] % n == 0;
    for (int t = 0; t < N; t++) {
        i64 step = walk.step[t][last];
        fits = fits && (step == 0 || step == 1);
        for (int d = 0; d < last; d++) fits = fits && (step == 0 || walk.step[t][d] % n == 0);
    }
    return fits;
}

template <class T> __device__ __forceinline__ T warp_sum(T v) {
    for (int offset = 16; offset > 0; offset >>= 1) v += __shfl_xor_sync(0xffffffffu, v, offset);
    return v;
}

__device__ __forceinline__ float warp_max(float v) {
    for (int offset = 16; offset > 0; offset >>= 1) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, offset));
    return v;
}

// The sum over a block, in a fixed order; every thread gets it.
template <class T> __device__ __forceinline__ T block_sum(T v) {
    __shared__ T parts[32];
    v = warp_sum(v);
    __syncthreads();
    if ((threadIdx.x & 31) == 0) parts[threadIdx.x >> 5] = v;
    __syncthreads();
    T total = parts[0];
    for (u32 i = 1; i < blockDim.x / 32; i++) total += parts[i];
    return total;
}

// The largest over a block; every thread gets it.
__device__ __forceinline__ float block_max(float v) {
    __shared__ float parts[32];
    v = warp_max(v);
    __syncthreads();
    if ((threadIdx.x & 31) == 0) parts[threadIdx.x >> 5] = v;
    __syncthreads();
    float largest = parts[0];
    for (u32 i = 1; i < blockDim.x / 32; i++) largest = fmaxf(largest, parts[i]);
    return largest;
}

// The threads that share a row of a tensor: those of a block.
struct Block {
    static __device__ __forceinline__ i64 first() { return blockIdx.x; }
    static __device__ __forceinline__ i64 stride() { return gridDim.x; }
    static __device__ __forceinline__ u32 lane() { return threadIdx.x; }
    static __device__ __forceinline__ u32 size() { return blockDim.x; }
    template <class T> static __device__ __forceinline__ T sum(T v) { return block_sum(v); }
};

// Those of a warp, for short rows: no thread waits for other warps.
struct Warp {
    static __device__ __forceinline__ i64 first() { return (blockIdx.x * (i64)blockDim.x + threadIdx.x) / 32; }
    static __device__ __forceinline__ i64 stride() { return gridDim.x * (i64)blockDim.x / 32; }
    static __device__ __forceinline__ u32 lane() { return threadIdx.x & 31; }
    static __device__ __forceinline__ u32 size() { return 32; }
    template <class T> static __device__ __forceinline__ T sum(T v) { return warp_sum(v); }
};

// Elements of a row that a warp has to itself, at most.
#define SHORT_ROW 2048

// As for_groups, for the threads that share a row of n elements.
template <int N, class Team = Block, class F> __device__ __forceinline__ void for_row(i64 n, bool vectors, F f) {
    i64 n_groups = vectors ? n / N : 0;
    for (i64 i = Team::lane(); i < n_groups; i += Team::size()) f(N * i, Count<N>());
    for (i64 i = N * n_groups + Team::lane(); i < n; i += Team::size()) f(i, Count<1>());
}

// As for_row of N elements of T, for rows that start anywhere, all at the same distance from a multiple of 16 bytes.
template <class T, class F, class... P> __device__ __forceinline__ void for_ragged_row(i64 n, F f, const T* row, const P*... rest) {
    constexpr int N = Pack<T>::N;
    i64 head = (16 - ((u64)row & 15)) % 16 / sizeof(T);
    bool agrees = (((((u64)row ^ (u64)rest) & 15) == 0) && ...);
    if (!agrees || head > n) head = n;
    for (i64 i = threadIdx.x; i < head; i += blockDim.x) f(i, Count<1>());
    for_row<N>(n - head, true, [&](i64 i, auto count) { f(head + i, count); });
}

// What a kernel found wrong in its data: 0 nothing, 1 an index outside of a table, 2 a label that is no class.
struct Fault {
    u32 kind;
    u32 unused;
    i64 value;
    i64 position;
    i64 extent;
};

// Notes a fault unless one is noted already.
__device__ __forceinline__ void note(Fault* fault, u32 kind, i64 value, i64 position, i64 extent) {
    if (atomicCAS(&fault->kind, 0u, kind) == 0u) {
        fault->value = value;
        fault->position = position;
        fault->extent = extent;
    }
}
