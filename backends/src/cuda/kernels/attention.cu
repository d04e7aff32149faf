// Attention, computed in f32, without the matrix of scores, and its gradient: tiles with an online softmax (Dao et al. 2022; Milakov and
// Gimelshein 2018). Eight neighbouring threads share a row of a tile of T rows; D bounds the widths of heads.

struct Shape {
    i64 batch, queries, keys, heads, groups, width, value_width;
    // Extents of the mask, 0 where there is none.
    i64 mask_batch, mask_heads;
    // Whether keys after a query are hidden, and how many queries of the sequence come after these.
    i64 is_causal, later;
};

// Rows of one head, [T, D + 1], zeros beyond the tensor. tensor [batch, length, heads, width]
template <int D, int T, class E>
__device__ __forceinline__ void load_tile(float* tile, const E* tensor, i64 b, i64 first, i64 length, i64 heads, i64 head,
                                          i64 width) {
    for (int i = threadIdx.x; i < T * D; i += 8 * T) {
        int row = i / D, column = i % D;
        bool inside = first + row < length && column < width;
        tile[row * (D + 1) + column] =
            inside ? wide(tensor[((b * length + first + row) * heads + head) * width + column]) : 0.0f;
    }
}

template <int D> __device__ __forceinline__ float dot(const float* a, const float* b, int width) {
    float sum = 0.0f;
    for (int i = 0; i < width; i++) sum += a[i] * b[i];
    return sum;
}

// The score of a query and a key from their product, or -inf where the key is hidden.
template <class E>
__device__ __forceinline__ float score(const Shape& s, const E* mask, i64 b, i64 head, i64 query, i64 key, float product) {
    if (query >= s.queries || key >= s.keys) return NEG_INFINITY;
    if (s.is_causal && key > query + s.keys - s.queries - s.later) return NEG_INFINITY;
    if (mask) {
        i64 plane = (b % s.mask_batch) * s.mask_heads + head % s.mask_heads;
        product += wide(mask[(plane * s.queries + query) * s.keys + key]);
    }
    return product;
}

// The sum over the eight threads of a row.
__device__ __forceinline__ float row_sum(float v) {
    for (int offset = 4; offset > 0; offset >>= 1) v += __shfl_xor_sync(0xffffffffu, v, offset);
    return v;
}

__device__ __forceinline__ float row_max(float v) {
    for (int offset = 4; offset > 0; offset >>= 1) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, offset));
    return v;
}

// One past the last key that a query before `end` sees.
__device__ __forceinline__ i64 keys_seen(const Shape& s, i64 end) {
    i64 seen = s.is_causal ? end + s.keys - s.queries - s.later : s.keys;
    return seen < 0 ? 0 : (seen < s.keys ? seen : s.keys);
}

// A tile of queries of one head against all its keys; tiles with more keys come first.
template <int D, int T, class E>
__device__ __forceinline__ void forward(const E* q, const E* k, const E* v, const E* mask, E* o,
                                        float* lse, const Shape& s, float scale) {
    DYNAMIC(memory);
    float *queries = memory, *keys = queries + T * (D + 1), *values = keys + T * (D + 1), *weights = values + T * (D + 1);
    i64 n_tiles = (s.queries + T - 1) / T, tile = blockIdx.x % n_tiles, head = blockIdx.x / n_tiles % s.heads;
    i64 b = blockIdx.x / (n_tiles * s.heads), group = head / (s.heads / s.groups);
    i64 first = (n_tiles - 1 - tile) * T;
    int row = threadIdx.x / 8, lane = threadIdx.x % 8;
    float sums[D / 8], top = NEG_INFINITY, total = 0.0f;
    for (int c = 0; c < D / 8; c++) sums[c] = 0.0f;
    load_tile<D, T>(queries, q, b, first, s.queries, s.heads, head, s.width);
    i64 seen = keys_seen(s, first + T);
    for (i64 key = 0; key < seen; key += T) {
        __syncthreads();
        load_tile<D, T>(keys, k, b, key, s.keys, s.groups, group, s.width);
        load_tile<D, T>(values, v, b, key, s.keys, s.groups, group, s.value_width);
        __syncthreads();
        float own[T / 8], new_top = top;
        for (int j = 0; j < T / 8; j++) {
            int column = lane + 8 * j;
            float product = scale * dot<D>(queries + row * (D + 1), keys + column * (D + 1), (int)s.width);
            own[j] = score(s, mask, b, head, first + row, key + column, product);
            new_top = fmaxf(new_top, own[j]);
        }
        new_top = row_max(new_top);
        // A query without any key so far has the maximum -inf; its exponentials are 0.
        float base = new_top == NEG_INFINITY ? 0.0f : new_top, rescale = expf(top - base), sum = 0.0f;
        for (int j = 0; j < T / 8; j++) {
            float p = expf(own[j] - base);
            weights[row * (T + 1) + lane + 8 * j] = p;
            sum += p;
        }
        total = total * rescale + row_sum(sum);
        top = new_top;
        __syncthreads();
        for (int c = 0; c < D / 8; c++) {
            float out = sums[c] * rescale;
            for (int j = 0; j < T; j++) out += weights[row * (T + 1) + j] * values[j * (D + 1) + lane + 8 * c];
            sums[c] = out;
        }
    }
    i64 query = first + row;
    if (query >= s.queries) return;
    float factor = total > 0.0f ? 1.0f / total : 0.0f;
    for (int c = 0; c < D / 8; c++)
        if (lane + 8 * c < s.value_width)
            o[((b * s.queries + query) * s.heads + head) * s.value_width + lane + 8 * c] = narrow<E>(sums[c] * factor);
    if (lane == 0) lse[(b * s.heads + head) * s.queries + query] = top + logf(total);
}

