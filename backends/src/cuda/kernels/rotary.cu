// Rotary embedding: pairs of the last dimension turned by angles from tables.

// One thread for each pair and each element that stays. x, y [rows, d], y may be x; cos, sin [table rows, pairs]; sign is -1 for
// the inverse.
template <class T>
__device__ __forceinline__ void turn(const T* x, const float* cos, const float* sin, T* y, i64 rows, i64 d, i64 pairs,
                                     const Walk<1>& walk, i64 interleaved, float sign) {
    i64 per_row = d - pairs;
    FOR_EACH(i, rows * per_row) {
        i64 row = i / per_row, own = i % per_row;
        const T* from = x + row * d;
        T* to = y + row * d;
        if (own >= pairs) {
            to[own + pairs] = from[own + pairs];
            continue;
        }
        i64 at[1];
        places(walk, row, at);
        float c = cos[at[0] * pairs + own], s = sign * sin[at[0] * pairs + own];
        i64 first = interleaved ? 2 * own : own, second = interleaved ? first + 1 : own + pairs;
        float a = wide(from[first]), b = wide(from[second]);
        to[first] = narrow<T>(a * c - b * s);
        to[second] = narrow<T>(a * s + b * c);
    }
}

#define ROTARY(T, SUFFIX)                                                                                                 \
    KERNEL rotary##SUFFIX(const T* x, const float* cos, const float* sin, T* y, i64 rows, i64 d, i64 pairs, Walk<1> walk, \
                          i64 interleaved, float sign) {                                                                  \
        turn(x, cos, sin, y, rows, d, pairs, walk, interleaved, sign);                                                    \
    }
FOR_FLOATS(ROTARY)
