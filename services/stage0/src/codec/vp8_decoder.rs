//! libvpx's decoder, for tests.

use std::mem::MaybeUninit;
use std::ptr::{null, null_mut};

use contract::model::Size;
use vpx_sys::{
    VPX_CODEC_OK, VPX_DECODER_ABI_VERSION, vpx_codec_ctx_t, vpx_codec_dec_init_ver, vpx_codec_decode,
    vpx_codec_destroy, vpx_codec_get_frame, vpx_codec_vp8_dx,
};

use super::I420;

pub(super) struct Vp8Decoder(Box<vpx_codec_ctx_t>);

impl Vp8Decoder {
    pub(super) fn new() -> Self {
        // SAFETY: dec_init_ver writes the context.
        unsafe {
            let mut context = Box::new(MaybeUninit::<vpx_codec_ctx_t>::uninit());
            let abi = VPX_DECODER_ABI_VERSION as i32;
            let code = vpx_codec_dec_init_ver(context.as_mut_ptr(), vpx_codec_vp8_dx(), null(), 0, abi);
            assert_eq!(code, VPX_CODEC_OK);
            Self(context.assume_init())
        }
    }

    pub(super) fn decode(&mut self, data: &[u8]) -> I420 {
        // SAFETY: the context is initialised; the image is valid until the next decode.
        unsafe {
            let code = vpx_codec_decode(&raw mut *self.0, data.as_ptr(), data.len() as u32, null_mut(), 0);
            assert_eq!(code, VPX_CODEC_OK);
            let mut iterator = null();
            let image = vpx_codec_get_frame(&raw mut *self.0, &raw mut iterator);
            let image = image.as_ref().expect("a picture for every access unit");
            let mut out = Vec::new();
            for (plane, shift) in [(0, 0), (1, 1), (2, 1)] {
                let width = (image.d_w >> shift) as usize;
                for row in 0..(image.d_h >> shift) as usize {
                    let start = image.planes[plane].offset(image.stride[plane] as isize * row as isize);
                    out.extend_from_slice(std::slice::from_raw_parts(start, width));
                }
            }
            I420::new(Size { width: image.d_w, height: image.d_h }, out)
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
