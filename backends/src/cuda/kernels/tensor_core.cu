// Products of bf16 on tensor cores, for blocks of four warps with their operands in tiles of shared memory. It stands after the
// prelude in front of the sources that need it. Elements are raw bits: a u16 is one, a u32 two, the lower half first.
//
// Registers lie as the PTX ISA says of mma.m16n8k16 and ldmatrix. With row = lane / 4 and pair = 2 (lane % 4) a lane has of
//   a [16, 16]  four u32: columns pair, pair + 1 of the rows row and row + 8, then columns pair + 8, pair + 9 of both
//   b [16, 8]   two u32: rows pair, pair + 1 of column row, then rows pair + 8, pair + 9
//   c [16, 8]   four f32: columns pair, pair + 1 of row row, then of row + 8
// so that two neighbouring c, rounded, are an a.

#define TC_THREADS 128
#define TC_KERNEL extern "C" __global__ __launch_bounds__(TC_THREADS) void

// Eight elements, which are moved at once.
struct alignas(16) TcChunk {
    u32 words[4];
};

#ifndef EMULATED
#define TC_DYNAMIC(NAME) extern __shared__ TcChunk NAME[]

__device__ __forceinline__ u32 tc_address(const void* shared) { return (u32)__cvta_generic_to_shared(shared); }

// c += a b
__device__ __forceinline__ void tc_mma(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four matrices [8, 8]; lane i names row i % 8 of matrix i / 8. A lane gets of each columns pair, pair + 1 of row row.
__device__ __forceinline__ void tc_load(u32 (&r)[4], const u16* own_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(tc_address(own_row))
                 : "memory");
}

// As tc_load, but a lane gets of each rows pair, pair + 1 of column row.
__device__ __forceinline__ void tc_load_transposed(u32 (&r)[4], const u16* own_row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(tc_address(own_row))
                 : "memory");
}

// Starts to copy 16 bytes to shared memory, zeros unless they are inside. Both addresses are multiples of 16.
__device__ __forceinline__ void tc_copy16(void* to, const void* from, bool is_inside) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(tc_address(to)), "l"(from), "r"(is_inside ? 16 : 0)
                 : "memory");
}

// Starts to copy 4 bytes to shared memory, zeros unless they are inside.
__device__ __forceinline__ void tc_copy4(void* to, const void* from, bool is_inside) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(tc_address(to)), "l"(from), "r"(is_inside ? 4 : 0)
                 : "memory");
}

// Ends a group of copies of this thread.
__device__ __forceinline__ void tc_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until all groups of this thread but the last N are there.
template <int N> __device__ __forceinline__ void tc_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }

// Two numbers, each rounded to nearest, ties to even.
__device__ __forceinline__ u32 tc_pack(float lower, float upper) {
    u32 packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(upper), "f"(lower));
    return packed;
}

// 2^x to two units in the last place; 0 for -inf.
__device__ __forceinline__ float tc_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
#endif

__device__ __forceinline__ float tc_widen(u16 bits) { return __int_as_float((int)bits << 16); }

// Elements from row to row of a tile of D columns. An odd number of 16 bytes: eight rows that follow each other have no bank in
// common, so that matrices are loaded without conflicts.
template <int D> struct TcTile {
    static const int STEP = D + 8;
};

// Starts to copy rows of one head into a tile [ROWS, D]: `n_rows` of `width` elements, zeros beyond. `step`: elements from row
// to row of the tensor.
template <int D, int ROWS>
__device__ __forceinline__ void tc_fetch(u16* tile, const u16* from, i64 step, int n_rows, int width) {
    const int STEP = TcTile<D>::STEP;
    // So many threads take neighbouring chunks of a row, so many rows are taken at once.
    const int ACROSS = D % 64 == 0 ? 8 : 4, DOWN = TC_THREADS / ACROSS;
    static_assert(ROWS % DOWN == 0, "every thread copies as much");
    if (width % 8 == 0 && is_vector(from)) {
        int row = threadIdx.x / ACROSS, column = threadIdx.x % ACROSS * 8;
        const u16* own = from + row * step + column;
        u16* to = tile + row * STEP + column;
#pragma unroll
        for (int i = 0; i < ROWS; i += DOWN)
#pragma unroll
            for (int j = 0; j < D; j += 8 * ACROSS)
                tc_copy16(to + i * STEP + j, own + i * step + j, row + i < n_rows && column + j < width);
        return;
    }
#pragma unroll 1
    for (int i = threadIdx.x; i < ROWS * D; i += TC_THREADS) {
        int row = i / D, column = i % D;
        tile[row * STEP + column] = row < n_rows && column < width ? from[row * step + column] : (u16)0;
    }
}

// Starts to copy N numbers, zeros from `n` on.
template <int N> __device__ __forceinline__ void tc_fetch_numbers(float* to, const float* from, int n) {
    static_assert(N <= TC_THREADS, "a number a thread");
    int i = threadIdx.x;
    if (i < N) tc_copy4(to + i, from + i, i < n);
}

// The sums of a warp over 16 M rows and N columns.
template <int M, int N> struct TcSums {
    float at[M][N / 8][4];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int n = 0; n < N / 8; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) at[m][n][e] = 0.0f;
    }
};

