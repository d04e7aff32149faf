// Optimizer steps on one parameter. Results may lie over the operands that they replace.

// g = clip grad + decay w;  w' = w - lr g. A null clip is 1.
KERNEL sgd(const float* w, const float* grad, float* w_out, const float* lr, const float* clip, float decay, i64 n) {
    float rate = lr[0], scale = clip ? clip[0] : 1.0f;
    FOR_EACH(i, n) w_out[i] = w[i] - rate * (grad[i] * scale + decay * w[i]);
}

// buf' = momentum buf + g;  w' = w - lr buf'
KERNEL sgd_momentum(const float* w, const float* grad, const float* buf, float* w_out, float* buf_out, const float* lr,
                    const float* clip, float momentum, float decay, i64 n) {
    float rate = lr[0], scale = clip ? clip[0] : 1.0f;
    FOR_EACH(i, n) {
        float velocity = momentum * buf[i] + (grad[i] * scale + decay * w[i]);
        buf_out[i] = velocity;
        w_out[i] = w[i] - rate * velocity;
    }
}

struct Moments {
    float w, m, v;
};

__device__ __forceinline__ Moments adamw_of(Moments s, float g, float mix1, float beta2, float mix2, const float* factors,
                                            float eps) {
    s.m += mix1 * (g - s.m);
    s.v = s.v * beta2 + mix2 * g * g;
    s.w = s.w * factors[0] - factors[1] * (s.m / (sqrtf(s.v) / factors[2] + eps));
    return s;
}

// One parameter: what is read of it, what is written, and the number of the first chunk that is its where there are several. For
// `sgd` with momentum m is the buffer; what there is none of is null.
struct Parameter {
    const float *w, *grad, *m, *v;
    float *w_out, *m_out, *v_out;
    i64 n, first;
};

// What a step of AdamW takes from its scalars; factors: 1 - lr decay, lr / (1 - b1^t), sqrt(1 - b2^t).
struct Adamw {
    const float* factors;
    float scale, mix1, keep2, mix2, small;
};

// Once a block, in f64; the factors are in its shared memory.
__device__ __forceinline__ Adamw adamw_scalars(float* factors, const float* lr, const float* step, const float* clip,
                                               double beta1, double beta2, double eps, double decay) {
    if (threadIdx.x == 0) {
        double rate = lr[0], t = floor((double)step[0]);
        factors[0] = (float)(1.0 - rate * decay);
        factors[1] = (float)(rate / (1.0 - pow(beta1, t)));
        factors[2] = (float)sqrt(1.0 - pow(beta2, t));
    }
    __syncthreads();
    return {factors, clip ? clip[0] : 1.0f, (float)(1.0 - beta1), (float)beta2, (float)(1.0 - beta2), (float)eps};
}

__device__ __forceinline__ Moments adamw_moved(const Adamw& by, float w, float m, float v, float grad) {
    return adamw_of({w, m, v}, grad * by.scale, by.mix1, by.keep2, by.mix2, by.factors, by.small);
}

// Elements 4 i to 4 i + 3.
__device__ __forceinline__ void adamw_four(const Parameter& p, const Adamw& by, i64 i) {
    float4 ws = ((const float4*)p.w)[i], gs = ((const float4*)p.grad)[i];
    float4 ms = ((const float4*)p.m)[i], vs = ((const float4*)p.v)[i];
    Moments a = adamw_moved(by, ws.x, ms.x, vs.x, gs.x), b = adamw_moved(by, ws.y, ms.y, vs.y, gs.y);
    Moments c = adamw_moved(by, ws.z, ms.z, vs.z, gs.z), d = adamw_moved(by, ws.w, ms.w, vs.w, gs.w);
    ((float4*)p.w_out)[i] = {a.w, b.w, c.w, d.w};
    ((float4*)p.m_out)[i] = {a.m, b.m, c.m, d.m};
    ((float4*)p.v_out)[i] = {a.v, b.v, c.v, d.v};
}

