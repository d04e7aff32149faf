//! Writes pins as the text of a `strategy.toml`.

use std::fmt::Write;

use super::{LayerPins, Pinned, StrategyFile};
use crate::config::set::quoted;

/// The pins as the text of a `strategy.toml`; reads back as the same pins.
pub fn to_toml(file: &StrategyFile) -> String {
    let mut out = String::new();
    write_file(file, &mut out).expect("invariant: writing into a string cannot fail");
    out
}

fn write_file(file: &StrategyFile, out: &mut String) -> std::fmt::Result {
    write_key(out, "pp", &file.pp, u32::to_string)?;
    write_pins(out, &file.pins)?;
    write_key(out, "pad", &file.pad, u32::to_string)?;
    write_key(out, "micro_batches", &file.micro_batches, u64::to_string)?;
    write_key(out, "schedule", &file.schedule, |schedule| quoted(schedule.name()))?;
    write_key(out, "virtual_stages", &file.virtual_stages, u32::to_string)?;
    write_key(out, "stage_layers", &file.stage_layers, |layers| format!("{layers:?}"))?;
    write_key(out, "stage_cuts", &file.stage_cuts, |cuts| names(cuts))?;
    for (header, pins) in [("embedding", &file.embedding), ("head", &file.head)] {
        if let Some(pins) = pins {
            writeln!(out, "\n[{header}]")?;
            write_pins(out, pins)?;
        }
    }
    for layers in &file.layers {
        let range = layers.range.get_ref();
        writeln!(out, "\n[[layers]]\nrange = [{}, {}]", range.start, range.end)?;
        write_pins(out, &layers.pins)?;
    }
    for pin in &file.place {
        let (op, factor) = (quoted(pin.op.get_ref()), quoted(pin.factor.get_ref()));
        writeln!(out, "\n[[place]]\nop = {op}\nfactor = {factor}\naxes = {}", names(pin.axes.get_ref()))?;
    }
    for pin in &file.save {
        writeln!(out, "\n[[save]]\nvalue = {}\nkeep = {}", quoted(pin.value.get_ref()), pin.keep)?;
    }
    Ok(())
}

fn write_pins(out: &mut String, pins: &LayerPins) -> std::fmt::Result {
    let degrees = [("dp", &pins.dp), ("tp", &pins.tp), ("cp", &pins.cp), ("ulysses", &pins.ulysses), ("ep", &pins.ep)];
    for (key, degree) in degrees {
        write_key(out, key, degree, u32::to_string)?;
    }
    write_key(out, "cp_kind", &pins.cp_kind, |kind| quoted(kind.name()))?;
    write_key(out, "ep_kind", &pins.ep_kind, |kind| quoted(kind.name()))?;
    write_key(out, "zero", &pins.zero, u8::to_string)?;
    write_key(out, "sequence", &pins.sequence, |mode| quoted(mode.name()))?;
    write_key(out, "recompute", &pins.recompute, |mode| quoted(mode.name()))?;
    write_key(out, "offload", &pins.offload, |offload| quoted(offload.name()))
}

fn write_key<T>(out: &mut String, key: &str, pin: &Pinned<T>, show: impl Fn(&T) -> String) -> std::fmt::Result {
    match pin {
        Some(value) => writeln!(out, "{key} = {}", show(value.get_ref())),
        None => Ok(()),
    }
}

fn names(list: &[String]) -> String {
    format!("[{}]", list.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(", "))
}
