// Sums in a fixed order: over some dimensions, over everything, and of partial sums.

// One block for each of the n_out sums over n_in elements. walk: kept dimensions, inner: summed ones.
KERNEL sum_rows(const float* x, float* y, i64 n_out, i64 n_in, Walk<1> kept, Walk<1> summed) {
    for (i64 out = blockIdx.x; out < n_out; out += gridDim.x) {
        i64 base[1], at[1];
        places(kept, out, base);
        float sum = 0.0f;
        for (i64 i = threadIdx.x; i < n_in; i += blockDim.x) {
            places(summed, i, at);
            sum += x[base[0] + at[0]];
        }
        sum = block_sum(sum);
        if (threadIdx.x == 0) y[out] = sum;
    }
}

// 32 sums a block, eight threads each; a slice of the summed elements for each block along y. partial [slices, n_out]
KERNEL sum_columns(const float* x, float* partial, i64 n_out, i64 n_in, Walk<1> kept, Walk<1> summed) {
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
            sum += x[base[0] + at[0]];
        }
    }
    parts[part][lane] = sum;
    __syncthreads();
    if (part == 0 && out < n_out) {
        for (int p = 1; p < 8; p++) sum += parts[p][lane];
        partial[blockIdx.y * n_out + out] = sum;
    }
}

// y[i] = the sum of partial[.., i] over the slices
KERNEL sum_slices(const float* partial, float* y, i64 n_out, i64 n_slices) {
    FOR_EACH(i, n_out) {
        float sum = partial[i];
        for (i64 slice = 1; slice < n_slices; slice++) sum += partial[slice * n_out + i];
        y[i] = sum;
    }
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

TOTAL(squares, const float* x, (double)x[i] * (double)x[i])
TOTAL(differences, const float* x COMMA const float* y, ((double)x[i] - y[i]) * ((double)x[i] - y[i]))
TOTAL(labels, const i64* x COMMA i64 ignored, x[i] != ignored ? 1.0 : 0.0)
TOTAL(values, const float* x, x[i])

// The sum of partial sums; one block.
KERNEL total(const double* partial, i64 n, float* y) {
    double sum = 0.0;
    for (i64 i = threadIdx.x; i < n; i += blockDim.x) sum += partial[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) y[0] = (float)sum;
}
