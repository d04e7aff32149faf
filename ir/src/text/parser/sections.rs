//! The short sections of a module: mesh, cluster, training, initializers, arena and prediction.

use super::Parser;
use super::cursor::Parsed;
use super::fields::Fields;
use super::types::tensor_type;
use crate::cluster::{Cluster, DeviceGroup, DeviceKind, DeviceSpec, HostMemory, LinkLevel};
use crate::diagnostic::Diagnostic;
use crate::mesh::{Mesh, MeshAxis};
use crate::module::{Initializer, Normal, TrainInfo};
use crate::op::numbers;
use crate::plan::{Arena, Predicted};
use crate::recipe::LrSchedule;
use crate::text::fault;
use crate::text::lexer::Token;
use crate::text::printer::{SCHEDULES, SHIFTS};
use std::ops::Range;
use std::sync::Arc;

impl<'t> Parser<'t> {
    /// `mesh [mb=2, a0=2@0] of cuda`; the first word was taken.
    pub fn mesh(&mut self, first: Token) -> Parsed<()> {
        let mesh = self.axes(first)?;
        self.map.mesh = self.cursor.span_from(first);
        self.module.mesh = mesh;
        self.axes = self.module.mesh.clone();
        Ok(())
    }

    /// The axes of a mesh, and the kind of its devices if that is said.
    pub fn axes(&mut self, first: Token) -> Parsed<Mesh> {
        self.cursor.sign('[')?;
        let axes = self.cursor.items(']', |c| {
            let name = c.word("an axis such as `a0=2@1`")?;
            c.sign('=')?;
            let size = c.unsigned32("the size of the axis")?;
            let level = if c.eats('@') { Some(c.unsigned32("the link level of the axis")?) } else { None };
            Ok((MeshAxis { name: c.text_of(name).to_string(), size, level }, c.span_from(name)))
        })?;
        let device = if self.cursor.eats_word("of") { self.device()? } else { self.module.mesh.device() };
        if let Err((message, span)) = check_axes(&axes, &self.cursor.span_from(first)) {
            return Err(self.cursor.report(Diagnostic::new(fault::MESH, message).at(span)));
        }
        let mut axes = axes.into_iter().map(|(axis, _)| axis);
        let micro_batches = axes.next().map_or(1, |mb| mb.size);
        Ok(Mesh::new(micro_batches, axes.collect()).of(device))
    }

    /// The kind of the devices of a mesh.
    fn device(&mut self) -> Parsed<DeviceKind> {
        let token = self.cursor.word("a kind of devices")?;
        let word = self.cursor.text_of(token);
        if let Some(&(kind, _)) = DeviceKind::ALL.iter().find(|(_, name)| *name == word) {
            return Ok(kind);
        }
        let known = DeviceKind::ALL.iter().map(|(_, name)| *name);
        Err(self.cursor.report(fault::unknown((fault::KEYWORD, "kind of devices"), word, known, token.span())))
    }

    /// `cluster {…} group {…} host {…} level {…}`, groups in the order of the ranks, slowest links first; the first word was taken.
    pub fn cluster(&mut self, first: Token) -> Parsed<()> {
        let mut fields = Fields::read(&mut self.cursor)?;
        let c = &mut self.cursor;
        let name = fields.string(c, "name")?;
        let device = DeviceSpec {
            kind: fields.choice(c, "kind", &DeviceKind::ALL)?,
            memory_bytes: fields.u64(c, "memory_bytes")?,
            f32_flops: fields.f64(c, "f32_flops")?,
            bf16_flops: fields.f64(c, "bf16_flops")?,
            memory_bandwidth: fields.f64(c, "memory_bandwidth")?,
        };
        fields.finish(c)?;
        let mut groups = Vec::new();
        while self.cursor.eats_word("group") {
            groups.push(self.device_group()?);
        }
        let host = if self.cursor.eats_word("host") { Some(self.host_memory()?) } else { None };
        let mut levels = Vec::new();
        while self.cursor.eats_word("level") {
            levels.push(self.link_level()?);
        }
        let cluster = Cluster { name, device, groups, host, levels };
        if let Err(message) = cluster.check() {
            let span = self.cursor.span_from(first);
            return Err(self.cursor.report(Diagnostic::new(fault::CLUSTER, message).at(span)));
        }
        self.module.cluster = Some(cluster);
        Ok(())
    }

