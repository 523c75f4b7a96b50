//! What must hold of the HTTP core for any bytes, tried on the committed inputs, on every prefix of them, and on random
//! ones. The fuzzer runs the same functions (`tests/fuzz/run`).

use crate::support::seed;
use std::path::Path;

/// The properties, which the fuzz targets share.
#[path = "fuzz/src/lib.rs"]
mod fuzz;

/// Random inputs for each property.
const INPUTS: usize = 20_000;

type Property = fn(&[u8]);

/// The committed inputs of a target.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/seeds").join(target);
    let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.iter().map(|file| std::fs::read(file).unwrap()).collect()
}

fn holds(target: &str, property: Property, make: impl Fn(&mut fastrand::Rng) -> Vec<u8>) {
    let seeds = seeds(target);
    assert!(seeds.len() > 20, "only {} inputs for {target}", seeds.len());
    for input in &seeds {
        property(input);
        for end in (0..input.len()).filter(|end| *end < 1200 || end + 64 > input.len()) {
            property(&input[..end]);
        }
    }
    let mut dice = fastrand::Rng::with_seed(seed());
    for _ in 0..INPUTS {
        let mut input = match dice.bool() {
            true => make(&mut dice),
            false => seeds[dice.usize(..seeds.len())].clone(),
        };
        if dice.u8(..4) > 0 {
            fuzz::inputs::mutate(&mut dice, &mut input, &seeds);
        }
        property(&input);
    }
}

#[test]
fn request_heads() {
    holds("request_head", fuzz::request_head, fuzz::inputs::request);
}

#[test]
fn response_heads() {
    holds("response_head", fuzz::response_head, fuzz::inputs::response);
}

#[test]
fn chunked_bodies() {
    holds("chunked_body", fuzz::chunked_body, fuzz::inputs::chunks);
}

#[test]
fn paths() {
    holds("path", fuzz::path, fuzz::inputs::target);
}

#[test]
fn forwarded_heads() {
    holds("forwarded_head", fuzz::forwarded_head, |dice| match dice.bool() {
        true => fuzz::inputs::request(dice),
        false => fuzz::inputs::response(dice),
    });
}
