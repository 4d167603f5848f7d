//! Kernels that are compiled when a process starts, for the GPU it has, and their launch.

use std::ffi::{CStr, CString, c_char, c_void};
use std::ptr;

use cudarc::driver::result::{launch_kernel, module};
use cudarc::driver::sys::{CUfunction, CUmodule, CUstream};
use cudarc::nvrtc::{result as nvrtc, sys};

use crate::{Context, DriverFailure};

/// Major and minor compute capability: `[9, 0]` is `sm_90`.
pub type Capability = [i32; 2];

/// Why there are no kernels.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    #[error("libnvrtc.so cannot be opened: neither on the library path nor where libtorch finds it")]
    Missing,
    #[error("nvrtc for compute capability {}.{}: {what}", capability[0], capability[1])]
    Source { capability: Capability, what: String },
    #[error(transparent)]
    Driver(#[from] DriverFailure),
}

/// Machine code for GPUs of a compute capability, from CUDA C++. Needs no GPU.
///
/// # Errors
/// [`CompileError::Missing`] without NVRTC; [`CompileError::Source`] with what the compiler says.
pub fn compile(source: &CStr, capability: Capability) -> Result<Vec<u8>, CompileError> {
    // SAFETY: opening a library runs its initialisers; NVRTC is made for that.
    if !unsafe { sys::is_culib_present() } {
        return Err(CompileError::Missing);
    }
    let failed = |what: String| CompileError::Source { capability, what };
    let program = nvrtc::create_program(source, None).map_err(|error| failed(error.to_string()))?;
    let [major, minor] = capability;
    let options = [format!("--gpu-architecture=sm_{major}{minor}"), "--std=c++17".to_owned()];
    // SAFETY: the program was just made, and is destroyed below.
    let code = unsafe { nvrtc::compile_program(program, &options).and_then(|()| code(program)) };
    let code = code.map_err(|error| {
        // SAFETY: as above.
        let log = unsafe { nvrtc::get_program_log(program) }.unwrap_or_default();
        let log: Vec<u8> = log.iter().map(|c| c.cast_unsigned()).take_while(|c| *c != 0).collect();
        failed(format!("{error}: {}", String::from_utf8_lossy(&log).trim()))
    });
    // SAFETY: nothing uses the program any more.
    let _ = unsafe { nvrtc::destroy_program(program) };
    code
}

/// # Safety
/// `program` is one that was compiled.
unsafe fn code(program: sys::nvrtcProgram) -> Result<Vec<u8>, nvrtc::NvrtcError> {
    let mut size = 0;
    // SAFETY: the call writes to `size` alone.
    unsafe { sys::nvrtcGetCUBINSize(program, &raw mut size) }.result()?;
    let mut code = vec![0_u8; size];
    // SAFETY: the code has exactly that size.
    unsafe { sys::nvrtcGetCUBIN(program, code.as_mut_ptr().cast::<c_char>()) }.result()?;
    Ok(code)
}

/// Kernels on one GPU, for the rest of the process.
#[derive(Debug)]
pub struct Program {
    context: Context,
    module: CUmodule,
}

/// A kernel of a [`Program`], which must outlive it.
#[derive(Clone, Copy, Debug)]
pub struct Kernel(CUfunction);

/// A parameter of a kernel.
#[derive(Clone, Copy, Debug)]
pub enum Argument {
    /// Memory of the device, or null.
    Pointer(*const c_void),
    I32(i32),
    I64(i64),
    F32(f32),
}

// SAFETY: modules and functions of the driver may be used from any thread.
unsafe impl Send for Program {}
// SAFETY: the driver locks what it has to.
unsafe impl Sync for Program {}
// SAFETY: as for the program.
unsafe impl Send for Kernel {}
// SAFETY: as for the program.
unsafe impl Sync for Kernel {}

impl Program {
    /// Compiles `source` for `cuda:index` and loads it there.
    ///
    /// # Errors
    /// As for [`compile`], or what the driver says.
    pub fn load(index: usize, source: &CStr) -> Result<Self, CompileError> {
        let context = Context::of(index)?;
        let code = compile(source, context.capability()?)?;
        // SAFETY: the code is a whole image for this device, whose context is current.
        let module = unsafe { module::load_data(code.as_ptr().cast()) };
        Ok(Self { context, module: module.map_err(DriverFailure::of("cuModuleLoadData"))? })
    }

    /// # Errors
    /// Without a kernel of that name.
    pub fn kernel(&self, name: &CStr) -> Result<Kernel, DriverFailure> {
        // SAFETY: the module is loaded.
        let function = unsafe { module::get_function(self.module, CString::from(name)) };
        function.map(Kernel).map_err(DriverFailure::of("cuModuleGetFunction"))
    }

    /// Gives a kernel to `stream`, a `CUstream` of this device.
    ///
    /// # Errors
    /// What the driver says of the launch; what goes wrong later is told by later calls.
    ///
    /// # Safety
    /// The arguments are those of the kernel, in order, and point to memory that it may read and write.
    pub unsafe fn launch(
        &self,
        kernel: Kernel,
        blocks: (u32, u32),
        threads: u32,
        stream: *mut c_void,
        arguments: &[Argument],
    ) -> Result<(), DriverFailure> {
        self.context.within(|| {
            let mut places: Vec<*mut c_void> = arguments.iter().map(Argument::place).collect();
            let (grid, block) = ((blocks.0, blocks.1, 1), (threads, 1, 1));
            // SAFETY: the caller's; the driver copies the arguments.
            unsafe { launch_kernel(kernel.0, grid, block, 0, stream as CUstream, &mut places) }
                .map_err(DriverFailure::of("cuLaunchKernel"))
        })
    }
}

impl Argument {
    /// Where its value is.
    fn place(&self) -> *mut c_void {
        match self {
            Self::Pointer(value) => ptr::from_ref(value).cast_mut().cast(),
            Self::I32(value) => ptr::from_ref(value).cast_mut().cast(),
            Self::I64(value) => ptr::from_ref(value).cast_mut().cast(),
            Self::F32(value) => ptr::from_ref(value).cast_mut().cast(),
        }
    }
}
