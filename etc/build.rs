//! Leaves out of optimised programs what nothing in them uses: unwind tables, 60 to 300 KiB, since they abort on a panic
//! and nothing in them ever unwinds; and a relocation for each pointer, 30 KiB, where the C library reads them packed.
//! Tests do unwind, so nothing else may be linked like that.

use std::process::Command;

/// The first version of glibc that reads packed relocations (`DT_RELR`).
const READS_PACKED: (u32, u32) = (2, 36);

fn main() {
    println!("cargo::rerun-if-changed=etc/cross/no-unwind.ld");
    let var = |name| std::env::var(name).unwrap_or_default();
    if var("PROFILE") != "release" || var("CARGO_CFG_TARGET_OS") != "linux" {
        return;
    }
    println!("cargo::rustc-link-arg-bins=-Wl,-T,{}/etc/cross/no-unwind.ld", var("CARGO_MANIFEST_DIR"));
    // The C library of another machine is not known here, and linkers for other processors do not pack.
    let is_static = var("CARGO_CFG_TARGET_FEATURE").split(',').any(|feature| feature == "crt-static");
    let is_native = var("HOST") == var("TARGET") && var("CARGO_CFG_TARGET_ARCH") == "x86_64";
    if is_native && !is_static && glibc().is_some_and(|version| version >= READS_PACKED) {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// Returns the version of this machine's C library; `None` if it is another one.
fn glibc() -> Option<(u32, u32)> {
    let said = Command::new("getconf").arg("GNU_LIBC_VERSION").output().ok()?;
    let said = String::from_utf8(said.stdout).ok()?;
    let (major, minor) = said.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.split('.').next()?.parse().ok()?))
}
