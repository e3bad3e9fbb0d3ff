//! `cargo xtask ebpf`: builds the kernel's programs into `ebpf/dist`, or checks what lies there.
//!
//! Stable Rust has no core library for BPF. Debian's compiler ships one, and a nightly from rustup
//! builds one from its source; whichever is there is used, Debian's first.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::prerequisites::{self, Package};
use crate::process;

const TARGET: &str = "bpfel-unknown-none";
/// Atomic exchange needs the third version of the instruction set: Linux 5.12.
const CPU: &str = "-Ctarget-cpu=v3";
const LINKER_VERSION: &str = "0.13.0";
const LLVM: &str = "/usr/lib/llvm-22";

/// What Debian's way needs.
const DEBIAN: &[Package] = &[
    ("rustc-web", "the compiler for BPF"),
    ("libstd-rust-web-dev-bpf", "its core library"),
    ("llvm-22-dev", "bpf-linker and llvm-objcopy"),
    ("libzstd-dev", "bpf-linker"),
];

/// Where tests find another object than the committed one.
const OBJECT_VARIABLE: &str = "TOWPATH_EBPF_OBJECT";

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Builds apart and compares with what is committed: bytes where the toolchain is the one that
    /// made it, what packets become where it is another.
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if arguments.check {
        return check();
    }
    let toolchain = Toolchain::find()?;
    let built = toolchain.build()?;
    let committed = committed();
    fs::copy(&built, &committed)
        .with_context(|| format!("cannot write {}", committed.display()))?;
    fs::write(toolchain_file(), toolchain.name()?)?;
    println!("\n{} is built", committed.display());
    Ok(())
}

/// Fails where the committed object is not what the sources say.
pub(crate) fn check() -> Result<()> {
    let toolchain = Toolchain::find()?;
    let built = toolchain.build()?;
    let made_by = fs::read_to_string(toolchain_file())?;
    if made_by == toolchain.name()? {
        let same = fs::read(&built)? == fs::read(committed())?;
        anyhow::ensure!(
            same,
            "{} is not what the sources make: run `cargo xtask ebpf` and commit it",
            committed().display()
        );
        println!("\nebpf: the same toolchain makes the same bytes as are committed");
        return Ok(());
    }
    println!(
        "\nebpf: this toolchain is another than the one that made the committed object, so both are \
         run.\ncommitted:\n{made_by}here:\n{}",
        toolchain.name()?
    );
    for object in [committed(), built] {
        process::run(
            process::cargo()
                .args(["test", "--package", "towpath-ebpf-tests"])
                .env(OBJECT_VARIABLE, object),
        )?;
    }
    Ok(())
}

fn committed() -> PathBuf {
    process::root().join("ebpf/dist/towpath.bpf.o")
}

fn toolchain_file() -> PathBuf {
    process::root().join("ebpf/dist/TOOLCHAIN")
}

/// A compiler for BPF, its linker, and what strips the result.
struct Toolchain {
    /// `RUSTC` and its arguments to cargo.
    rustc: PathBuf,
    builds_core: bool,
    linker: PathBuf,
    objcopy: PathBuf,
}

impl Toolchain {
    /// Installs what is missing where Debian has it, and says so.
    fn find() -> Result<Self> {
        let (rustc, builds_core) = match (debian(), nightly()) {
            (Some(rustc), _) => (rustc, false),
            (None, Some(rustc)) => (rustc, true),
            (None, None) => {
                prerequisites::install(DEBIAN).context(
                    "no compiler for BPF: neither Debian's nor a nightly of rustup's with rust-src",
                )?;
                let rustc = debian().context("Debian's compiler has no core library for BPF")?;
                (rustc, false)
            }
        };
        let linker = match linker() {
            Some(linker) => linker,
            None => install_linker()?,
        };
        let objcopy = objcopy().context("llvm-objcopy is missing: it comes with llvm-22")?;
        Ok(Self {
            rustc,
            builds_core,
            linker,
            objcopy,
        })
    }

    /// What must be the same for the same bytes.
    fn name(&self) -> Result<String> {
        let version = |program: &Path| {
            process::output(Command::new(program).arg("--version"))
                .with_context(|| format!("{} does not run", program.display()))
        };
        let core = if self.builds_core {
            "core built from source"
        } else {
            "core as shipped"
        };
        let rustc = version(&self.rustc)?;
        let linker = version(&self.linker)?;
        Ok(format!("{}, {core}\n{}\n", rustc.trim(), linker.trim()))
    }

