#![no_main]
use std::net::IpAddr;

use libfuzzer_sys::fuzz_target;
use synclake_fuzz::policy::{Policy, is_public};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(url) = Policy::default().check(text) {
        assert_eq!((url.scheme(), url.port_or_known_default()), ("https", Some(443)));
        let host = url.host_str().unwrap();
        assert!(host.ends_with(".amazonaws.com") || host.ends_with(".amazonaws.com.cn"), "{host}");
        assert!(host.contains("s3") && host.parse::<IpAddr>().is_err(), "{host}");
        assert!(url.username().is_empty() && url.password().is_none());
    }
    let _ = text.parse::<synclake_fuzz::policy::Allowed>();
    if let Ok(address) = text.parse::<IpAddr>()
        && is_public(address)
    {
        assert!(!address.is_loopback() && !address.is_unspecified() && !address.is_multicast());
    }
});
