//! Has the linker leave the unwind tables out of optimised programs, 60 to 300 KiB each: they abort on a panic, and
//! nothing in them ever unwinds. Tests do unwind, so nothing else may be linked like that.

fn main() {
    println!("cargo::rerun-if-changed=etc/cross/no-unwind.ld");
    let var = |name| std::env::var(name).unwrap_or_default();
    if var("PROFILE") == "release" && var("CARGO_CFG_TARGET_OS") == "linux" {
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{}/etc/cross/no-unwind.ld", var("CARGO_MANIFEST_DIR"));
    }
}
