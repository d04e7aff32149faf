// The gradient of attention in bf16, on tensor cores: FlashAttention-2 (Dao 2023). Probabilities are made again of the logarithms of
// the forward pass. Nothing is added by atomics: one kernel has tiles of keys and goes through queries, another the reverse,
// so that the same input gives the same bits.
//
// With p the probabilities and d the sums of do o over rows: ds = p (do v^T - d), dq = scale ds k, dk = scale ds^T q, dv = p^T do.
// Products have f32 sums; p and ds are rounded to bf16 for the second ones. D bounds the widths of heads.

// For every row [batch, heads, queries] the sum of do o, and the logarithm that probabilities are relative to: +inf for a row that
// sees no key, whose probabilities are 0 by that. Eight lanes share a row.
TC_KERNEL attention_bf16_rows(const u16* o, const u16* grad, const float* lse, float* floors, float* deltas, Heads s) {
    i64 row = blockIdx.x * (i64)(TC_THREADS / 8) + threadIdx.x / 8, n_rows = s.batch * s.heads * s.queries;
    int lane = threadIdx.x % 8, width = (int)s.value_width;
    float sum = 0.0f;
    if (row < n_rows) {
        i64 query = row % s.queries, head = row / s.queries % s.heads, b = row / (s.queries * s.heads);
        i64 at = ((b * s.queries + query) * s.heads + head) * s.value_width;
        if (width % 8 == 0 && is_vector(o) && is_vector(grad)) {
            for (int c = 8 * lane; c < width; c += 64) {
                TcChunk x = *(const TcChunk*)(o + at + c), y = *(const TcChunk*)(grad + at + c);
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    sum += tc_widen((u16)x.words[i]) * tc_widen((u16)y.words[i]);
                    sum += tc_widen((u16)(x.words[i] >> 16)) * tc_widen((u16)(y.words[i] >> 16));
                }
            }
        } else {
            for (int c = lane; c < width; c += 8) sum += tc_widen(o[at + c]) * tc_widen(grad[at + c]);
        }
    }
    for (int offset = 4; offset > 0; offset >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    if (lane != 0 || row >= n_rows) return;
    deltas[row] = sum;
    floors[row] = lse[row] == NEG_INFINITY ? -NEG_INFINITY : lse[row];
}

// e^(score - floor)
__device__ __forceinline__ float probability(float score, float floor) { return tc_exp2((score - floor) * LOG2_E); }

// dq of a tile of 64 M queries of one head. Keys have two tiles, one in use and one on its way; the tile of values is filled again
// when all warps are done with it.
template <int D, int M, int KEYS>
__device__ __forceinline__ void query_grad(const u16* q, const u16* k, const u16* v, const void* mask, const u16* grad,
                                           const float* floors, const float* deltas, u16* dq, const Heads& s, float scale) {
    const int ROWS = 64 * M, STEP = TcTile<D>::STEP;
    TC_DYNAMIC(memory);
    u16 *queries = (u16*)memory, *grads = queries + ROWS * STEP, *values = grads + ROWS * STEP, *keys = values + KEYS * STEP;
    int width = (int)s.width, value_width = (int)s.value_width, n_keys = (int)s.keys;
    RowTile tile = own_tile(s.queries, s.heads, ROWS, true);
    int group = tile.head / (int)(s.heads / s.groups), own = threadIdx.x / 32 * 16 * M, query = tile.first + own;
    i64 q_step = s.heads * s.width, o_step = s.heads * s.value_width, k_step = s.groups * s.width, v_step = s.groups * s.value_width;
    i64 first_row = tile.b * s.queries + tile.first;
    const u16* k_rows = k + tile.b * s.keys * k_step + group * s.width;
    const u16* v_rows = v + tile.b * s.keys * v_step + group * s.value_width;
    int n_rows = (int)s.queries - tile.first;
    tc_fetch<D, ROWS>(queries, q + first_row * q_step + tile.head * s.width, q_step, n_rows, width);
    tc_fetch<D, ROWS>(grads, grad + first_row * o_step + tile.head * s.value_width, o_step, n_rows, value_width);
    tc_fetch<D, KEYS>(keys, k_rows, k_step, n_keys, width);
    tc_fetch<D, KEYS>(values, v_rows, v_step, n_keys, value_width);
    tc_commit();
    float floor[2 * M], delta[2 * M];
    n_rows -= own;
#pragma unroll
    for (int r = 0; r < 2 * M; r++) {
        int row = 8 * r + threadIdx.x % 32 / 4;
        i64 at = (tile.b * s.heads + tile.head) * s.queries + query + row;
        floor[r] = row < n_rows ? floors[at] : -NEG_INFINITY;
        delta[r] = row < n_rows ? deltas[at] : 0.0f;
    }
    i64 plane = mask_plane(s, tile.b, tile.head);
    TcSums<M, D> sums;
    sums.clear();
    int seen = seen_by_any(s, tile.first, ROWS), own_seen = seen_by_any(s, query, 16 * M);
    u16 *current = keys, *next = keys + KEYS * STEP;
    for (int key = 0; key < seen; key += KEYS) {
        tc_wait<0>();
        __syncthreads();
        int after = key + KEYS;
        if (after < seen) tc_fetch<D, KEYS>(next, k_rows + after * k_step, k_step, n_keys - after, width);
        TcRows<M, KEYS> slopes;
        if (key < own_seen) {
            TcSums<M, KEYS> p, dp;
            p.clear();
            tc_multiply_transposed<D>(p, queries + own * STEP, current);
            score<false>(p, s, mask, plane, query, key, after > seen_by(s, query), scale);
            dp.clear();
            tc_multiply_transposed<D>(dp, grads + own * STEP, values);
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                    for (int e = 0; e < 4; e++) {
                        int r = 2 * m + e / 2;
                        dp.at[m][n][e] = probability(p.at[m][n][e], floor[r]) * (dp.at[m][n][e] - delta[r]);
                    }
            slopes.round(dp);
        }
        __syncthreads();
        if (after < seen) tc_fetch<D, KEYS>(values, v_rows + after * v_step, v_step, n_keys - after, value_width);
        tc_commit();
        if (key < own_seen) tc_multiply(sums, slopes, current);
        u16* used = current;
        current = next;
        next = used;
    }
    tc_wait<0>();
    __syncthreads();
    multiply_by(sums, scale);
    tc_store(sums, queries + own * STEP, dq + (first_row + own) * q_step + tile.head * s.width, q_step, n_rows, width);
}

