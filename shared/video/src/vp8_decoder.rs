//! VP8 back into pictures, by libvpx.

use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::ptr::{null, null_mut};

use contract::model::Size;
use vpx_sys::{
    VPX_DECODER_ABI_VERSION, vpx_codec_ctx_t, vpx_codec_dec_init_ver, vpx_codec_decode, vpx_codec_destroy,
    vpx_codec_get_frame, vpx_codec_vp8_dx,
};

use super::vp8::check;
use super::{CodecError, I420, VideoDecoder};

pub(super) struct Vp8Decoder(Box<vpx_codec_ctx_t>);

// SAFETY: the context is used by one thread at a time, through &mut, and libvpx binds nothing to a thread.
unsafe impl Send for Vp8Decoder {}

impl Vp8Decoder {
    pub(super) fn new() -> Result<Self, CodecError> {
        // SAFETY: dec_init_ver zeroes and writes the context before it is read.
        unsafe {
            let mut context = Box::new(MaybeUninit::<vpx_codec_ctx_t>::uninit());
            let abi = c_int::try_from(VPX_DECODER_ABI_VERSION).unwrap_or(0);
            check(vpx_codec_dec_init_ver(context.as_mut_ptr(), vpx_codec_vp8_dx(), null(), 0, abi))?;
            Ok(Self(context.assume_init()))
        }
    }
}

impl VideoDecoder for Vp8Decoder {
    fn decode(&mut self, unit: &[u8]) -> Result<I420, CodecError> {
        let length = u32::try_from(unit.len())
            .map_err(|_| CodecError::new("vp8", format!("an access unit of {} bytes", unit.len())))?;
        // SAFETY: the context is initialised; the image and its planes are valid until the next decode.
        unsafe {
            check(vpx_codec_decode(&raw mut *self.0, unit.as_ptr(), length, null_mut(), 0))?;
            let mut iterator = null();
            let image = vpx_codec_get_frame(&raw mut *self.0, &raw mut iterator).as_ref();
            let image = image.ok_or_else(|| CodecError::new("vp8", "an access unit without a picture"))?;
            let size = Size { width: image.d_w, height: image.d_h };
            let mut data = Vec::with_capacity(I420::bytes(size));
            for (plane, shift) in [(0, 0), (1, 1), (2, 1)] {
                let width = (image.d_w >> shift) as usize;
                for row in 0..(image.d_h >> shift) as usize {
                    let start = image.planes[plane].offset(image.stride[plane] as isize * row as isize);
                    data.extend_from_slice(std::slice::from_raw_parts(start, width));
                }
            }
            Ok(I420::new(size, data))
        }
    }
}

impl Drop for Vp8Decoder {
    fn drop(&mut self) {
        // SAFETY: initialised in new, destroyed once.
        unsafe {
            vpx_codec_destroy(&raw mut *self.0);
        }
    }
}
