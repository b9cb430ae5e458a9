#![no_main]
#[path = "../exercise_models.rs"]
mod exercise;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| exercise::recipe(bytes));
