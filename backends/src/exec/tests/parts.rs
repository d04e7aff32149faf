//! A world whose ranks are run in parts, as by several processes, gives what it gives when it is run at once.

use std::thread;
use std::time::Duration;

use galvatron_ir::module::Module;

use super::mlp::{STRATEGIES, plan};
use super::plain::DATA;
use super::plan::Stored;
use crate::comm::{Collective, CommFault, local_world};
use crate::exec::{Flow, RunOptions, RunReport, StepReport, run, run_ranks};
use crate::fault::RunFault;

const TIMEOUT: Duration = Duration::from_secs(60);

type Part = (Result<RunReport, RunFault>, Vec<StepReport>);

/// Runs each part of the world as a process would.
fn run_parts(module: &Module, options: &RunOptions, parts: &[&[usize]], stop_at: u64) -> Vec<Part> {
    let mut world: Vec<_> = local_world(4, options.timeout).into_iter().map(Some).collect();
    thread::scope(|scope| {
        let start = |part: &&[usize]| {
            let ends = part.iter().map(|&rank| Box::new(world[rank].take().unwrap()) as Box<dyn Collective>);
            let ends: Vec<_> = ends.collect();
            scope.spawn(move || {
                let mut seen = Vec::new();
                let report = run_ranks(module, ends, options, (&DATA, &Stored::default()), &mut |step| {
                    let flow = if step.step == stop_at { Flow::Stop } else { Flow::Continue };
                    seen.push(StepReport { step_time_s: 0.0, ..step });
                    flow
                });
                (report, seen)
            })
        };
        let processes: Vec<_> = parts.iter().map(start).collect();
        processes.into_iter().map(|p| p.join().unwrap()).collect()
    })
}

#[test]
fn a_world_in_parts_gives_what_it_gives_together() {
    let module = plan(STRATEGIES[4]);
    let options = RunOptions {
        steps: 4,
        collect: true,
        collect_every: 2,
        dump_gradients: true,
        threads: Some(1),
        timeout: TIMEOUT,
        ..RunOptions::default()
    };
    let mut together = Vec::new();
    let expected = run(&module, &options, &DATA, &Stored::default(), &mut |step| {
        together.push(StepReport { step_time_s: 0.0, ..step });
        if together.len() == 3 { Flow::Stop } else { Flow::Continue }
    });
    let expected = expected.unwrap();
    let alone: [&[usize]; 4] = [&[0], &[1], &[2], &[3]];
    let pairs: [&[usize]; 2] = [&[1, 3], &[2, 0]];
    for parts in [&alone[..], &pairs[..]] {
        for (part, (report, seen)) in parts.iter().zip(run_parts(&module, &options, parts, 3)) {
            let report = report.unwrap();
            let has_first = part.contains(&0);
            assert_eq!((report.steps, &report.peak_bytes), (3, &expected.peak_bytes));
            assert_eq!(report.traffic.len(), part.len());
            assert!(seen == if has_first { together.clone() } else { Vec::new() });
            assert!(report.trained == expected.trained.clone().filter(|_| has_first));
            assert!(report.gradients == expected.gradients.clone().filter(|_| has_first));
        }
    }
}

/// The caller is slower than the time-out: the other processes are told to go on waiting.
#[test]
fn a_slow_caller_is_waited_for() {
    let module = plan(STRATEGIES[4]);
    let options = RunOptions { steps: 2, timeout: Duration::from_millis(400), ..RunOptions::default() };
    let mut world = local_world(4, options.timeout);
    thread::scope(|scope| {
        let mut start = |slow: bool| {
            let comms: Vec<Box<dyn Collective>> = vec![Box::new(world.remove(0))];
            let (module, options) = (&module, &options);
            scope.spawn(move || {
                run_ranks(module, comms, options, (&DATA, &Stored::default()), &mut |_| {
                    thread::sleep(if slow { Duration::from_millis(700) } else { Duration::ZERO });
                    Flow::Continue
                })
            })
        };
        let processes: Vec<_> = [true, false, false, false].map(&mut start).into_iter().collect();
        processes.into_iter().for_each(|p| assert_eq!(p.join().unwrap().unwrap().steps, 2));
    });
}

#[test]
fn a_part_that_cannot_begin_takes_the_others_down() {
    let module = plan(STRATEGIES[4]);
    let mut world = local_world(4, TIMEOUT);
    let failing = world.pop().unwrap();
    failing.abort("its weights are gone");
    let rest = world.into_iter().map(|comm| Box::new(comm) as Box<dyn Collective>).collect();
    let outcome =
        run_ranks(&module, rest, &RunOptions::default(), (&DATA, &Stored::default()), &mut |_| Flow::Continue);
    assert!(matches!(outcome, Err(RunFault::Comm(CommFault::Aborted { by: 3, .. }))), "{outcome:?}");
}
