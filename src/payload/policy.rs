//! Rules for URLs that may be fetched, and for addresses that may be connected to. Pure: no I/O.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use url::{Host, Url};

/// The sources that payloads may be fetched from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// Hosts allowed beside S3's own.
    pub allowed: Vec<Allowed>,
    /// Whether host names may resolve to private addresses, as those of VPC endpoints do.
    pub private: bool,
}

/// A host that the operator allows: `[scheme://]host[:port]`, or `*.suffix` for all hosts below a suffix.
///
/// An allowed host name may still not resolve to a private address, unless [`Policy::private`] is set. A literal
/// address may be private, because then it is intended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allowed {
    scheme: String,
    host: String,
    port: u16,
}

impl FromStr for Allowed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no host; write host, host:port, http://host:port or *.suffix");
        let (scheme, rest) = text.split_once("://").unwrap_or(("https", text));
        if scheme != "https" && scheme != "http" {
            return Err(wrong());
        }
        // A `*` is not valid in a URL, so the suffix is parsed without it.
        let (star, rest) = match rest.strip_prefix("*.") {
            Some(suffix) => (true, suffix),
            None => (false, rest),
        };
        let url = Url::parse(&format!("{scheme}://{rest}")).map_err(|_| wrong())?;
        let host = url.host_str().filter(|h| !h.is_empty()).ok_or_else(wrong)?;
        let bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
        let port = url.port_or_known_default().ok_or_else(wrong)?;
        if !bare || !url.username().is_empty() || url.password().is_some() || rest.ends_with('/') {
            return Err(wrong());
        }
        let host = if star { format!("*.{host}") } else { host.to_owned() };
        Ok(Self { scheme: scheme.to_owned(), host, port })
    }
}

impl Allowed {
    fn covers(&self, url: &Url) -> bool {
        let host = url.host_str().unwrap_or_default();
        let named = match self.host.strip_prefix("*.") {
            Some(suffix) => host.strip_suffix(suffix).is_some_and(|head| head.len() > 1 && head.ends_with('.')),
            None => host == self.host,
        };
        named && url.scheme() == self.scheme && url.port_or_known_default() == Some(self.port)
    }
}

impl Policy {
    /// Parses a URL and decides whether it may be fetched.
    ///
    /// # Errors
    /// Returns one line that says what is wrong with the URL, without the URL itself.
    pub fn check(&self, text: &str) -> Result<Url, String> {
        let url = Url::parse(text).map_err(|e| format!("is no URL: {e}"))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err("holds a user name or a password".to_owned());
        }
        if url.cannot_be_a_base() || url.host().is_none() {
            return Err("names no host".to_owned());
        }
        if self.allowed.iter().any(|allowed| allowed.covers(&url)) {
            return Ok(url);
        }
        if url.scheme() != "https" {
            return Err(format!("scheme {} is not https", url.scheme()));
        }
        if url.port_or_known_default() != Some(443) {
            return Err("its port is not 443".to_owned());
        }
        match url.host() {
            Some(Host::Domain(host)) if is_s3(host) => Ok(url),
            Some(Host::Domain(host)) => {
                Err(format!("{host} is no host of S3; allow it with --payload-hosts if it is yours"))
            }
            _ => Err("its host is an address; allow it with --payload-hosts if it is yours".to_owned()),
        }
    }
}

/// Returns whether a host is S3: `[bucket.]s3[.dualstack][.region].amazonaws.com[.cn]`,
/// `[bucket.]s3-region.amazonaws.com`.
fn is_s3(host: &str) -> bool {
    let host = host.to_ascii_lowercase();
    let Some(head) = host.strip_suffix(".amazonaws.com").or_else(|| host.strip_suffix(".amazonaws.com.cn")) else {
        return false;
    };
    let labels: Vec<&str> = head.split('.').collect();
    if labels.iter().any(|label| label.is_empty()) {
        return false;
    }
    // Matched from the right, because a bucket name may contain anything, `s3` included.
    match labels.as_slice() {
        [.., "s3"] => true,
        [.., "s3", "dualstack", region] | [.., "s3", region] => is_region(region),
        [.., label] => label.strip_prefix("s3-").is_some_and(is_region),
        [] => false,
    }
}

/// Returns whether a label looks like a region: `us-east-1`, `ap-southeast-2`, `us-gov-west-1`.
fn is_region(label: &str) -> bool {
    let parts: Vec<&str> = label.split('-').collect();
    let letters = |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase());
    match parts.as_slice() {
        [area, middle @ .., number] if !middle.is_empty() => {
            area.len() == 2 && letters(area) && middle.iter().all(letters) && number.parse::<u8>().is_ok()
        }
        _ => false,
    }
}

/// Returns whether an address may be connected to: a public address or, if `private` is set, one of a private network.
/// Addresses of this machine, and of the cloud's own services around it, are never allowed.
pub(crate) fn is_allowed(address: IpAddr, private: bool) -> bool {
    let address = address.to_canonical();
    is_public(address)
        || (private
            && match address {
                IpAddr::V4(v4) => {
                    let [a, b, ..] = v4.octets();
                    v4.is_private() || (a == 100 && (64..128).contains(&b))
                }
                // fc00::/7, except fd00:ec2::/32, which AWS reserves: it gives out credentials.
                IpAddr::V6(v6) => v6.segments()[0] & 0xfe00 == 0xfc00 && v6.segments()[..2] != [0xfd00, 0x0ec2],
            })
}

