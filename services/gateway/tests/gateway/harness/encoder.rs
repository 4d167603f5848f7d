//! Real access units of a moving pattern, 128x128.

use std::mem::MaybeUninit;
use std::ptr::null;

use contract::media::VideoCodec;
use openh264::encoder::{Encoder, FrameType};
use openh264::formats::YUVSlices;
use vpx_sys::{
    VPX_CODEC_OK, VPX_DL_REALTIME, VPX_EFLAG_FORCE_KF, VPX_ENCODER_ABI_VERSION, VPX_FRAME_IS_KEY,
    vpx_codec_ctx_t, vpx_codec_cx_pkt_kind, vpx_codec_destroy, vpx_codec_enc_cfg_t,
    vpx_codec_enc_config_default, vpx_codec_enc_init_ver, vpx_codec_encode, vpx_codec_get_cx_data,
    vpx_codec_vp8_cx, vpx_image_t, vpx_img_fmt, vpx_img_wrap, vpx_kf_mode,
};

pub(crate) const SIDE: usize = 128;

pub(crate) enum TestEncoder {
    H264(Box<Encoder>, u64),
    Vp8(Vp8),
}

impl TestEncoder {
    pub(crate) fn new(codec: VideoCodec) -> Self {
        match codec {
            VideoCodec::H264 => Self::H264(Box::new(Encoder::new().unwrap()), 0),
            VideoCodec::Vp8 => Self::Vp8(Vp8::new()),
        }
    }

    /// Whether it is a keyframe, and the coded bytes.
    pub(crate) fn encode(&mut self, force_keyframe: bool) -> (bool, Vec<u8>) {
        match self {
            Self::H264(encoder, frame) => {
                if force_keyframe && *frame > 0 {
                    encoder.force_intra_frame();
                }
                let picture = pattern(*frame);
                *frame += 1;
                let (luma, chroma) = picture.split_at(SIDE * SIDE);
                let (u, v) = chroma.split_at(SIDE * SIDE / 4);
                let source = YUVSlices::new((luma, u, v), (SIDE, SIDE), (SIDE, SIDE / 2, SIDE / 2));
                let stream = encoder.encode(&source).unwrap();
                (matches!(stream.frame_type(), FrameType::IDR), stream.to_vec())
            }
            Self::Vp8(encoder) => encoder.encode(force_keyframe),
        }
    }
}

fn pattern(frame: u64) -> Vec<u8> {
    let at = frame as usize * 3;
    let luma = (0..SIDE * SIDE).map(|i| ((i % SIDE + at) ^ (i / SIDE)) as u8);
    luma.chain((0..SIDE * SIDE / 2).map(|i| ((i + at) % 200) as u8)).collect()
}

pub(crate) struct Vp8 {
    context: Box<vpx_codec_ctx_t>,
    frame: u64,
}

// SAFETY: used by one task at a time through &mut.
unsafe impl Send for Vp8 {}

impl Vp8 {
    fn new() -> Self {
        // SAFETY: the library writes both structures before they are read.
        unsafe {
            let mut config = MaybeUninit::<vpx_codec_enc_cfg_t>::uninit();
            assert_eq!(
                vpx_codec_enc_config_default(vpx_codec_vp8_cx(), config.as_mut_ptr(), 0),
                VPX_CODEC_OK
            );
            let mut config = config.assume_init();
            (config.g_w, config.g_h, config.g_lag_in_frames) = (SIDE as u32, SIDE as u32, 0);
            config.kf_mode = vpx_kf_mode::VPX_KF_DISABLED;
            let mut context = Box::new(MaybeUninit::<vpx_codec_ctx_t>::uninit());
            let abi = VPX_ENCODER_ABI_VERSION as i32;
            let code =
                vpx_codec_enc_init_ver(context.as_mut_ptr(), vpx_codec_vp8_cx(), &raw const config, 0, abi);
            assert_eq!(code, VPX_CODEC_OK);
            Self { context: context.assume_init(), frame: 0 }
        }
    }

    fn encode(&mut self, force_keyframe: bool) -> (bool, Vec<u8>) {
        let picture = pattern(self.frame);
        let flags = if force_keyframe { i64::from(VPX_EFLAG_FORCE_KF) } else { 0 };
        // SAFETY: the picture outlives the call, and a packet is read before the next one.
        unsafe {
            let mut image = MaybeUninit::<vpx_image_t>::uninit();
            let data = picture.as_ptr().cast_mut();
            vpx_img_wrap(
                image.as_mut_ptr(),
                vpx_img_fmt::VPX_IMG_FMT_I420,
                SIDE as u32,
                SIDE as u32,
                1,
                data,
            );
            let deadline = u64::from(VPX_DL_REALTIME);
            let at = self.frame as i64;
            let code = vpx_codec_encode(&raw mut *self.context, image.as_ptr(), at, 1, flags, deadline);
            assert_eq!(code, VPX_CODEC_OK);
            self.frame += 1;
            let mut iterator = null();
            while let Some(packet) = vpx_codec_get_cx_data(&raw mut *self.context, &raw mut iterator).as_ref()
            {
                if packet.kind == vpx_codec_cx_pkt_kind::VPX_CODEC_CX_FRAME_PKT {
                    let frame = packet.data.frame;
                    let bytes = std::slice::from_raw_parts(frame.buf.cast::<u8>(), frame.sz as usize);
                    return (frame.flags & VPX_FRAME_IS_KEY != 0, bytes.to_vec());
                }
            }
            panic!("no access unit");
        }
    }
}

impl Drop for Vp8 {
    fn drop(&mut self) {
        // SAFETY: initialised in new, destroyed once.
        unsafe {
            vpx_codec_destroy(&raw mut *self.context);
        }
    }
}