// dk and dv, or one of them, of a tile of 64 M keys of one group: all queries of its heads that see them, in order. Queries have two
// tiles, their gradients one, as keys and values have above. Products have keys as rows, so that p^T and ds^T are left operands.
template <int D, int M, int QUERIES, bool WITH_KEYS, bool WITH_VALUES>
__device__ __forceinline__ void key_grad(const u16* q, const u16* k, const u16* v, const void* mask, const u16* grad,
                                         const float* floors, const float* deltas, u16* dk, u16* dv, const Heads& s, float scale) {
    const int ROWS = 64 * M, STEP = TcTile<D>::STEP;
    TC_DYNAMIC(memory);
    u16 *keys = (u16*)memory, *values = keys + ROWS * STEP, *grads = values + (WITH_KEYS ? ROWS * STEP : 0);
    u16* queries = grads + QUERIES * STEP;
    float* numbers = (float*)(queries + 2 * QUERIES * STEP);
    int width = (int)s.width, value_width = (int)s.value_width, n_queries = (int)s.queries;
    RowTile tile = own_tile(s.keys, s.groups, ROWS, false);
    int per_group = (int)(s.heads / s.groups), own = threadIdx.x / 32 * 16 * M, key = tile.first + own;
    i64 q_step = s.heads * s.width, o_step = s.heads * s.value_width, k_step = s.groups * s.width, v_step = s.groups * s.value_width;
    i64 first_row = tile.b * s.keys + tile.first;
    int n_rows = (int)s.keys - tile.first;
    // The first query that sees a key of the tile; from there on there are `n_tiles` tiles for each head.
    int start = s.is_causal ? tile.first - (int)(s.keys - s.queries - s.later) : 0;
    if (start < 0) start = 0;
    int n_tiles = start < n_queries ? (n_queries - start + QUERIES - 1) / QUERIES : 0, n_all = n_tiles * per_group;
    auto fetch_queries = [&](int t) {
        int head = tile.head * per_group + t / n_tiles, query = start + t % n_tiles * QUERIES;
        float* own_numbers = numbers + t % 2 * 2 * QUERIES;
        i64 row = (tile.b * s.heads + head) * s.queries + query;
        tc_fetch<D, QUERIES>(queries + t % 2 * QUERIES * STEP, q + (tile.b * s.queries + query) * q_step + head * s.width, q_step,
                             n_queries - query, width);
        tc_fetch_numbers<QUERIES>(own_numbers, floors + row, n_queries - query);
        tc_fetch_numbers<QUERIES>(own_numbers + QUERIES, deltas + row, n_queries - query);
    };
    auto fetch_grads = [&](int t) {
        int head = tile.head * per_group + t / n_tiles, query = start + t % n_tiles * QUERIES;
        tc_fetch<D, QUERIES>(grads, grad + (tile.b * s.queries + query) * o_step + head * s.value_width, o_step, n_queries - query,
                             value_width);
    };
    tc_fetch<D, ROWS>(keys, k + first_row * k_step + tile.head * s.width, k_step, n_rows, width);
    if (WITH_KEYS) tc_fetch<D, ROWS>(values, v + first_row * v_step + tile.head * s.value_width, v_step, n_rows, value_width);
    if (n_all > 0) {
        fetch_queries(0);
        fetch_grads(0);
    }
    tc_commit();
    TcSums<M, D> key_sums, value_sums;
    key_sums.clear();
    value_sums.clear();
    for (int t = 0; t < n_all; t++) {
        tc_wait<0>();
        __syncthreads();
        if (t + 1 < n_all) fetch_queries(t + 1);
        int head = tile.head * per_group + t / n_tiles, query = start + t % n_tiles * QUERIES;
        const u16* current = queries + t % 2 * QUERIES * STEP;
        bool is_seen = key < seen_by_any(s, query, QUERIES);
        TcRows<M, QUERIES> slopes;
        if (is_seen) {
            const float* own_floors = numbers + t % 2 * 2 * QUERIES + threadIdx.x % 4 * 2;
            TcSums<M, QUERIES> p;
            p.clear();
            tc_multiply_transposed<D>(p, keys + own * STEP, current);
            score<true>(p, s, mask, mask_plane(s, tile.b, head), query, key, key + 16 * M > seen_by(s, query), scale);
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int n = 0; n < QUERIES / 8; n++)
#pragma unroll
                    for (int e = 0; e < 4; e++) p.at[m][n][e] = probability(p.at[m][n][e], own_floors[8 * n + e % 2]);
            if (WITH_VALUES) {
                TcRows<M, QUERIES> weights;
                weights.round(p);
                tc_multiply(value_sums, weights, grads);
            }
            if (WITH_KEYS) {
                TcSums<M, QUERIES> dp;
                dp.clear();
                tc_multiply_transposed<D>(dp, values + own * STEP, grads);
#pragma unroll
                for (int m = 0; m < M; m++)
#pragma unroll
                    for (int n = 0; n < QUERIES / 8; n++)
#pragma unroll
                        for (int e = 0; e < 4; e++)
                            dp.at[m][n][e] = p.at[m][n][e] * (dp.at[m][n][e] - own_floors[QUERIES + 8 * n + e % 2]);
                slopes.round(dp);
            }
        }
        __syncthreads();
        if (t + 1 < n_all) fetch_grads(t + 1);
        tc_commit();
        if (WITH_KEYS && is_seen) tc_multiply(key_sums, slopes, current);
    }
    tc_wait<0>();
    __syncthreads();
    u16* staged = keys + own * STEP;
    n_rows -= own;
    if (WITH_KEYS) {
        multiply_by(key_sums, scale);
        tc_store(key_sums, staged, dk + (first_row + own) * k_step + tile.head * s.width, k_step, n_rows, width);
    }
    if (WITH_VALUES)
        tc_store(value_sums, staged, dv + (first_row + own) * v_step + tile.head * s.value_width, v_step, n_rows, value_width);
}

