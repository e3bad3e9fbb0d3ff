//! Every committed input through its target, as it is and damaged a little.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use towpath_fuzz::{TARGETS, Target};

/// How often each input is damaged; seeded, so that a failure is found again.
const DAMAGED_COPIES: u64 = 64;

fn inputs(target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target.name);
    let entries = std::fs::read_dir(&directory)
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
        .into_iter()
        .map(|path| (path.clone(), std::fs::read(&path).unwrap()))
        .collect()
}

/// xorshift64*: enough to choose bytes with.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % end.max(1)
    }
}

fn damaged(input: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(bytes.len());
        match random.below(4) {
            0 if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
            1 if !bytes.is_empty() => bytes[at] = random.below(256) as u8,
            2 => bytes.truncate(at),
            _ => bytes.insert(at, random.below(256) as u8),
        }
    }
    bytes
}

#[test]
fn every_target_survives_its_corpus_and_damaged_copies_of_it() {
    for target in TARGETS {
        let inputs = inputs(target);
        assert!(!inputs.is_empty(), "{} has no corpus", target.name);
        for (path, input) in inputs {
            println!("{}", path.display());
            (target.run)(&input);
            let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ input.len() as u64);
            for _ in 0..DAMAGED_COPIES {
                let bytes = damaged(&input, &mut random);
                println!("{bytes:02x?}");
                (target.run)(&bytes);
            }
        }
    }
}

#[test]
fn every_corpus_belongs_to_a_target() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for directory in std::fs::read_dir(corpus).unwrap() {
        let name = directory.unwrap().file_name().into_string().unwrap();
        assert!(towpath_fuzz::target(&name).is_some(), "no target {name}");
    }
}
