//! A program for each rule on which it applies, and one that is almost alike on which it must not.

use super::terms::module_of_term;
use galvatron_ir::Program;

/// A small program for a rule; see [`module_of_term`] for its inputs.
pub struct RuleSample {
    /// Name of the rule.
    pub rule: &'static str,
    /// The program; its only output is `y`.
    pub program: Program,
}

/// Programs on which the rule of each applies.
pub fn rule_samples() -> Vec<RuleSample> {
    all_samples().map(|(rule, inputs, hit, _)| sample(rule, inputs, hit)).collect()
}

/// Programs on which the rule of each does not apply.
pub fn rule_misses() -> Vec<RuleSample> {
    all_samples().map(|(rule, inputs, _, miss)| sample(rule, inputs, miss)).collect()
}

fn sample(rule: &'static str, inputs: &str, term: &str) -> RuleSample {
    RuleSample {
        rule,
        program: module_of_term(inputs, &term.replace("SQUARES", SQUARES).replace("MEAN", MEAN)).program,
    }
}

/// Rule, inputs, a term on which it applies, and one on which it does not.
type Row = (&'static str, &'static str, &'static str, &'static str);

fn all_samples() -> impl Iterator<Item = Row> {
    ARITHMETIC.iter().chain(ACTIVATION).chain(NORM).chain(ROTARY).chain(ATTENTION).copied()
}

const X: &str = "x:2x3x4";
const XY: &str = "x:2x3x4 y:3x4";

const ARITHMETIC: &[Row] = &[
    ("commute-add", XY, "(add x y)", "(sub x y)"),
    ("commute-mul", XY, "(mul x y)", "(pow x y)"),
    ("join-factors", X, "(mul (mul x 2) 3)", "(mul (mul x x) 3)"),
    ("join-terms", XY, "(add (add x 2) 3)", "(add (add x y) 3)"),
    ("factor-outward", XY, "(mul (mul x 2) y)", "(mul (add x 2) y)"),
    ("divide-by-constant", XY, "(div x 4)", "(div x y)"),
    ("subtract-constant", XY, "(sub x 4)", "(sub x y)"),
    ("divide", XY, "(div x y)", "(div x 4)"),
    ("power", XY, "(pow x 3)", "(pow x 5)"),
    ("root-of-reciprocal", X, "(sqrt (reciprocal x))", "(sqrt (sqrt x))"),
    ("negate", X, "(mul x -1)", "(mul x -2)"),
];

const ACTIVATION: &[Row] = &[
    (
        "gelu",
        X,
        "(mul (mul x 0.5) (add 1 (erf (div x 1.4142135381698608))))",
        "(mul (mul x 0.5) (add 1 (erf (div x 1.5))))",
    ),
    (
        "gelu-half-inside",
        X,
        "(mul x (add (mul (erf (mul x 0.7071067811865476)) 0.5) 0.5))",
        "(mul x (add (mul (erf (mul x 0.7071067811865476)) 0.5) 0.6))",
    ),
    (
        "gelu-distributed",
        X,
        "(add (mul x 0.5) (mul (mul x 0.5) (erf (mul x 0.7071067811865476))))",
        "(add (mul x 0.5) (mul (mul x 0.4) (erf (mul x 0.7071067811865476))))",
    ),
    ("distribute-cubic", X, "(mul x (add 1 (mul 0.044715 (mul x x))))", "(mul x (add 2 (mul 0.044715 (mul x x))))"),
    (
        "gelu-tanh",
        X,
        "(mul (mul 0.5 x) (add (tanh (mul 0.7978845834732056 (add x (mul 0.044714998453855515 (pow x 3))))) 1))",
        "(mul (mul 0.5 x) (add (tanh (mul 0.7978845834732056 (add x (mul 0.05 (pow x 3))))) 1))",
    ),
    (
        "gelu-tanh-expanded",
        X,
        "(mul (mul 0.5 x) (add (tanh (add (mul x 0.7978845608) (mul 0.035677408136 (pow x 3)))) 1))",
        "(mul (mul 0.5 x) (add (tanh (add (mul x 0.7978845608) (mul 0.044715 (pow x 3)))) 1))",
    ),
    (
        "gelu-tanh-by-sigmoid",
        X,
        "(mul x (sigmoid (mul 1.5957691216 (add x (mul 0.044715 (pow x 3))))))",
        "(mul x (sigmoid (mul 0.7978845608 (add x (mul 0.044715 (pow x 3))))))",
    ),
    ("sigmoid", X, "(reciprocal (add 1 (exp (neg x))))", "(reciprocal (add 1 (exp x)))"),
    ("silu", XY, "(mul (sigmoid x) x)", "(mul (sigmoid x) y)"),
];

