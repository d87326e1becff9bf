//! The PROXY protocol, versions 1 and 2: what a load balancer that passes bytes on says of a connection before its first byte.
//!
//! It knows neither TLS nor HTTP, both of which come after it. A header is looked at in the socket and taken out of it to its
//! last byte and no further, so that whoever reads next finds the connection as if there had been none.
//!
//! Source: <https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt>

use std::{net::IpAddr, sync::Arc};

use hookgate_core::observe::ProxyHeaderFailure as Failure;
use ipnet::IpNet;
use proxy_header::{Error, ParseConfig, ProxyHeader};
use tokio::{io::AsyncReadExt, net::TcpStream};

/// Longest header that is read, in bytes. One of version 2 may have 65 551, nearly all of them extensions that nobody here asks
/// for; nginx stops at this many too.
const HEADER_BYTES_MAX: usize = 4096;

/// Longest line of version 1, in bytes, its CR LF included; a longer one is malformed. Source: the specification, section 2.1.
const LINE_BYTES_MAX: usize = 107;

/// How a line of version 1 begins.
const LINE: &[u8] = b"PROXY ";

/// How a header of version 2 begins.
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// The networks whose connections begin with a header.
#[derive(Debug, Clone, Default)]
pub struct ProxyProtocol {
    from: Arc<[IpNet]>,
}

impl ProxyProtocol {
    /// Asks every connection `from` these networks for a header, and no other.
    pub fn new(from: impl Into<Arc<[IpNet]>>) -> Self {
        Self { from: from.into() }
    }

    /// Whether a connection of `peer` begins with one.
    pub(crate) fn is_spoken_by(&self, peer: IpAddr) -> bool {
        // A port of IPv6 that takes IPv4 too has ::ffff:10.0.0.1 for what the config calls 10.0.0.1.
        let peer = peer.to_canonical();
        self.from.iter().any(|network| network.contains(&peer))
    }
}

/// Takes the header that `stream` has to begin with. `None` when it names no sender, as for the proxy's own connections
/// (`LOCAL`, `UNKNOWN`).
///
/// Asks for bytes until the header is complete, however few come at once; how long is the caller's business.
///
/// # Errors
/// Why the connection has to be closed.
///
/// # Cancel safety
/// Dropping the future leaves a connection of which part of the header may have been taken: close it.
pub(crate) async fn sender(stream: &mut TcpStream) -> Result<Option<IpAddr>, Failure> {
    let closed = |_| Failure::Closed;
    let mut buffer = vec![0; HEADER_BYTES_MAX];
    let mut taken = 0;
    loop {
        let arrived = stream.peek(&mut buffer[taken..]).await.map_err(closed)?;
        if arrived == 0 {
            return Err(Failure::Closed);
        }
        let seen = taken + arrived;
        let header = parse(&buffer[..seen])?;
        // All that has come belongs to a header that goes on.
        let end = header.as_ref().map_or(seen, |header| header.bytes);
        let rest = end.saturating_sub(taken);
        stream.read_exact(&mut buffer[taken..][..rest]).await.map_err(closed)?;
        match header {
            Some(header) => return Ok(header.sender),
            None => taken = seen,
        }
    }
}

/// A complete header.
#[derive(Debug, PartialEq, Eq)]
struct Header {
    sender: Option<IpAddr>,
    /// Its length.
    bytes: usize,
}

