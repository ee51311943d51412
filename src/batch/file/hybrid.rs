//! Parquet's hybrid of run-length encoding and bit packing, for definition levels and dictionary codes.
//!
//! ```text
//! run    = varint(length << 1)      value in ⌈width / 8⌉ bytes
//! packed = varint(groups << 1 | 1)  groups × 8 values of `width` bits, lowest bits first
//! ```

/// Minimum length of a run. A shorter run costs more than the same values packed.
const RUN_MIN: usize = 8;
/// Maximum groups of a packed part. More would not fit the one-byte header that old readers expect.
const GROUPS_MAX: usize = 63;

/// Returns the bits that `max` needs.
pub(super) fn width_of(max: u32) -> u8 {
    // At most 32, which is far below the limit of u8.
    (u32::BITS - max.leading_zeros()) as u8
}

/// Appends `values`, each of at most `width` bits.
pub(super) fn encode(out: &mut Vec<u8>, values: &[u32], width: u8) {
    let (mut packed, mut at) = (0, 0);
    while at < values.len() {
        let run = values[at..].iter().take_while(|value| **value == values[at]).count();
        // A packed part that another part follows consists of whole groups.
        let fill = (at - packed).next_multiple_of(8) - (at - packed);
        if run >= fill + RUN_MIN {
            pack(out, &values[packed..at + fill], width);
            varint(out, (run - fill) << 1);
            out.extend_from_slice(&values[at].to_le_bytes()[..usize::from(width.div_ceil(8))]);
            packed = at + run;
        }
        at += run;
    }
    pack(out, &values[packed..], width);
}

fn pack(out: &mut Vec<u8>, values: &[u32], width: u8) {
    for part in values.chunks(8 * GROUPS_MAX) {
        let groups = part.len().div_ceil(8);
        varint(out, groups << 1 | 1);
        let end = out.len() + groups * usize::from(width);
        let (mut bits, mut count) = (0u64, 0);
        for value in part {
            bits |= u64::from(*value) << count;
            count += u32::from(width);
            while count >= 8 {
                out.push(bits.to_le_bytes()[0]);
                bits >>= 8;
                count -= 8;
            }
        }
        if count > 0 {
            out.push(bits.to_le_bytes()[0]);
        }
        out.resize(end, 0);
    }
}

fn varint(out: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Reads the format as its specification says.
    fn decode(mut bytes: &[u8], width: u8, count: usize) -> Vec<u32> {
        let mut values = Vec::new();
        while values.len() < count {
            let (mut header, mut shift) = (0usize, 0);
            loop {
                let (byte, rest) = bytes.split_first().unwrap();
                bytes = rest;
                header |= usize::from(byte & 0x7f) << shift;
                shift += 7;
                if byte & 0x80 == 0 {
                    break;
                }
            }
            let length =
                if header & 1 == 0 { usize::from(width.div_ceil(8)) } else { (header >> 1) * usize::from(width) };
            let (part, rest) = bytes.split_at(length);
            bytes = rest;
            if header & 1 == 0 {
                let value = (0..).zip(part).fold(0, |value, (n, byte)| value | u32::from(*byte) << (8 * n));
                values.extend(std::iter::repeat_n(value, header >> 1));
            } else {
                let bit = |n: usize| u32::from(part[n / 8] >> (n % 8) & 1);
                let width = usize::from(width);
                values.extend((0..(header >> 1) * 8).map(|n| (0..width).map(|b| bit(n * width + b) << b).sum::<u32>()));
            }
        }
        assert!(bytes.is_empty());
        values.truncate(count);
        values
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_read_back(
            runs in prop::collection::vec((any::<u32>(), prop_oneof![1..3usize, 1..30usize, 500..600usize]), 0..12),
            width in 0..=32u8,
        ) {
            let mask = u32::MAX.checked_shr(32 - u32::from(width)).unwrap_or(0);
            let values: Vec<u32> = runs.iter().flat_map(|(value, n)| std::iter::repeat_n(value & mask, *n)).collect();
            let mut bytes = Vec::new();
            encode(&mut bytes, &values, width);
            prop_assert_eq!(decode(&bytes, width, values.len()), values);
        }
    }

    #[test]
    fn a_constant_costs_three_bytes() {
        let mut bytes = Vec::new();
        encode(&mut bytes, &[1; 5_000], 1);
        assert_eq!(bytes, [0x90, 0x4e, 1]);
        assert_eq!((width_of(0), width_of(1), width_of(255), width_of(u32::MAX)), (0, 1, 8, 32));
    }
}
