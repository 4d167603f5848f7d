//! Recordings as files: one JSON object a line, the header first.

use std::fs;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use contract::recording::Recording;

/// Dumps that a folder keeps, of all processes that share it.
const KEEP: usize = 64;
const SUFFIX: &str = ".flight.jsonl";

/// Writes a dump and removes the oldest ones beyond [`KEEP`]. `unix_ms` is now, and begins the file's name, so that
/// names sort by age.
pub(super) fn write(dir: &Path, unix_ms: u64, recording: &Recording) -> io::Result<PathBuf> {
    fs::create_dir_all(dir)?;
    let header = &recording.header;
    let name = format!("{unix_ms:014}-{}-{}{SUFFIX}", header.process, header.pid);
    let path = dir.join(name);
    // Readers never see half a dump.
    let partial = path.with_extension("partial");
    let mut file = BufWriter::new(fs::File::create(&partial)?);
    line(&mut file, header)?;
    for event in &recording.events {
        line(&mut file, event)?;
    }
    file.flush()?;
    fs::rename(&partial, &path)?;
    remove_oldest(dir)?;
    Ok(path)
}

fn line(file: &mut impl Write, value: &impl serde::Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *file, value)?;
    file.write_all(b"\n")
}

fn remove_oldest(dir: &Path) -> io::Result<()> {
    let mut dumps: Vec<PathBuf> = fs::read_dir(dir)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| is_dump(path))
        .collect();
    dumps.sort_unstable();
    let beyond = dumps.len().saturating_sub(KEEP);
    for path in &dumps[..beyond] {
        // Another process may have been faster.
        let _ = fs::remove_file(path);
    }
    Ok(())
}

fn is_dump(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.ends_with(SUFFIX))
}

#[cfg(test)]
mod tests {
    use contract::CellId;
    use contract::recording::{EventKind, RecordedEvent, RecordingHeader};

    use super::*;

    fn recording() -> Recording {
        let header = RecordingHeader {
            process: "tp-worker".to_owned(),
            cell: CellId::default(),
            instance: None,
            pid: 9,
            started_unix_ms: 5,
            why: Some("rank_lost".to_owned()),
            missing: 0,
        };
        let event = RecordedEvent { ms: 1.5, kind: EventKind::Out, what: "run plan 7".to_owned() };
        Recording { header, events: vec![event] }
    }

    #[test]
    fn a_dump_is_its_header_and_an_event_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = write(dir.path(), 12, &recording()).unwrap();
        let text = fs::read_to_string(path).unwrap();
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(
            (lines.len(), &lines[0]["process"], &lines[0]["why"]),
            (2, &"tp-worker".into(), &"rank_lost".into())
        );
        assert_eq!((&lines[1]["kind"], &lines[1]["what"]), (&"out".into(), &"run plan 7".into()));
    }

    #[test]
    fn the_oldest_dumps_go_and_nothing_else_does() {
        let dir = tempfile::tempdir().unwrap();
        let other = dir.path().join("notes.txt");
        fs::write(&other, "mine").unwrap();
        let paths: Vec<_> =
            (0..KEEP as u64 + 2).map(|n| write(dir.path(), n, &recording()).unwrap()).collect();
        let kept: Vec<_> = paths.iter().filter(|path| path.exists()).collect();
        assert_eq!(kept, paths[2..].iter().collect::<Vec<_>>());
        assert!(other.exists());
    }
}
