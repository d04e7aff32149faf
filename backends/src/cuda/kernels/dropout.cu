// Elements that are set to zero by chance, drawn from their index in the whole tensor.

// Four words by ten rounds of Philox4x32 (Salmon et al., SC 2011).
__device__ __forceinline__ void philox4x32(u32 (&c)[4], u32 k, u32 l) {
    for (int round = 0; round < 10; round++) {
        u64 left = (u64)c[0] * 0xD2511F53u, right = (u64)c[2] * 0xCD9E8D57u;
        u32 a = (u32)(right >> 32) ^ c[1] ^ k, b = (u32)(left >> 32) ^ c[3] ^ l;
        c[0] = a;
        c[1] = (u32)right;
        c[2] = b;
        c[3] = (u32)left;
        k += 0x9E3779B9u;
        l += 0xBB67AE85u;
    }
}

// y = x scale where the word of an element is at least the threshold, else 0; y may be x. The part starts at index `first` of the
// whole tensor, in which `walk` has its steps. Groups are of one element, or of four that share a call of the generator.
template <class T>
__device__ __forceinline__ void drop(const T* x, const float* step, T* y, i64 n_groups, i64 group, i64 first, i64 seed,
                                     i64 number, i64 threshold, float scale, const Walk<1>& walk) {
    u32 now = (u32)step[0];
    FOR_EACH(i, n_groups) {
        i64 at[1];
        places(walk, i * group, at);
        u64 index = (u64)(first + at[0]);
        u32 words[4] = {(u32)(index >> 2), (u32)(index >> 34), now, (u32)number};
        philox4x32(words, (u32)seed, (u32)((u64)seed >> 32));
        auto write = [&](i64 k, u32 word) { y[k] = narrow<T>((i64)word >= threshold ? wide(x[k]) * scale : 0.0f); };
        if (group == 4) {
            for (int k = 0; k < 4; k++) write(4 * i + k, words[k]);
        } else {
            u32 even = index & 2 ? words[2] : words[0], odd = index & 2 ? words[3] : words[1];
            write(i, index & 1 ? odd : even);
        }
    }
}

#define DROPOUT(T, SUFFIX)                                                                                          \
    KERNEL dropout##SUFFIX(const T* x, const float* step, T* y, i64 n_groups, i64 group, i64 first, i64 seed,       \
                           i64 number, i64 threshold, float scale, Walk<1> walk) {                                  \
        drop(x, step, y, n_groups, group, first, seed, number, threshold, scale, walk);                             \
    }
FOR_FLOATS(DROPOUT)
