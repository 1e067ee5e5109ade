//! The name server against requests of resolvers and of attackers.

use super::*;
use crate::challenge::listen::Listener;
use crate::challenge::protocol::{Listen, Protocol};
use crate::challenge::responses::Responses;
use crate::net::dns::lookup::{Place, Zone};

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn place() -> Place {
    Place {
        name: name("_acme-challenge.example.com."),
        zone: Zone {
            apex: name("_acme-challenge.example.com."),
            names: vec![name("acme-dns.example.com.")],
            servers: Vec::new(),
        },
    }
}

fn query(text: &str, kind: RecordType) -> Vec<u8> {
    let mut query = Message::query();
    query.add_query(Query::query(name(text), kind));
    query.to_vec().unwrap()
}

fn reply(zones: &Zones, request: &[u8]) -> Message {
    let reply = zones.reply(request, Some(LARGEST_DATAGRAM)).unwrap();
    Message::from_vec(&reply).unwrap()
}

#[test]
fn responder_answers_live_values_and_refuses_all_else() {
    let zones = Zones::default();
    let asked = "_ACME-challenge.Example.com.";
    assert_eq!(
        reply(&zones, &query(asked, RecordType::TXT)).response_code,
        ResponseCode::Refused
    );
    for value in ["one", "two", "one"] {
        zones.add(&place(), value);
    }
    let answer = reply(&zones, &query(asked, RecordType::TXT));
    assert!(answer.authoritative && !answer.recursion_available);
    assert_eq!(answer.answers.len(), 2);
    // The question is repeated as it was asked: resolvers check its letters.
    assert_eq!(answer.queries[0].name().to_ascii(), asked);
    for (kind, number) in [
        (RecordType::SOA, 1),
        (RecordType::NS, 1),
        (RecordType::A, 0),
    ] {
        let answer = reply(&zones, &query(asked, kind));
        assert_eq!(
            (answer.response_code, answer.answers.len()),
            (ResponseCode::NoError, number)
        );
    }
    let absent = reply(&zones, &query(&format!("other.{asked}"), RecordType::TXT));
    assert_eq!(absent.response_code, ResponseCode::NXDomain);
    assert_eq!(absent.authorities.len(), 1);
    for other in ["example.com.", "example.org.", "."] {
        let answer = reply(&zones, &query(other, RecordType::TXT));
        assert_eq!(answer.response_code, ResponseCode::Refused, "{other}");
        assert!(answer.answers.is_empty() && answer.authorities.is_empty());
    }
    zones.remove(&place(), "one");
    zones.remove(&place(), "two");
    let answer = reply(&zones, &query(asked, RecordType::TXT));
    assert_eq!(
        (answer.response_code, answer.answers.len()),
        (ResponseCode::NoError, 0)
    );
}

#[test]
fn responder_never_amplifies_and_ignores_replies_and_noise() {
    let zones = Zones::default();
    for number in 0..200 {
        zones.add(&place(), &format!("{number:0>43}"));
    }
    let request = query("_acme-challenge.example.com.", RecordType::TXT);
    let short = zones.reply(&request, Some(LARGEST_DATAGRAM)).unwrap();
    assert!(short.len() <= request.len() + 16, "{} bytes", short.len());
    assert!(Message::from_vec(&short).unwrap().truncation);
    let whole = Message::from_vec(&zones.reply(&request, None).unwrap()).unwrap();
    assert_eq!(whole.answers.len(), 200);
    let mut response = Message::from_vec(&request).unwrap();
    response.metadata.message_type = MessageType::Response;
    for noise in [
        &response.to_vec().unwrap()[..],
        b"",
        b"GET / HTTP/1.1\r\n",
        &[0xff; 600],
    ] {
        assert_eq!(zones.reply(noise, None), None);
    }
    let mut update = Message::from_vec(&request).unwrap();
    update.metadata.op_code = OpCode::Update;
    let refused = reply(&zones, &update.to_vec().unwrap());
    assert_eq!(refused.response_code, ResponseCode::NotImp);
}

#[tokio::test(start_paused = true)]
async fn each_network_gets_a_few_replies_a_second() {
    let mut rates = Rates::default();
    let peers = ["192.0.2.1", "192.0.2.200"].map(|peer| peer.parse::<IpAddr>().unwrap());
    let now = Instant::now();
    let allowed = (0..200).filter(|n| rates.take(peers[n % 2], now)).count();
    assert_eq!(allowed, 60, "two addresses of one network");
    assert!(rates.take("198.51.100.1".parse().unwrap(), now));
    let later = now + Duration::from_secs(1);
    assert_eq!((0..200).filter(|_| rates.take(peers[0], later)).count(), 20);
    for n in 0..20_000_u32 {
        rates.take(IpAddr::V4(Ipv4Addr::from_bits(n << 8)), later);
        assert!(rates.0.len() <= MOST_NETWORKS);
    }
}

#[tokio::test]
async fn listener_answers_over_udp_and_tcp() {
    let responses = Responses::default();
    responses.zones().add(&place(), "value");
    let at = Listen {
        protocol: Protocol::Dns,
        address: (Ipv4Addr::LOCALHOST, 0).into(),
    };
    let listener = Listener::bind(&at, &responses).unwrap();
    let address = listener.addresses()[0];
    let serving = tokio::spawn(listener.serve());
    let asked = name("_acme-challenge.example.com.");
    let answer = wire::ask(address, &asked, RecordType::TXT, false)
        .await
        .unwrap();
    assert_eq!(answer.answers.len(), 1);
    let request = query("_acme-challenge.example.com.", RecordType::TXT);
    let answer = wire::over_tcp(address, &request).await.unwrap();
    assert_eq!(Message::from_vec(&answer).unwrap().answers.len(), 1);
    serving.abort();
}
