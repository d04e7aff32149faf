// Layer norm and rms norm over the last dimension and their gradients; softmax over the last dimension and its gradient.

// One row a team. x, y [rows, h]  gamma, beta [h]  mean, rstd [rows]
template <class Team, class T>
__device__ __forceinline__ void normalise(const T* x, const float* gamma, const float* beta, T* y, float* mean, float* rstd,
                                          i64 rows, i64 h, float eps) {
    constexpr int N = Pack<T>::N;
    for (i64 row = Team::first(); row < rows; row += Team::stride()) {
        const T* from = x + row * h;
        T* to = y + row * h;
        bool vectors = are_vectors(from, to, gamma, beta);
        float sum = 0.0f, squares = 0.0f;
        for_row<N, Team>(h, vectors, [&](i64 i, auto count) {
            float v[decltype(count)::value];
            load(v, from + i);
            for (float e : v) sum += e;
        });
        float mu = Team::sum(sum) / (float)h;
        for_row<N, Team>(h, vectors, [&](i64 i, auto count) {
            float v[decltype(count)::value];
            load(v, from + i);
            for (float e : v) squares += (e - mu) * (e - mu);
        });
        float scale = 1.0f / sqrtf(Team::sum(squares) / (float)h + eps);
        for_row<N, Team>(h, vectors, [&](i64 i, auto count) {
            constexpr int M = decltype(count)::value;
            float v[M], gain[M], bias[M];
            load(v, from + i);
            load(gain, gamma + i);
            load(bias, beta + i);
            for (int k = 0; k < M; k++) v[k] = (v[k] - mu) * scale * gain[k] + bias[k];
            store(to + i, v);
        });
        if (Team::lane() == 0) {
            mean[row] = mu;
            rstd[row] = scale;
        }
    }
}

// dx = rstd (g dy - mean(g dy) - n mean(g dy n)), n the normalised row
template <class Team, class T>
__device__ __forceinline__ void normalise_grad(const T* x, const float* gamma, const float* mean, const float* rstd,
                                               const T* dy, T* dx, i64 rows, i64 h) {
    constexpr int N = Pack<T>::N;
    for (i64 row = Team::first(); row < rows; row += Team::stride()) {
        const T *from = x + row * h, *grad = dy + row * h;
        T* to = dx + row * h;
        bool vectors = are_vectors(from, grad, to, gamma);
        float mu = mean[row], scale = rstd[row], sum = 0.0f, dot = 0.0f;
        for_row<N, Team>(h, vectors, [&](i64 i, auto count) {
            constexpr int M = decltype(count)::value;
            float v[M], gain[M], d[M];
            load(v, from + i);
            load(gain, gamma + i);
            load(d, grad + i);
            for (int k = 0; k < M; k++) {
                float g = gain[k] * d[k];
                sum += g;
                dot += g * ((v[k] - mu) * scale);
            }
        });
        sum = Team::sum(sum) / (float)h;
        dot = Team::sum(dot) / (float)h;
        for_row<N, Team>(h, vectors, [&](i64 i, auto count) {
            constexpr int M = decltype(count)::value;
            float v[M], gain[M], d[M];
            load(v, from + i);
            load(gain, gamma + i);
            load(d, grad + i);
            for (int k = 0; k < M; k++) d[k] = scale * (gain[k] * d[k] - sum - (v[k] - mu) * scale * dot);
            store(to + i, d);
        });
    }
}

// Partial sums over a slice of the rows; 32 columns a block, eight threads each. partial [slices, 2, h]
template <class T>
__device__ __forceinline__ void param_grad(const T* x, const float* mean, const float* rstd, const T* dy, float* partial,
                                           i64 rows, i64 h) {
    __shared__ float gains[8][32], biases[8][32];
    int lane = threadIdx.x & 31, part = threadIdx.x >> 5;
    i64 column = blockIdx.x * 32ll + lane;
    i64 per_slice = (rows + gridDim.y - 1) / gridDim.y;
    i64 start = blockIdx.y * per_slice, end = start + per_slice < rows ? start + per_slice : rows;
    float gain = 0.0f, bias = 0.0f;
    if (column < h)
        for (i64 row = start + part; row < end; row += 8) {
            float grad = wide(dy[row * h + column]);
            gain += grad * ((wide(x[row * h + column]) - mean[row]) * rstd[row]);
            bias += grad;
        }
    gains[part][lane] = gain;
    biases[part][lane] = bias;
    __syncthreads();
    if (part == 0 && column < h) {
        for (int p = 1; p < 8; p++) {
            gain += gains[p][lane];
            bias += biases[p][lane];
        }
        partial[blockIdx.y * 2 * h + column] = gain;
        partial[blockIdx.y * 2 * h + h + column] = bias;
    }
}

