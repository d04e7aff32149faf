// Element-wise functions of floats and i64, their derivatives, and choices. Results may lie over operands of their own shape.

template <class F, class T> __device__ __forceinline__ void map1(const T* x, T* y, i64 n) {
    const int N = Pack<T>::N;
    i64 n_packs = is_vector(x) && is_vector(y) ? n / N : 0;
    FOR_EACH(i, n_packs) {
        Pack<T> v = ((const Pack<T>*)x)[i];
#pragma unroll
        for (int j = 0; j < N; j++) v.of[j] = narrow<T>(F::of(wide(v.of[j])));
        store_pack(y + N * i, v);
    }
    FOR_EACH(j, n - N * n_packs) y[N * n_packs + j] = narrow<T>(F::of(wide(x[N * n_packs + j])));
}

template <class F, class T> __device__ __forceinline__ void map2(const T* a, const T* b, T* y, i64 n) {
    const int N = Pack<T>::N;
    i64 n_packs = is_vector(a) && is_vector(b) && is_vector(y) ? n / N : 0;
    FOR_EACH(i, n_packs) {
        Pack<T> u = ((const Pack<T>*)a)[i], v = ((const Pack<T>*)b)[i];
#pragma unroll
        for (int j = 0; j < N; j++) v.of[j] = narrow<T>(F::of(wide(u.of[j]), wide(v.of[j])));
        store_pack(y + N * i, v);
    }
    FOR_EACH(j, n - N * n_packs) {
        i64 i = N * n_packs + j;
        y[i] = narrow<T>(F::of(wide(a[i]), wide(b[i])));
    }
}

// Neighbours of the operand at `at`: the same element N times where the innermost step is 0.
template <int N, class T> __device__ __forceinline__ void spread(float (&v)[N], const T* from, i64 step) {
    if (step == 1) {
        load(v, from);
    } else {
        for (float& e : v) e = wide(*from);
    }
}

template <class F, class T>
__device__ __forceinline__ void map2_walk(const T* a, const T* b, T* y, i64 n, const Walk<2>& walk) {
    constexpr int N = Pack<T>::N;
    int last = (int)walk.rank - 1;
    i64 steps[2] = {last < 0 ? 0 : walk.step[0][last], last < 0 ? 0 : walk.step[1][last]};
    bool groups = last >= 0 && are_vectors(a, b, y) && walks_packs(walk, N);
    for_groups<N>(n, groups, [&](i64 i, auto count) {
        constexpr int M = decltype(count)::value;
        i64 at[2];
        places(walk, i, at);
        float u[M], v[M];
        spread(u, a + at[0], M == 1 ? 1 : steps[0]);
        spread(v, b + at[1], M == 1 ? 1 : steps[1]);
        for (int k = 0; k < M; k++) v[k] = F::of(u[k], v[k]);
        store(y + i, v);
    });
}

#define UNARY(NAME)                                                                 \
    struct Of_##NAME {                                                              \
        static __device__ __forceinline__ float of(float x) { return f_##NAME(x); } \
    };                                                                              \
    KERNEL unary_##NAME(const float* x, float* y, i64 n) { map1<Of_##NAME>(x, y, n); } \
    KERNEL unary_##NAME##_bf16(const bf16* x, bf16* y, i64 n) { map1<Of_##NAME>(x, y, n); }

UNARY(neg)
UNARY(exp)
UNARY(log)
UNARY(sqrt)
UNARY(reciprocal)
UNARY(tanh)
UNARY(erf)
UNARY(sigmoid)
UNARY(relu)
UNARY(gelu)
UNARY(gelu_tanh)
UNARY(silu)
UNARY(abs)
UNARY(sign)
UNARY(sin)
UNARY(cos)
UNARY(floor)
UNARY(ceil)
UNARY(round)
UNARY(softplus)

#define UNARY_GRAD(NAME)                                                                       \
    struct Grad_##NAME {                                                                       \
        static __device__ __forceinline__ float of(float x, float dy) { return dy * d_##NAME(x); } \
    };                                                                                         \
    KERNEL grad_##NAME(const float* x, const float* dy, float* dx, i64 n) { map2<Grad_##NAME>(x, dy, dx, n); } \
    KERNEL grad_##NAME##_bf16(const bf16* x, const bf16* dy, bf16* dx, i64 n) { map2<Grad_##NAME>(x, dy, dx, n); }

UNARY_GRAD(neg)
UNARY_GRAD(exp)
UNARY_GRAD(log)
UNARY_GRAD(sqrt)
UNARY_GRAD(reciprocal)
UNARY_GRAD(tanh)
UNARY_GRAD(erf)
UNARY_GRAD(sigmoid)
UNARY_GRAD(relu)
UNARY_GRAD(gelu)
UNARY_GRAD(gelu_tanh)
UNARY_GRAD(silu)
UNARY_GRAD(abs)
UNARY_GRAD(sin)
UNARY_GRAD(cos)
UNARY_GRAD(softplus)

#define IS_NAN(T, SUFFIX)                               \
    KERNEL is_nan##SUFFIX(const T* x, u8* y, i64 n) {    \
        FOR_EACH(i, n) y[i] = wide(x[i]) != wide(x[i]);  \
    }
FOR_FLOATS(IS_NAN)

