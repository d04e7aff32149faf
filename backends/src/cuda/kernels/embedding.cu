// Rows of a table by index, and the gradient of the table: sums in the order of the indices, without atomics.

// A rank holds the rows from `first` on; rows of others give zeros. table [held, width]  out [n_ids, width]
template <class T>
__device__ __forceinline__ void look_up(const T* table, const i64* ids, T* out, i64 n_ids, i64 width, i64 first, i64 held,
                                        i64 n_rows, Fault* fault) {
    const int N = Pack<T>::N;
    i64 n_packs = width % N == 0 && is_vector(table) && is_vector(out) ? width / N : 0;
    for (i64 i = blockIdx.x; i < n_ids; i += gridDim.x) {
        i64 id = ids[i], row = id - first;
        bool is_here = row >= 0 && row < held;
        if ((id < 0 || id >= n_rows) && threadIdx.x == 0) note(fault, 1, id, i, n_rows);
        for (i64 j = threadIdx.x; j < n_packs; j += blockDim.x) {
            Pack<T> zero = {};
            ((Pack<T>*)(out + i * width))[j] = is_here ? ((const Pack<T>*)(table + row * width))[j] : zero;
        }
        for (i64 j = N * n_packs + threadIdx.x; j < width; j += blockDim.x)
            out[i * width + j] = is_here ? table[row * width + j] : narrow<T>(0.0f);
    }
}

#define NO_ROW 0xffffffffffffffffull

// Keys (row, position) of the ids whose rows are held, padded to n_keys.
KERNEL sort_keys(const i64* ids, u64* keys, i64 n_ids, i64 n_keys, i64 first, i64 held, i64 n_rows, Fault* fault) {
    FOR_EACH(i, n_keys) {
        u64 key = NO_ROW;
        if (i < n_ids) {
            i64 id = ids[i], row = id - first;
            if (id < 0 || id >= n_rows) note(fault, 1, id, i, n_rows);
            else if (row >= 0 && row < held) key = (u64)row << 32 | (u64)i;
        }
        keys[i] = key;
    }
}

// One pass of a bitonic sort (Batcher 1968) of n_keys, a power of two: pairs at distance `step` in runs of `run`.
KERNEL sort_pass(u64* keys, i64 n_keys, i64 run, i64 step) {
    FOR_EACH(i, n_keys / 2) {
        i64 low = i / step * 2 * step + i % step, high = low + step;
        bool is_ascending = (low & run) == 0;
        u64 a = keys[low], b = keys[high];
        if ((a > b) == is_ascending) {
            keys[low] = b;
            keys[high] = a;
        }
    }
}

// All passes of runs up to `last_run` from `first_run` on, with distances below the 1024 keys of a block.
KERNEL sort_block(u64* keys, i64 first_run, i64 last_run) {
    __shared__ u64 own[1024];
    i64 base = blockIdx.x * 1024ll;
    for (int i = threadIdx.x; i < 1024; i += blockDim.x) own[i] = keys[base + i];
    for (i64 run = first_run; run <= last_run; run *= 2) {
        for (i64 step = run / 2 < 512 ? run / 2 : 512; step > 0; step /= 2) {
            __syncthreads();
            for (int i = threadIdx.x; i < 512; i += blockDim.x) {
                i64 low = i / step * 2 * step + i % step, high = low + step;
                bool is_ascending = ((base + low) & run) == 0;
                u64 a = own[low], b = own[high];
                if ((a > b) == is_ascending) {
                    own[low] = b;
                    own[high] = a;
                }
            }
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < 1024; i += blockDim.x) keys[base + i] = own[i];
}

// One row of the table a block: the sum of dy over the positions of its run of keys. dy [n_ids, width]
template <class T>
__device__ __forceinline__ void sum_runs(const u64* keys, const T* dy, T* out, i64 n_keys, i64 width, i64 held) {
    constexpr int N = Pack<T>::N;
    bool vectors = width % N == 0 && are_vectors(dy, out);
    for (i64 row = blockIdx.x; row < held; row += gridDim.x) {
        i64 low = 0, high = n_keys;
        while (low < high) {
            i64 middle = (low + high) / 2;
            if (keys[middle] >> 32 < (u64)row) low = middle + 1;
            else high = middle;
        }
        for_row<N>(width, vectors, [&](i64 j, auto count) {
            constexpr int M = decltype(count)::value;
            float sums[M] = {}, v[M];
            for (i64 i = low; i < n_keys && keys[i] != NO_ROW && keys[i] >> 32 == (u64)row; i++) {
                load(v, dy + (i64)(keys[i] & 0xffffffffu) * width + j);
                for (int k = 0; k < M; k++) sums[k] += v[k];
            }
            store(out + row * width + j, sums);
        });
    }
}

#define EMBEDDING(T, SUFFIX)                                                                                            \
    KERNEL embedding##SUFFIX(const T* table, const i64* ids, T* out, i64 n_ids, i64 width, i64 first, i64 held,          \
                             i64 n_rows, Fault* fault) {                                                                \
        look_up(table, ids, out, n_ids, width, first, held, n_rows, fault);                                             \
    }                                                                                                                   \
    KERNEL embedding_grad##SUFFIX(const u64* keys, const T* dy, T* out, i64 n_keys, i64 width, i64 held) {               \
        sum_runs(keys, dy, out, n_keys, width, held);                                                                   \
    }
FOR_FLOATS(EMBEDDING)