const MEAN: &str = "(mul (reshape[2,3,1] (reduce_sum[2] x)) 0.25)";
/// The mean of the squares of x.
const SQUARES: &str = "(mul (reshape[2,3,1] (reduce_sum[2] (pow x 2))) 0.25)";
const NORM: &[Row] = &[
    ("row-mean", X, "(div (reshape[2,3,1] (reduce_sum[2] x)) 4)", "(div (reshape[2,3,1] (reduce_sum[2] x)) 3)"),
    (
        "normalize-rows",
        X,
        "(div (sub x MEAN) (sqrt (add (mul (reshape[2,3,1] (reduce_sum[2] (pow (sub x MEAN) 2))) 0.25) 1e-5)))",
        "(div (sub x MEAN) (sqrt (add (mul (reshape[2,3,1] (reduce_sum[2] (pow x 2))) 0.25) 1e-5)))",
    ),
    (
        "layer-norm",
        "x:2x3x4 g:4 b:4",
        "(add b (mul g (div (sub x MEAN) \
         (sqrt (add (mul (reshape[2,3,1] (reduce_sum[2] (pow (sub x MEAN) 2))) 0.25) 1e-5)))))",
        "(add x (mul g (div (sub x MEAN) \
         (sqrt (add (mul (reshape[2,3,1] (reduce_sum[2] (pow (sub x MEAN) 2))) 0.25) 1e-5)))))",
    ),
    (
        "layer-norm-without-bias",
        "x:2x3x4 g:4",
        "(mul g (mul (sub x MEAN) (reciprocal \
         (sqrt (add (mul (reshape[2,3,1] (reduce_sum[2] (mul (sub x MEAN) (sub x MEAN)))) 0.25) 1e-5)))))",
        "(mul x (mul (sub x MEAN) (reciprocal \
         (sqrt (add (mul (reshape[2,3,1] (reduce_sum[2] (mul (sub x MEAN) (sub x MEAN)))) 0.25) 1e-5)))))",
    ),
    (
        "layer-norm-without-gain",
        X,
        "(div (sub x MEAN) (sqrt (add (mul (reshape[2,3,1] (reduce_sum[2] (pow (sub x MEAN) 2))) 0.25) 1e-5)))",
        "(div (sub x MEAN) (sqrt (add (mul (reshape[2,3,1] (reduce_sum[2] (pow (sub x MEAN) 4))) 0.25) 1e-5)))",
    ),
    (
        "inverse-rms",
        X,
        "(pow (add SQUARES 1e-5) -0.5)",
        "(pow (add (mul (reshape[2,3,1] (reduce_sum[2] (pow x 3))) 0.25) 1e-5) -0.5)",
    ),
    (
        "rms-norm",
        "x:2x3x4 y:2x3x4 g:4",
        "(mul g (div x (sqrt (add SQUARES 1e-5))))",
        "(mul g (div y (sqrt (add SQUARES 1e-5))))",
    ),
    (
        "rms-norm-of-gained",
        "x:2x3x4 g:4 m:3x1",
        "(div (mul x g) (sqrt (add SQUARES 1e-5)))",
        "(div (mul x m) (sqrt (add SQUARES 1e-5)))",
    ),
    (
        "rms-norm-by-gained-rms",
        "x:2x3x4 g:4 m:3x1",
        "(mul x (mul g (pow (add SQUARES 1e-5) -0.5)))",
        "(mul x (mul m (pow (add SQUARES 1e-5) -0.5)))",
    ),
    (
        "rms-norm-without-gain",
        X,
        "(mul x (sqrt (reciprocal (add SQUARES 1e-5))))",
        "(mul x (sqrt (reciprocal (add (mul (reshape[2,3,1] (reduce_sum[2] x)) 0.25) 1e-5))))",
    ),
    (
        "softmax",
        X,
        "(div (exp x) (reshape[2,3,1] (reduce_sum[2] (exp x))))",
        "(div (exp x) (reshape[2,1,4] (reduce_sum[1] (exp x))))",
    ),
];

