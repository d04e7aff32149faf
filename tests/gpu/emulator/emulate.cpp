// Runs the CUDA kernels on the CPU, one block after the other, each thread of a block a fiber. It reads commands from its
// standard input, one a line, and works on a file that is mapped into memory; `S` is answered when all before it is done.
//
//   L entry gx gy gz block shared argument…   launch; an argument is p<offset> n i<int> f<bits> d<bits> s<int,int,…>
//                          w<p<offset> or i<int>,…>
//   M type m n k batch a ta lda sa b tb ldb sb c ldc sc sums bias   column-major products c = a b of f32 or bf16, summed in f32; offsets in
//                          bytes, steps in elements; sums 1: added to c; bias: where one element a row is, or -1
//   C from to bytes        copy
//   Z at bytes             zero
//   S                      answer

#include <dlfcn.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <fcntl.h>
#include <ucontext.h>
#include <iostream>
#include <map>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "entry.hpp"
#include "shim.hpp"

dim3_t threadIdx, blockIdx, blockDim, gridDim;
char* dynamic_memory;
size_t dynamic_bytes;

#include "kernels.inc"

static std::map<std::string, Entry> entries = {
#define KERNEL_NAME(NAME) {#NAME, entry_of(NAME)},
#include "names.inc"
};

// Threads of the running block that meet at a barrier.
struct Meeting {
    int size = 0, arrived = 0;
    long round = 0;
};

struct Fiber {
    ucontext_t start;
    jmp_buf at;
    bool is_started = false, is_done = true;
    std::vector<char> stack;
};

static const int MAX_THREADS = 1024;
static Fiber fibers[MAX_THREADS];
static jmp_buf scheduler;
static Meeting block_meeting, warp_meetings[MAX_THREADS / 32];
static double slots[MAX_THREADS];
static int running;
static bool is_direct, has_met;
static const Entry* entry;
static void** arguments;

[[noreturn]] void fail(const char* what) {
    fprintf(stderr, "emulator: %s\n", what);
    exit(1);
}

static void yield_now() {
    Fiber& own = fibers[running];
    if (_setjmp(own.at) == 0) _longjmp(scheduler, 1);
}

static void meet(Meeting& meeting) {
    if (is_direct) fail("a later block has a barrier, the first had none");
    has_met = true;
    long round = meeting.round;
    if (++meeting.arrived == meeting.size) {
        meeting.arrived = 0;
        meeting.round++;
        return;
    }
    while (meeting.round == round) yield_now();
}

void __syncthreads() { meet(block_meeting); }

double exchanged(double value, int other) {
    int own = running;
    slots[own] = value;
    meet(warp_meetings[own / 32]);
    double received = slots[(own & ~31) + (other & 31)];
    meet(warp_meetings[own / 32]);
    return received;
}

int lane() { return running & 31; }

int running_thread() { return running; }

void __syncwarp() { meet(warp_meetings[running / 32]); }

static void fiber_body() {
    entry->call(entry->function, arguments);
    fibers[running].is_done = true;
    // CUDA counts threads that are done as arrived.
    for (Meeting* meeting : {&block_meeting, &warp_meetings[running / 32]})
        if (--meeting->size > 0 && meeting->arrived == meeting->size) {
            meeting->arrived = 0;
            meeting->round++;
        }
    _longjmp(scheduler, 1);
}

static void start_fiber(Fiber& fiber) {
    if (fiber.stack.empty()) fiber.stack.resize(256 << 10);
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack.data();
    fiber.start.uc_stack.ss_size = fiber.stack.size();
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, fiber_body, 0);
    setcontext(&fiber.start);
}

static void run_block() {
    int n = blockDim.x;
    block_meeting = Meeting{n, 0, 0};
    for (int w = 0; w < (n + 31) / 32; w++) warp_meetings[w] = Meeting{n - 32 * w < 32 ? n - 32 * w : 32, 0, 0};
    begin_block_of_warps(n);
    for (int t = 0; t < n; t++) fibers[t].is_started = fibers[t].is_done = false;
    for (volatile bool is_busy = true; is_busy;) {
        is_busy = false;
        for (volatile int t = 0; t < n; t++) {
            if (fibers[t].is_done) continue;
            is_busy = true;
            running = t;
            threadIdx.x = t;
            if (_setjmp(scheduler) != 0) continue;
            if (fibers[t].is_started) _longjmp(fibers[t].at, 1);
            fibers[t].is_started = true;
            start_fiber(fibers[t]);
        }
    }
}

static void launch() {
    has_met = false;
    bool is_first = true;
    for (blockIdx.z = 0; blockIdx.z < gridDim.z; blockIdx.z++)
        for (blockIdx.y = 0; blockIdx.y < gridDim.y; blockIdx.y++)
            for (blockIdx.x = 0; blockIdx.x < gridDim.x; blockIdx.x++) {
                is_direct = !is_first && !has_met;
                if (is_direct) {
                    for (running = 0; running < (int)blockDim.x; running++) {
                        threadIdx.x = running;
                        entry->call(entry->function, arguments);
                    }
                } else {
                    run_block();
                }
                is_first = false;
            }
}

