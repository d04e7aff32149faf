// Sums in a fixed order: over some dimensions, over everything, and of partial sums.

// One block for each of the n_out sums over n_in elements. walk: kept dimensions, inner: summed ones.
template <class T>
__device__ __forceinline__ void rows_of(const T* x, T* y, i64 n_out, i64 n_in, const Walk<1>& kept, const Walk<1>& summed) {
    for (i64 out = blockIdx.x; out < n_out; out += gridDim.x) {
        i64 base[1], at[1];
        places(kept, out, base);
        float sum = 0.0f;
        for (i64 i = threadIdx.x; i < n_in; i += blockDim.x) {
            places(summed, i, at);
            sum += wide(x[base[0] + at[0]]);
        }
        sum = block_sum(sum);
        if (threadIdx.x == 0) y[out] = narrow<T>(sum);
    }
}

// 32 sums a block, eight threads each; a slice of the summed elements for each block along y. partial [slices, n_out]
template <class T, class Y>
__device__ __forceinline__ void columns_of(const T* x, Y* partial, i64 n_out, i64 n_in, const Walk<1>& kept,
                                           const Walk<1>& summed) {
    __shared__ float parts[8][32];
    int lane = threadIdx.x & 31, part = threadIdx.x >> 5;
    i64 out = blockIdx.x * 32ll + lane;
    i64 per_slice = (n_in + gridDim.y - 1) / gridDim.y;
    i64 start = blockIdx.y * per_slice, end = start + per_slice < n_in ? start + per_slice : n_in;
    float sum = 0.0f;
    if (out < n_out) {
        i64 base[1], at[1];
        places(kept, out, base);
        for (i64 i = start + part; i < end; i += 8) {
            places(summed, i, at);
            sum += wide(x[base[0] + at[0]]);
        }
    }
    parts[part][lane] = sum;
    __syncthreads();
    if (part == 0 && out < n_out) {
        for (int p = 1; p < 8; p++) sum += parts[p][lane];
        partial[blockIdx.y * n_out + out] = narrow<Y>(sum);
    }
}

// The columns of a matrix x [n_in, n_out] as it lies, 16 bytes a thread: 32 packs a block, eight threads each; a slice of the rows
// for each block along y. partial [slices, n_out]
template <class T, class Y> __device__ __forceinline__ void packed_columns(const T* x, Y* partial, i64 n_out, i64 n_in) {
    constexpr int N = Pack<T>::N;
    __shared__ float parts[8][32 * N];
    int lane = threadIdx.x & 31, part = threadIdx.x >> 5;
    i64 first = blockIdx.x * 32ll * N, out = first + lane * N;
    i64 per_slice = (n_in + gridDim.y - 1) / gridDim.y;
    i64 start = blockIdx.y * per_slice, end = start + per_slice < n_in ? start + per_slice : n_in;
    float sum[N] = {};
    if (out < n_out) {
#pragma unroll 4
        for (i64 i = start + part; i < end; i += 8) {
            float v[N];
            load(v, x + i * n_out + out);
            for (int k = 0; k < N; k++) sum[k] += v[k];
        }
    }
    for (int k = 0; k < N; k++) parts[part][lane * N + k] = sum[k];
    __syncthreads();
    int column = threadIdx.x;
    if (column < 32 * N && first + column < n_out) {
        float total = parts[0][column];
        for (int p = 1; p < 8; p++) total += parts[p][column];
        partial[blockIdx.y * n_out + first + column] = narrow<Y>(total);
    }
}

// y[i] = the sum of partial[.., i] over the slices
template <class T> __device__ __forceinline__ void slices_of(const float* partial, T* y, i64 n_out, i64 n_slices) {
    FOR_EACH(i, n_out) {
        float sum = partial[i];
        for (i64 slice = 1; slice < n_slices; slice++) sum += partial[slice * n_out + i];
        y[i] = narrow<T>(sum);
    }
}

