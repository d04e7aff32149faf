// The part of CUDA C++ that the kernels use, for a C++ compiler.

#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(N)
#define __shared__ static
#define DYNAMIC(NAME) float* NAME = (float*)dynamic_memory

struct dim3_t {
    unsigned x, y, z;
};
extern dim3_t threadIdx, blockIdx, blockDim, gridDim;
extern char* dynamic_memory;

struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

void __syncthreads();
double exchanged(double value, int other);
int lane();

template <class T> T __shfl_xor_sync(unsigned, T value, int offset) { return (T)exchanged((double)value, lane() ^ offset); }

inline float __int_as_float(int bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

inline int __float_as_int(float value) {
    int bits;
    memcpy(&bits, &value, 4);
    return bits;
}

inline unsigned atomicCAS(unsigned* at, unsigned expected, unsigned value) {
    unsigned old = *at;
    if (old == expected) *at = value;
    return old;
}

#include "tensor_core.hpp"