__device__ __forceinline__ void adamw_one(const Parameter& p, const Adamw& by, i64 i) {
    Moments s = adamw_moved(by, p.w[i], p.m[i], p.v[i], p.grad[i]);
    p.w_out[i] = s.w;
    p.m_out[i] = s.m;
    p.v_out[i] = s.v;
}

__device__ __forceinline__ bool has_vectors(const Parameter& p) {
    return is_vector(p.w) && is_vector(p.grad) && is_vector(p.m) && is_vector(p.v) && is_vector(p.w_out) &&
           is_vector(p.m_out) && is_vector(p.v_out);
}

// w *= 1 - lr decay;  m' = b1 m + (1 - b1) g;  v' = b2 v + (1 - b2) g²;
// w' = w - lr / (1 - b1^t) m' / (sqrt v' / sqrt(1 - b2^t) + eps)
KERNEL adamw(const float* w, const float* grad, const float* m, const float* v, float* w_out, float* m_out, float* v_out,
             const float* lr, const float* step, const float* clip, double beta1, double beta2, double eps, double decay,
             i64 n) {
    __shared__ float factors[3];
    Adamw by = adamw_scalars(factors, lr, step, clip, beta1, beta2, eps, decay);
    Parameter p = {w, grad, m, v, w_out, m_out, v_out, n, 0};
    i64 n4 = has_vectors(p) ? n / 4 : 0;
    FOR_EACH(i, n4) adamw_four(p, by, i);
    FOR_EACH(j, n - 4 * n4) adamw_one(p, by, 4 * n4 + j);
}

// Some parameters; blocks take chunks of CHUNK elements, which are numbered through all of them.
struct Parameters {
    i64 n;
    Parameter at[48];
};

#define CHUNK 4096ll

// The parameter that a chunk is of: the last whose first chunk is not behind it.
__device__ __forceinline__ i64 owner(const Parameters& all, i64 chunk) {
    i64 low = 0, high = all.n;
    while (high - low > 1) {
        i64 middle = (low + high) / 2;
        if (all.at[middle].first <= chunk) low = middle;
        else high = middle;
    }
    return low;
}

// The end of the elements of a chunk that begins at `start`.
__device__ __forceinline__ i64 chunk_end(const Parameter& p, i64 start) { return start + CHUNK < p.n ? start + CHUNK : p.n; }

KERNEL adamw_many(Parameters all, i64 n_chunks, const float* lr, const float* step, const float* clip, double beta1,
                  double beta2, double eps, double decay) {
    __shared__ float factors[3];
    Adamw by = adamw_scalars(factors, lr, step, clip, beta1, beta2, eps, decay);
    for (i64 chunk = blockIdx.x; chunk < n_chunks; chunk += gridDim.x) {
        const Parameter& p = all.at[owner(all, chunk)];
        i64 start = (chunk - p.first) * CHUNK, end = chunk_end(p, start);
        i64 whole = has_vectors(p) ? end / 4 : start / 4;
        for (i64 i = start / 4 + threadIdx.x; i < whole; i += blockDim.x) adamw_four(p, by, i);
        for (i64 i = 4 * whole + threadIdx.x; i < end; i += blockDim.x) adamw_one(p, by, i);
    }
}

KERNEL sgd_many(Parameters all, i64 n_chunks, const float* lr, const float* clip, float momentum, float decay) {
    float rate = lr[0], scale = clip ? clip[0] : 1.0f;
    for (i64 chunk = blockIdx.x; chunk < n_chunks; chunk += gridDim.x) {
        const Parameter& p = all.at[owner(all, chunk)];
        i64 start = (chunk - p.first) * CHUNK, end = chunk_end(p, start);
        for (i64 i = start + threadIdx.x; i < end; i += blockDim.x) {
            float slope = p.grad[i] * scale + decay * p.w[i];
            if (p.m) {
                slope = momentum * p.m[i] + slope;
                p.m_out[i] = slope;
            }
            p.w_out[i] = p.w[i] - rate * slope;
        }
    }
}
