// Attention of bf16 without the matrix of scores, on tensor cores: FlashAttention-2 (Dao 2023), with the online softmax of Milakov
// and Gimelshein (2018). Sums, maxima and exponentials are f32; weights are rounded to bf16 for their product with the values.
//
// A block has a tile of 64 M queries of one head, a warp 16 M of them, and goes through the keys that they see. Keys and values have a
// tile each: while one is used, the other is on its way. D bounds the widths of heads.

// The softmax so far of the 2 M rows that a lane has a part of; the sums are this lane's, the maxima those of whole rows.
template <int M> struct Running {
    float top[2 * M], total[2 * M];

    __device__ __forceinline__ Running() {
#pragma unroll
        for (int r = 0; r < 2 * M; r++) {
            top[r] = NEG_INFINITY;
            total[r] = 0.0f;
        }
    }

    // Makes weights e^(score - maximum) of scores in units of ln 2 / `factor`, and rescales what was summed under the old maximum.
    template <int N, int D>
    __device__ __forceinline__ void weigh(TcSums<M, N>& scores, TcSums<M, D>& out, float factor) {
#pragma unroll
        for (int r = 0; r < 2 * M; r++) {
            float* rows[N / 8];
#pragma unroll
            for (int n = 0; n < N / 8; n++) rows[n] = scores.at[r / 2][n] + r % 2 * 2;
            float own = top[r];
#pragma unroll
            for (int n = 0; n < N / 8; n++) own = fmaxf(own, fmaxf(rows[n][0], rows[n][1]));
            own = fmaxf(own, __shfl_xor_sync(0xffffffffu, own, 1));
            own = fmaxf(own, __shfl_xor_sync(0xffffffffu, own, 2));
            // A query without any key so far has the maximum -inf; its exponentials are 0.
            float base = own == NEG_INFINITY ? 0.0f : own, rescale = tc_exp2((top[r] - base) * factor), sum = 0.0f;
#pragma unroll
            for (int n = 0; n < N / 8; n++)
#pragma unroll
                for (int e = 0; e < 2; e++) sum += rows[n][e] = tc_exp2((rows[n][e] - base) * factor);
            top[r] = own;
            total[r] = total[r] * rescale + sum;
#pragma unroll
            for (int n = 0; n < D / 8; n++)
#pragma unroll
                for (int e = 0; e < 2; e++) out.at[r / 2][n][r % 2 * 2 + e] *= rescale;
        }
    }

    // Divides by the sums of whole rows and writes their logarithms; `unit` is that of the maxima.
    template <int D>
    __device__ __forceinline__ void finish(TcSums<M, D>& out, float* lse, int n_rows, float unit) {
#pragma unroll
        for (int r = 0; r < 2 * M; r++) {
            float sum = total[r];
            sum += __shfl_xor_sync(0xffffffffu, sum, 1);
            sum += __shfl_xor_sync(0xffffffffu, sum, 2);
            float factor = sum > 0.0f ? 1.0f / sum : 0.0f;
#pragma unroll
            for (int n = 0; n < D / 8; n++)
#pragma unroll
                for (int e = 0; e < 2; e++) out.at[r / 2][n][r % 2 * 2 + e] *= factor;
            int row = 8 * r + threadIdx.x % 32 / 4;
            if (threadIdx.x % 4 == 0 && row < n_rows) lse[row] = sum > 0.0f ? top[r] * unit + logf(sum) : NEG_INFINITY;
        }
    }
};

template <int D, int M, int KEYS>
__device__ __forceinline__ void forward(const u16* q, const u16* k, const u16* v, const void* mask, u16* o, float* lse,
                                        const Heads& s, float scale) {
    const int ROWS = 64 * M, STEP = TcTile<D>::STEP;
    // Queries stay in registers where there is room for them.
    const bool IS_KEPT = D <= 64;
    TC_DYNAMIC(memory);
    u16 *queries = (u16*)memory, *keys = queries + ROWS * STEP, *values = keys + KEYS * STEP;
    int width = (int)s.width, value_width = (int)s.value_width, n_keys = (int)s.keys;
    // Tiles that see more keys come first.
    RowTile tile = own_tile(s.queries, s.heads, ROWS, true);
    int group = tile.head / (int)(s.heads / s.groups), own = threadIdx.x / 32 * 16 * M, query = tile.first + own;
    i64 q_step = s.heads * s.width, k_step = s.groups * s.width, v_step = s.groups * s.value_width;
    const u16* q_rows = q + (tile.b * s.queries + tile.first) * q_step + tile.head * s.width;
    const u16* k_rows = k + tile.b * s.keys * k_step + group * s.width;
    const u16* v_rows = v + tile.b * s.keys * v_step + group * s.value_width;
    tc_fetch<D, ROWS>(queries, q_rows, q_step, (int)s.queries - tile.first, width);
    tc_commit();
    tc_fetch<D, KEYS>(keys, k_rows, k_step, n_keys, width);
    tc_commit();
    TcRows<M, D> kept;
    if (IS_KEPT) {
        tc_wait<1>();
        __syncthreads();
        kept.load(queries + own * STEP);
    }
    // Scores need no work of their own where no mask is added and a larger product is a larger score.
    i64 plane = mask_plane(s, tile.b, tile.head);
    bool is_raw = !mask && scale > 0.0f;
    float unit = is_raw ? scale : 1.0f;
    TcSums<M, D> out;
    out.clear();
    Running<M> running;
    int seen = seen_by_any(s, tile.first, ROWS), own_seen = seen_by_any(s, query, 16 * M);
    for (int key = 0; key < seen; key += KEYS) {
        tc_wait<0>();
        __syncthreads();
        tc_fetch<D, KEYS>(values, v_rows + key * v_step, v_step, n_keys - key, value_width);
        tc_commit();
        TcSums<M, KEYS> scores;
        if (key < own_seen) {
            scores.clear();
            if constexpr (IS_KEPT) tc_multiply_transposed<D>(scores, kept, keys);
            else tc_multiply_transposed<D>(scores, queries + own * STEP, keys);
        }
        tc_wait<0>();
        __syncthreads();
        if (key + KEYS < seen) tc_fetch<D, KEYS>(keys, k_rows + (key + KEYS) * k_step, k_step, n_keys - key - KEYS, width);
        tc_commit();
        if (key < own_seen) {
            bool is_edge = key + KEYS > seen_by(s, query);
            if (!is_raw || is_edge) score<false>(scores, s, mask, plane, query, key, is_edge, is_raw ? 1.0f : scale);
            running.weigh(scores, out, unit * LOG2_E);
            TcRows<M, KEYS> weights;
            weights.round(scores);
            tc_multiply(out, weights, values);
        }
    }
    tc_wait<0>();
    __syncthreads();
    int n_rows = (int)s.queries - query;
    running.finish(out, lse + (tile.b * s.heads + tile.head) * s.queries + query, n_rows, unit);
    i64 o_step = s.heads * s.value_width;
    tc_store(out, queries + own * STEP, o + (tile.b * s.queries + query) * o_step + tile.head * s.value_width, o_step, n_rows,
             value_width);
}

#define FORWARD(D, M, KEYS)                                                                                               \
    TC_KERNEL attention_bf16_##D(const u16* q, const u16* k, const u16* v, const void* mask, u16* o, float* lse, Heads s, \
                                 float scale) {                                                                           \
        forward<D, M, KEYS>(q, k, v, mask, o, lse, s, scale);                                                             \
    }

FORWARD(32, 2, 64)
FORWARD(64, 2, 64)
FORWARD(96, 2, 64)
FORWARD(128, 2, 64)
FORWARD(256, 1, 32)
