//! From the forward program to the training program: loss, reverse-mode differentiation, optimizer.

mod autodiff;
mod loss;
mod optimizer;

pub use autodiff::{Gradients, differentiate};
pub use loss::attach_loss;
pub use optimizer::attach_optimizer;
