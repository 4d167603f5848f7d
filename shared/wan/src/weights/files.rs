//! Parameters from safetensors files, memory-mapped: only the bytes of a rank's shard are touched.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::tensor::{Dtype, Metadata, SafeTensors};
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};

use super::runs::Runs;
use super::staging::Staging;
use super::{TensorSource, WeightsError, check_range};

/// Bytes that the fingerprint takes of each sample, and how many samples it takes of a file.
const SAMPLE_BYTES: usize = 4096;
const SAMPLES: usize = 64;

struct MappedFile {
    path: PathBuf,
    map: Mmap,
    metadata: Metadata,
    /// Where the tensor bytes begin: after the 8-byte length and the JSON header.
    data_start: usize,
}

impl MappedFile {
    fn open(path: &Path) -> Result<Self, WeightsError> {
        let failed = |what: String| WeightsError::File { path: path.to_owned(), what };
        let file = File::open(path).map_err(|e| failed(e.to_string()))?;
        // SAFETY: the map is read-only and checkpoint files are not changed while in use; a file truncated under a
        // running process ends it with SIGBUS, as it would end any reader of that checkpoint.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| failed(e.to_string()))?;
        let (header, metadata) =
            SafeTensors::read_metadata(&map).map_err(|e| failed(format!("not safetensors: {e}")))?;
        Ok(Self { path: path.to_owned(), map, metadata, data_start: header + 8 })
    }
}

/// One safetensors file, or a folder of them that together hold one set of names.
pub struct SafetensorsSource {
    name: String,
    files: Vec<MappedFile>,
    /// Which file holds a name.
    index: HashMap<String, usize>,
    fingerprint: String,
    staging: Staging,
}

impl SafetensorsSource {
    /// Maps the file, or all `.safetensors` files of the folder.
    ///
    /// # Errors
    /// A file cannot be read or is not safetensors, the folder holds none, or two files hold the same name.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, WeightsError> {
        let path = path.as_ref();
        let failed = |what: String| WeightsError::File { path: path.to_owned(), what };
        let mut paths = if path.is_dir() {
            let entries = std::fs::read_dir(path).map_err(|e| failed(e.to_string()))?;
            entries
                .filter_map(|entry| entry.ok().map(|entry| entry.path()))
                .filter(|p| p.extension().is_some_and(|e| e == "safetensors"))
                .collect()
        } else {
            vec![path.to_owned()]
        };
        paths.sort();
        if paths.is_empty() {
            return Err(failed("no .safetensors file in this folder".into()));
        }
        let files = paths.iter().map(|p| MappedFile::open(p)).collect::<Result<Vec<_>, _>>()?;
        let mut index: HashMap<String, usize> = HashMap::new();
        for (i, file) in files.iter().enumerate() {
            for name in file.metadata.offset_keys() {
                if let Some(other) = index.insert(name.clone(), i) {
                    let (a, b) = (files[other].path.display(), file.path.display());
                    return Err(failed(format!("{name} is in both {a} and {b}")));
                }
            }
        }
        let fingerprint = fingerprint(&files);
        Ok(Self {
            name: path.display().to_string(),
            files,
            index,
            fingerprint,
            staging: Staging::to(Device::Cpu),
        })
    }

    /// The same files, whose tensors come back on `device`.
    #[must_use]
    pub fn on(self, device: Device) -> Self {
        Self { staging: Staging::to(device), ..self }
    }

    /// Every name in the source, in no particular order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.index.keys().map(String::as_str)
    }

    /// Shape of the tensor `name`, when there is one.
    pub fn shape(&self, name: &str) -> Option<Vec<i64>> {
        let info = self.files[*self.index.get(name)?].metadata.info(name)?;
        Some(info.shape.iter().map(|s| *s as i64).collect())
    }

    /// Dtype, shape and bytes of a tensor.
    fn find(&self, name: &str) -> Result<(Dtype, Vec<i64>, &[u8]), WeightsError> {
        let missing = || WeightsError::Missing { source_name: self.name.clone(), name: name.to_owned() };
        let file = &self.files[*self.index.get(name).ok_or_else(missing)?];
        let info = file.metadata.info(name).ok_or_else(missing)?;
        let (from, to) = info.data_offsets;
        let bytes = file.map.get(file.data_start + from..file.data_start + to).ok_or_else(missing)?;
        Ok((info.dtype, info.shape.iter().map(|s| *s as i64).collect(), bytes))
    }
}

