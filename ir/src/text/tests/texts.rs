//! One small module of each level.

pub const GRAPH: &str = r#"gir 1
module @"two layers" level=graph {
  initializer "fc1.weight" = {file="mlp \"v2\".onnx", offset=4096} f32[64, 16]
  initializer "mask" = {file="mlp.onnx", offset=18446744073709551615} f32[4, 4]
  program {
    input %x = "x": f32[8, 16]
    weight %fc1.weight = "fc1.weight" | transpose{perm=[1, 0]} | reshape{shape=[16, 64]} | slice{dim=1, start=0, len=48}: f32[16, 48]
    frozen %mask = "mask": f32[4, 4]
    %h = einsum{spec="bi,io->bo"} %x, %fc1.weight: f32[8, 48] layer=0
    %g = full{dtype=f32, shape=[48], value=1.0}: f32[48]
    %y, %mean, %rstd = layer_norm{eps=1e-5} %h, %g, %g: f32[8, 48], f32[8], f32[8] layer=0
    %low = full{dtype=f32, shape=[], value=-inf}: f32[]
    %nan = full{dtype=f32, shape=[], value=NaN}: f32[]
    %q = reshape{shape=[2, 4, 6, 8]} %y: f32[2, 4, 6, 8]
    %o, %lse = attention{scale=0.125, causal} %q, %q, %q: f32[2, 4, 6, 8], f32[2, 6, 4]
    output "hidden" %y
    output "attended" %o
  }
}
"#;

pub const TRAINING: &str = r#"gir 1
module @mlp level=training {
  train {seed=18446744073709551615, shuffle=false, lr=0.001, schedule="cosine", warmup_steps=2, total_steps=10, min_lr=1e-5, global_batch=4, sequence=0, labels="t", shift=auto, ignore_index=-100}
  initializer "w" = {file="mlp.onnx", offset=0} f32[16, 8]
  program {
    input %x = "x": f32[4, 16]
    input %t = "t": f32[4, 8]
    weight %w = "w": f32[16, 8]
    state %w.m = "momentum" of %w: f32[16, 8]
    %one = full{dtype=f32, shape=[], value=1.0}: f32[] grad=%loss fwd=%loss
    %h = einsum{spec="bi,io->bo"} %x, %w: f32[4, 8] layer=0
    %y = relu %h: f32[4, 8] layer=0
    %loss = mse %y, %t: f32[]
    %dy = mse_grad %y, %t, %one: f32[4, 8] grad=%y fwd=%loss
    %dh = relu_grad %h, %dy: f32[4, 8] grad=%h fwd=%y layer=0
    %dw = einsum{spec="bi,bo->io"} %x, %dh: f32[16, 8] grad=%w fwd=%h layer=0
    %w1 = sub %w, %dw: f32[16, 8]
    update %w = %w1
    update %w.m = %dw
    output "loss" %loss
  }
}
"#;

pub const SHARDED: &str = r#"gir 1
module @mlp level=sharded {
  mesh [mb=1, a0=2@0, a1=2] of cuda
  initializer "w" = {file="mlp.onnx", offset=0} f32[16, 8]
  program {
    input %x = "x": f32[4, 16]
    weight %w = "w": f32[16, 8]
    %h = einsum{spec="bi,io->bo"} %x, %w: f32[4, 8]
    output "h" %h
  }
  chunk 0 {
    resident parameter %w: f32[16, 8]@[a1, _] of=%w
    forward {
      %x = load{input="x", dtype=f32, shape=[4, 16]}: f32[4, 16]@[mb.a0, a1] of=%x
      %h = einsum{spec="bi,io->bo"} %x, %w: f32[4, 8]@[mb.a0, _]+a1 of=%h
      %h.1 = comm.reshard %h: f32[4, 8]@[mb.a0, a1] of=%h
    }
  }
}
"#;

