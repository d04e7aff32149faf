// Tensors that are known when compiling.

// The first n_bytes of a repeated 8-byte pattern; n is the number of whole 8-byte words, the rest is written bytewise.
KERNEL fill(u8* to, i64 n_bytes, i64 pattern) {
    i64 n = ((u64)to & 7) == 0 ? n_bytes / 8 : 0;
    FOR_EACH(i, n) ((i64*)to)[i] = pattern;
    FOR_EACH(j, n_bytes - 8 * n) to[8 * n + j] = (u8)(pattern >> (8 * ((8 * n + j) & 7)));
}

// start + step * (first + index along the dimension of that extent, with `inner` elements behind it)
KERNEL iota(i64* to, i64 n, i64 extent, i64 inner, i64 first, i64 start, i64 step) {
    FOR_EACH(i, n) to[i] = start + step * (first + i / inner % extent);
}

// 0 where key <= query + offset, else `hidden`; to [.., queries, keys]
KERNEL causal_mask(float* to, i64 n, i64 queries, i64 keys, i64 first_query, i64 first_key, i64 offset, float hidden) {
    FOR_EACH(i, n) {
        i64 key = first_key + i % keys, query = first_query + i / keys % queries;
        to[i] = key <= query + offset ? 0.0f : hidden;
    }
}

struct Words {
    i64 word[32];
};

// Up to 256 given bytes.
KERNEL list(u8* to, i64 n_bytes, Words words) {
    FOR_EACH(i, n_bytes) to[i] = (u8)(words.word[i >> 3] >> (8 * (i & 7)));
}