/// x of six elements a row, of which four are turned in two pairs.
const ROTARY: &[Row] = &[
    (
        "rotary-of-halves",
        "x:2x3x4 f:3x2 g:3x2",
        "(add (mul x (concat[1] f f)) (mul (concat[2] (neg (slice[2,2,2] x)) (slice[2,0,2] x)) (concat[1] g g)))",
        "(add (mul x (concat[1] f g)) (mul (concat[2] (neg (slice[2,2,2] x)) (slice[2,0,2] x)) (concat[1] g g)))",
    ),
    (
        "rotary-of-neighbours",
        X,
        "(add (mul x (constant[0.6,0.6,0.8,0.8] )) (mul (reshape[2,3,4] (concat[3] (neg (slice[3,1,1] \
         (reshape[2,3,2,2] x))) (slice[3,0,1] (reshape[2,3,2,2] x)))) (constant[0.8,0.8,0.6,0.6] )))",
        "(add (mul x (constant[0.6,0.8,0.6,0.8] )) (mul (reshape[2,3,4] (concat[3] (neg (slice[3,1,1] \
         (reshape[2,3,2,2] x))) (slice[3,0,1] (reshape[2,3,2,2] x)))) (constant[0.8,0.8,0.6,0.6] )))",
    ),
    (
        "rotary-by-halves",
        "x:2x3x4 f:3x2 g:3x2",
        "(concat[2] (sub (mul (slice[2,0,2] x) f) (mul (slice[2,2,2] x) g)) \
         (add (mul g (slice[2,0,2] x)) (mul (slice[2,2,2] x) f)))",
        "(concat[2] (sub (mul (slice[2,0,2] x) f) (mul (slice[2,2,2] x) g)) \
         (add (mul f (slice[2,0,2] x)) (mul (slice[2,2,2] x) g)))",
    ),
    (
        "rotary-by-neighbours",
        "x:2x3x4 f:3x2x1 g:3x2x1",
        "(reshape[2,3,4] (concat[3] (sub (mul (slice[3,0,1] (reshape[2,3,2,2] x)) f) \
         (mul (slice[3,1,1] (reshape[2,3,2,2] x)) g)) (add (mul (slice[3,0,1] (reshape[2,3,2,2] x)) g) \
         (mul (slice[3,1,1] (reshape[2,3,2,2] x)) f))))",
        "(reshape[2,3,4] (concat[3] (sub (mul (slice[3,0,1] (reshape[2,3,2,2] x)) f) \
         (mul (slice[3,1,1] (reshape[2,3,2,2] x)) g)) (sub (mul (slice[3,0,1] (reshape[2,3,2,2] x)) g) \
         (mul (slice[3,1,1] (reshape[2,3,2,2] x)) f))))",
    ),
    (
        "rotary-of-a-part",
        "x:2x3x6 f:3x2 g:3x2",
        "(concat[2] (rotary (slice[2,0,4] x) f g) (slice[2,4,2] x))",
        "(concat[2] (rotary (slice[2,0,4] x) f g) (slice[2,0,2] x))",
    ),
];