#define SUMS(T, SUFFIX)                                                                                                 \
    KERNEL sum_rows##SUFFIX(const T* x, T* y, i64 n_out, i64 n_in, Walk<1> kept, Walk<1> summed) {                       \
        rows_of(x, y, n_out, n_in, kept, summed);                                                                       \
    }                                                                                                                   \
    KERNEL sum_columns##SUFFIX(const T* x, T* y, i64 n_out, i64 n_in, Walk<1> kept, Walk<1> summed) {                    \
        columns_of(x, y, n_out, n_in, kept, summed);                                                                    \
    }                                                                                                                   \
    KERNEL sum_column_slices##SUFFIX(const T* x, float* partial, i64 n_out, i64 n_in, Walk<1> kept, Walk<1> summed) {    \
        columns_of(x, partial, n_out, n_in, kept, summed);                                                              \
    }                                                                                                                   \
    KERNEL sum_packed_columns##SUFFIX(const T* x, T* y, i64 n_out, i64 n_in) { packed_columns(x, y, n_out, n_in); }      \
    KERNEL sum_packed_column_slices##SUFFIX(const T* x, float* partial, i64 n_out, i64 n_in) {                           \
        packed_columns(x, partial, n_out, n_in);                                                                        \
    }                                                                                                                   \
    KERNEL sum_packed_slices##SUFFIX(const float* partial, T* y, i64 n_out, i64 n_slices) {                              \
        packed_columns(partial, y, n_out, n_slices);                                                                    \
    }                                                                                                                   \
    KERNEL sum_slices##SUFFIX(const float* partial, T* y, i64 n_out, i64 n_slices) { slices_of(partial, y, n_out, n_slices); }
FOR_FLOATS(SUMS)

// y = the sum of n_parts parts of n elements, in their order, rounded once; the parts lie one after the other.
KERNEL sum_parts_bf16(const bf16* parts, bf16* y, i64 n, i64 n_parts) {
    constexpr int N = Pack<bf16>::N;
    for_groups<N>(n, n % N == 0 && are_vectors(parts, y), [&](i64 i, auto count) {
        constexpr int M = decltype(count)::value;
        float sum[M], v[M];
        load(sum, parts + i);
        for (i64 part = 1; part < n_parts; part++) {
            load(v, parts + part * n + i);
            for (int k = 0; k < M; k++) sum[k] += v[k];
        }
        store(y + i, sum);
    });
}

// Partial sums of a function of the elements, one a block, in f64.
#define TOTAL(NAME, ARGUMENTS, VALUE)                         \
    KERNEL total_##NAME(ARGUMENTS, i64 n, double* partial) {  \
        double sum = 0.0;                                     \
        FOR_EACH(i, n) sum += (double)(VALUE);                \
        sum = block_sum(sum);                                 \
        if (threadIdx.x == 0) partial[blockIdx.x] = sum;      \
    }
#define COMMA ,

#define TOTALS(T, SUFFIX)                                                                              \
    TOTAL(squares##SUFFIX, const T* x, (double)wide(x[i]) * (double)wide(x[i]))                        \
    TOTAL(differences##SUFFIX, const T* x COMMA const T* y,                                            \
          ((double)wide(x[i]) - wide(y[i])) * ((double)wide(x[i]) - wide(y[i])))
FOR_FLOATS(TOTALS)
TOTAL(labels, const i64* x COMMA i64 ignored, x[i] != ignored ? 1.0 : 0.0)
TOTAL(values, const float* x, x[i])

// The sum of partial sums; one block.
#define TOTAL_OF(T, SUFFIX)                                                              \
    KERNEL total##SUFFIX(const double* partial, i64 n, T* y) {                           \
        double sum = 0.0;                                                                \
        for (i64 i = threadIdx.x; i < n; i += blockDim.x) sum += partial[i];             \
        sum = block_sum(sum);                                                            \
        if (threadIdx.x == 0) y[0] = narrow<T>((float)sum);                              \
    }
FOR_FLOATS(TOTAL_OF)

// Some tensors: the blocks that add up each of them, and the number of the first.
struct Squared {
    const float* x;
    float* y;
    i64 n, blocks, first;
};
struct AllSquared {
    i64 n;
    Squared at[80];
};

// What `total_squares` does with each tensor; block b is block b - first of the last tensor whose first is not behind it.
KERNEL total_squares_many(AllSquared all, double* partial) {
    i64 low = 0, high = all.n;
    while (high - low > 1) {
        i64 middle = (low + high) / 2;
        if (all.at[middle].first <= blockIdx.x) low = middle;
        else high = middle;
    }
    const Squared& t = all.at[low];
    double sum = 0.0;
    for (i64 i = (blockIdx.x - t.first) * blockDim.x + threadIdx.x; i < t.n; i += t.blocks * blockDim.x)
        sum += (double)t.x[i] * (double)t.x[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// What `total` does with the partial sums of each tensor; one block a tensor.
KERNEL total_many(AllSquared all, const double* partial) {
    const Squared& t = all.at[blockIdx.x];
    double sum = 0.0;
    for (i64 i = threadIdx.x; i < t.blocks; i += blockDim.x) sum += partial[t.first + i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) t.y[0] = (float)sum;
}