pub const PLAN: &str = r#"gir 1
module @mlp level=plan {
  mesh [mb=2, a0=2@0, a1=2@1]
  cluster {name="four ranks", kind="cpu", memory_bytes=2147483648, f32_flops=100000000000.0, bf16_flops=100000000000.0, memory_bandwidth=10000000000.0} level {name="inter_node", size=2, bandwidth=1250000000.0, latency_ns=1.5} level {name="intra_node", size=2, bandwidth=4000000000.0, latency_ns=10000.0}
  train {seed=0, shuffle=true, lr=0.1, schedule="constant", warmup_steps=0, total_steps=0, min_lr=0.0, global_batch=8, sequence=0, labels="labels", shift=false, ignore_index=-100}
  initializer "w" = {file="mlp.onnx", offset=0} f32[16, 8]
  program {
    input %x = "x": f32[8, 16]
    weight %w = "w": f32[16, 8]
    %h = einsum{spec="bi,io->bo"} %x, %w: f32[8, 8] layer=0
    %dw = einsum{spec="bi,bo->io"} %x, %h: f32[16, 8] grad=%w fwd=%h layer=0
    %n = sum_squares %dw: f32[]
    %w1 = sub %w, %dw: f32[16, 8]
    update %w = %w1
    output "grad_norm" %n
  }
  chunk 0 {
    resident parameter %w: f32[16, 8]@[_, _] of=%w at persistent+0
    resident accumulator %acc: f32[16, 8]@[_, _]+a0 of=%dw at persistent+512
    prologue {
      %lr = run_scalar{name="lr"}: f32[]@[] at transient+0
    }
    forward {
      %x = load{input="x", dtype=f32, shape=[8, 16]}: f32[8, 16]@[mb.a0, _] of=%x at transient+64
      %h = einsum{spec="bi,io->bo"} %x, %w: f32[8, 8]@[mb.a0, _] of=%h at transient+0 layer=0 workspace=transient+4096
    }
    backward {
      %p = einsum{spec="bi,bo->io"} %x, %h: f32[16, 8]@[_, _]+mb.a0 of=%dw at transient+128 layer=0
      accumulate %acc, %p
    }
    reduce {
      %g, %n.1 = comm.all_reduce{axes=[a0]} %acc, %acc: f32[16, 8]@[_, _] of=%dw at transient+0, f32[16, 8]@[_, _] of=%dw at transient+512 workspace=transient+1024
      %g.s = comm.shard{axes=[a0, a1], dim=0} %g: f32[16, 8]@[a0.a1, _] of=%dw at transient+2048
      %g.g = comm.all_gather{axes=[a1], dim=0} %g.s: f32[16, 8]@[a0, _] of=%dw at transient+2048
      %g.t = comm.all_to_all{axes=[a0], from=0, to=1} %g.g: f32[16, 8]@[_, a0] of=%dw at transient+2048
      %g.r = comm.reduce_scatter{axes=[a0], dim=1} %acc: f32[16, 8]@[_, a0] of=%dw at transient+2048
    }
    step {
      %w1 = sub %w, %g: f32[16, 8]@[_, _] of=%w1 at persistent+0
      update %w, %w1
    }
  }
  schedule P0 F0.0 B0.0 F0.1 B0.1 R0 S0
  arena {persistent=1024, transient=8192}
  predicted {step_time_ns=41200, gap_ppm=3}
}
"#;

/// All of them.
pub const ALL: [&str; 8] = [GRAPH, TRAINING, SHARDED, PLAN, PIPELINE, RING, ROUTED, HOST];