#define BINARY_OF(NAME, T, SUFFIX)                                                                                  \
    KERNEL binary_##NAME##SUFFIX(const T* a, const T* b, T* y, i64 n) { map2<Of_##NAME>(a, b, y, n); }             \
    KERNEL binary_##NAME##_walk##SUFFIX(const T* a, const T* b, T* y, i64 n, Walk<2> walk) {                       \
        map2_walk<Of_##NAME>(a, b, y, n, walk);                                                                    \
    }
#define BINARY(NAME, VALUE)                                                                    \
    struct Of_##NAME {                                                                         \
        static __device__ __forceinline__ float of(float a, float b) { return VALUE; }         \
    };                                                                                         \
    BINARY_OF(NAME, float, )                                                                   \
    BINARY_OF(NAME, bf16, _bf16)

BINARY(add, a + b)
BINARY(sub, a - b)
BINARY(mul, a * b)
BINARY(div, a / b)
BINARY(pow, powf(a, b))
BINARY(max, larger_of(a, b))
BINARY(min, smaller_of(a, b))
BINARY(mod, modulo_of(a, b))
BINARY(rem, fmodf(a, b))

#define INTEGER(NAME, VALUE)                                                                   \
    KERNEL integer_##NAME(const i64* xs, const i64* ys, i64* out, i64 n, Walk<2> walk) {       \
        FOR_EACH(i, n) {                                                                       \
            i64 at[2];                                                                         \
            places(walk, i, at);                                                               \
            u64 a = (u64)xs[at[0]], b = (u64)ys[at[1]];                                        \
            out[i] = (i64)(VALUE);                                                             \
        }                                                                                      \
    }

INTEGER(add, a + b)
INTEGER(sub, a - b)
INTEGER(mul, a * b)
// Towards zero; 0 where it has no value.
INTEGER(div, b == 0 || ((i64)b == -1 && a == 0x8000000000000000ull) ? 0 : (i64)a / (i64)b)
INTEGER(max, (i64)a > (i64)b ? a : b)
INTEGER(min, (i64)a < (i64)b ? a : b)
INTEGER(mod, integer_modulo((i64)a, (i64)b))
INTEGER(rem, integer_rest((i64)a, (i64)b))

// The sum of n_terms of eight operands, in their order. A partial sum that another launch goes on with is of f32.
template <class T, class P, class Y>
__device__ __forceinline__ void sum_terms(Y* y, i64 n, i64 n_terms, const P* first, const T* const (&rest)[7]) {
    bool vectors = are_vectors(y, first, rest[0], rest[1], rest[2], rest[3], rest[4], rest[5], rest[6]);
    for_groups<8>(n, vectors, [&](i64 i, auto count) {
        constexpr int M = decltype(count)::value;
        float sum[M], v[M];
        load(sum, first + i);
#pragma unroll
        for (int t = 1; t < 8; t++)
            if (t < n_terms) {
                load(v, rest[t - 1] + i);
                for (int k = 0; k < M; k++) sum[k] += v[k];
            }
        store(y + i, sum);
    });
}

#define ADD_N(NAME, T, P, Y)                                                                                            \
    KERNEL NAME(Y* y, i64 n, i64 n_terms, const P* p0, const T* p1, const T* p2, const T* p3, const T* p4, const T* p5, \
                const T* p6, const T* p7) {                                                                             \
        const T* const rest[7] = {p1, p2, p3, p4, p5, p6, p7};                                                          \
        sum_terms(y, n, n_terms, p0, rest);                                                                             \
    }
ADD_N(add_n, float, float, float)
ADD_N(add_n_bf16, bf16, bf16, bf16)
// All but the last of several launches, the first and the others; then the last one.
ADD_N(add_n_bf16_first, bf16, bf16, float)
ADD_N(add_n_bf16_next, bf16, float, float)
ADD_N(add_n_bf16_last, bf16, float, bf16)

template <class T>
__device__ __forceinline__ void choose(const u8* condition, const T* yes, const T* no, T* y, i64 n, const Walk<3>& walk) {
    FOR_EACH(i, n) {
        i64 at[3];
        places(walk, i, at);
        y[i] = condition[at[0]] ? yes[at[1]] : no[at[2]];
    }
}

KERNEL where_1(const u8* c, const u8* a, const u8* b, u8* y, i64 n, Walk<3> walk) { choose(c, a, b, y, n, walk); }
KERNEL where_2(const u8* c, const u16* a, const u16* b, u16* y, i64 n, Walk<3> walk) { choose(c, a, b, y, n, walk); }
KERNEL where_4(const u8* c, const u32* a, const u32* b, u32* y, i64 n, Walk<3> walk) { choose(c, a, b, y, n, walk); }
KERNEL where_8(const u8* c, const u64* a, const u64* b, u64* y, i64 n, Walk<3> walk) { choose(c, a, b, y, n, walk); }

// y = 2 (prediction - target) ds
#define MSE_GRAD(T, SUFFIX)                                                                                \
    KERNEL mse_grad##SUFFIX(const T* prediction, const T* target, const T* ds, T* y, i64 n) {              \
        float factor = 2.0f * wide(ds[0]);                                                                 \
        FOR_EACH(i, n) y[i] = narrow<T>(factor * (wide(prediction[i]) - wide(target[i])));                 \
    }
FOR_FLOATS(MSE_GRAD)

// min(1, max_norm / (norm + 1e-6))
KERNEL clip_scale(const float* norm, float* y, double max_norm) {
    double scale = max_norm / ((double)norm[0] + 1e-6);
    if (threadIdx.x == 0) y[0] = (float)(scale < 1.0 ? scale : (scale != scale ? scale : 1.0));
}
