// A double of the driver, NVRTC, cuBLASLt and NCCL in one library, for tests without a GPU. Memory is host memory; copies are done,
// kernels and products are not. It keeps the rules of stream capture and of NCCL's communicators, and ends the process with a word
// when one is broken. At the end it says what it was told.
//
//   DOUBLE_GPUS=N      how many GPUs there are (1)
//   DOUBLE_HANG=N      exchange number N, from 1, counted over launches, never ends
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, NOT_READY = 600, MAX = 256 };

typedef struct Stream {
    int capture;            // the capture that it takes part in, or 0
    int n_ops, n_joined;    // operations in the capture, and how many of them the origin waits for
    int is_stuck;
} Stream;

typedef struct Event {
    int capture, n_ops, is_recorded;
    Stream *stream;
} Event;

typedef struct Op {
    enum { KERNEL, COPY, SET8, SET32, EXCHANGE } kind;
    void *to;
    const void *from;
    size_t n;
    unsigned value;
    void *comm;
    Stream *stream;
} Op;

typedef struct Graph {
    int n_ops, n_streams;
    Op ops[1 << 16];
} Graph;

typedef struct Comm {
    int n_graphs;
} Comm;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Stream *streams[MAX];
static int n_streams, n_captures, n_launches, n_eager, n_exchanges, n_live_graphs, is_aborted;
static Graph *recording;
static int recording_id;
static Stream *origin;
static __thread int is_capturing;
static char name[128];

static void broken(const char *rule) {
    fprintf(stderr, "double: broken rule: %s\n", rule);
    _exit(99);
}

static void unsafe_call(const char *what) {
    if (is_capturing) broken(what);
}

static int number(const char *variable, int otherwise) {
    const char *text = getenv(variable);
    return text ? atoi(text) : otherwise;
}

static void perform(const Op *op) {
    if (op->stream->is_stuck) return;
    switch (op->kind) {
    case KERNEL: break;
    case COPY: memmove(op->to, op->from, op->n); break;
    case SET8: memset(op->to, (int)op->value, op->n); break;
    case SET32:
        for (size_t i = 0; i < op->n; i++) ((uint32_t *)op->to)[i] = op->value;
        break;
    case EXCHANGE:
        if (++n_exchanges == number("DOUBLE_HANG", 0)) op->stream->is_stuck = 1;
    }
}

static int submit(void *stream, Op op) {
    pthread_mutex_lock(&lock);
    op.stream = stream;
    if (op.stream->capture) {
        if (!recording || op.stream->capture != recording_id) broken("an operation on a stream whose capture has ended");
        if (recording->n_ops == 1 << 16) broken("the double has no room for so many operations");
        recording->ops[recording->n_ops++] = op;
        op.stream->n_ops++;
    } else {
        if (recording && is_capturing) broken("a stream that does not take part in the capture");
        n_eager++;
        perform(&op);
    }
    pthread_mutex_unlock(&lock);
    return OK;
}

// The driver: devices, contexts, memory.
int cuInit(unsigned flags) { return OK; }
int cuDriverGetVersion(int *v) { *v = 13000; return OK; }
int cuDeviceGetCount(int *n) { *n = number("DOUBLE_GPUS", 1); return OK; }
int cuDeviceGet(int *d, int ordinal) { *d = ordinal; return OK; }
int cuDeviceGetUuid_v2(char *uuid, int d) { memset(uuid, d + 1, 16); return OK; }
int cuDeviceGetUuid(char *uuid, int d) { return cuDeviceGetUuid_v2(uuid, d); }
int cuDeviceGetAttribute(int *v, int attribute, int d) { *v = attribute == 75 ? 9 : 0; return OK; }
int cuDevicePrimaryCtxRetain(void **c, int d) { *c = &lock; return OK; }
int cuDevicePrimaryCtxRelease_v2(int d) { return OK; }
int cuCtxGetCurrent(void **c) { *c = &lock; return OK; }
int cuCtxSetCurrent(void *c) { return OK; }
int cuGetErrorString(int status, const char **text) { *text = "an error of the double"; return OK; }
int cuGetErrorName(int status, const char **text) { *text = "DOUBLE"; return OK; }
int cuMemAlloc_v2(uint64_t *p, size_t n) { unsafe_call("memory is allocated in a capture"); *p = (uint64_t)aligned_alloc(256, (n + 255) / 256 * 256); return OK; }
int cuMemFree_v2(uint64_t p) {
    if (n_live_graphs) broken("memory is freed before the graphs that use it");
    free((void *)p);
    return OK;
}
int cuMemHostAlloc(void **p, size_t n, unsigned flags) { unsafe_call("pinned memory is allocated in a capture"); *p = malloc(n); return OK; }
int cuMemFreeHost(void *p) {
    if (n_live_graphs) broken("pinned memory is freed before the graphs that use it");
    free(p);
    return OK;
}
int cuMemsetD8_v2(uint64_t to, unsigned char v, size_t n) { unsafe_call("a synchronous call in a capture"); memset((void *)to, v, n); return OK; }
int cuMemcpyDtoH_v2(void *to, uint64_t from, size_t n) { unsafe_call("a synchronous call in a capture"); memcpy(to, (void *)from, n); return OK; }
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t n, void *s) { return submit(s, (Op){.kind = COPY, .to = to, .from = (void *)from, .n = n}); }
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t n, void *s) { return submit(s, (Op){.kind = COPY, .to = (void *)to, .from = from, .n = n}); }
int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t n, void *s) { return submit(s, (Op){.kind = COPY, .to = (void *)to, .from = (void *)from, .n = n}); }
int cuMemsetD8Async(uint64_t to, unsigned char v, size_t n, void *s) { return submit(s, (Op){.kind = SET8, .to = (void *)to, .value = v, .n = n}); }
int cuMemsetD32Async(uint64_t to, unsigned v, size_t n, void *s) { return submit(s, (Op){.kind = SET32, .to = (void *)to, .value = v, .n = n}); }
int cuModuleLoadData(void **m, const void *image) { *m = &lock; return OK; }
int cuModuleGetFunction(void **f, void *m, const char *entry) { *f = &lock; return OK; }
int cuFuncSetAttribute(void *f, int attribute, int v) { return OK; }
int cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void *s, void **params, void **extra) {
    return submit(s, (Op){.kind = KERNEL});
}