/// Two stages of one rank each.
pub const PIPELINE: &str = r#"gir 1
module @two level=plan {
  mesh [mb=2, a0=2@0]
  cluster {name="a slow rank", kind="cpu", memory_bytes=1024, f32_flops=1000000000.0, bf16_flops=1000000000.0, memory_bandwidth=1000000000.0} group {name="fast", count=1, memory_bytes=1024, speed=1.0} group {name="slow", count=1, memory_bytes=512, speed=0.5} level {name="node", size=2, bandwidth=1000000000.0, latency_ns=1.0}
  initializer "w" = {file="m.onnx", offset=0} f32[4, 4]
  program {
    input %x = "x": f32[8, 4]
    weight %w = "w": f32[4, 4]
    %h = relu %x: f32[8, 4]
    %y = einsum{spec="bi,io->bo"} %h, %w: f32[8, 4]
    output "y" %y
  }
  stage 0 at 0 [mb=2]
  stage 1 at 1 [mb=2]
  chunk 0 of 0 slots {count=2, bytes=128, offset=0} {
    forward {
      %x = load{input="x", dtype=f32, shape=[8, 4]}: f32[8, 4]@[mb, _] of=%x at slot+0
      %h = relu %x: f32[8, 4]@[mb, _] of=%h at transient+0
      pipe.send{channel=0, to=1} %h
    }
  }
  chunk 1 of 1 {
    resident parameter %w: f32[4, 4]@[_, _] of=%w at persistent+0
    forward {
      %h = pipe.recv{channel=0, from=0, dtype=f32, shape=[8, 4]}: f32[8, 4]@[mb, _] of=%h at transient+0
      %y = einsum{spec="bi,io->bo"} %h, %w: f32[8, 4]@[mb, _] of=%y at transient+64
    }
  }
  schedule of 0 P0 F0.0 F0.1 B0.0 B0.1
  schedule of 1 P1 F1.0 B1.0
  arena of 0 {persistent=0, slots=256, transient=64}
  arena of 1 {persistent=64, transient=128}
  predicted {step_time_ns=0, gap_ppm=0}
}
"#;

/// Attention around a ring of two ranks, and its gradient.
pub const RING: &str = r#"gir 1
module @ring level=sharded {
  mesh [mb=1, a0=2@0]
  program {
    input %q = "q": f32[2, 8, 4, 4]
    input %g = "g": f32[2, 8, 4, 4]
    %o, %lse = attention{scale=0.5, causal} %q, %q, %q: f32[2, 8, 4, 4], f32[2, 4, 8] layer=0
    %dq, %dk, %dv = attention_grad{scale=0.5, causal} %q, %q, %q, %o, %lse, %g: f32[2, 8, 4, 4] grad=%q, f32[2, 8, 4, 4] grad=%q, f32[2, 8, 4, 4] grad=%q fwd=%o layer=0
  }
  chunk 0 {
    forward {
      %q = load{input="q", dtype=f32, shape=[2, 8, 4, 4]}: f32[2, 8, 4, 4]@[_, a0, _, _] of=%q
      %g = load{input="g", dtype=f32, shape=[2, 8, 4, 4]}: f32[2, 8, 4, 4]@[_, a0, _, _] of=%g
      %o, %lse = comm.ring_attention{axes=[a0], scale=0.5, causal, zigzag} %q, %q, %q: f32[2, 8, 4, 4]@[_, a0, _, _] of=%o, f32[2, 4, 8]@[_, _, a0] of=%lse layer=0
    }
    backward {
      %dq, %dk, %dv = comm.ring_attention_grad{axes=[a0], scale=0.5, causal} %q, %q, %q, %o, %lse, %g: f32[2, 8, 4, 4]@[_, a0, _, _] of=%dq, f32[2, 8, 4, 4]@[_, a0, _, _] of=%dk, f32[2, 8, 4, 4]@[_, a0, _, _] of=%dv layer=0
    }
  }
}
"#;

