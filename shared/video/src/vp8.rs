//! VP8 by libvpx: realtime, constant bitrate, keyframes only on request.

use std::ffi::{CStr, c_int, c_ulong};
use std::mem::MaybeUninit;
use std::ptr::null;

use contract::model::Size;
use vpx_sys::{
    VPX_CODEC_OK, VPX_DL_REALTIME, VPX_EFLAG_FORCE_KF, VPX_ENCODER_ABI_VERSION, VPX_FRAME_IS_KEY,
    vp8e_enc_control_id, vpx_codec_control_, vpx_codec_ctx_t, vpx_codec_cx_pkt_kind, vpx_codec_destroy,
    vpx_codec_enc_cfg_t, vpx_codec_enc_config_default, vpx_codec_enc_config_set, vpx_codec_enc_init_ver,
    vpx_codec_encode, vpx_codec_err_t, vpx_codec_err_to_string, vpx_codec_get_cx_data, vpx_codec_vp8_cx,
    vpx_enc_pass, vpx_image_t, vpx_img_fmt, vpx_img_wrap, vpx_kf_mode, vpx_rational, vpx_rc_mode,
};

use super::{AccessUnit, CodecError, I420, NOMINAL_FPS, VideoEncoder};

/// Speed over compression: about 2.5 ms a frame of 832x480.
const CPU_USED: c_int = -8;
/// A keyframe may take this much of the bits of one average frame, in percent.
const MAX_INTRA_BITRATE_PCT: c_int = 300;

pub(super) struct Vp8Encoder {
    /// Boxed: the library keeps a pointer into it.
    context: Box<vpx_codec_ctx_t>,
    config: Box<vpx_codec_enc_cfg_t>,
    frames: i64,
}

// SAFETY: the context is used by one thread at a time, through &mut, and libvpx binds nothing to a thread.
unsafe impl Send for Vp8Encoder {}

impl Vp8Encoder {
    pub(super) fn new(size: Size, kbps: u32) -> Result<Self, CodecError> {
        // SAFETY: plain calls into libvpx. The structures are written by the library before they are read: the
        // config by enc_config_default, the context (zeroed by the library first) by enc_init_ver.
        unsafe {
            let mut config = Box::new(MaybeUninit::<vpx_codec_enc_cfg_t>::uninit());
            check(vpx_codec_enc_config_default(vpx_codec_vp8_cx(), config.as_mut_ptr(), 0))?;
            let mut config = config.assume_init();
            config.g_w = size.width;
            config.g_h = size.height;
            config.g_threads = 1;
            config.g_timebase = vpx_rational { num: 1, den: c_int::try_from(NOMINAL_FPS).unwrap_or(1) };
            config.g_pass = vpx_enc_pass::VPX_RC_ONE_PASS;
            config.g_lag_in_frames = 0;
            config.g_error_resilient = 0;
            config.rc_end_usage = vpx_rc_mode::VPX_CBR;
            config.rc_target_bitrate = kbps;
            config.rc_dropframe_thresh = 0;
            config.rc_resize_allowed = 0;
            config.rc_min_quantizer = 2;
            config.rc_max_quantizer = 56;
            config.rc_undershoot_pct = 100;
            config.rc_overshoot_pct = 15;
            config.rc_buf_initial_sz = 500;
            config.rc_buf_optimal_sz = 600;
            config.rc_buf_sz = 1000;
            config.kf_mode = vpx_kf_mode::VPX_KF_DISABLED;
            let mut context = Box::new(MaybeUninit::<vpx_codec_ctx_t>::uninit());
            let abi = c_int::try_from(VPX_ENCODER_ABI_VERSION).unwrap_or(0);
            check(vpx_codec_enc_init_ver(
                context.as_mut_ptr(),
                vpx_codec_vp8_cx(),
                &raw const *config,
                0,
                abi,
            ))?;
            let mut encoder = Self { context: context.assume_init(), config, frames: 0 };
            encoder.control(vp8e_enc_control_id::VP8E_SET_CPUUSED, CPU_USED)?;
            encoder.control(vp8e_enc_control_id::VP8E_SET_MAX_INTRA_BITRATE_PCT, MAX_INTRA_BITRATE_PCT)?;
            Ok(encoder)
        }
    }