#define LAYER_NORM(T, SUFFIX)                                                                                              \
    KERNEL layer_norm##SUFFIX(const T* x, const float* gamma, const float* beta, T* y, float* mean, float* rstd, i64 rows, \
                              i64 h, float eps) {                                                                          \
        if (h <= SHORT_ROW) normalise<Warp>(x, gamma, beta, y, mean, rstd, rows, h, eps);                                  \
        else normalise<Block>(x, gamma, beta, y, mean, rstd, rows, h, eps);                                                \
    }                                                                                                                      \
    KERNEL layer_norm_grad##SUFFIX(const T* x, const float* gamma, const float* mean, const float* rstd, const T* dy,      \
                                   T* dx, i64 rows, i64 h) {                                                               \
        if (h <= SHORT_ROW) normalise_grad<Warp>(x, gamma, mean, rstd, dy, dx, rows, h);                                   \
        else normalise_grad<Block>(x, gamma, mean, rstd, dy, dx, rows, h);                                                 \
    }                                                                                                                      \
    KERNEL layer_norm_param_grad##SUFFIX(const T* x, const float* mean, const float* rstd, const T* dy, float* partial,    \
                                         i64 rows, i64 h) {                                                                \
        param_grad(x, mean, rstd, dy, partial, rows, h);                                                                   \
    }

FOR_FLOATS(LAYER_NORM)

KERNEL layer_norm_param_sum(const float* partial, float* dgamma, float* dbeta, i64 h, i64 n_slices) {
    FOR_EACH(i, 2 * h) {
        float sum = partial[i];
        for (i64 slice = 1; slice < n_slices; slice++) sum += partial[slice * 2 * h + i];
        if (i < h) dgamma[i] = sum;
        else dbeta[i - h] = sum;
    }
}

// y may be x.
template <class T> __device__ __forceinline__ void softmax_rows(const T* x, T* y, i64 rows, i64 n) {
    constexpr int N = Pack<T>::N;
    for (i64 row = blockIdx.x; row < rows; row += gridDim.x) {
        const T* from = x + row * n;
        T* to = y + row * n;
        bool vectors = are_vectors(from, to);
        float largest = NEG_INFINITY, sum = 0.0f;
        for_row<N>(n, vectors, [&](i64 i, auto count) {
            float v[decltype(count)::value];
            load(v, from + i);
            for (float e : v) largest = fmaxf(largest, e);
        });
        largest = block_max(largest);
        for_row<N>(n, vectors, [&](i64 i, auto count) {
            float v[decltype(count)::value];
            load(v, from + i);
            for (float e : v) sum += expf(e - largest);
        });
        sum = block_sum(sum);
        for_row<N>(n, vectors, [&](i64 i, auto count) {
            float v[decltype(count)::value];
            load(v, from + i);
            for (float& e : v) e = expf(e - largest) / sum;
            store(to + i, v);
        });
    }
}

// dx = y (dy - sum of y dy); dx may be y or dy.
template <class T> __device__ __forceinline__ void softmax_rows_grad(const T* y, const T* dy, T* dx, i64 rows, i64 n) {
    constexpr int N = Pack<T>::N;
    for (i64 row = blockIdx.x; row < rows; row += gridDim.x) {
        const T *from = y + row * n, *grad = dy + row * n;
        T* to = dx + row * n;
        bool vectors = are_vectors(from, grad, to);
        float dot = 0.0f;
        for_row<N>(n, vectors, [&](i64 i, auto count) {
            constexpr int M = decltype(count)::value;
            float v[M], d[M];
            load(v, from + i);
            load(d, grad + i);
            for (int k = 0; k < M; k++) dot += v[k] * d[k];
        });
        dot = block_sum(dot);
        for_row<N>(n, vectors, [&](i64 i, auto count) {
            constexpr int M = decltype(count)::value;
            float v[M], d[M];
            load(v, from + i);
            load(d, grad + i);
            for (int k = 0; k < M; k++) v[k] *= d[k] - dot;
            store(to + i, v);
        });
    }
}

#define SOFTMAX(T, SUFFIX)                                                                                                 \
    KERNEL softmax##SUFFIX(const T* x, T* y, i64 rows, i64 n) { softmax_rows(x, y, rows, n); }                             \
    KERNEL softmax_grad##SUFFIX(const T* y, const T* dy, T* dx, i64 rows, i64 n) { softmax_rows_grad(y, dy, dx, rows, n); }

FOR_FLOATS(SOFTMAX)

