#![no_main]
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use md5::{Digest, Md5};
use synclake_fuzz::decode::aggregate::{fields_max, pack, parts};

fuzz_target!(|data: &[u8]| {
    // The input is read three times: as it is, in a frame that makes the reader parse it, and split into parts that
    // must come back.
    let plain = Bytes::copy_from_slice(data);
    let whole: Vec<_> = parts(&plain).collect();
    assert!(whole.iter().all(|p| p.sub_sequence.is_some()) || (whole.len() == 1 && whole[0].bytes == plain));
    let framed = [&[0xf3, 0x89, 0x9a, 0xc2][..], data, Md5::digest(data).as_slice()].concat();
    let inner: usize = parts(&Bytes::from(framed)).map(|p| p.bytes.len()).sum();
    assert!(inner <= data.len() + 20);
    let split: Vec<&[u8]> = data.split(|b| *b == b'|').collect();
    let packed = Bytes::from(pack(&split));
    // One field is the partition key.
    if split.len() < fields_max(packed.len()) {
        let back: Vec<_> = parts(&packed).map(|p| p.bytes.to_vec()).collect();
        assert_eq!(back, split);
    }
});
