// Layer norm over the last dimension and its gradients; softmax over the last dimension and its gradient.

// One row a block. x, y [rows, h]  mean, rstd [rows]
KERNEL layer_norm(const float* x, const float* gamma, const float* beta, float* y, float* mean, float* rstd, i64 rows,
                  i64 h, float eps) {
    for (i64 row = blockIdx.x; row < rows; row += gridDim.x) {
        const float* from = x + row * h;
        float* to = y + row * h;
        float sum = 0.0f;
        for (i64 i = threadIdx.x; i < h; i += blockDim.x) sum += from[i];
        float mu = block_sum(sum) / (float)h;
        float squares = 0.0f;
        for (i64 i = threadIdx.x; i < h; i += blockDim.x) squares += (from[i] - mu) * (from[i] - mu);
        float scale = 1.0f / sqrtf(block_sum(squares) / (float)h + eps);
        for (i64 i = threadIdx.x; i < h; i += blockDim.x) to[i] = (from[i] - mu) * scale * gamma[i] + beta[i];
        if (threadIdx.x == 0) {
            mean[row] = mu;
            rstd[row] = scale;
        }
    }
}

// dx = rstd (g dy - mean(g dy) - n mean(g dy n)), n the normalised row
KERNEL layer_norm_grad(const float* x, const float* gamma, const float* mean, const float* rstd, const float* dy,
                       float* dx, i64 rows, i64 h) {
    for (i64 row = blockIdx.x; row < rows; row += gridDim.x) {
        const float *from = x + row * h, *grad = dy + row * h;
        float mu = mean[row], scale = rstd[row], sum = 0.0f, dot = 0.0f;
        for (i64 i = threadIdx.x; i < h; i += blockDim.x) {
            float g = gamma[i] * grad[i];
            sum += g;
            dot += g * ((from[i] - mu) * scale);
        }
        sum = block_sum(sum) / (float)h;
        dot = block_sum(dot) / (float)h;
        for (i64 i = threadIdx.x; i < h; i += blockDim.x)
            dx[row * h + i] = scale * (gamma[i] * grad[i] - sum - (from[i] - mu) * scale * dot);
    }
}

// Partial sums over a slice of the rows; 32 columns a block, eight threads each. partial [slices, 2, h]
KERNEL layer_norm_param_grad(const float* x, const float* mean, const float* rstd, const float* dy, float* partial,
                             i64 rows, i64 h) {
    __shared__ float gains[8][32], biases[8][32];
    int lane = threadIdx.x & 31, part = threadIdx.x >> 5;
    i64 column = blockIdx.x * 32ll + lane;
    i64 per_slice = (rows + gridDim.y - 1) / gridDim.y;
    i64 start = blockIdx.y * per_slice, end = start + per_slice < rows ? start + per_slice : rows;
    float gain = 0.0f, bias = 0.0f;
    if (column < h)
        for (i64 row = start + part; row < end; row += 8) {
            float grad = dy[row * h + column];
            gain += grad * ((x[row * h + column] - mean[row]) * rstd[row]);
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

KERNEL layer_norm_param_sum(const float* partial, float* dgamma, float* dbeta, i64 h, i64 n_slices) {
    FOR_EACH(i, 2 * h) {
        float sum = partial[i];
        for (i64 slice = 1; slice < n_slices; slice++) sum += partial[slice * 2 * h + i];
        if (i < h) dgamma[i] = sum;
        else dbeta[i - h] = sum;
    }
}

// y may be x.
KERNEL softmax(const float* x, float* y, i64 rows, i64 n) {
    for (i64 row = blockIdx.x; row < rows; row += gridDim.x) {
        const float* from = x + row * n;
        float largest = NEG_INFINITY, sum = 0.0f;
        for (i64 i = threadIdx.x; i < n; i += blockDim.x) largest = fmaxf(largest, from[i]);
        largest = block_max(largest);
        for (i64 i = threadIdx.x; i < n; i += blockDim.x) sum += expf(from[i] - largest);
        sum = block_sum(sum);
        for (i64 i = threadIdx.x; i < n; i += blockDim.x) y[row * n + i] = expf(from[i] - largest) / sum;
    }
}

// dx = y (dy - sum of y dy); dx may be y or dy.
KERNEL softmax_grad(const float* y, const float* dy, float* dx, i64 rows, i64 n) {
    for (i64 row = blockIdx.x; row < rows; row += gridDim.x) {
        float dot = 0.0f;
        for (i64 i = threadIdx.x; i < n; i += blockDim.x) dot += y[row * n + i] * dy[row * n + i];
        dot = block_sum(dot);
        for (i64 i = threadIdx.x; i < n; i += blockDim.x)
            dx[row * n + i] = y[row * n + i] * (dy[row * n + i] - dot);
    }
}
