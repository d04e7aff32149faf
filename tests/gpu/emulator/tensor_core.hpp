// What one warp does together on tensor cores, and copies that last, for kernels that run as fibers. The names and what they
// mean are those of `tensor_core.cu`, which defines them by PTX on GPUs.

#pragma once
#include <stddef.h>

#define EMULATED
#define TC_DYNAMIC(NAME) TcChunk* NAME = (TcChunk*)dynamic_memory

extern size_t dynamic_bytes;

// What the emulator lends: the running thread of the block, the meeting of its warp, the end.
int running_thread();
void __syncwarp();
[[noreturn]] void fail(const char* what);

// Forgets what the threads of the last block began; there are `n` now.
void begin_block_of_warps(int n);

void tc_mma(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1);
void tc_load(unsigned (&r)[4], const unsigned short* own_row);
void tc_load_transposed(unsigned (&r)[4], const unsigned short* own_row);
void copy_later(void* to, const void* from, int bytes, bool is_inside);
void wait_for_copies(int n_groups_left);
void tc_commit();
unsigned tc_pack(float lower, float upper);

inline void tc_copy16(void* to, const void* from, bool is_inside) { copy_later(to, from, 16, is_inside); }
inline void tc_copy4(void* to, const void* from, bool is_inside) { copy_later(to, from, 4, is_inside); }
template <int N> void tc_wait() { wait_for_copies(N); }
inline float tc_exp2(float x) { return exp2f(x); }