// Streams and events.
int cuStreamCreate(void **s, unsigned flags) {
    pthread_mutex_lock(&lock);
    *s = streams[n_streams++] = calloc(1, sizeof(Stream));
    pthread_mutex_unlock(&lock);
    return OK;
}
int cuStreamDestroy_v2(void *s) {
    if (n_live_graphs) broken("a stream is destroyed before the graphs");
    return OK;
}
int cuStreamQuery(void *s) {
    unsafe_call("a stream is asked in a capture");
    return ((Stream *)s)->is_stuck && !is_aborted ? NOT_READY : OK;
}
int cuEventCreate(void **e, unsigned flags) { *e = calloc(1, sizeof(Event)); return OK; }
int cuEventDestroy_v2(void *e) { return OK; }
int cuEventQuery(void *e) {
    if (((Event *)e)->capture) broken("an event of a capture is asked");
    return OK;
}
int cuEventRecord(void *event, void *stream) {
    Event *e = event;
    Stream *s = stream;
    if (is_capturing && !s->capture) broken("an event is recorded on a stream that does not take part in the capture");
    *e = (Event){.capture = s->capture, .n_ops = s->n_ops, .is_recorded = 1, .stream = s};
    return OK;
}
int cuStreamWaitEvent(void *stream, void *event, unsigned flags) {
    Event *e = event;
    Stream *s = stream;
    int active = recording ? recording_id : 0;
    if (e->capture && e->capture != active) broken("a wait for an event of a capture that has ended");
    if (s->capture && e->capture != s->capture) broken("a captured stream waits for what is not in its capture");
    if (e->capture && !s->capture) {
        s->capture = e->capture;
        s->n_ops = s->n_joined = 0;
    }
    if (e->capture && s == origin && e->stream->n_joined < e->n_ops) e->stream->n_joined = e->n_ops;
    return OK;
}

// Graphs. One capture at a time; ranks of a test are processes.
int cuStreamBeginCapture_v2(void *s, int mode) {
    if (mode != 1) broken("a capture is of its thread alone");
    for (int i = 0; i < n_streams; i++)
        if (streams[i]->is_stuck) broken("a capture begins while work is under way");
    recording = calloc(1, sizeof(Graph));
    recording_id = ++n_captures;
    origin = s;
    *origin = (Stream){.capture = recording_id};
    is_capturing = 1;
    return OK;
}
int cuStreamEndCapture(void *s, void **graph) {
    if (s != origin) broken("a capture ends on another stream");
    for (int i = 0; i < n_streams; i++) {
        Stream *other = streams[i];
        if (other->capture != recording_id) continue;
        recording->n_streams++;
        if (other != origin && other->n_joined < other->n_ops) broken("a stream was not joined before the capture ended");
        other->capture = 0;
    }
    *graph = recording;
    recording = NULL;
    origin = NULL;
    is_capturing = 0;
    return OK;
}
static void refer(const Graph *g, int by) {
    for (int i = 0; i < g->n_ops; i++)
        if (g->ops[i].comm) ((Comm *)g->ops[i].comm)->n_graphs += by;
}
int cuGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long flags) {
    Graph *copy = malloc(sizeof(Graph));
    memcpy(copy, graph, sizeof(Graph));
    refer(copy, 1);
    n_live_graphs++;
    *executable = copy;
    return OK;
}
int cuGraphDestroy(void *graph) { free(graph); return OK; }
int cuGraphUpload(void *executable, void *s) { return OK; }
int cuGraphLaunch(void *executable, void *s) {
    Graph *g = executable;
    unsafe_call("a graph is launched in a capture");
    n_launches++;
    for (int i = 0; i < g->n_ops && !((Stream *)s)->is_stuck; i++) {
        Op op = g->ops[i];
        op.stream = s;
        perform(&op);
    }
    return OK;
}
int cuGraphExecDestroy(void *executable) {
    Graph *g = executable;
    fprintf(stderr, "double: a graph of %d operations on %d streams ends\n", g->n_ops, g->n_streams);
    refer(g, -1);
    n_live_graphs--;
    return OK;
}

