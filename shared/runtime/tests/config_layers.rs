//! Which value wins, where it is said to come from, and what is refused.

#![allow(clippy::unwrap_used, reason = "a test may")]

use std::collections::BTreeMap;

use runtime::config::{
    Common, ConfigArgs, ConfigError, Loaded, Provenance, ServiceConfig, Source, load_with,
};
use serde::{Deserialize, Serialize};

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Config {
    #[serde(flatten)]
    common: Common,
    mesh: Mesh,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Mesh {
    tp_plan: Option<String>,
    world_size: u32,
    steps: Vec<u32>,
    codecs: Vec<String>,
    bias: f64,
    port: Option<u16>,
    labels: BTreeMap<String, String>,
}

impl Default for Mesh {
    fn default() -> Self {
        Self {
            tp_plan: None,
            world_size: 1,
            steps: vec![1000, 500],
            codecs: Vec::new(),
            bias: 1.0,
            port: None,
            labels: BTreeMap::new(),
        }
    }
}

impl ServiceConfig for Config {
    const DOCS: &'static [(&'static str, &'static str)] = &[("mesh.world_size", "ranks of the mesh")];

    fn common(&self) -> &Common {
        &self.common
    }

    fn validate(&self, provenance: &Provenance) -> Result<(), ConfigError> {
        match self.mesh.world_size {
            3 => {
                Err(provenance.refuse("mesh.world_size", "3 does not divide 12 heads: 1, 2, 4, 6 and 12 do"))
            }
            _ => Ok(()),
        }
    }
}

struct File(tempfile::NamedTempFile);

fn load(file: &str, env: &[(&str, &str)], set: &[&str]) -> (Result<Loaded<Config>, ConfigError>, File) {
    let path = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(path.path(), file).unwrap();
    let args = ConfigArgs {
        config: Some(path.path().to_owned()),
        print_config: false,
        print_memory: false,
        set: set.iter().map(|s| (*s).to_owned()).collect(),
    };
    let env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
    (load_with(&args, env), File(path))
}

#[test]
fn the_file_beats_defaults_the_environment_beats_the_file_and_set_beats_all() {
    let (loaded, file) = load(
        "[mesh]\nworld_size = 2\nbias = 0.5\n[http]\nport = 1\n",
        &[
            ("KINEMESH_MESH__WORLD_SIZE", "4"),
            ("KINEMESH_HTTP__PORT", "2"),
            ("KINEMESH_GOLDENS", "x"),
            ("PATH", "y"),
        ],
        &["http.port=3"],
    );
    let loaded = loaded.unwrap();
    assert_eq!((loaded.mesh.world_size, loaded.common.http.port), (4, 3));
    assert_eq!(loaded.provenance("mesh.world_size"), Source::Env("KINEMESH_MESH__WORLD_SIZE".to_owned()));
    assert_eq!(loaded.provenance("mesh.bias"), Source::File(file.0.path().to_owned()));
    assert_eq!(loaded.provenance("http.port"), Source::Flag);
    assert_eq!(loaded.provenance("mesh.tp_plan"), Source::Default);
    assert!(!loaded.provenance("mesh.tp_plan").is_explicit());
}

#[test]
fn text_is_read_as_the_key_needs_it() {
    let (loaded, _) = load(
        "",
        &[
            ("KINEMESH_MESH__TP_PLAN", "v0_full_pipeline"),
            ("KINEMESH_MESH__STEPS", "1000, 750"),
            ("KINEMESH_MESH__CODECS", "h264,vp8"),
            ("KINEMESH_MESH__BIAS", "1"),
            ("KINEMESH_MESH__PORT", "4433"),
            ("KINEMESH_MESH__LABELS__RACK", "7"),
            ("KINEMESH_NATS__USER", "123"),
            ("KINEMESH_LOG__FORMAT", "json"),
        ],
        &[],
    );
    let loaded = loaded.unwrap();
    assert_eq!(loaded.mesh.tp_plan.as_deref(), Some("v0_full_pipeline"));
    assert_eq!(loaded.mesh.steps, [1000, 750]);
    assert_eq!(loaded.mesh.codecs, ["h264", "vp8"]);
    assert_eq!((loaded.mesh.bias, loaded.mesh.port), (1.0, Some(4433)));
    assert_eq!(loaded.mesh.labels["rack"], "7");
    assert_eq!(loaded.common.nats.user.as_deref(), Some("123"));
    let (list, _) = load("", &[("KINEMESH_MESH__STEPS", "[4, 3]")], &[]);
    assert_eq!(list.unwrap().mesh.steps, [4, 3]);
}

#[test]
fn what_is_wrong_is_named_with_its_key_and_where_it_was_set() {
    for (file, env, key, also) in [
        ("[mesh]\nworld_sise = 2\n", None, "mesh.world_sise", "world_size"),
        ("[mash]\nworld_size = 2\n", None, "mash", "mesh"),
        ("[http]\nport = 70000\n", None, "http.port", "70000"),
        ("", Some(("KINEMESH_MESH__NOPE", "1")), "mesh.nope", "KINEMESH_MESH__NOPE"),
        ("", Some(("KINEMESH_MESH__WORLD_SIZE", "two")), "mesh.world_size", "KINEMESH_MESH__WORLD_SIZE"),
        ("", Some(("KINEMESH_MESH__WORLD_SIZE", "3")), "mesh.world_size", "set by KINEMESH_MESH__WORLD_SIZE"),
        ("", Some(("KINEMESH_CELL__ID", "Cell 0")), "cell.id", "a-z"),
        ("", Some(("KINEMESH_HTTP__PORT__X", "1")), "http.port.x", "not a section"),
    ] {
        let (loaded, _) = load(file, env.as_slice(), &[]);
        let error = loaded.unwrap_err();
        assert_eq!(error.key, key);
        assert!(error.message.contains(also), "{error}");
    }
    let (loaded, _) = load("not toml", &[], &[]);
    assert!(loaded.unwrap_err().message.contains("line 1"));
}

#[test]
fn what_is_for_other_services_is_left_to_them_unless_it_is_set_here() {
    let file = "[stage0]\nmax_sessions = 1\n[mesh]\nworld_size = 2\n";
    let (loaded, _) = load(file, &[("KINEMESH_DEVICE__KIND", "cuda:0"), ("KINEMESH_MESH__BIAS", "0.5")], &[]);
    let loaded = loaded.unwrap();
    assert_eq!((loaded.mesh.world_size, loaded.mesh.bias), (2, 0.5));
    assert_eq!(load("", &[], &["device.kind=cpu"]).0.unwrap_err().key, "device");
    assert_eq!(load("", &[("KINEMESH_DEVISE__KIND", "cpu")], &[]).0.unwrap_err().key, "devise");
}

#[test]
fn a_section_set_as_a_whole_is_checked_and_laid_key_by_key() {
    let file = "[mesh]\nbias = 0.5\nlabels = { rack = \"1\", row = \"2\" }\n";
    let (loaded, file) =
        load(file, &[("KINEMESH_MESH__LABELS__RACK", "7")], &["mesh={ world_size = 2, steps = [4] }"]);
    let loaded = loaded.unwrap();
    assert_eq!((loaded.mesh.world_size, loaded.mesh.bias, loaded.mesh.steps.as_slice()), (2, 0.5, &[4][..]));
    assert_eq!(loaded.provenance("mesh.steps"), Source::Flag);
    assert_eq!(loaded.provenance("mesh.labels.row"), Source::File(file.0.path().to_owned()));
    assert_eq!(loaded.provenance("mesh.labels.rack"), Source::Env("KINEMESH_MESH__LABELS__RACK".to_owned()));
    for (set, key) in
        [("mesh={ world_sise = 2 }", "mesh.world_sise"), ("mesh=2", "mesh"), ("http.port=1.5", "http.port")]
    {
        assert_eq!(load("", &[], &[set]).0.unwrap_err().key, key);
    }
}

#[test]
fn the_printed_configuration_loads_to_the_same_one_and_shows_no_secret() {
    let env = [
        ("KINEMESH_MESH__STEPS", "9,8"),
        ("KINEMESH_NATS__PASSWORD", "hunter2"),
        ("KINEMESH_NATS__URL", "nats://joe:hunter2@broker:4222"),
    ];
    let (loaded, _) = load("", &env, &[]);
    let printed = loaded.unwrap().print();
    assert!(!printed.contains("hunter2"), "{printed}");
    assert!(printed.contains("# ranks of the mesh\nworld_size = 1  # default"), "{printed}");
    assert!(printed.contains("# tp_plan is not set  # default"), "{printed}");
    assert!(printed.contains("steps = [9, 8]  # KINEMESH_MESH__STEPS"), "{printed}");
    let (again, _) = load(&printed, &[], &[]);
    assert_eq!(again.unwrap().mesh.steps, [9, 8]);
}
