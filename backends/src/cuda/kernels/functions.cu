// Functions of f32 and their derivatives, and remainders; element-wise kernels and generated ones compute them alike.

#define ROOT_2_BY_PI 0.7978845608028654f
#define ROOT_HALF 0.7071067811865476f
#define ONE_BY_ROOT_2_PI 0.3989422804014327f

__device__ __forceinline__ float sigmoid_of(float x) { return 1.0f / (1.0f + expf(-x)); }
__device__ __forceinline__ float gelu_inner(float x) { return ROOT_2_BY_PI * (x + 0.044715f * x * x * x); }

#define FUNCTION(NAME, VALUE) \
    __device__ __forceinline__ float f_##NAME(float x) { return VALUE; }

FUNCTION(neg, -x)
FUNCTION(exp, expf(x))
FUNCTION(log, logf(x))
FUNCTION(sqrt, sqrtf(x))
FUNCTION(reciprocal, 1.0f / x)
FUNCTION(tanh, tanhf(x))
FUNCTION(erf, erff(x))
FUNCTION(sigmoid, sigmoid_of(x))
FUNCTION(relu, x < 0.0f ? 0.0f : x)
FUNCTION(gelu, 0.5f * x * (1.0f + erff(x * ROOT_HALF)))
FUNCTION(gelu_tanh, 0.5f * x * (1.0f + tanhf(gelu_inner(x))))
FUNCTION(silu, x * sigmoid_of(x))
FUNCTION(sin, sinf(x))
FUNCTION(cos, cosf(x))
FUNCTION(abs, fabsf(x))
FUNCTION(sign, x > 0.0f ? 1.0f : (x < 0.0f ? -1.0f : x))
FUNCTION(floor, floorf(x))
FUNCTION(ceil, ceilf(x))
FUNCTION(round, rintf(x))
FUNCTION(softplus, fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x))))

// Derivatives f'(x).
__device__ __forceinline__ float d_neg(float) { return -1.0f; }
__device__ __forceinline__ float d_exp(float x) { return expf(x); }
__device__ __forceinline__ float d_log(float x) { return 1.0f / x; }
__device__ __forceinline__ float d_sqrt(float x) { return 0.5f / sqrtf(x); }
__device__ __forceinline__ float d_reciprocal(float x) { return -1.0f / (x * x); }
__device__ __forceinline__ float d_tanh(float x) {
    float t = tanhf(x);
    return 1.0f - t * t;
}
__device__ __forceinline__ float d_erf(float x) { return 1.1283791670955126f * expf(-x * x); }
__device__ __forceinline__ float d_sigmoid(float x) {
    float s = sigmoid_of(x);
    return s * (1.0f - s);
}
__device__ __forceinline__ float d_relu(float x) { return x > 0.0f ? 1.0f : 0.0f; }
__device__ __forceinline__ float d_gelu(float x) {
    return 0.5f * (1.0f + erff(x * ROOT_HALF)) + x * ONE_BY_ROOT_2_PI * expf(-0.5f * x * x);
}
__device__ __forceinline__ float d_gelu_tanh(float x) {
    float t = tanhf(gelu_inner(x));
    float inner = ROOT_2_BY_PI * (1.0f + 0.134145f * x * x);
    return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * inner;
}
__device__ __forceinline__ float d_silu(float x) {
    float s = sigmoid_of(x);
    return s * (1.0f + x * (1.0f - s));
}
__device__ __forceinline__ float d_sin(float x) { return cosf(x); }
__device__ __forceinline__ float d_cos(float x) { return -sinf(x); }
__device__ __forceinline__ float d_abs(float x) { return f_sign(x); }
__device__ __forceinline__ float d_softplus(float x) { return sigmoid_of(x); }

// Functions of two operands.
__device__ __forceinline__ float larger_of(float a, float b) { return a > b || a != a ? a : b; }
__device__ __forceinline__ float smaller_of(float a, float b) { return a < b || a != a ? a : b; }
// The remainder that has the sign of b.
__device__ __forceinline__ float modulo_of(float a, float b) {
    float rest = fmodf(a, b);
    if (rest == 0.0f) return copysignf(0.0f, b);
    return (rest < 0.0f) != (b < 0.0f) ? rest + b : rest;
}
__device__ __forceinline__ i64 integer_rest(i64 a, i64 b) { return b == 0 || b == -1 ? 0 : a % b; }
__device__ __forceinline__ i64 integer_modulo(i64 a, i64 b) {
    i64 rest = integer_rest(a, b);
    return rest != 0 && (rest < 0) != (b < 0) ? rest + b : rest;
}