/// A mixture of four experts on two ranks, and its gradient.
pub const ROUTED: &str = r#"gir 1
module @routed level=sharded {
  mesh [mb=1, a0=2@0]
  initializer "gate" = {file="m.onnx", offset=0} f32[4, 6, 4]
  initializer "down" = {file="m.onnx", offset=384} f32[4, 4, 6]
  program {
    input %x = "x": f32[8, 4]
    input %w = "w": f32[8, 2]
    input %i = "i": i64[8, 2]
    input %g = "g": f32[8, 4]
    weight %gate = "gate": f32[4, 6, 4]
    weight %down = "down": f32[4, 4, 6]
    %y = moe{activation=silu, experts=4} %x, %w, %i, %gate, %gate, %down: f32[8, 4] layer=0
    %dx, %dw, %dgate, %dup, %ddown = moe_grad{activation=silu, experts=4} %x, %w, %i, %gate, %gate, %down, %g: f32[8, 4] grad=%x, f32[8, 2] grad=%w, f32[4, 6, 4] grad=%gate, f32[4, 6, 4] grad=%gate, f32[4, 4, 6] grad=%down fwd=%y layer=0
  }
  chunk 0 {
    resident parameter %gate: f32[4, 6, 4]@[a0, _, _] of=%gate
    resident parameter %down: f32[4, 4, 6]@[a0, _, _] of=%down
    forward {
      %x = load{input="x", dtype=f32, shape=[8, 4]}: f32[8, 4]@[a0, _] of=%x
      %w = load{input="w", dtype=f32, shape=[8, 2]}: f32[8, 2]@[a0, _] of=%w
      %i = load{input="i", dtype=i64, shape=[8, 2]}: i64[8, 2]@[a0, _] of=%i
      %g = load{input="g", dtype=f32, shape=[8, 4]}: f32[8, 4]@[a0, _] of=%g
      %y = comm.routed_moe{axes=[a0], activation=silu, experts=4} %x, %w, %i, %gate, %gate, %down: f32[8, 4]@[a0, _] of=%y layer=0
    }
    backward {
      %dx, %dw, %dgate, %dup, %ddown = comm.routed_moe_grad{axes=[a0], activation=silu, experts=4} %x, %w, %i, %gate, %gate, %down, %g: f32[8, 4]@[a0, _] of=%dx, f32[8, 2]@[a0, _] of=%dw, f32[4, 6, 4]@[a0, _, _] of=%dgate, f32[4, 6, 4]@[a0, _, _] of=%dup, f32[4, 4, 6]@[a0, _, _] of=%ddown layer=0
    }
  }
}
"#;

/// An activation and an optimizer state in host memory.
pub const HOST: &str = r#"gir 1
module @host level=plan {
  mesh [mb=2]
  cluster {name="one rank", kind="cpu", memory_bytes=1024, f32_flops=1000000000.0, bf16_flops=1000000000.0, memory_bandwidth=1000000000.0} host {memory_bytes=4096, bandwidth=2000000000.0, latency_ns=5.0} level {name="node", size=1, bandwidth=1000000000.0, latency_ns=1.0}
  initializer "w" = {file="m.onnx", offset=0} f32[4, 4]
  program {
    input %x = "x": f32[8, 4]
    weight %w = "w": f32[4, 4]
    state %w.m = "momentum" of %w: f32[4, 4]
    %h = relu %x: f32[8, 4]
    %m1 = sub %w.m, %w: f32[4, 4]
    update %w.m = %m1
    output "h" %h
  }
  chunk 0 slots {count=2, bytes=64, offset=0, host_bytes=64, host_offset=0} {
    resident parameter %w: f32[4, 4]@[_, _] of=%w at persistent+0
    resident host state %w.m: f32[4, 4]@[_, _] of=%w.m at host+0
    forward {
      %x = load{input="x", dtype=f32, shape=[8, 4]}: f32[8, 4]@[mb, _] of=%x at slot+0
      %h = relu %x: f32[8, 4]@[mb, _] of=%h at transient+0
      %h.host = mem.to_host %h: f32[8, 4]@[mb, _] of=%h at host_slot+0
    }
    backward {
      %h.device = mem.to_device %h.host: f32[8, 4]@[mb, _] of=%h at transient+0
    }
    step {
      %m.device = mem.to_device %w.m: f32[4, 4]@[_, _] of=%w.m at transient+0
      %m1 = sub %m.device, %w: f32[4, 4]@[_, _] of=%m1 at transient+0
      %m1.host = mem.to_host %m1: f32[4, 4]@[_, _] of=%m1 at host+0
      update %w.m, %m1.host
    }
  }
  schedule F0.0 F0.1 B0.0 B0.1 S0
  arena {persistent=64, slots=128, host=64, host_slots=128, transient=64}
  predicted {step_time_ns=0, gap_ppm=0}
}
"#;
