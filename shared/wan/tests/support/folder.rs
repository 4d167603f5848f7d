/// A file of the reference data: of the set that `KINEMESH_GOLDENS` names (a relative folder counts from the workspace
/// root, wherever the tests run), else of the one in the repository. Other crates' tests include this file.
pub(crate) fn path(file: &str) -> std::path::PathBuf {
    let set = std::env::var_os("KINEMESH_GOLDENS").unwrap_or_else(|| "shared/wan/tests/goldens".into());
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(set).join(file)
}
