//! What is padded, and what is not.

use super::{Degrees, pad};
use galvatron_ir::text::{parse, print};
use galvatron_ir::verify;

/// A program over `x` f32[2, 6, 8] and weights of these names and types that ends in the value `y`.
fn text(weights: &[(&str, &str)], body: &str) -> String {
    let indented = |lines: &str| lines.lines().map(|line| format!("    {}\n", line.trim())).collect::<String>();
    let stored: String = weights
        .iter()
        .map(|(name, ty)| format!("  initializer \"{name}\" = {{file=\"none\", offset=0}} {ty}\n"))
        .collect();
    let read: String = weights.iter().map(|(name, ty)| format!("    weight %{name} = \"{name}\": {ty}\n")).collect();
    format!(
        "gir 1\nmodule @m level=graph {{\n{stored}  program {{\n    input %x = \"x\": f32[2, 6, 8]\n    \
         input %labels = \"labels\": i64[2, 6]\n{read}{}    output \"y\" %y\n  }}\n}}\n",
        indented(body)
    )
}

/// The text of the padded program, with what was padded; it verifies.
fn padded(weights: &[(&str, &str)], body: &str, degree: u64) -> (String, Vec<String>) {
    let text = text(weights, body);
    let mut module = parse(&text).unwrap_or_else(|faults| panic!("{}\n{text}", faults[0]));
    let degrees = Degrees::all(degree);
    let padded = pad(&mut module.program, &degrees);
    let faults = verify::check(&module, None);
    assert!(faults.is_empty(), "{}\n{}", faults[0], print(&module));
    (print(&module), padded.iter().map(|p| format!("{} {} of {} to {}", p.label, p.from, p.name, p.to)).collect())
}

/// These lines, and no other padding, are in the program.
fn check(weights: &[(&str, &str)], body: &str, degree: u64, expected: &[&str], lines: &[&str]) {
    let (text, padded) = padded(weights, body, degree);
    assert_eq!(padded, expected, "{text}");
    for line in lines {
        assert!(text.contains(line), "{line}\n{text}");
    }
    assert_eq!(text.matches("pad{").count(), lines.iter().filter(|line| line.contains("pad{")).count(), "{text}");
}

/// Nothing is padded, and the program stays as it is.
fn check_unchanged(weights: &[(&str, &str)], body: &str, degree: u64) {
    let (after, padded) = padded(weights, body, degree);
    assert_eq!((padded, after), (Vec::new(), print(&parse(&text(weights, body)).expect("it was parsed before"))));
}