    /// Builds the object apart from everything else, and returns where it lies.
    fn build(&self) -> Result<PathBuf> {
        let directory = process::target_directory()?.join("ebpf");
        let mut build = process::cargo();
        build
            .current_dir(process::root().join("ebpf/programs"))
            .args(["build", "--release", "--locked", "--target", TARGET])
            .arg("--target-dir")
            .arg(&directory)
            .env("RUSTC", &self.rustc)
            .env("RUSTC_BOOTSTRAP", "1")
            .env_remove("RUSTFLAGS")
            .env("CARGO_ENCODED_RUSTFLAGS", self.flags()?);
        if self.builds_core {
            build.args(["-Z", "build-std=core"]);
        }
        process::run(&mut build)?;
        let built = directory.join(TARGET).join("release/towpath");
        let stripped = directory.join("towpath.bpf.o");
        // Types and lines stay for the verifier's messages (.BTF); the rest is for debuggers.
        process::run(
            Command::new(&self.objcopy)
                .arg("--strip-debug")
                .args([&built, &stripped]),
        )?;
        Ok(stripped)
    }

    /// No path of this machine gets into the object.
    fn flags(&self) -> Result<OsString> {
        let mut flags = vec![OsString::from(CPU)];
        for flag in ["-Cdebuginfo=2", "-Clink-arg=--btf"] {
            flags.push(flag.into());
        }
        let mut linker = OsString::from("-Clinker=");
        linker.push(&self.linker);
        flags.push(linker);
        let mut remap = |from: &Path, to: &str| {
            let mut flag = OsString::from("--remap-path-prefix=");
            flag.push(from);
            flag.push("=");
            flag.push(to);
            flags.push(flag);
        };
        remap(process::root(), "");
        let sources = cargo_home()?.join("registry/src");
        for registry in fs::read_dir(&sources).into_iter().flatten().flatten() {
            remap(&registry.path(), "crates");
        }
        Ok(flags.join(&OsString::from("\x1f")))
    }
}

fn cargo_home() -> Result<PathBuf> {
    if let Some(home) = std::env::var_os("CARGO_HOME") {
        return Ok(home.into());
    }
    let home = std::env::var_os("HOME").context("neither CARGO_HOME nor HOME is set")?;
    Ok(Path::new(&home).join(".cargo"))
}

/// Debian's compiler, if it has a core library for BPF.
fn debian() -> Option<PathBuf> {
    let rustc = PathBuf::from("/usr/bin/rustc");
    let sysroot = process::output(Command::new(&rustc).args(["--print", "sysroot"]))?;
    let library = Path::new(sysroot.trim()).join("lib/rustlib").join(TARGET);
    library.is_dir().then_some(rustc)
}

/// The compiler of rustup's nightly, if the library's source is beside it.
fn nightly() -> Option<PathBuf> {
    let which =
        process::output(Command::new("rustup").args(["which", "--toolchain", "nightly", "rustc"]))?;
    let rustc = PathBuf::from(which.trim());
    let source = rustc
        .parent()?
        .parent()?
        .join("lib/rustlib/src/rust/library/core");
    source.is_dir().then_some(rustc)
}

fn linker() -> Option<PathBuf> {
    let installed = cargo_home().ok()?.join("bin/bpf-linker");
    let linker = if installed.is_file() {
        installed
    } else {
        process::find("bpf-linker")?
    };
    let version = process::output(Command::new(&linker).arg("--version"))?;
    version.contains(LINKER_VERSION).then_some(linker)
}

fn install_linker() -> Result<PathBuf> {
    prerequisites::install(DEBIAN).context("bpf-linker is built against Debian's LLVM")?;
    println!("Installing bpf-linker {LINKER_VERSION} with cargo.");
    process::run(
        process::cargo()
            .args(["install", "bpf-linker", "--version", LINKER_VERSION])
            .args(["--no-default-features", "--features", "llvm-22"])
            .env("LLVM_SYS_221_PREFIX", LLVM)
            .env("LLVM_PREFIX", LLVM),
    )?;
    match linker() {
        Some(linker) => Ok(linker),
        None => bail!("bpf-linker {LINKER_VERSION} was installed and is not found"),
    }
}

fn objcopy() -> Option<PathBuf> {
    let ours = Path::new(LLVM).join("bin/llvm-objcopy");
    if ours.is_file() {
        return Some(ours);
    }
    process::find("llvm-objcopy-22").or_else(|| process::find("llvm-objcopy"))
}
