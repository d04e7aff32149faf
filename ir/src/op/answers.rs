//! The common answers to the questions of `OpDef`, spelled once.

/// One mnemonic.
macro_rules! named {
    ($name:literal) => {
        fn mnemonics() -> Vec<&'static str> {
            vec![$name]
        }

        fn mnemonic(&self) -> &'static str {
            $name
        }
    };
}

/// No side effects, no scratch memory.
macro_rules! pure {
    () => {
        fn effects(&self) -> $crate::op::Effects {
            $crate::op::Effects::Pure
        }

        fn workspace(
            &self,
            _args: &[&$crate::types::TensorType],
            _results: &[&$crate::types::TensorType],
            _mesh: &$crate::mesh::Mesh,
        ) -> u64 {
            0
        }
    };
}

/// No attributes; parsing gives this op.
macro_rules! no_attrs {
    ($op:expr) => {
        fn attrs(&self) -> $crate::op::Attrs {
            Vec::new()
        }

        fn parse(_mnemonic: &str, _attrs: &mut $crate::op::AttrReader) -> Result<Self, String> {
            Ok($op)
        }
    };
}

/// No gradient flows through the op.
macro_rules! no_gradient {
    ($why:literal) => {
        fn gradient(
            &self,
            _cx: &mut $crate::op::GradCx<'_>,
        ) -> Result<Vec<Option<$crate::id::ValueId>>, $crate::op::NoGradient> {
            Err($crate::op::NoGradient($why.into()))
        }
    };
}

/// Result 0 shares no memory with an operand.
macro_rules! no_alias {
    () => {
        fn alias(&self) -> $crate::op::Alias {
            $crate::op::Alias::None
        }
    };
}
