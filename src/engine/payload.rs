//! Hidden states as bytes, and their rounding.

use bytes::Bytes;
use half::f16;

use crate::shape::WireDtype;

/// Hidden states as little-endian bytes of `dtype`. Values beyond f16's range saturate.
pub fn to_payload(hidden: &[f32], dtype: WireDtype) -> Bytes {
    let mut bytes = Vec::with_capacity(size_of_val(hidden));
    match dtype {
        WireDtype::F32 => hidden.iter().for_each(|value| bytes.extend_from_slice(&value.to_le_bytes())),
        WireDtype::F16 => hidden.iter().for_each(|value| bytes.extend_from_slice(&saturated(*value).to_le_bytes())),
    }
    bytes.into()
}

/// The hidden states of a payload of `dtype`, or `None` if its length is no multiple of an element's.
pub fn from_payload(payload: &[u8], dtype: WireDtype) -> Option<Vec<f32>> {
    let mut hidden = Vec::new();
    append_payload(payload, dtype, &mut hidden).then_some(hidden)
}

/// Appends the hidden states of a payload of `dtype`; `false`, and nothing appended, if its length is no multiple of an
/// element's.
#[must_use]
pub fn append_payload(payload: &[u8], dtype: WireDtype, hidden: &mut Vec<f32>) -> bool {
    match dtype {
        WireDtype::F32 => {
            let (elements, []) = payload.as_chunks::<4>() else { return false };
            hidden.extend(elements.iter().map(|bytes| f32::from_le_bytes(*bytes)));
        }
        WireDtype::F16 => {
            let (elements, []) = payload.as_chunks::<2>() else { return false };
            hidden.extend(elements.iter().map(|bytes| f16::from_le_bytes(*bytes).to_f32()));
        }
    }
    true
}

/// Rounds in place as a trip over a hop of `dtype` would.
pub fn round_as_sent(hidden: &mut [f32], dtype: WireDtype) {
    match dtype {
        WireDtype::F32 => {}
        WireDtype::F16 => hidden.iter_mut().for_each(|value| *value = saturated(*value).to_f32()),
    }
}

/// The nearest f16 (ties to even); beyond the range the largest of its sign. NaN stays NaN.
fn saturated(value: f32) -> f16 {
    f16::from_f32(value.clamp(f16::MIN.to_f32_const(), f16::MAX.to_f32_const()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f32_payloads_keep_every_bit() {
        let hidden = [1.0_f32, -0.0, f32::MIN_POSITIVE / 3.0, 3.4e38];

        let back = from_payload(&to_payload(&hidden, WireDtype::F32), WireDtype::F32).unwrap();

        assert_eq!(back.map_bits(), hidden.to_vec().map_bits());
    }

    #[test]
    fn f16_payloads_round_to_even_and_saturate() {
        let hidden = [1.0 + 1.0 / 2048.0, 1.0 + 3.0 / 2048.0, 1e6, -1e6];
        let mut rounded = hidden;

        round_as_sent(&mut rounded, WireDtype::F16);

        assert_eq!(rounded, [1.0, 1.0 + 2.0 / 1024.0, 65504.0, -65504.0]);
        assert_eq!(from_payload(&to_payload(&hidden, WireDtype::F16), WireDtype::F16).unwrap(), rounded);
    }

    #[test]
    fn ragged_payloads_are_refused() {
        assert_eq!(from_payload(&[0; 7], WireDtype::F32), None);
        assert_eq!(from_payload(&[0; 7], WireDtype::F16), None);
    }

    trait MapBits {
        fn map_bits(self) -> Vec<u32>;
    }

    impl MapBits for Vec<f32> {
        fn map_bits(self) -> Vec<u32> {
            self.into_iter().map(f32::to_bits).collect()
        }
    }
}
