//! Placeholder.
use crate::shape::WeightFormat;

/// Version.
pub const VERSION: u8 = 1;

/// Targets.
pub const TARGETS: [WeightFormat; 5] =
    [WeightFormat::Q8_0, WeightFormat::Q6K, WeightFormat::Q5K, WeightFormat::Q4K, WeightFormat::Q4_0];

/// Placeholder.
#[derive(Debug, thiserror::Error)]
#[error("none")]
pub struct QuantiseError;

/// Placeholder.
///
/// # Errors
/// None.
pub fn requantise(_: WeightFormat, _: WeightFormat, _: &[u8], _: &mut Vec<u8>) -> Result<(), QuantiseError> {
    Ok(())
}
