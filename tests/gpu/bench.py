"""Measures a GPU, our steps and PyTorch's on it: bench.py FOLDER, the folder that `run.sh --build` fills.

Prints one line a result: the outcome (PASS, FAIL, SKIPPED), what it is and the figures, between tabs. All times are medians of
steps after warm-up, in one run on one card. `GALVATRON_BENCH_MODELS` names some of the models, between commas.

MFU counts 6 N + 12 layers hidden sequence operations a token (Chowdhery et al. 2022), N without tables that are only looked up,
against the card's dense bf16 rate of the data sheet.
"""

import json
import os
import statistics
import subprocess
import sys
import time

# Dense bf16 operations a second, from data sheets.
PEAKS = {"H100": 989.4e12, "H200": 989.4e12, "A100": 312e12}
WARMUP, STEPS = 8, 12
OURS, EAGER, COMPILED = "galvatron", "PyTorch eager", "PyTorch compiled"


def say(outcome, label, detail):
    print(outcome, label, str(detail).replace("\n", " ")[:240], sep="\t", flush=True)


def attempt(label, measure):
    """Runs a measurement; what goes wrong in it is reported, and the next one runs."""
    try:
        return measure()
    except Exception as fault:
        say("FAIL", label, f"{type(fault).__name__}: {fault}")
        return None


def timed(torch, work, repeats):
    """Seconds of one call, the mean of several after three warm-ups."""
    for _ in range(3):
        work()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


def ceilings(torch):
    """What the card reaches in products and copies through PyTorch."""
    for name, dtype, n in (("bf16", torch.bfloat16, 8192), ("f32", torch.float32, 4096)):
        a, b = (torch.randn(n, n, device="cuda", dtype=dtype) for _ in range(2))
        rate = 2 * n**3 / timed(torch, lambda: a @ b, 10)
        say("PASS", f"ceiling: {name} product of {n}", f"{rate / 1e12:.1f} TFLOP/s")
        del a, b
    x = torch.empty(1 << 30, device="cuda", dtype=torch.uint8)
    y = torch.empty_like(x)
    rate = 2 * x.numel() / timed(torch, lambda: y.copy_(x), 10)
    say("PASS", "ceiling: copy of 1 GiB", f"{rate / 1e9:.0f} GB/s, reads and writes together")


def tokens_file(folder, n_tokens):
    """A file of tokens that repeats, small enough for every vocabulary."""
    path = os.path.join(folder, "tokens.bin")
    with open(path, "wb") as file:
        file.write(b"".join(((i * 2654435761 >> 7) % 50000).to_bytes(2, "little") for i in range(n_tokens)))
    return path


def ours(folder, name, n_tokens):
    """Seconds of a step of `galvatron-exec`; its memory must be what the plan says."""
    metrics = os.path.join(folder, f"{name}.jsonl")
    command = [os.path.join(folder, "galvatron-exec"), os.path.join(folder, "plans", f"{name}.gir"), "--backend", "cuda",
               "--init", "random", "--data", tokens_file(folder, 4 * n_tokens + 1), "--steps", str(WARMUP + STEPS),
               "--metrics", metrics]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip()[-400:])
    with open(metrics) as file:
        first, *steps = [json.loads(line) for line in file]
    label = f"{name}: planned memory is used memory"
    planned, used = first["predicted_peak_bytes"], steps[-1]["peak_bytes"]
    say("PASS" if planned == used else "FAIL", label, f"{planned[0] / 2**30:.2f} GiB planned, {used[0] / 2**30:.2f} GiB used")
    losses = [step["loss"] for step in steps]
    falls = losses[-1] < losses[0] and all(loss == loss for loss in losses)
    say("PASS" if falls else "FAIL", f"{name}: the loss falls", f"{losses[0]:.4f} to {losses[-1]:.4f} in {len(losses)} steps")
    say("PASS", f"{name}: predicted step", f"{1e3 * first['predicted_step_time_s']:.2f} ms by the plan")
    return statistics.median(step["step_time_s"] for step in steps[WARMUP:])


def model_of(config_path):
    from transformers import AutoConfig, AutoModelForCausalLM
    config = AutoConfig.from_pretrained(config_path)
    config.use_cache = False
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").float().cuda().train()


