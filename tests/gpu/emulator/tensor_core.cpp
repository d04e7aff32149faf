// The emulated instructions of tensor cores and asynchronous copies. The layouts of registers are those of the PTX ISA; what a
// GPU would do slowly or wrongly without a word ends the emulator: banks in common, odd addresses, memory beyond the block's.

#include "shim.hpp"
#include <vector>

static const int MAX_THREADS = 1024;

// What the lanes of a warp lay down for each other. There are two, used in turn: a lane that lays down for the next instruction
// must not hurt those that still read for the last one.
struct Table {
    float a[16][16];
    // Columns of b.
    float b[8][16];
    unsigned rows[32][4];
    unsigned banks[32];
};

// A copy that is begun, and the group that it belongs to.
struct Copy {
    void* to;
    const void* from;
    int bytes;
    bool is_inside;
    long group;
};

struct Lane {
    bool turn;
    long n_groups;
    std::vector<Copy> copies;
};

static Table tables[MAX_THREADS / 32][2];
static Lane lanes[MAX_THREADS];

void begin_block_of_warps(int n) {
    for (int i = 0; i < n; i++) {
        lanes[i].turn = false;
        lanes[i].n_groups = 0;
        lanes[i].copies.clear();
    }
}

static Table& own_table() {
    int thread = running_thread();
    lanes[thread].turn = !lanes[thread].turn;
    return tables[thread / 32][lanes[thread].turn];
}

static float widened(unsigned half) {
    unsigned bits = half << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

// Two elements, the lower half first.
static void unpack(float* to, unsigned pair) {
    to[0] = widened(pair & 0xffff);
    to[1] = widened(pair >> 16);
}

void tc_mma(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    Table& table = own_table();
    int row = running_thread() % 32 / 4, pair = running_thread() % 4 * 2;
    for (int i = 0; i < 4; i++) unpack(&table.a[row + i % 2 * 8][pair + i / 2 * 8], a[i]);
    unpack(&table.b[row][pair], b0);
    unpack(&table.b[row][pair + 8], b1);
    __syncwarp();
    for (int i = 0; i < 4; i++) {
        const float *x = table.a[row + i / 2 * 8], *y = table.b[pair + i % 2];
        float sum = c[i];
        for (int k = 0; k < 16; k++) sum += x[k] * y[k];
        c[i] = sum;
    }
}

static void check_inside(const void* at, int bytes) {
    const char* start = (const char*)at;
    if (start < dynamic_memory || start + bytes > dynamic_memory + dynamic_bytes) fail("shared memory ends before");
    if ((size_t)at % bytes != 0) fail("an address in shared memory is odd");
}

// Lays down the row of every lane. The eight rows of a matrix are read at once if each lies in banks of its own.
static Table& matrices(const unsigned short* own_row) {
    Table& table = own_table();
    int lane = running_thread() % 32;
    check_inside(own_row, 16);
    memcpy(table.rows[lane], own_row, 16);
    table.banks[lane] = (size_t)own_row / 16 % 8;
    __syncwarp();
    unsigned seen = 0;
    for (int i = 0; i < 8; i++) seen |= 1u << table.banks[lane / 8 * 8 + i];
    if (seen != 0xff) fail("rows of a matrix have banks in common");
    return table;
}

void tc_load(unsigned (&r)[4], const unsigned short* own_row) {
    Table& table = matrices(own_row);
    int lane = running_thread() % 32;
    for (int i = 0; i < 4; i++) r[i] = table.rows[8 * i + lane / 4][lane % 4];
}

void tc_load_transposed(unsigned (&r)[4], const unsigned short* own_row) {
    Table& table = matrices(own_row);
    int column = running_thread() % 32 / 4, pair = running_thread() % 4 * 2;
    for (int i = 0; i < 4; i++) {
        auto element = [&](int row) { return table.rows[8 * i + row][column / 2] >> (column % 2 * 16) & 0xffff; };
        r[i] = element(pair) | element(pair + 1) << 16;
    }
}

static void copy_now(const Copy& copy) {
    if (copy.is_inside) memcpy(copy.to, copy.from, copy.bytes);
    else memset(copy.to, 0, copy.bytes);
}

// A copy may happen at any time until it is waited for: every other one happens at once, the rest as late as may be.
void copy_later(void* to, const void* from, int bytes, bool is_inside) {
    static long count = 0;
    check_inside(to, bytes);
    if (is_inside && (size_t)from % bytes != 0) fail("an address that is copied from is odd");
    Lane& lane = lanes[running_thread()];
    Copy copy = {to, from, bytes, is_inside, lane.n_groups};
    if (count++ % 2 == 0) copy_now(copy);
    else lane.copies.push_back(copy);
}

void tc_commit() { lanes[running_thread()].n_groups++; }

void wait_for_copies(int n_groups_left) {
    Lane& lane = lanes[running_thread()];
    std::vector<Copy> left;
    for (const Copy& copy : lane.copies) {
        if (copy.group < lane.n_groups - n_groups_left) copy_now(copy);
        else left.push_back(copy);
    }
    lane.copies.swap(left);
}

static unsigned rounded(float value) {
    unsigned bits;
    memcpy(&bits, &value, 4);
    if (value != value) return 0x7fff;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

unsigned tc_pack(float lower, float upper) { return rounded(lower) | rounded(upper) << 16; }