/// The header that `bytes` begin with; `None` while it is incomplete. What was decided once does not change with more bytes.
fn parse(bytes: &[u8]) -> Result<Option<Header>, Failure> {
    // Decided here: the library waits for as many bytes as the shortest header has, and takes a line without its first blank.
    let begins = |with: &[u8]| bytes.starts_with(with) || with.starts_with(bytes);
    let limit = if begins(SIGNATURE) {
        HEADER_BYTES_MAX
    } else if begins(LINE) {
        LINE_BYTES_MAX
    } else {
        return Err(Failure::Missing);
    };
    let bytes = &bytes[..bytes.len().min(limit)];
    let extensions_skipped = ParseConfig { include_tlvs: false, ..ParseConfig::default() };
    match ProxyHeader::parse(bytes, extensions_skipped) {
        Ok((header, bytes)) => {
            Ok(Some(Header { sender: header.proxied_address().map(|address| address.source.ip()), bytes }))
        }
        Err(Error::BufferTooShort) if bytes.len() < limit => Ok(None),
        Err(Error::BufferTooShort) => Err(Failure::TooLarge),
        Err(_) => Err(Failure::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// A header of version 2 with `command`, `family` and what comes after its length.
    fn binary(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
        let length = u16::try_from(block.len()).expect("short").to_be_bytes();
        [SIGNATURE, &[command, family], &length, block].concat()
    }

    /// One that names `sender`, with these bytes of extensions.
    fn naming(sender: IpAddr, extensions: &[u8]) -> Vec<u8> {
        match sender {
            IpAddr::V4(sender) => {
                binary(0x21, 0x11, &[&sender.octets(), &[10, 0, 0, 1][..], &[0x80; 4], extensions].concat())
            }
            IpAddr::V6(sender) => {
                binary(0x21, 0x21, &[&sender.octets(), &[0; 16][..], &[0x80; 4], extensions].concat())
            }
        }
    }

    fn line(sender: IpAddr) -> Vec<u8> {
        let (family, proxy) = if sender.is_ipv4() { ("TCP4", "10.0.0.1") } else { ("TCP6", "2001:db8::2") };
        format!("PROXY {family} {sender} {proxy} 51000 443\r\n").into_bytes()
    }

    fn addresses() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            any::<u32>().prop_map(|bits| Ipv4Addr::from_bits(bits).into()),
            any::<u128>().prop_map(|bits| Ipv6Addr::from_bits(bits).into()),
        ]
    }

    /// Bytes that get past the first looks now and then.
    fn hostile() -> impl Strategy<Value = Vec<u8>> {
        let text = "(PROXY )?(TCP4|TCP6|UNKNOWN|)[ 0-9a-f.:\\r\\n]{0,130}";
        let block = || vec(any::<u8>(), 0..300);
        prop_oneof![
            block(),
            text.prop_map(String::into_bytes),
            (any::<u8>(), any::<u8>(), any::<u16>(), block()).prop_map(|(command, family, length, block)| {
                [SIGNATURE, &[command % 0x30, family % 0x40], &(length % 400).to_be_bytes(), &block].concat()
            }),
            (addresses(), block(), any::<prop::sample::Index>(), any::<u8>()).prop_map(
                |(sender, rest, place, byte)| {
                    let mut header = naming(sender, &rest);
                    let place = place.index(header.len());
                    header[place] = byte;
                    header
                }
            ),
        ]
    }

    proptest! {
        #[test]
        fn a_header_is_found_to_its_last_byte_and_no_sooner(
            sender in addresses(),
            extensions in vec(any::<u8>(), 0..200),
            next in vec(any::<u8>(), 0..40),
        ) {
            for header in [naming(sender, &extensions), line(sender)] {
                for end in 0..header.len() {
                    prop_assert_eq!(parse(&header[..end]), Ok(None));
                }
                let expected = Header { sender: Some(sender), bytes: header.len() };
                prop_assert_eq!(parse(&[&header[..], &next].concat()), Ok(Some(expected)));
            }
        }

        #[test]
        fn what_is_decided_of_any_bytes_does_not_change_with_more(bytes in hostile(), next in vec(any::<u8>(), 0..5000)) {
            let bytes = [bytes, next].concat();
            let mut decided = Ok(None);
            // How they come in pieces is any order of these ends.
            for end in (0..bytes.len().min(400)).chain([bytes.len()]) {
                let now = parse(&bytes[..end]);
                if let Ok(Some(header)) = &now {
                    prop_assert!(header.bytes <= end);
                }
                match (&decided, now) {
                    // All that had come by then belongs to it.
                    (Ok(None), Ok(Some(header))) => {
                        prop_assert!(header.bytes >= end.min(400));
                        decided = Ok(Some(header));
                    }
                    (Ok(None), now) => decided = now,
                    (before, now) => prop_assert_eq!(before, &now),
                }
            }
            if bytes.len() >= HEADER_BYTES_MAX {
                prop_assert_ne!(decided, Ok(None), "nothing is read without end");
            }
        }
    }

    #[test]
    fn what_breaks_the_rules_is_told_apart() {
        let text = |text: &str| text.as_bytes().to_vec();
        let sender = IpAddr::from([203, 0, 113, 7]);
        let mut other_version = naming(sender, &[]);
        other_version[12] = 0x11;
        let too_large = [SIGNATURE, &[0x21, 0x11, 0x0f, 0xf1], &[0; 5000]].concat();
        for (bytes, reason) in [
            (text("GET / HTTP/1.1\r\n"), Failure::Missing),
            (text("PO"), Failure::Missing),
            (text("PROXY\tTCP4"), Failure::Missing),
            (text("\r\n\r\n\r"), Failure::Missing),
            (vec![0x16, 3, 1], Failure::Missing),
            (text("PROXY TCP5 1.2.3.4 1.2.3.4 1 2\r\n"), Failure::Malformed),
            (text("PROXY TCP4 1.2.3.256 1.2.3.4 1 2\r\n"), Failure::Malformed),
            (text("PROXY TCP4 ::1 ::1 1 2\r\n"), Failure::Malformed),
            (text("PROXY TCP4 1.2.3.4 1.2.3.4 1 65536\r\n"), Failure::Malformed),
            (text("PROXY TCP4 1.2.3.4 1.2.3.4 1 2\rX"), Failure::Malformed),
            (text("PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n").repeat(4), Failure::Malformed),
            (text(&format!("PROXY UNKNOWN {}\r\n", "x".repeat(100))), Failure::Malformed),
            (other_version, Failure::Malformed),
            (binary(0x22, 0x11, &[0; 12]), Failure::Malformed),
            (binary(0x21, 0x41, &[0; 12]), Failure::Malformed),
            ([binary(0x21, 0x11, &[0; 11]), vec![0; 9]].concat(), Failure::Malformed),
            (too_large, Failure::TooLarge),
        ] {
            assert_eq!(parse(&bytes), Err(reason), "{}", String::from_utf8_lossy(&bytes));
        }
    }

    #[test]
    fn the_longest_header_has_as_many_bytes_as_are_read() {
        let sender = IpAddr::from([203, 0, 113, 7]);
        let longest = naming(sender, &vec![0; HEADER_BYTES_MAX - 28]);
        assert_eq!(longest.len(), HEADER_BYTES_MAX);
        assert_eq!(parse(&longest), Ok(Some(Header { sender: Some(sender), bytes: HEADER_BYTES_MAX })));
        assert_eq!(parse(&naming(sender, &vec![0; HEADER_BYTES_MAX - 27])), Err(Failure::TooLarge));
        let unknown = format!("PROXY UNKNOWN {}\r\n", "x".repeat(LINE_BYTES_MAX - 16));
        assert_eq!(parse(unknown.as_bytes()), Ok(Some(Header { sender: None, bytes: LINE_BYTES_MAX })));
    }

    #[test]
    fn a_network_is_known_by_both_forms_of_its_addresses() {
        let networks = hookgate_core::auth::networks(&["10.0.0.0/8".to_owned(), "2001:db8::1".to_owned()]);
        let protocol = ProxyProtocol::new(networks.expect("networks"));
        for (peer, expected) in [
            ("10.1.2.3", true),
            ("::ffff:10.1.2.3", true),
            ("2001:db8::1", true),
            ("11.1.2.3", false),
            ("::ffff:11.1.2.3", false),
            ("2001:db8::2", false),
        ] {
            assert_eq!(protocol.is_spoken_by(peer.parse().expect("an address")), expected, "{peer}");
        }
        assert!(!ProxyProtocol::default().is_spoken_by([127, 0, 0, 1].into()));
    }
}
