//! H.264, constrained baseline, by openh264.

use openh264::OpenH264API;
use openh264::encoder::{
    BitRate, Complexity, Encoder, EncoderConfig, FrameRate, FrameType, Level, Profile, RateControlMode,
    UsageType, VuiConfig,
};
use openh264::formats::YUVSlices;
use openh264_sys2::{
    ENCODER_OPTION, ENCODER_OPTION_BITRATE, ENCODER_OPTION_MAX_BITRATE, SBitrateInfo, SPATIAL_LAYER_ALL,
};

use super::{AccessUnit, CodecError, I420, NOMINAL_FPS, VideoEncoder};

pub(super) struct H264Encoder {
    encoder: Encoder,
    kbps: u32,
    /// The library takes options only after the first picture.
    started: bool,
}

impl H264Encoder {
    pub(super) fn new(kbps: u32) -> Result<Self, CodecError> {
        // Skipping frames to hold the rate makes the picture stutter and puts keyframes where nobody asked for them.
        let config = EncoderConfig::new()
            .bitrate(BitRate::from_bps(kbps * 1000))
            .max_frame_rate(FrameRate::from_hz(NOMINAL_FPS as f32))
            .rate_control_mode(RateControlMode::Bitrate)
            .skip_frames(false)
            .usage_type(UsageType::CameraVideoRealTime)
            .profile(Profile::Baseline)
            .level(Level::Level_3_1)
            .complexity(Complexity::Low)
            .scene_change_detect(false)
            .num_threads(1)
            .vui(VuiConfig::bt601());
        let encoder = Encoder::with_api_config(OpenH264API::from_source(), config).map_err(|e| error(&e))?;
        Ok(Self { encoder, kbps, started: false })
    }

    fn set_option(&mut self, option: ENCODER_OPTION, kbps: u32) -> Result<(), CodecError> {
        let bitrate = i32::try_from(kbps.saturating_mul(1000)).unwrap_or(i32::MAX);
        let mut info = SBitrateInfo { iLayer: SPATIAL_LAYER_ALL, iBitrate: bitrate };
        // SAFETY: both options read one SBitrateInfo, which outlives the call, and the encoder is initialised.
        let code = unsafe { self.encoder.raw_api().set_option(option, (&raw mut info).cast()) };
        if code != 0 {
            return Err(CodecError::new(
                "h264",
                format!("bitrate {kbps} kbit/s is refused with code {code}"),
            ));
        }
        Ok(())
    }
}

fn error(e: &openh264::Error) -> CodecError {
    CodecError::new("h264", e.to_string())
}

impl VideoEncoder for H264Encoder {
    fn encode(&mut self, picture: &I420, force_keyframe: bool) -> Result<AccessUnit, CodecError> {
        if force_keyframe && self.started {
            self.encoder.force_intra_frame();
        }
        let (width, height) = (picture.width(), picture.height());
        let source = YUVSlices::new(picture.planes(), (width, height), (width, width / 2, width / 2));
        let stream = self.encoder.encode(&source).map_err(|e| error(&e))?;
        self.started = true;
        let keyframe = matches!(stream.frame_type(), FrameType::IDR);
        Ok(AccessUnit { keyframe, data: stream.to_vec() })
    }

    fn set_bitrate(&mut self, kbps: u32) -> Result<(), CodecError> {
        if !self.started {
            *self = Self::new(kbps)?;
            return Ok(());
        }
        // The library refuses a bitrate above the maximum, and a maximum below the bitrate.
        let order = if kbps > self.kbps {
            [ENCODER_OPTION_MAX_BITRATE, ENCODER_OPTION_BITRATE]
        } else {
            [ENCODER_OPTION_BITRATE, ENCODER_OPTION_MAX_BITRATE]
        };
        for option in order {
            self.set_option(option, kbps)?;
        }
        self.kbps = kbps;
        Ok(())
    }
}