    fn device_group(&mut self) -> Parsed<DeviceGroup> {
        let mut fields = Fields::read(&mut self.cursor)?;
        let c = &mut self.cursor;
        let group = DeviceGroup {
            name: fields.string(c, "name")?,
            count: u32::try_from(fields.u64(c, "count")?).unwrap_or(u32::MAX),
            memory_bytes: fields.u64(c, "memory_bytes")?,
            speed: fields.f64(c, "speed")?,
        };
        fields.finish(c)?;
        Ok(group)
    }

    fn host_memory(&mut self) -> Parsed<HostMemory> {
        let mut fields = Fields::read(&mut self.cursor)?;
        let c = &mut self.cursor;
        let host = HostMemory {
            memory_bytes: fields.u64(c, "memory_bytes")?,
            bandwidth: fields.f64(c, "bandwidth")?,
            latency_ns: fields.f64(c, "latency_ns")?,
        };
        fields.finish(c)?;
        Ok(host)
    }

    fn link_level(&mut self) -> Parsed<LinkLevel> {
        let mut fields = Fields::read(&mut self.cursor)?;
        let c = &mut self.cursor;
        let level = LinkLevel {
            name: fields.string(c, "name")?,
            size: u32::try_from(fields.u64(c, "size")?).unwrap_or(u32::MAX),
            bandwidth: fields.f64(c, "bandwidth")?,
            latency_ns: fields.f64(c, "latency_ns")?,
        };
        fields.finish(c)?;
        Ok(level)
    }

    /// `train {…}`; the first word was taken.
    pub fn train(&mut self, first: Token) -> Parsed<()> {
        let mut fields = Fields::read(&mut self.cursor)?;
        self.map.train = self.cursor.span_from(first);
        let c = &mut self.cursor;
        let info = TrainInfo {
            seed: fields.u64(c, "seed")?,
            shuffle: fields.choice(c, "shuffle", &[(false, "false"), (true, "true")])?,
            lr: fields.f64(c, "lr")?,
            schedule: LrSchedule {
                kind: fields.choice(c, "schedule", &SCHEDULES)?,
                warmup_steps: fields.u64(c, "warmup_steps")?,
                total_steps: fields.u64(c, "total_steps")?,
                min_lr: fields.f64(c, "min_lr")?,
            },
            global_batch: fields.u64(c, "global_batch")?,
            sequence: fields.u64(c, "sequence")?,
            labels: fields.string(c, "labels")?,
            shift: fields.choice(c, "shift", &SHIFTS)?,
            ignore_index: fields.i64(c, "ignore_index")?,
        };
        fields.finish(c)?;
        self.module.train = Some(info);
        Ok(())
    }

    /// `literal 0 = "1.0 2.0"`; the first word was taken. One that is faulty has no numbers.
    pub fn literal(&mut self) -> Parsed<()> {
        let at = self.cursor.peek();
        let (index, expected) = (self.cursor.unsigned("the number of the literal")?, self.literals.len() as u64);
        if index != expected {
            let message = format!("literal {index} stands where literal {expected} is expected");
            self.cursor.report(Diagnostic::new(fault::SECTION, message).at(at.span()));
        }
        self.cursor.sign('=')?;
        let at = self.cursor.peek();
        let text = self.cursor.string("numbers in quotes")?;
        let read = numbers(&text).map_err(|message| Diagnostic::new(fault::LITERAL, message).at(at.span()));
        self.literals.push(read.unwrap_or_else(|fault| {
            self.cursor.report(fault);
            Arc::default()
        }));
        Ok(())
    }

