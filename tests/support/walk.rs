//! Token rows that need no file: walks over the vocabulary.

use galvatron_backends::exec::DataSource;
use serde_json::Value;

/// Sample n starts at token `first + (11 n + 3) mod v` and goes on by x ↦ 5 x + 7 + n over the v tokens from `first` on; its
/// labels are the next tokens.
pub struct Walk {
    /// Steps of the reference.
    pub n_steps: u64,
    first: u64,
    n_tokens: u64,
    batch: u64,
    sequence: u64,
}

impl Walk {
    /// The walk that a reference says.
    pub fn of(reference: &Value) -> Walk {
        let number = |key: &str| reference["walk"][key].as_u64().expect("the reference has a number");
        Walk {
            n_steps: number("steps"),
            first: number("first"),
            n_tokens: number("tokens"),
            batch: number("batch"),
            sequence: number("sequence"),
        }
    }

    /// Batch and sequence as keys of the recipe.
    pub fn keys(&self) -> [String; 2] {
        [format!("batch.global={}", self.batch), format!("batch.sequence={}", self.sequence)]
    }

    fn row(&self, sample: u64) -> impl Iterator<Item = u64> {
        let (first, n_tokens) = (self.first, self.n_tokens);
        let next = move |x: &u64| Some((5 * x + 7 + sample) % n_tokens);
        std::iter::successors(Some((11 * sample + 3) % n_tokens), next).map(move |x| first + x)
    }
}

impl DataSource for Walk {
    fn sample_bytes(&self, _input: &str) -> Option<u64> {
        Some(8 * self.sequence)
    }

    fn fill(&self, input: &str, sample: u64, out: &mut [u8]) -> Result<(), String> {
        let skipped = usize::from(input == "labels");
        for (out, token) in out.chunks_exact_mut(8).zip(self.row(sample).skip(skipped)) {
            out.copy_from_slice(&token.to_ne_bytes());
        }
        Ok(())
    }
}