// e^(score - lse); 0 in rows that see no key.
__device__ __forceinline__ float weight(float score, float lse) {
    return score == NEG_INFINITY || lse == NEG_INFINITY ? 0.0f : expf(score - lse);
}

// The sum of do o over a row of a query tile, shared by its eight threads.
template <class E>
__device__ __forceinline__ float row_delta(const E* o, const E* grad, const Shape& s, i64 b, i64 head, i64 query, int lane) {
    float sum = 0.0f;
    if (query < s.queries) {
        i64 at = ((b * s.queries + query) * s.heads + head) * s.value_width;
        for (i64 c = lane; c < s.value_width; c += 8) sum += wide(grad[at + c]) * wide(o[at + c]);
    }
    return row_sum(sum);
}

// dq of a tile of queries of one head.
template <int D, int T, class E>
__device__ __forceinline__ void query_grad(const E* q, const E* k, const E* v, const E* mask, const E* o,
                                           const float* lse, const E* grad, E* dq, const Shape& s, float scale) {
    DYNAMIC(memory);
    float *queries = memory, *grads = queries + T * (D + 1), *keys = grads + T * (D + 1), *values = keys + T * (D + 1);
    float* slopes = values + T * (D + 1);
    i64 n_tiles = (s.queries + T - 1) / T, tile = blockIdx.x % n_tiles, head = blockIdx.x / n_tiles % s.heads;
    i64 b = blockIdx.x / (n_tiles * s.heads), group = head / (s.heads / s.groups);
    i64 first = (n_tiles - 1 - tile) * T;
    int row = threadIdx.x / 8, lane = threadIdx.x % 8;
    i64 query = first + row;
    load_tile<D, T>(queries, q, b, first, s.queries, s.heads, head, s.width);
    load_tile<D, T>(grads, grad, b, first, s.queries, s.heads, head, s.value_width);
    float delta = row_delta(o, grad, s, b, head, query, lane);
    float own_lse = query < s.queries ? lse[(b * s.heads + head) * s.queries + query] : NEG_INFINITY;
    float sums[D / 8];
    for (int c = 0; c < D / 8; c++) sums[c] = 0.0f;
    i64 seen = keys_seen(s, first + T);
    for (i64 key = 0; key < seen; key += T) {
        __syncthreads();
        load_tile<D, T>(keys, k, b, key, s.keys, s.groups, group, s.width);
        load_tile<D, T>(values, v, b, key, s.keys, s.groups, group, s.value_width);
        __syncthreads();
        for (int j = 0; j < T / 8; j++) {
            int column = lane + 8 * j;
            float product = scale * dot<D>(queries + row * (D + 1), keys + column * (D + 1), (int)s.width);
            float p = weight(score(s, mask, b, head, query, key + column, product), own_lse);
            float dp = dot<D>(grads + row * (D + 1), values + column * (D + 1), (int)s.value_width);
            slopes[row * (T + 1) + column] = scale * p * (dp - delta);
        }
        __syncthreads();
        for (int c = 0; c < D / 8; c++) {
            float out = sums[c];
            for (int j = 0; j < T; j++) out += slopes[row * (T + 1) + j] * keys[j * (D + 1) + lane + 8 * c];
            sums[c] = out;
        }
    }
    if (query >= s.queries) return;
    for (int c = 0; c < D / 8; c++)
        if (lane + 8 * c < s.width)
            dq[((b * s.queries + query) * s.heads + head) * s.width + lane + 8 * c] = narrow<E>(sums[c]);
}

