//! Compiles the C++ layer against the headers of the libtorch that tch is built with, and those of CUDA that they
//! include. Of CUDA nothing is linked.

use std::env;
use std::path::Path;

fn main() {
    println!("cargo:rerun-if-changed=src/extra.cpp");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let libtorch = env::var_os("LIBTORCH").expect("LIBTORCH names no folder: `cargo xtask setup` makes it");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        // The headers' own warnings are not ours.
        .flag("-isystem")
        .flag(Path::new(&libtorch).join("include"))
        .flag("-isystem")
        .flag(Path::new(&libtorch).join("include-cuda"))
        .file("src/extra.cpp")
        .compile("torch_extra");
}