// One row a team. x, y [rows, h]  rstd [rows]
template <class Team, class T>
__device__ __forceinline__ void rms_normalise(const T* x, const float* gamma, T* y, float* rstd, i64 rows, i64 h, float eps) {
    constexpr int N = Pack<T>::N;
    for (i64 row = Team::first(); row < rows; row += Team::stride()) {
        const T* from = x + row * h;
        T* to = y + row * h;
        bool vectors = are_vectors(from, to, gamma);
        float squares = 0.0f;
        for_row<N, Team>(h, vectors, [&](i64 i, auto count) {
            float v[decltype(count)::value];
            load(v, from + i);
            for (float e : v) squares += e * e;
        });
        float scale = 1.0f / sqrtf(Team::sum(squares) / (float)h + eps);
        for_row<N, Team>(h, vectors, [&](i64 i, auto count) {
            constexpr int M = decltype(count)::value;
            float v[M], gain[M];
            load(v, from + i);
            load(gain, gamma + i);
            for (int k = 0; k < M; k++) v[k] = v[k] * scale * gain[k];
            store(to + i, v);
        });
        if (Team::lane() == 0) rstd[row] = scale;
    }
}

// dx = rstd (g dy - n mean(g dy n)), n the normalised row
template <class Team, class T>
__device__ __forceinline__ void rms_normalise_grad(const T* x, const float* gamma, const float* rstd, const T* dy, T* dx,
                                                   i64 rows, i64 h) {
    constexpr int N = Pack<T>::N;
    for (i64 row = Team::first(); row < rows; row += Team::stride()) {
        const T *from = x + row * h, *grad = dy + row * h;
        T* to = dx + row * h;
        bool vectors = are_vectors(from, grad, to, gamma);
        float scale = rstd[row], dot = 0.0f;
        for_row<N, Team>(h, vectors, [&](i64 i, auto count) {
            constexpr int M = decltype(count)::value;
            float v[M], gain[M], d[M];
            load(v, from + i);
            load(gain, gamma + i);
            load(d, grad + i);
            for (int k = 0; k < M; k++) dot += gain[k] * d[k] * (v[k] * scale);
        });
        dot = Team::sum(dot) / (float)h;
        for_row<N, Team>(h, vectors, [&](i64 i, auto count) {
            constexpr int M = decltype(count)::value;
            float v[M], gain[M], d[M];
            load(v, from + i);
            load(gain, gamma + i);
            load(d, grad + i);
            for (int k = 0; k < M; k++) d[k] = scale * (gain[k] * d[k] - v[k] * scale * dot);
            store(to + i, d);
        });
    }
}

// Partial sums over a slice of the rows; 32 columns a block, eight threads each. partial [slices, h]
template <class T>
__device__ __forceinline__ void rms_param_grad(const T* x, const float* rstd, const T* dy, float* partial, i64 rows, i64 h) {
    __shared__ float gains[8][32];
    int lane = threadIdx.x & 31, part = threadIdx.x >> 5;
    i64 column = blockIdx.x * 32ll + lane;
    i64 per_slice = (rows + gridDim.y - 1) / gridDim.y;
    i64 start = blockIdx.y * per_slice, end = start + per_slice < rows ? start + per_slice : rows;
    float gain = 0.0f;
    if (column < h)
        for (i64 row = start + part; row < end; row += 8)
            gain += wide(dy[row * h + column]) * (wide(x[row * h + column]) * rstd[row]);
    gains[part][lane] = gain;
    __syncthreads();
    if (part == 0 && column < h) {
        for (int p = 1; p < 8; p++) gain += gains[p][lane];
        partial[blockIdx.y * h + column] = gain;
    }
}

#define RMS_NORM(T, SUFFIX)                                                                                             \
    KERNEL rms_norm##SUFFIX(const T* x, const float* gamma, T* y, float* rstd, i64 rows, i64 h, float eps) {             \
        if (h <= SHORT_ROW) rms_normalise<Warp>(x, gamma, y, rstd, rows, h, eps);                                       \
        else rms_normalise<Block>(x, gamma, y, rstd, rows, h, eps);                                                     \
    }                                                                                                                   \
    KERNEL rms_norm_grad##SUFFIX(const T* x, const float* gamma, const float* rstd, const T* dy, T* dx, i64 rows,        \
                                 i64 h) {                                                                               \
        if (h <= SHORT_ROW) rms_normalise_grad<Warp>(x, gamma, rstd, dy, dx, rows, h);                                  \
        else rms_normalise_grad<Block>(x, gamma, rstd, dy, dx, rows, h);                                                \
    }                                                                                                                   \
    KERNEL rms_norm_param_grad##SUFFIX(const T* x, const float* rstd, const T* dy, float* partial, i64 rows, i64 h) {    \
        rms_param_grad(x, rstd, dy, partial, rows, h);                                                                  \
    }
FOR_FLOATS(RMS_NORM)