#[test]
fn heads_are_padded_from_the_projections_to_the_output() {
    let of_heads = "f32[4, 2, 8]";
    check(
        &[("q", of_heads), ("k", "f32[2, 2, 8]"), ("v", "f32[2, 2, 8]"), ("o", "f32[8, 4, 2]")],
        "%a = einsum{spec=\"bsk,hdk->bshd\"} %x, %q: f32[2, 6, 4, 2]
         %b = einsum{spec=\"bsk,hdk->bshd\"} %x, %k: f32[2, 6, 2, 2]
         %c = einsum{spec=\"bsk,hdk->bshd\"} %x, %v: f32[2, 6, 2, 2]
         %s, %lse = attention{scale=1.0, causal} %a, %b, %c: f32[2, 6, 4, 2], f32[2, 4, 6]
         %y = einsum{spec=\"bshd,nhd->bsn\"} %s, %o: f32[2, 6, 8]",
        3,
        &["h 2 of s to 3"],
        &[
            "weight %q = \"q\" | pad{dim=0, extent=6}: f32[6, 2, 8]",
            "weight %k = \"k\" | pad{dim=0, extent=3}: f32[3, 2, 8]",
            "weight %v = \"v\" | pad{dim=0, extent=3}: f32[3, 2, 8]",
            "weight %o = \"o\" | pad{dim=1, extent=6}: f32[8, 6, 2]",
            "%s, %lse = attention{scale=1.0, causal} %a, %b, %c: f32[2, 6, 6, 2], f32[2, 6, 6]",
        ],
    );
}

/// Queries of one key cannot be cut before the keys are cut into single ones.
#[test]
fn heads_of_keys_are_padded_though_the_degree_divides_their_queries() {
    let attention = |keys: u64, queries: u64| {
        let weights = [("q", queries), ("k", keys), ("v", keys)].map(|(name, n)| (name, format!("f32[{n}, 2, 8]")));
        let body = format!(
            "%a = einsum{{spec=\"bsk,hdk->bshd\"}} %x, %q: f32[2, 6, {queries}, 2]
             %b = einsum{{spec=\"bsk,hdk->bshd\"}} %x, %k: f32[2, 6, {keys}, 2]
             %c = einsum{{spec=\"bsk,hdk->bshd\"}} %x, %v: f32[2, 6, {keys}, 2]
             %s, %lse = attention{{scale=1.0}} %a, %b, %c: f32[2, 6, {queries}, 2], f32[2, {queries}, 6]
             %y = einsum{{spec=\"bshd,nhd->bsn\"}} %s, %o: f32[2, 6, 8]"
        );
        let o = ("o", format!("f32[8, {queries}, 2]"));
        let weights: Vec<(&str, String)> = weights.into_iter().chain([o]).collect();
        let weights: Vec<(&str, &str)> = weights.iter().map(|(name, ty)| (*name, ty.as_str())).collect();
        padded(&weights, &body, 4).1
    };
    assert_eq!(attention(10, 40), ["h 10 of s to 12"]);
    assert_eq!(attention(2, 8), Vec::<String>::new());
    assert_eq!(attention(4, 8), Vec::<String>::new());
}

const WIDTH: [(&str, &str); 2] = [("w", "f32[4, 8]"), ("u", "f32[8, 4]")];

fn feed_forward(between: &str) -> String {
    format!(
        "%a = einsum{{spec=\"bsk,nk->bsn\"}} %x, %w: f32[2, 6, 4]
         {between}
         %z = einsum{{spec=\"bsk,nk->bsn\"}} %h, %u: f32[2, 6, 8]
         %y = add %z, %x: f32[2, 6, 8]"
    )
}

#[test]
fn an_inner_width_is_padded_where_zeros_stay_zeros() {
    let lines =
        ["weight %w = \"w\" | pad{dim=0, extent=6}: f32[6, 8]", "weight %u = \"u\" | pad{dim=1, extent=6}: f32[8, 6]"];
    check(&WIDTH, &feed_forward("%h = gelu %a: f32[2, 6, 4]"), 3, &["n 4 of a to 6"], &lines);
    // The logistic function of zero is a half, which would train what it meets.
    check_unchanged(&WIDTH, &feed_forward("%h = sigmoid %a: f32[2, 6, 4]"), 3);
    // Through a gate it does not.
    let gated = "%g = sigmoid %a: f32[2, 6, 4]\n%h = mul %g, %a: f32[2, 6, 4]";
    check(&WIDTH, &feed_forward(gated), 3, &["n 4 of a to 6"], &lines);
    // A mean over the width would count the zeros.
    check_unchanged(&WIDTH, &feed_forward("%h = softmax %a: f32[2, 6, 4]"), 3);
    // A sum has a gradient in every element.
    let summed = "%h = gelu %a: f32[2, 6, 4]\n%sum = reduce_sum{dims=[2]} %h: f32[2, 6]";
    check_unchanged(&WIDTH, &feed_forward(summed), 3);
}

#[test]
fn what_divides_stays_and_half_of_padding_is_too_much() {
    let body = feed_forward("%h = gelu %a: f32[2, 6, 4]");
    check_unchanged(&WIDTH, &body, 2);
    check_unchanged(&WIDTH, &body, 8);
    check_unchanged(&WIDTH, &body, 5 * 7);
}

#[test]
fn the_loss_and_outputs_read_no_padding() {
    let (text, padded) = padded(
        &[("w", "f32[4, 8]"), ("b", "f32[4]")],
        "%a = einsum{spec=\"bsk,nk->bsn\"} %x, %w: f32[2, 6, 4]
         %y = add %a, %b: f32[2, 6, 4]
         %loss, %lse = cross_entropy{ignore=-100} %y, %labels: f32[], f32[2, 6]",
        3,
    );
    assert_eq!(padded, ["n 4 of a to 6"]);
    for line in [
        "weight %b = \"b\" | pad{dim=0, extent=6}: f32[6]",
        "%y = add %a, %b: f32[2, 6, 6]",
        "%y.cut = slice{dim=2, start=0, len=4} %y: f32[2, 6, 4]",
        "cross_entropy{ignore=-100} %y.cut, %labels",
        "output \"y\" %y.cut",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}
