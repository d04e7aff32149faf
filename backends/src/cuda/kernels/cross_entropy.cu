// Cross entropy over the last dimension with integer labels, and its gradient.

// Joins two pairs (largest, sum of exponentials relative to it).
__device__ __forceinline__ void join(float& largest, float& sum, float other, float other_sum) {
    float top = fmaxf(largest, other);
    if (top == NEG_INFINITY) return;
    sum = sum * expf(largest - top) + other_sum * expf(other - top);
    largest = top;
}

// One row a block: lse, and the loss of the row (0 where the label is ignored), in one pass over the logits.
template <class T>
__device__ __forceinline__ void losses(const T* logits, const i64* labels, float* lse, float* loss, i64 rows, i64 classes,
                                       i64 ignored, Fault* fault) {
    __shared__ float tops[32], sums[32];
    for (i64 row = blockIdx.x; row < rows; row += gridDim.x) {
        const T* from = logits + row * classes;
        float largest = NEG_INFINITY, sum = 0.0f;
        for_ragged_row(classes, [&](i64 i, auto count) {
            float group[decltype(count)::value];
            load(group, from + i);
            for (float v : group) {
                if (v > largest) {
                    sum = sum * expf(largest - v) + 1.0f;
                    largest = v;
                } else if (v != NEG_INFINITY) {
                    sum += expf(v - largest);
                }
            }
        }, from);
        for (int offset = 16; offset > 0; offset >>= 1) {
            float other = __shfl_xor_sync(0xffffffffu, largest, offset);
            float other_sum = __shfl_xor_sync(0xffffffffu, sum, offset);
            join(largest, sum, other, other_sum);
        }
        if ((threadIdx.x & 31) == 0) {
            tops[threadIdx.x >> 5] = largest;
            sums[threadIdx.x >> 5] = sum;
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            for (u32 warp = 1; warp < blockDim.x / 32; warp++) join(largest, sum, tops[warp], sums[warp]);
            float total = largest + logf(sum);
            i64 label = labels[row];
            lse[row] = total;
            loss[row] = 0.0f;
            if (label != ignored && (label < 0 || label >= classes)) note(fault, 2, label, row, classes);
            else if (label != ignored) loss[row] = total - wide(from[label]);
        }
        __syncthreads();
    }
}

// (e^(logits - lse) - onehot(label)) ds, zeros where the label is ignored; the result may lie over the logits.
template <class T>
__device__ __forceinline__ void losses_grad(const T* logits, const i64* labels, const float* lse, const float* ds, T* out,
                                            i64 rows, i64 classes, i64 ignored) {
    float scale = ds[0];
    for (i64 row = blockIdx.x; row < rows; row += gridDim.x) {
        const T* from = logits + row * classes;
        T* to = out + row * classes;
        i64 label = labels[row];
        float total = lse[row];
        for_ragged_row(classes, [&](i64 i, auto count) {
            constexpr int M = decltype(count)::value;
            float v[M];
            load(v, from + i);
            for (int k = 0; k < M; k++) {
                float p = expf(v[k] - total) * scale;
                v[k] = label == ignored ? 0.0f : (i + k == label ? p - scale : p);
            }
            store(to + i, v);
        }, from, to);
    }
}

#define CROSS_ENTROPY(T, SUFFIX)                                                                                          \
    KERNEL cross_entropy##SUFFIX(const T* logits, const i64* labels, float* lse, float* loss, i64 rows, i64 classes,      \
                                 i64 ignored, Fault* fault) {                                                             \
        losses(logits, labels, lse, loss, rows, classes, ignored, fault);                                                 \
    }                                                                                                                     \
    KERNEL cross_entropy_grad##SUFFIX(const T* logits, const i64* labels, const float* lse, const float* ds, T* out,      \
                                      i64 rows, i64 classes, i64 ignored) {                                               \
        losses_grad(logits, labels, lse, ds, out, rows, classes, ignored);                                                \
    }

FOR_FLOATS(CROSS_ENTROPY)