/// Hash of headers, lengths and evenly spread samples of the values: reading a whole large checkpoint on every rank at
/// every start would cost more than it tells.
fn fingerprint(files: &[MappedFile]) -> String {
    let mut hash = Sha256::new();
    hash.update(b"kinemesh safetensors 1");
    for file in files {
        hash.update((file.map.len() as u64).to_le_bytes());
        hash.update(&file.map[..file.data_start]);
        let data = &file.map[file.data_start..];
        let step = (data.len() / SAMPLES).max(SAMPLE_BYTES);
        for sample in data.chunks(step) {
            hash.update(&sample[..sample.len().min(SAMPLE_BYTES)]);
        }
    }
    hex::encode(hash.finalize())
}

impl TensorSource for SafetensorsSource {
    fn get(&self, name: &str, shape: &[i64]) -> Result<Tensor, WeightsError> {
        let elements = shape.iter().map(|size| size.unsigned_abs() as usize).product();
        self.copy(name, shape, Runs::whole(elements), shape)
    }

    fn narrow(
        &self,
        name: &str,
        shape: &[i64],
        dim: usize,
        start: i64,
        len: i64,
    ) -> Result<Tensor, WeightsError> {
        check_range(name, shape, dim, start, len)?;
        let mut sliced = shape.to_vec();
        sliced[dim] = len;
        self.copy(name, shape, Runs::of(shape, dim, start, len), &sliced)
    }

    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

impl SafetensorsSource {
    /// The slice `runs`, in elements, of the tensor `name`, whose own shape is `sliced`, on the device. Only its pages of the
    /// file are read.
    fn copy(&self, name: &str, shape: &[i64], runs: Runs, sliced: &[i64]) -> Result<Tensor, WeightsError> {
        let (dtype, found, bytes) = self.find(name)?;
        let kind = self.checked_kind(name, dtype, shape, found)?;
        let failed = |what: String| WeightsError::Torch { name: name.to_owned(), what };
        let elements = shape.iter().map(|size| size.unsigned_abs() as usize).product::<usize>();
        if bytes.len() != elements * kind.elt_size_in_bytes() {
            return Err(failed(format!("{} bytes for {elements} values of {kind:?}", bytes.len())));
        }
        let copied = self.staging.copy(bytes, runs.in_bytes(kind.elt_size_in_bytes()));
        let copied = copied.map_err(|e| failed(e.to_string()))?;
        copied.f_view_dtype(kind).and_then(|values| values.f_view(sliced)).map_err(|e| failed(e.to_string()))
    }

    fn checked_kind(
        &self,
        name: &str,
        dtype: Dtype,
        expected: &[i64],
        found: Vec<i64>,
    ) -> Result<Kind, WeightsError> {
        let (source_name, name) = (self.name.clone(), name.to_owned());
        if found != expected {
            return Err(WeightsError::Shape { source_name, name, expected: expected.to_vec(), found });
        }
        match dtype {
            Dtype::F32 => Ok(Kind::Float),
            Dtype::F16 => Ok(Kind::Half),
            Dtype::BF16 => Ok(Kind::BFloat16),
            Dtype::F64 => Ok(Kind::Double),
            other => Err(WeightsError::Dtype { source_name, name, found: format!("{other:?}") }),
        }
    }
}

#[cfg(test)]
mod tests {
    use safetensors::tensor::TensorView;

    use super::*;

