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

// w *= 1 - lr decay;  m' = b1 m + (1 - b1) g;  v' = b2 v + (1 - b2) g²;
// w' = w - lr / (1 - b1^t) m' / (sqrt v' / sqrt(1 - b2^t) + eps)
KERNEL adamw(const float* w, const float* grad, const float* m, const float* v, float* w_out, float* m_out, float* v_out,
             const float* lr, const float* step, const float* clip, double beta1, double beta2, double eps, double decay,
             i64 n) {
    // Once a block, in f64: 1 - lr decay, lr / (1 - b1^t), sqrt(1 - b2^t).
    __shared__ float factors[3];
    if (threadIdx.x == 0) {
        double rate = lr[0], t = floor((double)step[0]);
        factors[0] = (float)(1.0 - rate * decay);
        factors[1] = (float)(rate / (1.0 - pow(beta1, t)));
        factors[2] = (float)sqrt(1.0 - pow(beta2, t));
    }
    __syncthreads();
    float scale = clip ? clip[0] : 1.0f;
    float mix1 = (float)(1.0 - beta1), keep2 = (float)beta2, mix2 = (float)(1.0 - beta2), small = (float)eps;
    bool vector = is_vector(w) && is_vector(grad) && is_vector(m) && is_vector(v) && is_vector(w_out) &&
                  is_vector(m_out) && is_vector(v_out);
    i64 n4 = vector ? n / 4 : 0;
    FOR_EACH(i, n4) {
        float4 ws = ((const float4*)w)[i], gs = ((const float4*)grad)[i];
        float4 ms = ((const float4*)m)[i], vs = ((const float4*)v)[i];
        Moments a = adamw_of({ws.x, ms.x, vs.x}, gs.x * scale, mix1, keep2, mix2, factors, small);
        Moments b = adamw_of({ws.y, ms.y, vs.y}, gs.y * scale, mix1, keep2, mix2, factors, small);
        Moments c = adamw_of({ws.z, ms.z, vs.z}, gs.z * scale, mix1, keep2, mix2, factors, small);
        Moments d = adamw_of({ws.w, ms.w, vs.w}, gs.w * scale, mix1, keep2, mix2, factors, small);
        ((float4*)w_out)[i] = {a.w, b.w, c.w, d.w};
        ((float4*)m_out)[i] = {a.m, b.m, c.m, d.m};
        ((float4*)v_out)[i] = {a.v, b.v, c.v, d.v};
    }
    FOR_EACH(j, n - 4 * n4) {
        i64 i = 4 * n4 + j;
        Moments s = adamw_of({w[i], m[i], v[i]}, grad[i] * scale, mix1, keep2, mix2, factors, small);
        w_out[i] = s.w;
        m_out[i] = s.m;
        v_out[i] = s.v;
    }
}