const QKV: &str = "q:2x3x4x2 k:2x3x4x2 v:2x3x4x2 m:4x4 n:2x1x4x4 is_visible:4x4";
const ATTENTION: &[Row] = &[
    ("guarded-softmax", XY, "(where (is_nan (softmax x)) 0 (softmax x))", "(where (is_nan (softmax x)) 1 (softmax x))"),
    ("scale-queries", "x:2x4 y:4x3", "(einsum[ab,bc->ac] (mul x 2) y)", "(einsum[ab,bc->ac] (mul x x) y)"),
    ("scale-keys", "x:4x3 y:2x4", "(einsum[ab,bc->ac] y (mul x 2))", "(einsum[ab,bc->ac] y (mul x x))"),
    ("join-scales", "x:2x4 y:4x3", "(einsum[ab,bc->ac] (mul x 2) (mul y 3))", "(einsum[ab,bc->ac] (mul x 2) y)"),
    (
        "join-masks",
        QKV,
        "(einsum[bhqk,bhkd->bhqd] (softmax (add (add (einsum[bhqd,bhkd->bhqk] q k) m) n)) v)",
        "(einsum[bhqk,bhkd->bhqd] (softmax (add (einsum[bhqd,bhkd->bhqk] q k) m)) v)",
    ),
    (
        "join-masks-of-scaled",
        QKV,
        "(einsum[bhqk,bhkd->bhqd] (softmax (add (add (mul (einsum[bhqd,bhkd->bhqk] q k) 0.5) m) n)) v)",
        "(einsum[bhqk,bhkd->bhqd] (softmax (add (mul (einsum[bhqd,bhkd->bhqk] q k) 0.5) m)) v)",
    ),
    (
        "mask-by-choice",
        QKV,
        "(einsum[bhqk,bhkd->bhqd] (softmax (where is_visible (einsum[bhqd,bhkd->bhqk] q k) -100000)) v)",
        "(einsum[bhqk,bhkd->bhqd] (softmax (where is_visible (einsum[bhqd,bhkd->bhqk] q k) -10)) v)",
    ),
    (
        "probabilities-first",
        QKV,
        "(einsum[bhkd,bhqk->bhqd] v (softmax (einsum[bhqd,bhkd->bhqk] q k)))",
        "(einsum[bhkd,bhqk->bhqd] v (einsum[bhqd,bhkd->bhqk] q k))",
    ),
    (
        "guarded-probabilities-first",
        QKV,
        "(einsum[bhkd,bhqk->bhqd] v (where (is_nan (softmax (einsum[bhqd,bhkd->bhqk] q k))) 0 \
         (softmax (einsum[bhqd,bhkd->bhqk] q k))))",
        "(einsum[bhkd,bhqk->bhqd] v (softmax (einsum[bhqd,bhkd->bhqk] q k)))",
    ),
    (
        "causal-attention",
        QKV,
        "(attention[0.5] (transpose[0,2,1,3] q) (transpose[0,2,1,3] k) (transpose[0,2,1,3] v) \
         (causal_mask[2,1,4,4,0] ))",
        "(attention[0.5] (transpose[0,2,1,3] q) (transpose[0,2,1,3] k) (transpose[0,2,1,3] v) \
         (causal_mask[2,1,4,4,1] ))",
    ),
    (
        "repeated-masks",
        "q:4x3x4x2 k:4x3x4x2 v:4x3x4x2 m:1x1x3x3 n:1x4x1x1 p:4x1x3x3",
        "(attention[0.5] q k v (add (broadcast[4,1,3,3] m) n))",
        "(attention[0.5] q k v (add p n))",
    ),
    ("transpose-of-masks", "x:2x3x4 y:2x1x1", "(transpose[2,0,1] (add x y))", "(transpose[2,0,1] (mul x y))"),
    ("merge-scaled-scores", X, "(reshape[6,4] (mul x 0.5))", "(reshape[6,4] (mul x x))"),
    (
        "merge-masked-scores",
        "x:2x3x4x5 m:4x5 n:4x1",
        "(softmax (reshape[6,20] (add x m)))",
        "(softmax (reshape[6,20] (add x n)))",
    ),
    (
        "merge-scores",
        "q:2x3x2x2x4 k:2x3x2x2x4",
        "(softmax (reshape[6,4,4] (einsum[nwabd,nwced->nwabce] q k)))",
        "(softmax (reshape[6,2,8] (einsum[nwabd,nwced->nwabce] q k)))",
    ),
    (
        "split-probabilities",
        "z:6x4x4 v:2x3x2x2x4",
        "(einsum[nwabce,nwced->nwabd] (reshape[2,3,2,2,2,2] (softmax z)) v)",
        "(einsum[nwabce,nwabd->nwced] (reshape[2,3,2,2,2,2] (exp z)) v)",
    ),
    (
        "attention",
        QKV,
        "(einsum[xyij,xyje->xyie] (softmax (einsum[xyid,xyjd->xyij] q k)) v)",
        "(einsum[xyij,xyie->xyje] (softmax (einsum[xyid,xyjd->xyij] q k)) v)",
    ),
    (
        "attention-guarded",
        "q:2x4x3 k:2x4x3 v:2x4x3",
        "(einsum[bqk,bkd->bqd] (where (is_nan (softmax (einsum[bkd,bqd->bqk] k q))) 0 \
         (softmax (einsum[bkd,bqd->bqk] k q))) v)",
        "(einsum[bqk,bkd->bqd] (where (is_nan (softmax (einsum[bkd,bqd->bqk] k q))) 0.5 \
         (softmax (einsum[bkd,bqd->bqk] k q))) v)",
    ),
    (
        "attention-scaled",
        "q:2x4x3x2 k:2x5x3x2 v:2x5x3x2 m:4x5",
        "(einsum[bhqk,bkhd->bqhd] (softmax (div (einsum[bqhd,bkhd->bhqk] q k) 1.5)) v)",
        "(einsum[bhqk,bkhd->bqhd] (softmax (div (einsum[bqhd,bkhd->bhqk] q k) m)) v)",
    ),
    (
        "attention-scaled-guarded",
        QKV,
        "(einsum[bhqk,bhkd->bhqd] (where (is_nan (softmax (mul 2 (einsum[bhqd,bhkd->bhqk] q k)))) 0 \
         (softmax (mul 2 (einsum[bhqd,bhkd->bhqk] q k)))) v)",
        "(einsum[bhqk,bhkd->bhqd] (softmax (mul 2 (einsum[bhqd,bhkd->bhqk] q k))) v)",
    ),
    (
        "attention-masked",
        QKV,
        "(einsum[bhqk,bhkd->bhqd] (softmax (add n (einsum[bhqd,bhkd->bhqk] q k))) v)",
        "(einsum[bhqk,bhkd->bhqd] (softmax (sub n (einsum[bhqd,bhkd->bhqk] q k))) v)",
    ),
    (
        "attention-masked-guarded",
        QKV,
        "(einsum[bhqk,bhkd->bhqd] (where (is_nan (softmax (add (einsum[bhqd,bhkd->bhqk] q k) m))) 0 \
         (softmax (add (einsum[bhqd,bhkd->bhqk] q k) m))) v)",
        "(einsum[bhqk,bhkd->bhqd] (where (is_nan (softmax (add (einsum[bhqd,bhkd->bhqk] q k) m))) 0 \
         (softmax (add (einsum[bhqd,bhkd->bhqk] q k) n))) v)",
    ),
    (
        "attention-scaled-masked",
        QKV,
        "(einsum[bhqk,bhkd->bhqd] (softmax (add (mul (einsum[bhqd,bhkd->bhqk] q k) 0.5) \
         (add n (causal_mask[4,4,0] )))) v)",
        "(einsum[bhqk,bhkd->bhqd] (softmax (mul (add (einsum[bhqd,bhkd->bhqk] q k) m) 0.5)) v)",
    ),
    (
        "attention-scaled-masked-guarded",
        QKV,
        "(einsum[bhqk,bhkd->bhqd] (where (is_nan (softmax (add (einsum[bhqd,bhkd->bhqk] (mul q 0.5) k) m))) 0 \
         (softmax (add (einsum[bhqd,bhkd->bhqk] (mul q 0.5) k) m))) v)",
        "(einsum[bhqk,bhkd->bhqd] (where (is_nan (softmax (add (einsum[bhqd,bhkd->bhqk] q k) m))) 0 \
         (softmax (add (einsum[bhqd,bhkd->bhqk] q k) m))) v)",
    ),
];