    fn write(path: &Path, tensors: &[(&str, Dtype, Vec<usize>, Vec<u8>)]) {
        let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
            (*name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        safetensors::serialize_to_file(views, None, path).unwrap();
    }

    fn floats(count: usize) -> Vec<u8> {
        (0..count).flat_map(|i| (i as f32).to_le_bytes()).collect()
    }

    #[test]
    fn slices_read_the_right_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        write(&path, &[("w", Dtype::F32, vec![4, 6], floats(24)), ("v", Dtype::F32, vec![3], floats(3))]);
        let source = SafetensorsSource::open(&path).unwrap();
        let whole = source.get("w", &[4, 6]).unwrap();
        assert_eq!(whole.double_value(&[3, 5]), 23.0);
        for (dim, start, len) in [(0, 1, 2), (1, 3, 3), (1, 0, 1)] {
            let part = source.narrow("w", &[4, 6], dim, start, len).unwrap();
            assert!(part.equal(&whole.narrow(dim as i64, start, len)));
            assert!(part.is_contiguous());
        }
    }

    #[test]
    fn tensors_outlive_the_file_they_were_read_from() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        write(&path, &[("w", Dtype::F32, vec![4, 6], floats(24))]);
        let source = SafetensorsSource::open(&path).unwrap();
        let (whole, part) =
            (source.get("w", &[4, 6]).unwrap(), source.narrow("w", &[4, 6], 0, 2, 2).unwrap());
        drop(source);
        let values: Vec<f32> = whole.flatten(0, -1).try_into().unwrap();
        assert_eq!(values[23], 23.0);
        let values: Vec<f32> = part.flatten(0, -1).try_into().unwrap();
        assert_eq!((values[0], values[11]), (12.0, 23.0));
    }

    #[test]
    fn errors_name_the_key_and_both_shapes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        write(&path, &[("w", Dtype::F32, vec![4, 6], floats(24)), ("i", Dtype::I64, vec![1], vec![0; 8])]);
        let source = SafetensorsSource::open(&path).unwrap();
        let error = |name, shape: &[i64]| source.get(name, shape).unwrap_err().to_string();
        let shape = error("w", &[6, 4]);
        assert!(shape.contains("w has shape [4, 6], expected [6, 4]"), "{shape}");
        assert!(error("x", &[1]).contains("no tensor \"x\""));
        assert!(error("i", &[1]).contains("I64"));
        assert!(source.narrow("w", &[4, 6], 0, 3, 2).unwrap_err().to_string().contains("outside"));
    }

    #[test]
    fn a_folder_of_files_is_one_source_and_no_name_may_be_twice() {
        let folder = tempfile::tempdir().unwrap();
        write(&folder.path().join("a.safetensors"), &[("a", Dtype::F32, vec![2], floats(2))]);
        write(&folder.path().join("b.safetensors"), &[("b", Dtype::F32, vec![3], floats(3))]);
        let source = SafetensorsSource::open(folder.path()).unwrap();
        assert_eq!(source.get("a", &[2]).unwrap().size(), [2]);
        assert_eq!(source.get("b", &[3]).unwrap().size(), [3]);
        write(&folder.path().join("c.safetensors"), &[("b", Dtype::F32, vec![3], floats(3))]);
        let error = SafetensorsSource::open(folder.path()).err().unwrap().to_string();
        assert!(error.contains("b is in both"), "{error}");
    }

    #[test]
    fn the_fingerprint_follows_the_values() {
        let folder = tempfile::tempdir().unwrap();
        let open = |name: &str, bytes: Vec<u8>| {
            let path = folder.path().join(name);
            write(&path, &[("w", Dtype::F32, vec![6], bytes)]);
            SafetensorsSource::open(&path).unwrap().fingerprint().to_owned()
        };
        let mut other = floats(6);
        other[0] = 1;
        let first = open("a.safetensors", floats(6));
        assert_eq!(first, open("b.safetensors", floats(6)));
        assert_ne!(first, open("c.safetensors", other));
    }

    #[test]
    fn a_file_that_is_not_safetensors_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        std::fs::write(&path, b"not a checkpoint at all").unwrap();
        assert!(SafetensorsSource::open(&path).err().unwrap().to_string().contains("not safetensors"));
        assert!(SafetensorsSource::open(folder.path().join("none")).is_err());
    }
}
