// One warp runs each instruction of tensor cores once, its registers in global memory: a test compares them with the PTX ISA.

// c += a b. a [32, 4], b [32, 2], c [32, 4]: registers of the lanes
KERNEL test_mma(const u32* a, const u32* b, float* c) {
    int lane = threadIdx.x;
    u32 own[4] = {a[4 * lane], a[4 * lane + 1], a[4 * lane + 2], a[4 * lane + 3]};
    float sums[4] = {c[4 * lane], c[4 * lane + 1], c[4 * lane + 2], c[4 * lane + 3]};
    tc_mma(sums, own, b[2 * lane], b[2 * lane + 1]);
    for (int i = 0; i < 4; i++) c[4 * lane + i] = sums[i];
}

// plain, transposed [32, 4]: registers of the lanes. rows [32, 8]: the rows of four matrices
KERNEL test_load(const u16* rows, u32* plain, u32* transposed) {
    TC_DYNAMIC(memory);
    u16* shared = (u16*)memory;
    int lane = threadIdx.x;
    tc_copy16(shared + 8 * lane, rows + 8 * lane, true);
    tc_commit();
    tc_wait<0>();
    __syncthreads();
    u32 own[4], turned[4];
    tc_load(own, shared + 8 * lane);
    tc_load_transposed(turned, shared + 8 * lane);
    for (int i = 0; i < 4; i++) {
        plain[4 * lane + i] = own[i];
        transposed[4 * lane + i] = turned[i];
    }
}

// Pairs of numbers, rounded. numbers [n, 2]
KERNEL test_pack(const float* numbers, u32* packed, i64 n) {
    FOR_EACH(i, n) packed[i] = tc_pack(numbers[2 * i], numbers[2 * i + 1]);
}

// c = a b^T, then d = c b, by one warp. a [32, 64], b [32, 64], c [32, 32], d [32, 64]
KERNEL test_products(const u16* a, const u16* b, u16* c, u16* d) {
    TC_DYNAMIC(memory);
    u16 *left = (u16*)memory, *right = left + 32 * TcTile<64>::STEP;
    for (int i = threadIdx.x; i < 32 * 64; i += 32) {
        left[i / 64 * TcTile<64>::STEP + i % 64] = a[i];
        right[i / 64 * TcTile<64>::STEP + i % 64] = b[i];
    }
    __syncthreads();
    TcSums<2, 32> products;
    products.clear();
    tc_multiply_transposed<64>(products, left, right);
    TcRows<2, 32> rounded;
    rounded.round(products);
    TcSums<2, 64> second;
    second.clear();
    tc_multiply(second, rounded, right);
    tc_store(products, left, c, 32, 32, 32);
    tc_store(second, left, d, 64, 32, 64);
}
