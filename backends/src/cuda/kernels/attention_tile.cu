// What the kernels of attention in bf16 share: its shape, the tile that a block works on, the scores of a warp. It stands after
// `tensor_core.cu`.

#define LOG2_E 1.4426950408889634f

__device__ __forceinline__ float widened(float value) { return value; }
__device__ __forceinline__ float widened(u16 bits) { return tc_widen(bits); }

struct Heads {
    i64 batch, queries, keys, heads, groups, width, value_width;
    // Extents of the mask, 0 where there is none, and whether its elements are bf16 and not f32.
    i64 mask_batch, mask_heads, mask_is_bf16;
    // Whether keys after a query are hidden, and how many queries of the sequence come after these.
    i64 is_causal, later;
};

// Rows of one head of one sequence from `first` on.
struct RowTile {
    i64 b;
    int head, first;
};

// The tile of this block where `heads` heads have `length` rows each; the last tile comes first where that is asked.
__device__ __forceinline__ RowTile own_tile(i64 length, i64 heads, int n_rows, bool is_reversed) {
    u32 n_tiles = ((u32)length + n_rows - 1) / n_rows, tile = blockIdx.x % n_tiles, rest = blockIdx.x / n_tiles;
    if (is_reversed) tile = n_tiles - 1 - tile;
    return {(i64)(rest / (u32)heads), (int)(rest % (u32)heads), (int)tile * n_rows};
}

// One past the last key that a query sees.
__device__ __forceinline__ int seen_by(const Heads& s, int query) {
    int keys = (int)s.keys;
    if (!s.is_causal) return keys;
    int seen = query + 1 + keys - (int)(s.queries + s.later);
    return seen < 0 ? 0 : (seen < keys ? seen : keys);
}

// One past the last key that any of `n` queries sees.
__device__ __forceinline__ int seen_by_any(const Heads& s, int first, int n) {
    int end = first + n < (int)s.queries ? first + n : (int)s.queries;
    return end > first ? seen_by(s, end - 1) : 0;
}

template <int M, int N> __device__ __forceinline__ void multiply_by(TcSums<M, N>& sums, float factor) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < N / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) sums.at[m][n][e] *= factor;
}

// The place of a tile of scores: its first query and key. Rows are queries and columns keys, or the other way round.
template <bool ROWS_ARE_KEYS> struct ScoreTile {
    // Queries and keys from this lane's first on, and by how many keys its first query sees beyond its first key.
    int queries_left, keys_left, sight;
    i64 first;

    __device__ __forceinline__ ScoreTile(const Heads& s, int query, int key) {
        int row = threadIdx.x % 32 / 4, pair = threadIdx.x % 4 * 2;
        query += ROWS_ARE_KEYS ? pair : row;
        key += ROWS_ARE_KEYS ? row : pair;
        queries_left = (int)s.queries - query;
        keys_left = (int)s.keys - key;
        sight = s.is_causal ? keys_left - queries_left - (int)s.later : 1 << 30;
        first = query * s.keys + key;
    }

    // Whether the key is there and not hidden; distances from this lane's first query and key.
    __device__ __forceinline__ bool is_seen(int query, int key) const {
        return query < queries_left && key < keys_left && key - query <= sight;
    }

    // Products times `scale`, plus a mask [queries, keys].
    template <class T, int M, int N>
    __device__ __forceinline__ void add(TcSums<M, N>& products, const T* mask, i64 n_keys, float scale) const {
        const T* own = mask + first;
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int n = 0; n < N / 8; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    int r = 16 * m + e / 2 * 8, column = 8 * n + e % 2;
                    int query = ROWS_ARE_KEYS ? column : r, key = ROWS_ARE_KEYS ? r : column;
                    float bias = is_seen(query, key) ? widened(own[query * n_keys + key]) : 0.0f;
                    products.at[m][n][e] = products.at[m][n][e] * scale + bias;
                }
    }

    // Puts -inf where a key is hidden.
    template <int M, int N> __device__ __forceinline__ void hide(TcSums<M, N>& scores) const {
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int n = 0; n < N / 8; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    int r = 16 * m + e / 2 * 8, column = 8 * n + e % 2;
                    if (!is_seen(ROWS_ARE_KEYS ? column : r, ROWS_ARE_KEYS ? r : column)) scores.at[m][n][e] = NEG_INFINITY;
                }
    }
};

// Elements of the mask before those of a head.
__device__ __forceinline__ i64 mask_plane(const Heads& s, i64 b, int head) {
    return s.mask_batch ? ((b % s.mask_batch) * s.mask_heads + head % s.mask_heads) * s.queries * s.keys : 0;
}

// Makes scores of a warp's products with queries from `query` and keys from `key` on: scaled, with the mask of the head, -inf where
// a key is hidden; some may be where `is_edge`.
template <bool ROWS_ARE_KEYS, int M, int N>
__device__ __forceinline__ void score(TcSums<M, N>& products, const Heads& s, const void* mask, i64 plane, int query, int key,
                                      bool is_edge, float scale) {
    ScoreTile<ROWS_ARE_KEYS> tile(s, query, key);
    if (!mask) multiply_by(products, scale);
    else if (s.mask_is_bf16) tile.add(products, (const u16*)mask + plane, s.keys, scale);
    else tile.add(products, (const float*)mask + plane, s.keys, scale);
    if (is_edge) tile.hide(products);
}
