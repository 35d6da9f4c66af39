//! What computes a peer's stages: the processor, in canonical arithmetic, or a device of candle's, in its own.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::str::FromStr;

use crate::engine::canonical;

/// Names what computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceName {
    /// The processor.
    #[default]
    Cpu,
    /// The NVIDIA GPU of this number.
    Cuda(u16),
    /// The first Apple GPU.
    Metal,
}

impl DeviceName {
    /// The arithmetic class that its stages compute in.
    ///
    /// Canonical arithmetic promises bits. The others promise the formulas of one version of `accelerated` on one kind of device:
    /// two GPUs of one class may differ in the last bits, as may two passes of different sizes on the same one.
    pub const fn arithmetic(self) -> &'static str {
        match self {
            Self::Cpu => canonical::CLASS,
            Self::Cuda(_) => "candle-1-cuda",
            Self::Metal => "candle-1-metal",
        }
    }

    /// The feature that this program must be built with, and whether it was; nothing is needed for the processor.
    const fn feature(self) -> Option<(&'static str, bool)> {
        match self {
            Self::Cpu => None,
            Self::Cuda(_) => Some(("cuda", cfg!(feature = "cuda"))),
            Self::Metal => Some(("metal", cfg!(feature = "metal"))),
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(0) => f.write_str("cuda"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
            Self::Metal => f.write_str("metal"),
        }
    }
}

/// A text that names no device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected cpu, cuda, cuda:N or metal, got \"{got}\"")]
pub struct UnknownDevice {
    /// The text as given, cut to 40 characters.
    pub got: String,
}

impl FromStr for DeviceName {
    type Err = UnknownDevice;

    fn from_str(text: &str) -> Result<Self, UnknownDevice> {
        let number = |text: &str| text.strip_prefix("cuda:").and_then(|number| number.parse().ok());
        match text {
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            "metal" => Ok(Self::Metal),
            _ => number(text).map(Self::Cuda).ok_or_else(|| UnknownDevice { got: text.chars().take(40).collect() }),
        }
    }
}

/// Why a device cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// The program has no code for it.
    #[error("device {device}: this program was built without it; build it with `--features {feature}`, or use the cpu")]
    NotBuilt {
        /// The device asked for.
        device: DeviceName,
        /// The feature of the crate that brings it.
        feature: &'static str,
    },
    /// The machine has none, or its driver refuses.
    #[error("device {device} cannot be used: {message}")]
    Absent {
        /// The device asked for.
        device: DeviceName,
        /// What its driver said.
        message: String,
    },
}

/// A device that was found.
#[derive(Clone, Debug)]
pub struct Device {
    name: DeviceName,
    /// `None` for canonical arithmetic, which needs nothing.
    accelerator: Option<candle_core::Device>,
}

impl Device {
    /// The processor.
    pub const CPU: Self = Self { name: DeviceName::Cpu, accelerator: None };

    /// Finds the device and starts its driver.
    ///
    /// # Errors
    /// [`DeviceError`] if the program or the machine does not have it.
    pub fn open(name: DeviceName) -> Result<Self, DeviceError> {
        if let Some((feature, false)) = name.feature() {
            return Err(DeviceError::NotBuilt { device: name, feature });
        }
        match name {
            DeviceName::Cpu => Ok(Self::CPU),
            DeviceName::Cuda(number) => found(name, || candle_core::Device::new_cuda(number.into())),
            DeviceName::Metal => found(name, || candle_core::Device::new_metal(0)),
        }
    }

    /// What it is called.
    pub fn name(&self) -> DeviceName {
        self.name
    }

    /// Where tensors go, if they leave the processor's canonical arithmetic.
    pub(super) fn accelerator(&self) -> Option<&candle_core::Device> {
        self.accelerator.as_ref()
    }

    /// The arithmetic of other devices on the processor, to be tested without one.
    #[cfg(test)]
    pub(super) fn like_an_accelerator() -> Self {
        Self { name: DeviceName::Cpu, accelerator: Some(candle_core::Device::Cpu) }
    }
}

/// Starts a driver. Some panic where a library of theirs is missing.
fn found(
    name: DeviceName,
    open: impl FnOnce() -> candle_core::Result<candle_core::Device>,
) -> Result<Device, DeviceError> {
    let absent = |message| DeviceError::Absent { device: name, message };
    match catch_unwind(AssertUnwindSafe(open)) {
        Ok(Ok(device)) => Ok(Device { name, accelerator: Some(device) }),
        Ok(Err(error)) => Err(absent(error.to_string())),
        Err(_) => Err(absent("its driver could not be started".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_written_as_it_is_read() {
        for (text, device) in [
            ("cpu", DeviceName::Cpu),
            ("cuda", DeviceName::Cuda(0)),
            ("cuda:3", DeviceName::Cuda(3)),
            ("metal", DeviceName::Metal),
        ] {
            assert_eq!(text.parse(), Ok(device));
            assert_eq!(device.to_string(), text);
        }
        assert_eq!("cuda:0".parse(), Ok(DeviceName::Cuda(0)));
        for text in ["", "gpu", "cuda:", "cuda:x", "cuda:65536", "CPU"] {
            assert_eq!(text.parse::<DeviceName>(), Err(UnknownDevice { got: text.to_owned() }));
        }
    }

    #[test]
    fn every_class_is_another_and_fits_a_profile() {
        let classes = [DeviceName::Cpu, DeviceName::Cuda(1), DeviceName::Metal].map(DeviceName::arithmetic);

        assert_eq!(classes, [canonical::CLASS, "candle-1-cuda", "candle-1-metal"]);
        assert!(classes.iter().all(|class| class.len() <= 32));
    }

    #[cfg(not(any(feature = "cuda", feature = "metal")))]
    #[test]
    fn a_device_that_was_not_built_in_is_refused_by_name() {
        for (device, feature) in [(DeviceName::Cuda(1), "cuda"), (DeviceName::Metal, "metal")] {
            let refused = Device::open(device).unwrap_err();

            assert_eq!(refused, DeviceError::NotBuilt { device, feature });
            assert!(refused.to_string().contains(&format!("--features {feature}")), "{refused}");
        }
        assert!(Device::open(DeviceName::Cpu).is_ok());
    }

    #[test]
    fn a_driver_that_fails_or_panics_is_an_error() {
        let failed = found(DeviceName::Metal, || candle_core::bail!("no such device")).unwrap_err();
        let panicked = found(DeviceName::Cuda(0), || panic!("no library")).unwrap_err();

        assert!(failed.to_string().contains("device metal cannot be used: no such device"), "{failed}");
        assert!(matches!(panicked, DeviceError::Absent { device: DeviceName::Cuda(0), .. }));
    }
}