/// Returns whether an address belongs to the public internet: not to this machine, its network, or the cloud around it
/// (169.254.169.254 gives out credentials).
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

fn is_public_v4(v4: Ipv4Addr) -> bool {
    let [a, b, c, _] = v4.octets();
    let shared = a == 100 && (64..128).contains(&b);
    let protocol = a == 192 && b == 0 && c == 0;
    let benchmark = a == 198 && (b == 18 || b == 19);
    !(v4.is_private()
        || v4.is_loopback()
        || v4.is_link_local()
        || v4.is_broadcast()
        || v4.is_documentation()
        || v4.is_unspecified()
        || v4.is_multicast()
        || shared
        || protocol
        || benchmark
        || a == 0
        || a >= 240)
}

fn is_public_v6(v6: Ipv6Addr) -> bool {
    // An address that embeds an IPv4 address is as public as that address.
    let segments = v6.segments();
    let tail = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        Ipv4Addr::new(a, b, c, d)
    };
    if let Some(mapped) = v6.to_ipv4_mapped() {
        return is_public_v4(mapped);
    }
    match segments {
        [0, 0, 0, 0, 0, 0, ..] => false,
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => is_public_v4(tail(high, low)),
        [0x2002, high, low, ..] => is_public_v4(tail(high, low)),
        // Only 2000::/3 is allocated; documentation and Teredo addresses in it are refused.
        [0x2001, 0x0db8, ..] | [0x2001, 0, ..] => false,
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_s3_and_only_https() {
        let policy = Policy::default();
        for good in [
            "https://bucket.s3.amazonaws.com/key?X-Amz-Signature=x",
            "https://bucket.s3.us-east-1.amazonaws.com/key",
            "https://my.dotted.bucket.s3.eu-central-1.amazonaws.com/key",
            "https://s3.amazonaws.com/bucket/key",
            "https://s3-eu-west-1.amazonaws.com/bucket/key",
            "https://bucket.s3.dualstack.us-gov-west-1.amazonaws.com:443/key",
            "https://bucket.s3.cn-north-1.amazonaws.com.cn/key",
        ] {
            assert!(policy.check(good).is_ok(), "{good}");
        }
        for bad in [
            "http://bucket.s3.amazonaws.com/key",
            "https://bucket.s3.amazonaws.com:8443/key",
            "https://user@bucket.s3.amazonaws.com/key",
            "https://bucket.s3.amazonaws.com.evil.example/key",
            "https://evil.example/bucket.s3.amazonaws.com",
            "https://evil.example#.s3.amazonaws.com",
            "https://evil.example\\.s3.amazonaws.com/",
            "https://s3.execute-api.us-east-1.amazonaws.com/",
            "https://ec2.us-east-1.amazonaws.com/",
            "https://s3-website-us-east-1.amazonaws.com/",
            "https://169.254.169.254/latest/meta-data/",
            "https://2852039166/",
            "https://[::1]/",
            "https://localhost/",
            "file:///etc/passwd",
            "ftp://bucket.s3.amazonaws.com/key",
            "https://",
            "",
            "s3.amazonaws.com/x",
            "data:text/plain,x",
        ] {
            assert!(policy.check(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn more_can_be_allowed_and_no_more_than_that() {
        let allowed = |text: &str| Policy { allowed: vec![text.parse().unwrap()], private: false };
        assert!(allowed("http://127.0.0.1:9000").check("http://127.0.0.1:9000/b/k?q").is_ok());
        assert!(allowed("http://127.0.0.1:9000").check("https://127.0.0.1:9000/b/k").is_err());
        assert!(allowed("http://127.0.0.1:9000").check("http://127.0.0.1:9001/b/k").is_err());
        assert!(allowed("*.vpce.amazonaws.com").check("https://b.vpce-1.s3.us-east-1.vpce.amazonaws.com/k").is_ok());
        assert!(allowed("*.example.com").check("https://example.com/k").is_err());
        assert!(allowed("*.example.com").check("https://evilexample.com/k").is_err());
        assert!(allowed("minio.example.com:9000").check("https://minio.example.com:9000/k").is_ok());
        for bad in ["", "ftp://a", "a/b", "a?b", "user@a", "http://"] {
            assert!(bad.parse::<Allowed>().is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses_of_this_side_are_refused() {
        for inner in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "192.0.2.1",
            "198.18.0.1",
            "240.0.0.1",
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::1",
            "2001:db8::1",
            "::127.0.0.1",
            "fd00:ec2::254",
        ] {
            assert!(!is_public(inner.parse().unwrap()), "{inner}");
        }
        for private in ["10.1.2.3", "172.31.0.1", "192.168.1.1", "100.64.0.1", "fd12:3456::1", "::ffff:10.0.0.1"] {
            let address = private.parse().unwrap();
            assert!(is_allowed(address, true) && !is_allowed(address, false), "{private}");
        }
        for never in ["127.0.0.1", "169.254.169.254", "fd00:ec2::254", "::1", "fe80::1", "0.0.0.0", "::ffff:127.0.0.1"]
        {
            assert!(!is_allowed(never.parse().unwrap(), true), "{never}");
        }
        for outer in ["52.216.0.1", "8.8.8.8", "2600:1f18::1", "::ffff:8.8.8.8", "64:ff9b::808:808"] {
            assert!(is_public(outer.parse().unwrap()), "{outer}");
        }
    }
}