def theirs(torch, config_path, batch, sequence, is_compiled):
    """Seconds of a step of PyTorch: f32 parameters, bf16 by autocast, fused AdamW."""
    from torch.nn import functional as F
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = False
    model = model_of(config_path)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    ids = torch.randint(0, 50000, (batch, sequence + 1), device="cuda")
    x, y = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    def loss_of(x, y):
        with torch.autocast("cuda", dtype=torch.bfloat16):
            logits = model(input_ids=x).logits
            return F.cross_entropy(logits.view(-1, logits.shape[-1]), y.view(-1))

    forward = torch.compile(loss_of) if is_compiled else loss_of
    times = []
    for _ in range(WARMUP + STEPS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        loss = forward(x, y)
        loss.backward()
        optimizer.step()
        loss.item()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    del model, optimizer, loss
    torch.cuda.empty_cache()
    return statistics.median(times[WARMUP:])


def flops_per_token(config_path, sequence):
    """Operations of a token's forward and backward pass, from the configuration."""
    with open(config_path) as file:
        c = json.load(file)
    if c["model_type"] == "gpt2":
        layers, hidden = c["n_layer"], c["n_embd"]
        weights = layers * 12 * hidden * hidden
    else:
        layers, hidden = c["num_hidden_layers"], c["hidden_size"]
        heads = c["num_attention_heads"] + 2 * c["num_key_value_heads"]
        projections = hidden * heads * c["head_dim"] + hidden * c["num_attention_heads"] * c["head_dim"]
        weights = layers * (projections + 3 * hidden * c["intermediate_size"])
    weights += c["vocab_size"] * hidden
    return 6 * weights + 12 * layers * hidden * sequence


def peak():
    card = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
    return next((rate for name, rate in PEAKS.items() if name in card), None)


def bench_model(torch, folder, name, batch, sequence):
    config_path = os.path.join(folder, "models", f"{name}.json")
    n_tokens = batch * sequence
    runs = {OURS: lambda: ours(folder, name, n_tokens)}
    if torch:
        runs[EAGER] = lambda: theirs(torch, config_path, batch, sequence, False)
        runs[COMPILED] = lambda: theirs(torch, config_path, batch, sequence, True)
    seconds = {}
    for who, run in runs.items():
        seconds[who] = attempt(f"{name}: {who}", run)
        if seconds[who] is None:
            continue
        rate, card = n_tokens / seconds[who], peak()
        mfu = f", MFU {100 * rate * flops_per_token(config_path, sequence) / card:.1f} %" if card else ""
        say("PASS", f"{name}: {who}", f"{1e3 * seconds[who]:.2f} ms a step, {rate:.0f} tokens/s{mfu}")
    for who in (EAGER, COMPILED):
        if seconds[OURS] and seconds.get(who):
            say("PASS", f"{name}: {OURS} / {who}", f"{seconds[OURS] / seconds[who]:.3f} of its time")


def pytorch():
    """PyTorch, or why it cannot be measured."""
    try:
        import torch
    except ImportError:
        return None, "no PyTorch in python3"
    return (torch, None) if torch.cuda.is_available() else (None, "PyTorch sees no GPU")


def main():
    folder = sys.argv[1]
    with open(os.path.join(folder, "models", "bench.json")) as file:
        models = json.load(file)
    wanted = os.environ.get("GALVATRON_BENCH_MODELS")
    names = wanted.split(",") if wanted else list(models)
    has_gpu = "GALVATRON_NEEDS_GPU" in os.environ
    torch, why = pytorch()
    if torch:
        versions = f"PyTorch {torch.__version__}, CUDA {torch.version.cuda}, NCCL {torch.cuda.nccl.version()}"
        say("PASS", "software", versions)
        attempt("ceilings", lambda: ceilings(torch))
    else:
        say("SKIPPED", "ceilings", why)
    for name in names:
        if has_gpu:
            bench_model(torch, folder, name, **models[name])
        missing = [EAGER, COMPILED] if has_gpu else [OURS, EAGER, COMPILED]
        for who in missing if not torch else []:
            say("SKIPPED", f"{name}: {who}", why if who != OURS else "no GPU")


main()
