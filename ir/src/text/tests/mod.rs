//! Tests of the text format: round trips, faults, and random damage.

mod damage;
mod faults;
mod round_trip;
mod texts;