static char* memory;
static std::string folder;

// A kernel by its name; one that was generated lies in a library of that name beside the program.
static const Entry& entry_named(const std::string& name) {
    auto found = entries.find(name);
    if (found != entries.end()) return found->second;
    void* library = dlopen((folder + "/" + name + ".so").c_str(), RTLD_NOW);
    void* made = library ? dlsym(library, "generated_entry") : nullptr;
    if (!made) fail(("no kernel " + name).c_str());
    return entries[name] = ((Entry(*)())made)();
}

static void launch_line(std::istringstream& line) {
    std::string name, token;
    size_t shared;
    line >> name >> gridDim.x >> gridDim.y >> gridDim.z >> blockDim.x >> shared;
    blockDim.y = blockDim.z = 1;
    std::vector<std::vector<int64_t>> values;
    while (line >> token) {
        const char* text = token.c_str() + 1;
        std::vector<int64_t> value;
        switch (token[0]) {
            case 'p': value.push_back((int64_t)(memory + strtoull(text, nullptr, 10))); break;
            case 'n': value.push_back(0); break;
            case 'i': value.push_back(strtoll(text, nullptr, 10)); break;
            case 'f':
            case 'd': value.push_back((int64_t)strtoull(text, nullptr, 10)); break;
            case 's':
                for (char* at = (char*)text; *at; at += *at == ',') value.push_back(strtoll(at, &at, 10));
                break;
            case 'w':
                for (char* at = (char*)text; *at; at += *at == ',') {
                    char word = *at;
                    int64_t number = strtoll(at + 1, &at, 10);
                    value.push_back(word == 'p' ? (int64_t)(memory + number) : number);
                }
                break;
            default: fail("an argument of no kind");
        }
        values.push_back(value);
    }
    std::vector<void*> pointers;
    for (auto& value : values) pointers.push_back(value.data());
    // Dynamic shared memory is garbage at first, on GPUs too.
    static const size_t LINE = 128;
    std::vector<char> dynamic(shared + LINE, (char)0xff);
    dynamic_memory = (char*)(((size_t)dynamic.data() + LINE - 1) / LINE * LINE);
    dynamic_bytes = shared;
    entry = &entry_named(name);
    arguments = pointers.data();
    launch();
}

template <class T> static void multiply(std::istringstream& line) {
    int64_t m, n, k, batch, a, ta, lda, sa, b, tb, ldb, sb, c, ldc, sc, accumulates, bias;
    line >> m >> n >> k >> batch >> a >> ta >> lda >> sa >> b >> tb >> ldb >> sb >> c >> ldc >> sc >> accumulates >> bias;
    for (int64_t z = 0; z < batch; z++) {
        const T *x = (const T*)(memory + a) + z * sa, *y = (const T*)(memory + b) + z * sb;
        T* out = (T*)(memory + c) + z * sc;
        for (int64_t j = 0; j < n; j++)
            for (int64_t i = 0; i < m; i++) {
                float sum = 0.0f;
                for (int64_t p = 0; p < k; p++)
                    sum += wide(x[ta ? p + i * lda : i + p * lda]) * wide(y[tb ? j + p * ldb : p + j * ldb]);
                T& to = out[i + j * ldc];
                if (accumulates) sum += wide(to);
                if (bias >= 0) sum += wide(((const T*)(memory + bias))[i]);
                to = narrow<T>(sum);
            }
    }
}

static void matmul_line(std::istringstream& line) {
    std::string type;
    line >> type;
    if (type == "f32") multiply<float>(line);
    else if (type == "bf16") multiply<bf16>(line);
    else fail("products of that type");
}

int main(int, char** argv) {
    std::string program = argv[0];
    folder = program.substr(0, program.rfind('/'));
    int file = open(argv[1], O_RDWR);
    struct stat info;
    if (file < 0 || fstat(file, &info) != 0) fail("no memory file");
    memory = (char*)mmap(nullptr, info.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (memory == MAP_FAILED) fail("the memory file cannot be mapped");
    std::string text, kind;
    while (std::getline(std::cin, text)) {
        std::istringstream line(text);
        line >> kind;
        uint64_t from, to, bytes;
        if (kind == "L") launch_line(line);
        else if (kind == "M") matmul_line(line);
        else if (kind == "C" && line >> from >> to >> bytes) memmove(memory + to, memory + from, bytes);
        else if (kind == "Z" && line >> to >> bytes) memset(memory + to, 0, bytes);
        else if (kind == "S") std::cout << "ok" << std::endl;
        else fail("an unknown command");
    }
}