// dk and dv of a tile of keys of one group: its heads and their queries in order.
template <int D, int T, class E>
__device__ __forceinline__ void key_grad(const E* q, const E* k, const E* v, const E* mask, const E* o,
                                         const float* lse, const E* grad, E* dk, E* dv, const Shape& s,
                                         float scale) {
    DYNAMIC(memory);
    float *queries = memory, *grads = queries + T * (D + 1), *keys = grads + T * (D + 1), *values = keys + T * (D + 1);
    float *weights = values + T * (D + 1), *slopes = weights + T * (T + 1), *lses = slopes + T * (T + 1), *deltas = lses + T;
    i64 n_tiles = (s.keys + T - 1) / T, first = blockIdx.x % n_tiles * T, group = blockIdx.x / n_tiles % s.groups;
    i64 b = blockIdx.x / (n_tiles * s.groups), per_group = s.heads / s.groups;
    int row = threadIdx.x / 8, lane = threadIdx.x % 8;
    float key_sums[D / 8], value_sums[D / 8];
    for (int c = 0; c < D / 8; c++) key_sums[c] = value_sums[c] = 0.0f;
    load_tile<D, T>(keys, k, b, first, s.keys, s.groups, group, s.width);
    load_tile<D, T>(values, v, b, first, s.keys, s.groups, group, s.value_width);
    // The first query that sees a key of the tile, down to a whole tile.
    i64 start = s.is_causal ? first - (s.keys - s.queries - s.later) : 0;
    start = start < 0 ? 0 : start / T * T;
    for (i64 head = group * per_group; head < (group + 1) * per_group; head++)
        for (i64 query = start; query < s.queries; query += T) {
            __syncthreads();
            load_tile<D, T>(queries, q, b, query, s.queries, s.heads, head, s.width);
            load_tile<D, T>(grads, grad, b, query, s.queries, s.heads, head, s.value_width);
            float delta = row_delta(o, grad, s, b, head, query + row, lane);
            if (lane == 0) {
                deltas[row] = delta;
                lses[row] = query + row < s.queries ? lse[(b * s.heads + head) * s.queries + query + row] : NEG_INFINITY;
            }
            __syncthreads();
            for (int j = 0; j < T / 8; j++) {
                int column = lane + 8 * j;
                float product = scale * dot<D>(queries + column * (D + 1), keys + row * (D + 1), (int)s.width);
                float p = weight(score(s, mask, b, head, query + column, first + row, product), lses[column]);
                float dp = dot<D>(grads + column * (D + 1), values + row * (D + 1), (int)s.value_width);
                weights[row * (T + 1) + column] = p;
                slopes[row * (T + 1) + column] = scale * p * (dp - deltas[column]);
            }
            __syncthreads();
            for (int c = 0; c < D / 8; c++) {
                float key_sum = key_sums[c], value_sum = value_sums[c];
                for (int j = 0; j < T; j++) {
                    key_sum += slopes[row * (T + 1) + j] * queries[j * (D + 1) + lane + 8 * c];
                    value_sum += weights[row * (T + 1) + j] * grads[j * (D + 1) + lane + 8 * c];
                }
                key_sums[c] = key_sum;
                value_sums[c] = value_sum;
            }
        }
    i64 key = first + row;
    if (key >= s.keys) return;
    i64 at = (b * s.keys + key) * s.groups + group;
    for (int c = 0; c < D / 8; c++) {
        if (lane + 8 * c < s.width) dk[at * s.width + lane + 8 * c] = narrow<E>(key_sums[c]);
        if (lane + 8 * c < s.value_width) dv[at * s.value_width + lane + 8 * c] = narrow<E>(value_sums[c]);
    }
}

