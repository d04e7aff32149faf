// Moves of elements: strided copies in units of 1 to 16 bytes, chunks in place, conversions.

template <class T> __device__ __forceinline__ void strided(const T* from, T* to, i64 n, const Walk<2>& walk) {
    FOR_EACH(i, n) {
        i64 at[2];
        places(walk, i, at);
        to[at[1]] = from[at[0]];
    }
}

KERNEL copy_1(const u8* from, u8* to, i64 n, Walk<2> walk) { strided(from, to, n, walk); }
KERNEL copy_2(const u16* from, u16* to, i64 n, Walk<2> walk) { strided(from, to, n, walk); }
KERNEL copy_4(const u32* from, u32* to, i64 n, Walk<2> walk) { strided(from, to, n, walk); }
KERNEL copy_8(const u64* from, u64* to, i64 n, Walk<2> walk) { strided(from, to, n, walk); }
KERNEL copy_16(const float4* from, float4* to, i64 n, Walk<2> walk) { strided(from, to, n, walk); }

// Rows with other rooms between them than where they go to, and no common alignment; a segment of 2048 elements a block.
template <class T>
__device__ __forceinline__ void segments(const T* from, T* to, i64 rows, i64 columns, i64 from_step, i64 to_step,
                                         i64 n_segments) {
    constexpr int N = 8;
    for (i64 index = blockIdx.x; index < rows * n_segments; index += gridDim.x) {
        i64 row = index / n_segments, first = index % n_segments * (N * (i64)blockDim.x) + threadIdx.x;
        const T* source = from + row * from_step;
        T* target = to + row * to_step;
        T v[N];
#pragma unroll
        for (int i = 0; i < N; i++)
            if (first + i * blockDim.x < columns) v[i] = source[first + i * blockDim.x];
#pragma unroll
        for (int i = 0; i < N; i++)
            if (first + i * blockDim.x < columns) target[first + i * blockDim.x] = v[i];
    }
}

KERNEL rows_2(const u16* from, u16* to, i64 rows, i64 columns, i64 from_step, i64 to_step, i64 n_segments) {
    segments(from, to, rows, columns, from_step, to_step, n_segments);
}
KERNEL rows_4(const u32* from, u32* to, i64 rows, i64 columns, i64 from_step, i64 to_step, i64 n_segments) {
    segments(from, to, rows, columns, from_step, to_step, n_segments);
}

// Planes [planes, rows, columns] to [planes, columns, rows], by tiles of 32 x 32. A row of a tile is an odd number of words
// from the next, so that the elements of a column lie in different banks.
template <class T>
__device__ __forceinline__ void transposed(const T* from, T* to, i64 rows, i64 columns, i64 tiles_down, i64 tiles_across,
                                           i64 n_tiles) {
    __shared__ T tile[32][32 + 4 / sizeof(T)];
    int x = threadIdx.x & 31, y = threadIdx.x >> 5;
    for (i64 index = blockIdx.x; index < n_tiles; index += gridDim.x) {
        i64 across = index % tiles_across, down = index / tiles_across % tiles_down;
        i64 plane = index / (tiles_across * tiles_down) * rows * columns;
        i64 row = 32 * down, column = 32 * across;
        for (int i = y; i < 32; i += 8)
            if (row + i < rows && column + x < columns) tile[i][x] = from[plane + (row + i) * columns + column + x];
        __syncthreads();
        for (int i = y; i < 32; i += 8)
            if (column + i < columns && row + x < rows) to[plane + (column + i) * rows + row + x] = tile[x][i];
        __syncthreads();
    }
}

KERNEL transpose_2(const u16* from, u16* to, i64 rows, i64 columns, i64 tiles_down, i64 tiles_across, i64 n_tiles) {
    transposed(from, to, rows, columns, tiles_down, tiles_across, n_tiles);
}
KERNEL transpose_4(const u32* from, u32* to, i64 rows, i64 columns, i64 tiles_down, i64 tiles_across, i64 n_tiles) {
    transposed(from, to, rows, columns, tiles_down, tiles_across, n_tiles);
}

struct Places {
    i64 to[64];
};

// Chunk i of n_chunks moves to place to[i]; each thread carries its units along every cycle.
template <class T> __device__ __forceinline__ void cycles(T* at, i64 n_chunks, i64 units, const Places& places) {
    FOR_EACH(i, units) {
        for (i64 first = 0; first < n_chunks; first++) {
            i64 chunk = places.to[first];
            while (chunk > first) chunk = places.to[chunk];
            // A cycle is turned at its smallest member only.
            if (chunk < first || places.to[first] == first) continue;
            T carried = at[first * units + i];
            do {
                chunk = places.to[chunk];
                T next = at[chunk * units + i];
                at[chunk * units + i] = carried;
                carried = next;
            } while (chunk != first);
        }
    }
}

KERNEL permute_1(u8* at, i64 n_chunks, i64 units, Places places) { cycles(at, n_chunks, units, places); }
KERNEL permute_16(float4* at, i64 n_chunks, i64 units, Places places) { cycles(at, n_chunks, units, places); }

__device__ __forceinline__ i64 truncated(float v) { return v != v ? 0 : (i64)v; }

#define CAST(NAME, FROM, TO, VALUE)                              \
    KERNEL cast_##NAME(const FROM* from, TO* to, i64 n) {        \
        FOR_EACH(i, n) {                                         \
            FROM v = from[i];                                    \
            to[i] = (TO)(VALUE);                                 \
        }                                                        \
    }

CAST(f32_i64, float, i64, truncated(v))
CAST(f32_bool, float, u8, v != 0.0f)
CAST(bf16_i64, bf16, i64, truncated(wide(v)))
CAST(bf16_bool, bf16, u8, wide(v) != 0.0f)
CAST(i64_f32, i64, float, v)
CAST(i64_bf16, i64, bf16, narrow<bf16>((float)v))
CAST(i64_bool, i64, u8, v != 0)
CAST(bool_f32, u8, float, v)
CAST(bool_bf16, u8, bf16, narrow<bf16>((float)v))
CAST(bool_i64, u8, i64, v)

// Eight elements at once, which are 16 bytes of bf16.
template <class A, class B> __device__ __forceinline__ void convert(const A* from, B* to, i64 n) {
    for_groups<8>(n, are_vectors(from, to), [&](i64 i, auto count) {
        float v[decltype(count)::value];
        load(v, from + i);
        store(to + i, v);
    });
}

KERNEL cast_f32_bf16(const float* from, bf16* to, i64 n) { convert(from, to, n); }
KERNEL cast_bf16_f32(const bf16* from, float* to, i64 n) { convert(from, to, n); }