#define QUERY_GRAD(D, M, KEYS)                                                                                              \
    TC_KERNEL attention_bf16_query_grad_##D(const u16* q, const u16* k, const u16* v, const void* mask, const u16* grad,    \
                                            const float* floors, const float* deltas, u16* dq, Heads s, float scale) {      \
        query_grad<D, M, KEYS>(q, k, v, mask, grad, floors, deltas, dq, s, scale);                                          \
    }

#define KEY_GRAD(NAME, D, M, QUERIES, WITH_KEYS, WITH_VALUES)                                                               \
    TC_KERNEL attention_bf16_##NAME##_grad_##D(const u16* q, const u16* k, const u16* v, const void* mask, const u16* grad, \
                                               const float* floors, const float* deltas, u16* dk, u16* dv, Heads s,         \
                                               float scale) {                                                               \
        key_grad<D, M, QUERIES, WITH_KEYS, WITH_VALUES>(q, k, v, mask, grad, floors, deltas, dk, dv, s, scale);             \
    }

QUERY_GRAD(32, 2, 32)
QUERY_GRAD(64, 2, 32)
QUERY_GRAD(96, 2, 32)
QUERY_GRAD(128, 2, 32)
QUERY_GRAD(256, 1, 16)

KEY_GRAD(key_value, 32, 2, 32, true, true)
KEY_GRAD(key_value, 64, 2, 32, true, true)
KEY_GRAD(key_value, 96, 1, 32, true, true)
KEY_GRAD(key_value, 128, 1, 32, true, true)
// Sums of both would not fit into the registers.
KEY_GRAD(key, 256, 1, 16, true, false)
KEY_GRAD(value, 256, 1, 16, false, true)