// A tile of dmask in one plane: the slopes of all samples and heads that share it, in order.
template <int D, int T, class E>
__device__ __forceinline__ void mask_grad(const E* q, const E* k, const E* v, const E* mask, const E* o, const float* lse,
                                          const E* grad, E* dmask, const Shape& s, float scale) {
    DYNAMIC(memory);
    float *queries = memory, *grads = queries + T * (D + 1), *keys = grads + T * (D + 1), *values = keys + T * (D + 1);
    i64 n_tiles = (s.queries + T - 1) / T, n_key_tiles = (s.keys + T - 1) / T;
    i64 first = blockIdx.x % n_tiles * T, key = blockIdx.x / n_tiles % n_key_tiles * T;
    i64 plane = blockIdx.x / (n_tiles * n_key_tiles);
    int row = threadIdx.x / 8, lane = threadIdx.x % 8;
    i64 query = first + row;
    float sums[T / 8];
    for (int j = 0; j < T / 8; j++) sums[j] = 0.0f;
    for (i64 b = plane / s.mask_heads; b < s.batch; b += s.mask_batch)
        for (i64 head = plane % s.mask_heads; head < s.heads; head += s.mask_heads) {
            i64 group = head / (s.heads / s.groups);
            __syncthreads();
            load_tile<D, T>(queries, q, b, first, s.queries, s.heads, head, s.width);
            load_tile<D, T>(grads, grad, b, first, s.queries, s.heads, head, s.value_width);
            load_tile<D, T>(keys, k, b, key, s.keys, s.groups, group, s.width);
            load_tile<D, T>(values, v, b, key, s.keys, s.groups, group, s.value_width);
            float delta = row_delta(o, grad, s, b, head, query, lane);
            float own_lse = query < s.queries ? lse[(b * s.heads + head) * s.queries + query] : NEG_INFINITY;
            __syncthreads();
            for (int j = 0; j < T / 8; j++) {
                int column = lane + 8 * j;
                float product = scale * dot<D>(queries + row * (D + 1), keys + column * (D + 1), (int)s.width);
                float p = weight(score(s, mask, b, head, query, key + column, product), own_lse);
                float dp = dot<D>(grads + row * (D + 1), values + column * (D + 1), (int)s.value_width);
                sums[j] += p * (dp - delta);
            }
        }
    if (query >= s.queries) return;
    for (int j = 0; j < T / 8; j++)
        if (key + lane + 8 * j < s.keys)
            dmask[(plane * s.queries + query) * s.keys + key + lane + 8 * j] = narrow<E>(sums[j]);
}

#define HEADS(D, T)                                                                                                      \
    KERNEL attention_##D(const float* q, const float* k, const float* v, const float* mask, float* o, float* lse, Shape s, \
                         float scale) {                                                                                   \
        forward<D, T>(q, k, v, mask, o, lse, s, scale);                                                                   \
    }                                                                                                                     \
    KERNEL attention_query_grad_##D(const float* q, const float* k, const float* v, const float* mask, const float* o,    \
                                    const float* lse, const float* grad, float* dq, Shape s, float scale) {               \
        query_grad<D, T>(q, k, v, mask, o, lse, grad, dq, s, scale);                                                      \
    }                                                                                                                     \
    KERNEL attention_key_grad_##D(const float* q, const float* k, const float* v, const float* mask, const float* o,      \
                                  const float* lse, const float* grad, float* dk, float* dv, Shape s, float scale) {      \
        key_grad<D, T>(q, k, v, mask, o, lse, grad, dk, dv, s, scale);                                                    \
    }                                                                                                                     \
    MASK_GRAD(attention_mask_grad_##D, D, T, float)                                                                       \
    MASK_GRAD(attention_mask_grad_bf16_##D, D, T, bf16)

#define MASK_GRAD(NAME, D, T, E)                                                                                          \
    KERNEL NAME(const E* q, const E* k, const E* v, const E* mask, const E* o, const float* lse, const E* grad, E* dmask, \
                Shape s, float scale) {                                                                                   \
        mask_grad<D, T>(q, k, v, mask, o, lse, grad, dmask, s, scale);                                                    \
    }

HEADS(32, 32)
HEADS(64, 32)
HEADS(128, 32)
HEADS(256, 16)
