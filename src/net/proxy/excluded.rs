//! The servers that `NO_PROXY` excludes, as for curl: names with all below them, addresses and
//! networks, and `*` for all.

use std::net::IpAddr;

/// Whether `list` names `host`, a name or an address.
pub(super) fn excludes(list: &str, host: &str) -> bool {
    let host = bare(host);
    let address: Option<IpAddr> = host.parse().ok();
    let entries = list.split(|c: char| c == ',' || c.is_whitespace());
    entries.filter(|entry| !entry.is_empty()).any(|entry| {
        let entry = entry.to_ascii_lowercase();
        match address {
            _ if entry == "*" => true,
            Some(address) => contains(&entry, address),
            None => is_below(&host, &entry),
        }
    })
}

fn bare(host: &str) -> String {
    let host = host.trim_start_matches('[').trim_end_matches([']', '.']);
    host.to_ascii_lowercase()
}

/// Whether `host` is the name of `entry` or below it.
fn is_below(host: &str, entry: &str) -> bool {
    let entry = bare(entry);
    let entry = entry.trim_start_matches('*').trim_start_matches('.');
    let above = host.strip_suffix(entry).filter(|_| !entry.is_empty());
    above.is_some_and(|above| above.is_empty() || above.ends_with('.'))
}

/// Whether the address or the network `entry` contains `address`.
fn contains(entry: &str, address: IpAddr) -> bool {
    let (network, length) = match entry.split_once('/') {
        Some((network, length)) => (network, length.parse::<u32>().ok()),
        None => (entry, Some(128)),
    };
    let network = bare(network).parse::<IpAddr>();
    let (left, right, bits) = match (network, address) {
        (Ok(IpAddr::V4(left)), IpAddr::V4(right)) => {
            (u128::from(left.to_bits()), u128::from(right.to_bits()), 32)
        }
        (Ok(IpAddr::V6(left)), IpAddr::V6(right)) => (left.to_bits(), right.to_bits(), 128),
        _ => return false,
    };
    let length = length.map(|length| length.min(bits));
    // A network of all addresses has no bits to compare.
    length.is_some_and(|length| ((left ^ right) >> (bits - length).min(127)) == 0 || length == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_addresses_networks_and_all_are_excluded() {
        for (list, host, is_excluded) in [
            ("", "ca.test", false),
            ("*", "ca.test", true),
            ("*", "192.0.2.1", true),
            ("ca.test", "ca.test", true),
            ("CA.Test.", "ca.TEST", true),
            ("ca.test", "acme.ca.test", true),
            (".ca.test", "ca.test", true),
            (".ca.test", "acme.ca.test", true),
            ("*.ca.test", "acme.ca.test", true),
            ("ca.test", "notca.test", false),
            ("acme.ca.test", "ca.test", false),
            (".", "ca.test", false),
            ("a.test, b.test\tc.test", "c.test", true),
            ("a.test,,b.test", "b.test", true),
            ("192.0.2.1", "192.0.2.1", true),
            ("192.0.2.1", "192.0.2.10", false),
            ("2.0.192.in-addr.arpa", "192.0.2.1", false),
            ("192.0.2.0/24", "192.0.2.255", true),
            ("192.0.2.0/24", "192.0.3.0", false),
            ("192.0.2.0/32", "192.0.2.1", false),
            ("192.0.2.0/nonsense", "192.0.2.0", false),
            ("0.0.0.0/0", "192.0.2.1", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("::/0", "[2001:db8::1]", true),
            ("2001:db8::/32", "[2001:db8:1::1]", true),
            ("2001:db8::/32", "[2001:db9::1]", false),
            ("[::1]", "[::1]", true),
            ("::1", "[0:0:0:0:0:0:0:1]", true),
            ("127.0.0.0/8", "localhost", false),
        ] {
            assert_eq!(excludes(list, host), is_excluded, "{list} {host}");
        }
    }
}