    /// `initializer "w" = {file="m.onnx", offset=0} f32[4]`; the first word was taken.
    pub fn initializer(&mut self, first: Token) -> Parsed<()> {
        let at = self.cursor.peek();
        let name = self.cursor.string("the name of the initializer in quotes")?;
        self.cursor.sign('=')?;
        let mut fields = Fields::read(&mut self.cursor)?;
        let file = fields.string(&mut self.cursor, "file")?;
        let offset = fields.u64(&mut self.cursor, "offset")?;
        let start = match fields.has("mean") || fields.has("std") {
            true => Some(Normal::new(fields.f64(&mut self.cursor, "mean")?, fields.f64(&mut self.cursor, "std")?)),
            false => None,
        };
        fields.finish(&mut self.cursor)?;
        let ty = tensor_type(&mut self.cursor)?;
        let index = self.module.initializers.len();
        if self.initializer_names.insert(name.clone(), index).is_some() {
            let message = format!("initializer `{name}` is defined twice");
            self.cursor.report(Diagnostic::new(fault::REDEFINED, message).at(at.span()));
        }
        self.module.initializers.push(Initializer { name, file, offset, ty, start });
        self.map.initializers.push(self.cursor.span_from(first));
        Ok(())
    }

    /// `arena of 1 {persistent=0, slots=0, transient=0}`; the first word was taken.
    pub fn arena(&mut self, first: Token) -> Parsed<()> {
        let stage = self.of_stage()?;
        let mut fields = Fields::read(&mut self.cursor)?;
        let span = self.cursor.span_from(first);
        let c = &mut self.cursor;
        let arena = Arena {
            persistent: fields.u64(c, "persistent")?,
            slots: fields.u64_or(c, "slots", 0)?,
            transient: fields.u64(c, "transient")?,
            host: fields.u64_or(c, "host", 0)?,
            host_slots: fields.u64_or(c, "host_slots", 0)?,
        };
        fields.finish(c)?;
        self.module.stages[stage].arena = arena;
        self.map.stages[stage].arena = span;
        Ok(())
    }

    /// `predicted {step_time_ns=0, gap_ppm=0}`; the first word was taken.
    pub fn predicted(&mut self, first: Token) -> Parsed<()> {
        let mut fields = Fields::read(&mut self.cursor)?;
        self.map.predicted = self.cursor.span_from(first);
        let c = &mut self.cursor;
        self.module.predicted =
            Predicted { step_time_ns: fields.u64(c, "step_time_ns")?, gap_ppm: fields.u64(c, "gap_ppm")? };
        fields.finish(c)
    }
}

/// What is wrong with a mesh, and where.
fn check_axes(axes: &[(MeshAxis, Range<usize>)], all: &Range<usize>) -> Result<(), (String, Range<usize>)> {
    match axes.first() {
        Some((mb, span)) if mb.name != "mb" || mb.level.is_some() => {
            return Err(("the first axis of a mesh is `mb`, the micro-batches, without a link".into(), span.clone()));
        }
        Some(_) => {}
        None => return Err(("a mesh has at least the axis `mb`".into(), all.clone())),
    }
    let mut product = 1u64;
    for (i, (axis, span)) in axes.iter().enumerate() {
        product *= u64::from(axis.size);
        let name = &axis.name;
        let fault = if axis.size == 0 {
            format!("axis `{name}` has no positions")
        } else if axes[..i].iter().any(|(a, _)| a.name == *name) {
            format!("axis `{name}` is given twice")
        } else if name == "_" || name.contains(['.', '-']) {
            format!("`{name}` is no name of an axis: letters, digits and `_`")
        } else if product > u64::from(u32::MAX) {
            "the product of the sizes does not fit 32 bits".into()
        } else {
            continue;
        };
        return Err((fault, span.clone()));
    }
    Ok(())
}
