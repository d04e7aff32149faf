//! How the axes of the mesh are divided among what they are for.

use super::pins::LayerPins;
use galvatron_ir::AxisId;
use galvatron_ir::mesh::Mesh;

/// A split of the mesh: the data axes shard the batch of a layer's boundary, the context axes its sequence, the tensor axes whatever each
/// op chooses. Context axes are beside tensor axes only; alone the tensor axes cut the sequence, see [`super::sequence`].
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Split {
    /// Slowest axes.
    pub data: Vec<AxisId>,
    /// Axes between the others.
    pub context: Vec<AxisId>,
    /// Fastest axes.
    pub tensor: Vec<AxisId>,
}

impl Split {
    /// All splits of the spatial axes into two contiguous runs without context axes, fewest tensor axes first.
    pub fn all(mesh: &Mesh) -> Vec<Split> {
        let axes: Vec<AxisId> = mesh.spatial().collect();
        (0..=axes.len()).rev().map(|cut| Split::at(&axes, cut, cut)).collect()
    }

    /// All splits into three contiguous runs of which the last two have axes, fewest tensor axes first.
    pub fn with_context(mesh: &Mesh) -> Vec<Split> {
        let axes: Vec<AxisId> = mesh.spatial().collect();
        let before = |second: usize| (0..second).rev().map(move |first| (first, second));
        (1..axes.len()).rev().flat_map(before).map(|(first, second)| Split::at(&axes, first, second)).collect()
    }

    fn at(axes: &[AxisId], first: usize, second: usize) -> Split {
        let [data, context, tensor] = [&axes[..first], &axes[first..second], &axes[second..]].map(<[AxisId]>::to_vec);
        Split { data, context, tensor }
    }

    /// The axes that cut the sequence and no weight, where some do: the context axes, or the tensor axes where there are none.
    pub fn sequence_axes(&self) -> &[AxisId] {
        if self.context.is_empty() { &self.tensor } else { &self.context }
    }

    /// The axes whose ranks compute with the same weights.
    pub fn replicas(&self) -> Vec<AxisId> {
        [&self.data[..], &self.context].concat()
    }

    /// Whether the degrees are those that are pinned. Beside a pinned degree of data or tensor axes the sequence is cut where that is pinned too.
    pub fn fits(&self, pins: &LayerPins, mesh: &Mesh) -> bool {
        let fits = |pin: Option<u32>, axes: &[AxisId]| pin.is_none_or(|d| mesh.product(axes) == u64::from(d));
        let (sequence, tp) = (pins.sequence_degree(), pins.tp);
        let fit_tensor = match (self.context.is_empty(), sequence) {
            (true, Some(_)) if tp.is_some_and(|tp| tp > 1) => false,
            (true, _) => fits(sequence.or(tp), &self.tensor),
            (false, Some(_)) => fits(sequence, &self.context) && fits(tp, &self.tensor),
            (false, None) => !pins.names_weights_or_batch() && (pins.cp.is_none() || pins.ulysses.is_none()),
        };
        fit_tensor && fits(pins.dp, &self.data)
    }
}
