"""Prints the milliseconds of eager AdamW steps of the model in PyTorch, one number a line.

Arguments: the mode, then layers, hidden, heads, vocabulary, sequence, batch, steps. `single1` and `single2` are one process
with as many threads; `dp`, `zero3` and `tp` are two processes with one thread each, over gloo.
"""
import os, sys, time

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, hidden, heads):
        super().__init__()
        self.head_dim = hidden // heads
        self.ln1, self.ln2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.q, self.k, self.v = (nn.Linear(hidden, hidden) for _ in range(3))
        self.o = nn.Linear(hidden, hidden)
        self.up, self.down = nn.Linear(hidden, 4 * hidden), nn.Linear(4 * hidden, hidden)

    def forward(self, x):
        b, s, _ = x.shape
        h = self.ln1(x)
        q, k, v = (p(h).view(b, s, -1, self.head_dim).transpose(1, 2) for p in (self.q, self.k, self.v))
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(a.transpose(1, 2).reshape(b, s, -1))
        return x + self.down(F.gelu(self.up(self.ln2(x)), approximate="tanh"))


class Gpt(nn.Module):
    def __init__(self, layers, hidden, heads, vocab, seq):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocab, hidden), nn.Embedding(seq, hidden)
        self.h = nn.ModuleList(Block(hidden, heads) for _ in range(layers))
        self.ln_f = nn.LayerNorm(hidden)
        self.head = nn.Linear(hidden, vocab, bias=False)
        self.head.weight = self.wte.weight
        for p in self.parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=0.02)

    def forward(self, ids):
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        for b in self.h:
            x = b(x)
        return self.head(self.ln_f(x))


def spread(model, mode):
    """The model over two processes."""
    if mode == "dp":
        return nn.parallel.DistributedDataParallel(model)
    from torch.distributed.device_mesh import init_device_mesh
    mesh = init_device_mesh("cpu", (2,))
    if mode == "zero3":
        from torch.distributed.fsdp import fully_shard
        for b in model.h:
            fully_shard(b, mesh=mesh)
        fully_shard(model, mesh=mesh)
    else:
        from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
        for b in model.h:
            columns, rows = ColwiseParallel, RowwiseParallel
            parallelize_module(b, mesh, {"q": columns(), "k": columns(), "v": columns(), "o": rows(),
                                         "up": columns(), "down": rows()})
    return model


def work(rank, mode, numbers, port):
    layers, hidden, heads, vocab, seq, batch, steps = numbers
    torch.set_num_threads(2 if mode == "single2" else 1)
    many = mode in ("dp", "zero3", "tp")
    if many:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2")
        dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = Gpt(layers, hidden, heads, vocab, seq)
    if many:
        model = spread(model, mode)
    opt = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1,
                            foreach=False if mode == "tp" else None)
    ids = torch.randint(0, vocab, (batch, seq + 1), generator=torch.Generator().manual_seed(1))
    if mode in ("dp", "zero3"):
        half = batch // 2
        ids = ids[rank * half:(rank + 1) * half]
    x, y = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    times = []
    for i in range(2 + steps):
        if many:
            dist.barrier()
        start = time.perf_counter()
        opt.zero_grad()
        F.cross_entropy(model(x).reshape(-1, vocab), y.reshape(-1)).backward()
        opt.step()
        if many:
            dist.barrier()
        times.append((time.perf_counter() - start) * 1e3)
    if rank == 0:
        print(*times[2:], sep="\n", flush=True)
    if many:
        dist.barrier()
        dist.destroy_process_group()


def main():
    mode, numbers = sys.argv[1], [int(a) for a in sys.argv[2:]]
    if mode not in ("dp", "zero3", "tp"):
        return work(0, mode, numbers, 0)
    import socket
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    # Forked before any thread of PyTorch starts.
    child = os.fork()
    work(1 if child == 0 else 0, mode, numbers, port)
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


main()