// Left operands of a warp: 16 M rows of K columns.
template <int M, int K> struct TcRows {
    u32 at[M][K / 16][4];

    // From a tile of K columns.
    __device__ __forceinline__ void load(const u16* tile) {
#pragma unroll
        for (int k = 0; k < K / 16; k++) load(tile, k, k);
    }

    // 16 columns from 16 `column` on, as columns 16 `k`.
    template <int D = K> __device__ __forceinline__ void load(const u16* tile, int column, int k) {
        int lane = threadIdx.x % 32;
#pragma unroll
        for (int m = 0; m < M; m++)
            tc_load(at[m][k], tile + (16 * m + lane % 16) * TcTile<D>::STEP + 16 * column + lane / 16 * 8);
    }

    // Rounded sums.
    __device__ __forceinline__ void round(const TcSums<M, K>& sums) {
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int k = 0; k < K / 16; k++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const float* c = sums.at[m][2 * k + i / 2] + i % 2 * 2;
                    at[m][k][i] = tc_pack(c[0], c[1]);
                }
    }
};

// c += a b^T for 16 columns of a (number k of what is loaded) and columns `column` of b. b: tile [N, D]
template <int D, int M, int K, int N>
__device__ __forceinline__ void tc_add_transposed(TcSums<M, N>& c, const TcRows<M, K>& a, int k, const u16* b, int column) {
    int lane = threadIdx.x % 32;
    const u16* own = b + (lane % 8 + lane / 16 * 8) * TcTile<D>::STEP + lane / 8 % 2 * 8 + 16 * column;
#pragma unroll
    for (int n = 0; n < N / 16; n++) {
        u32 r[4];
        tc_load(r, own + 16 * n * TcTile<D>::STEP);
#pragma unroll
        for (int m = 0; m < M; m++) {
            tc_mma(c.at[m][2 * n], a.at[m][k], r[0], r[1]);
            tc_mma(c.at[m][2 * n + 1], a.at[m][k], r[2], r[3]);
        }
    }
}

// c += a b^T. a: 16 M rows in registers   b: tile [N, D]
template <int D, int M, int N>
__device__ __forceinline__ void tc_multiply_transposed(TcSums<M, N>& c, const TcRows<M, D>& a, const u16* b) {
#pragma unroll
    for (int k = 0; k < D / 16; k++) tc_add_transposed<D>(c, a, k, b, k);
}

// c += a b^T. a: 16 M rows of a tile of D columns   b: tile [N, D]
template <int D, int M, int N>
__device__ __forceinline__ void tc_multiply_transposed(TcSums<M, N>& c, const u16* a, const u16* b) {
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        TcRows<M, 16> rows;
        rows.template load<D>(a, k, 0);
        tc_add_transposed<D>(c, rows, 0, b, k);
    }
}

// c += a b. a: 16 M rows in registers   b: tile [K, N]
template <int M, int K, int N>
__device__ __forceinline__ void tc_multiply(TcSums<M, N>& c, const TcRows<M, K>& a, const u16* b) {
    int lane = threadIdx.x % 32;
    const u16* own = b + lane % 16 * TcTile<N>::STEP + lane / 16 * 8;
#pragma unroll
    for (int k = 0; k < K / 16; k++)
#pragma unroll
        for (int n = 0; n < N / 16; n++) {
            u32 r[4];
            tc_load_transposed(r, own + 16 * k * TcTile<N>::STEP + 16 * n);
#pragma unroll
            for (int m = 0; m < M; m++) {
                tc_mma(c.at[m][2 * n], a.at[m][k], r[0], r[1]);
                tc_mma(c.at[m][2 * n + 1], a.at[m][k], r[2], r[3]);
            }
        }
}

// Writes a warp's sums, rounded, as rows of one head: `n_rows` of `width` elements. `staged` is room for 16 M rows of a tile
// that no other warp uses; from there whole chunks are written.
template <int M, int D>
__device__ __forceinline__ void tc_store(const TcSums<M, D>& c, u16* staged, u16* to, i64 step, int n_rows, int width) {
    const int STEP = TcTile<D>::STEP, CHUNKS = D / 8;
    int lane = threadIdx.x % 32, row = lane / 4, pair = lane % 4 * 2;
    __syncwarp();
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < D / 8; n++)
#pragma unroll
            for (int h = 0; h < 2; h++)
                *(u32*)(staged + (16 * m + 8 * h + row) * STEP + 8 * n + pair) =
                    tc_pack(c.at[m][n][2 * h], c.at[m][n][2 * h + 1]);
    __syncwarp();
    if (width % 8 == 0 && is_vector(to)) {
        for (int i = lane; i < 16 * M * CHUNKS; i += 32) {
            int r = i / CHUNKS, column = i % CHUNKS * 8;
            if (r < n_rows && column < width) *(TcChunk*)(to + r * step + column) = *(const TcChunk*)(staged + r * STEP + column);
        }
        return;
    }
#pragma unroll 1
    for (int i = lane; i < 16 * M * D; i += 32) {
        int r = i / D, column = i % D;
        if (r < n_rows && column < width) to[r * step + column] = staged[r * STEP + column];
    }
}