    fn control(&mut self, id: vp8e_enc_control_id, value: c_int) -> Result<(), CodecError> {
        // SAFETY: the ids used here take one int.
        unsafe { check(vpx_codec_control_(&raw mut *self.context, id as c_int, value)) }
    }

    /// The access unit of the picture that was encoded last.
    fn output(&mut self) -> Result<AccessUnit, CodecError> {
        let mut unit: Option<AccessUnit> = None;
        let mut iterator = null();
        loop {
            // SAFETY: the iterator starts null and is advanced by the library; a packet is valid until the next call
            // to encode, and its kind says which member of the union holds.
            unsafe {
                let packet = vpx_codec_get_cx_data(&raw mut *self.context, &raw mut iterator);
                let Some(packet) = packet.as_ref() else { break };
                if packet.kind != vpx_codec_cx_pkt_kind::VPX_CODEC_CX_FRAME_PKT {
                    continue;
                }
                let frame = packet.data.frame;
                let len = usize::try_from(frame.sz).unwrap_or(0);
                let bytes = std::slice::from_raw_parts(frame.buf.cast::<u8>(), len);
                let unit = unit.get_or_insert(AccessUnit { keyframe: false, data: Vec::with_capacity(len) });
                unit.keyframe |= frame.flags & VPX_FRAME_IS_KEY != 0;
                unit.data.extend_from_slice(bytes);
            }
        }
        unit.ok_or_else(|| CodecError::new("vp8", "a picture gave no access unit"))
    }
}

impl VideoEncoder for Vp8Encoder {
    fn encode(&mut self, picture: &I420, force_keyframe: bool) -> Result<AccessUnit, CodecError> {
        let (width, height) = (self.config.g_w, self.config.g_h);
        if (picture.size().width, picture.size().height) != (width, height) {
            let what = format!("a picture of {}: {width}x{height} is expected", picture.size());
            return Err(CodecError::new("vp8", what));
        }
        let flags = if force_keyframe { i64::from(VPX_EFLAG_FORCE_KF) } else { 0 };
        // SAFETY: img_wrap fills the image for I420 rows without padding, which is how the picture lies; encode only
        // reads the planes, and the picture outlives the call.
        unsafe {
            let mut image = MaybeUninit::<vpx_image_t>::uninit();
            let data = picture.data().as_ptr().cast_mut();
            let wrapped =
                vpx_img_wrap(image.as_mut_ptr(), vpx_img_fmt::VPX_IMG_FMT_I420, width, height, 1, data);
            if wrapped.is_null() {
                return Err(CodecError::new("vp8", "the picture could not be wrapped"));
            }
            let deadline = c_ulong::from(VPX_DL_REALTIME);
            check(vpx_codec_encode(&raw mut *self.context, image.as_ptr(), self.frames, 1, flags, deadline))?;
        }
        self.frames += 1;
        self.output()
    }

    fn set_bitrate(&mut self, kbps: u32) -> Result<(), CodecError> {
        self.config.rc_target_bitrate = kbps;
        // SAFETY: context and config are initialised.
        unsafe { check(vpx_codec_enc_config_set(&raw mut *self.context, &raw const *self.config)) }
    }
}

impl Drop for Vp8Encoder {
    fn drop(&mut self) {
        // SAFETY: initialised in new, destroyed once.
        unsafe {
            vpx_codec_destroy(&raw mut *self.context);
        }
    }
}

pub(super) fn check(code: vpx_codec_err_t) -> Result<(), CodecError> {
    if code == VPX_CODEC_OK {
        return Ok(());
    }
    // SAFETY: the library returns a static string for every code.
    let text = unsafe { CStr::from_ptr(vpx_codec_err_to_string(code)) };
    Err(CodecError::new("vp8", text.to_string_lossy()))
}