// NVRTC and cuBLASLt: enough to be asked.
int nvrtcVersion(int *major, int *minor) { *major = 13; *minor = 0; return OK; }
int nvrtcCreateProgram(void **p, const char *source, const char *title, int n, void *headers, void *names) { *p = &lock; return OK; }
int nvrtcCompileProgram(void *p, int n, void *options) { return OK; }
int nvrtcDestroyProgram(void **p) { return OK; }
int nvrtcGetCUBINSize(void *p, size_t *n) { *n = 8; return OK; }
int nvrtcGetCUBIN(void *p, char *image) { memcpy(image, "\x7f" "ELF    ", 8); return OK; }
size_t cublasLtGetVersion(void) { return 130000; }
int cublasLtCreate(void **h) { *h = &lock; return OK; }
int cublasLtDestroy(void *h) { return OK; }
int cublasLtMatmulDescCreate(void **d, int compute, int scale) { *d = &lock; return OK; }
int cublasLtMatmulDescDestroy(void *d) { return OK; }
int cublasLtMatmulDescSetAttribute(void *d, int attribute, const void *v, size_t n) { return OK; }
int cublasLtMatrixLayoutCreate(void **l, int type, uint64_t rows, uint64_t cols, int64_t ld) { *l = &lock; return OK; }
int cublasLtMatrixLayoutDestroy(void *l) { return OK; }
int cublasLtMatrixLayoutSetAttribute(void *l, int attribute, const void *v, size_t n) { return OK; }
int cublasLtMatmulPreferenceCreate(void **p) { *p = &lock; return OK; }
int cublasLtMatmulPreferenceDestroy(void *p) { return OK; }
int cublasLtMatmulPreferenceSetAttribute(void *p, int attribute, const void *v, size_t n) { return OK; }
int cublasLtMatmulAlgoGetHeuristic(void *h, void *d, void *a, void *b, void *c, void *out, void *p, int wanted, void *results, int *n) {
    memset(results, 0, 64 + 8 + 4 + 4 + 16);
    *n = 1;
    return OK;
}
int cublasLtMatmul(void *h, void *d, const void *alpha, const void *a, void *la, const void *b, void *lb, const void *beta, const void *c,
                   void *lc, void *out, void *ld, const void *algorithm, void *workspace, size_t n, void *s) {
    return submit(s, (Op){.kind = KERNEL});
}

// NCCL.
typedef struct Name {
    char bytes[128];
} Name;
typedef struct Config {
    size_t size;
    unsigned magic, version;
    int is_blocking;
} Config;
int ncclGetVersion(int *v) { *v = 23000; return OK; }
const char *ncclGetErrorString(int status) { return "an error of the double"; }
int ncclGetUniqueId(Name *id) {
    memset(id, 7, sizeof *id);
    snprintf(id->bytes, sizeof id->bytes, "made by process %d", (int)getpid());
    return OK;
}
int ncclCommInitRankConfig(void **comm, int n, Name id, int rank, Config *config) {
    if (config->size != 24 || config->magic != 0xcafebeef || config->version != 21400) broken("a configuration of version 2.14");
    if (is_capturing) broken("a communicator is made in a capture");
    memcpy(name, id.bytes, sizeof name);
    fprintf(stderr, "double: rank %d of %d joins %s\n", rank, n, name);
    *comm = calloc(1, sizeof(Comm));
    return config->is_blocking ? OK : 7;
}
int ncclCommGetAsyncError(void *comm, int *state) { *state = OK; return OK; }
int ncclCommAbort(void *comm) {
    if (((Comm *)comm)->n_graphs) broken("a communicator ends before the graphs that refer to it");
    is_aborted = 1;
    return OK;
}
static int exchange(void *comm, void *s) { return submit(s, (Op){.kind = EXCHANGE, .comm = comm}); }
int ncclAllReduce(const void *from, void *to, size_t n, int type, int op, void *c, void *s) { return exchange(c, s); }
int ncclReduceScatter(const void *from, void *to, size_t n, int type, int op, void *c, void *s) { return exchange(c, s); }
int ncclAllGather(const void *from, void *to, size_t n, int type, void *c, void *s) { return exchange(c, s); }
int ncclSend(const void *from, size_t n, int type, int peer, void *c, void *s) { return exchange(c, s); }
int ncclRecv(void *to, size_t n, int type, int peer, void *c, void *s) { return exchange(c, s); }
int ncclGroupStart(void) { return OK; }
int ncclGroupEnd(void) { return OK; }

__attribute__((destructor)) static void report(void) {
    fprintf(stderr, "double: %d captures, %d launches of graphs, %d other operations, %d exchanges\n", n_captures, n_launches, n_eager,
            n_exchanges);
}
