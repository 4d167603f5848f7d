//! The rules of ARCHITECTURE.md that the compiler does not keep.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, PackageId};

const SERVICES: [&str; 4] = ["gateway", "stage0", "mesh-leader", "tp-worker"];
/// The lying worker of the fault tests is a worker; the benchmark runs the models by themselves.
const MAY_USE_TORCH: [&str; 12] = [
    "kinemesh-device",
    "kinemesh-torch-extra",
    "kinemesh-wan",
    "kinemesh-engine",
    "kinemesh-collectives",
    "kinemesh-latents",
    "stage0",
    "mesh-leader",
    "tp-worker",
    "lying-worker",
    "kinemesh-bench",
    "train-demo",
];

fn metadata() -> Metadata {
    MetadataCommand::new().other_options(vec!["--locked".into(), "--offline".into()]).exec().unwrap()
}

/// Names of everything each workspace member depends on, directly or not, tests and build scripts excepted.
fn reach(metadata: &Metadata) -> BTreeMap<String, BTreeSet<String>> {
    let resolve = metadata.resolve.as_ref().expect("resolved");
    let names: BTreeMap<_, _> = metadata.packages.iter().map(|p| (&p.id, p.name.to_string())).collect();
    let edges: BTreeMap<&PackageId, Vec<&PackageId>> = resolve
        .nodes
        .iter()
        .map(|node| {
            let normal = |dep: &&cargo_metadata::NodeDep| {
                dep.dep_kinds.iter().any(|kind| kind.kind == DependencyKind::Normal)
            };
            (&node.id, node.deps.iter().filter(normal).map(|dep| &dep.pkg).collect())
        })
        .collect();
    let walk = |start: &PackageId| {
        let mut seen: BTreeSet<&PackageId> = BTreeSet::new();
        let mut open = vec![start];
        while let Some(id) = open.pop() {
            for next in &edges[id] {
                if seen.insert(next) {
                    open.push(next);
                }
            }
        }
        seen.into_iter().map(|id| names[id].clone()).collect()
    };
    metadata.workspace_members.iter().map(|id| (names[id].clone(), walk(id))).collect()
}

#[test]
fn contract_and_mesh_know_neither_tokio_nor_torch() {
    let reach = reach(&metadata());
    for name in ["kinemesh-contract", "kinemesh-mesh"] {
        for banned in ["tokio", "tch", "torch-sys", "async-nats"] {
            assert!(!reach[name].contains(banned), "{name} depends on {banned}");
        }
    }
}

#[test]
fn torch_stays_where_tensors_are() {
    for (name, reach) in reach(&metadata()) {
        let allowed = MAY_USE_TORCH.contains(&name.as_str());
        assert!(allowed || !reach.contains("tch"), "{name} depends on tch");
    }
}

#[test]
fn services_do_not_depend_on_one_another() {
    for (name, reach) in reach(&metadata()) {
        if SERVICES.contains(&name.as_str()) {
            for other in SERVICES {
                assert!(!reach.contains(other), "{name} depends on {other}");
            }
        }
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn rust_files(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, files);
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
}

fn product_files() -> Vec<PathBuf> {
    let mut files = Vec::new();
    for dir in ["services", "shared", "xtask"] {
        rust_files(&root().join(dir), &mut files);
    }
    assert!(files.len() > 50, "only {} files found", files.len());
    files
}

#[test]
fn subject_literals_live_in_the_contract_alone() {
    for file in product_files() {
        if file.starts_with(root().join("shared/contract")) {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        assert!(!text.contains(&format!("\"{}", "km.v1")), "{} holds a subject literal", file.display());
    }
}

#[test]
fn main_files_stay_under_100_lines() {
    for service in SERVICES {
        let lines = fs::read_to_string(root().join("services").join(service).join("src/main.rs"))
            .unwrap()
            .lines()
            .count();
        assert!(lines < 100, "{service}/src/main.rs has {lines} lines");
    }
}

#[test]
fn every_metric_is_recorded_somewhere() {
    let table = root().join("shared/runtime/src/metric_names.rs");
    let names: Vec<String> = fs::read_to_string(&table)
        .unwrap()
        .lines()
        .filter_map(|line| Some(line.split_once(" = \"km_")?.0.rsplit(' ').next()?.to_owned()))
        .collect();
    assert!(names.len() > 20, "only {} names found", names.len());
    let code: String = product_files()
        .iter()
        .filter(|file| **file != table)
        .map(|file| fs::read_to_string(file).unwrap())
        .collect();
    let unused: Vec<_> =
        names.iter().filter(|name| !code.contains(&format!("metric_names::{name}"))).collect();
    assert_eq!(unused, Vec::<&String>::new(), "metrics that nobody records");
}

/// `cargo xtask` knows them without libtorch, so that a wrong name is refused before the build.
#[test]
fn the_models_that_can_be_asked_for_are_those_that_there_are() {
    let text = fs::read_to_string(root().join("shared/wan/src/config/named.rs")).unwrap();
    let list = text.split_once("MODEL_NAMES: [&str; ").unwrap().1.split_once('[').unwrap().1;
    let names: Vec<_> = list.split(']').next().unwrap().split('"').skip(1).step_by(2).collect();
    assert_eq!(names, xtask::up::MODELS);
}
