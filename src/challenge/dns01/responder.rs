//! A small authoritative name server for `--dns self`, over UDP and TCP: TXT records of live
//! challenges, SOA and NS of their zones, and REFUSED for all else. It never asks another
//! server. A reply is hardly larger than its request, and each network gets a few a second:
//! it is of no use to flood another machine.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{NS, SOA, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::super::responses::Responses;
use super::super::zones::{Delegated, Zones};
use crate::net::dns::wire::{self, LARGEST_DATAGRAM};

/// No cache may keep a value beyond its challenge, or its absence.
const TTL: u32 = 5;
/// The smallest datagram that every resolver takes.
const SMALLEST: u16 = 512;
/// Replies over UDP to one network: at once, and per second.
const BURST: f64 = 60.0;
const RATE: f64 = 20.0;
/// Networks whose rate is remembered; beyond it, all are forgotten.
const MOST_NETWORKS: usize = 4096;
const CONNECTIONS: usize = 64;
const CONNECTION: Duration = Duration::from_secs(5);
const QUERIES: usize = 16;

impl Zones {
    /// The reply to a request of at most `most` bytes; `None` for what gets none.
    pub(in crate::challenge) fn reply(&self, request: &[u8], most: Option<u16>) -> Option<Vec<u8>> {
        let request = Message::from_vec(request).ok()?;
        if request.message_type != MessageType::Query {
            return None;
        }
        let mut reply = Message::response(request.id, request.op_code);
        reply.metadata.recursion_desired = request.recursion_desired;
        if request.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(LARGEST_DATAGRAM);
            reply.set_edns(edns);
        }
        match (request.op_code, request.queries.as_slice()) {
            (OpCode::Query, [query]) => {
                reply.add_query(query.clone());
                self.answer(query, &mut reply);
            }
            (OpCode::Query, _) => reply.metadata.response_code = ResponseCode::FormErr,
            _ => reply.metadata.response_code = ResponseCode::NotImp,
        }
        let bytes = reply.to_vec().ok()?;
        let most = most.map(|most| most.min(request.max_payload().max(SMALLEST)));
        match most {
            Some(most) if bytes.len() > most.into() => reply.truncate().to_vec().ok(),
            _ => Some(bytes),
        }
    }

    /// Whether an order of this process has a value for the name in `request`.
    pub(in crate::challenge) fn has_own_value(&self, request: &[u8]) -> bool {
        let request = Message::from_vec(request);
        request.is_ok_and(|request| match request.queries.as_slice() {
            [query] => self.has_own(&query.name().to_lowercase()),
            _ => false,
        })
    }

    fn answer(&self, query: &Query, reply: &mut Message) {
        let name = query.name().to_lowercase();
        let zones = self.all();
        // The closest zone around the name.
        let zone = zones
            .iter()
            .filter(|(apex, _)| apex.zone_of(&name))
            .max_by_key(|(apex, _)| apex.num_labels());
        let (Some((apex, zone)), DNSClass::IN) = (zone, query.query_class()) else {
            reply.metadata.response_code = ResponseCode::Refused;
            return;
        };
        reply.metadata.authoritative = true;
        let own = |data| Record::from_rdata(query.name().clone(), TTL, data);
        let values = zone.values.get(&name);
        match query.query_type() {
            RecordType::TXT => {
                let values = values.into_iter().flatten().cloned();
                reply.add_answers(values.map(|value| own(RData::TXT(TXT::new(vec![value])))));
            }
            RecordType::SOA if name == *apex => {
                reply.add_answer(own(soa(zone, apex)));
            }
            RecordType::NS if name == *apex => {
                let servers = zone.servers.iter().cloned();
                reply.add_answers(servers.map(|server| own(RData::NS(NS(server)))));
            }
            _ => {}
        }
        if reply.answers.is_empty() {
            let exists = name == *apex || zone.values.keys().any(|known| name.zone_of(known));
            if !exists {
                reply.metadata.response_code = ResponseCode::NXDomain;
            }
            reply.add_authority(Record::from_rdata(apex.clone(), TTL, soa(zone, apex)));
        }
    }
}

fn soa(zone: &Delegated, apex: &Name) -> RData {
    let first = zone.servers.first().unwrap_or(apex).clone();
    let responsible = apex
        .prepend_label("hostmaster")
        .unwrap_or_else(|_| apex.clone());
    RData::SOA(SOA::new(first, responsible, 1, 3600, 600, 86_400, TTL))
}

/// Serves these sockets until the future is dropped.
pub(crate) async fn serve(
    datagrams: Vec<UdpSocket>,
    streams: Vec<TcpListener>,
    responses: Responses,
) {
    let rates = Arc::new(Mutex::new(Rates::default()));
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    let mut serving = JoinSet::new();
    for socket in datagrams {
        serving.spawn(serve_datagrams(socket, responses.clone(), rates.clone()));
    }
    for listener in streams {
        serving.spawn(serve_streams(
            listener,
            responses.clone(),
            connections.clone(),
        ));
    }
    while serving.join_next().await.is_some() {}
}

async fn serve_datagrams(socket: UdpSocket, responses: Responses, rates: Arc<Mutex<Rates>>) {
    let socket = Arc::new(socket);
    let waiting = Arc::new(Semaphore::new(CONNECTIONS));
    let is_shared = responses.fleet().is_some();
    let mut buffer = [0; LARGEST_DATAGRAM as usize];
    loop {
        let Ok((length, peer)) = socket.recv_from(&mut buffer).await else {
            // The error of an earlier reply, such as an unreachable peer.
            tokio::task::yield_now().await;
            continue;
        };
        let is_allowed = {
            let mut rates = rates.lock().unwrap_or_else(PoisonError::into_inner);
            rates.take(peer.ip(), Instant::now())
        };
        if !is_allowed {
            continue;
        }
        let (socket, responses) = (socket.clone(), responses.clone());
        let request = buffer[..length].to_vec();
        let reply = async move {
            if let Some(reply) = responses.reply(&request, Some(LARGEST_DATAGRAM)).await {
                // The peer repeats its request if the reply is lost.
                let _ = socket.send_to(&reply, peer).await;
            }
        };
        match waiting.clone().try_acquire_owned() {
            // A fleet's store must not delay the next request.
            Ok(permit) if is_shared => drop(tokio::spawn(async move {
                reply.await;
                drop(permit);
            })),
            Err(_) if is_shared => {}
            _ => reply.await,
        }
    }
}

async fn serve_streams(listener: TcpListener, responses: Responses, connections: Arc<Semaphore>) {
    loop {
        let Ok(permit) = connections.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let responses = responses.clone();
                tokio::spawn(async move {
                    let _ = timeout(CONNECTION, converse(stream, &responses)).await;
                    drop(permit);
                });
            }
            // No descriptor is free: some will be.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn converse(mut stream: TcpStream, responses: &Responses) -> io::Result<()> {
    for _ in 0..QUERIES {
        let mut request = vec![0; stream.read_u16().await?.into()];
        stream.read_exact(&mut request).await?;
        let Some(reply) = responses.reply(&request, None).await else {
            break;
        };
        stream.write_all(&wire::framed(&reply)?).await?;
    }
    Ok(())
}

/// The replies left to each network: of 256 addresses of IPv4, or a /56 of IPv6.
#[derive(Default)]
struct Rates(HashMap<IpAddr, (f64, Option<Instant>)>);

impl Rates {
    fn take(&mut self, peer: IpAddr, now: Instant) -> bool {
        if self.0.len() >= MOST_NETWORKS {
            self.0.clear();
        }
        let (left, last) = self.0.entry(network(peer)).or_insert((BURST, None));
        let since = last.map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
        *last = Some(now);
        *left = (*left + since.as_secs_f64() * RATE).min(BURST);
        let is_allowed = *left >= 1.0;
        if is_allowed {
            *left -= 1.0;
        }
        is_allowed
    }
}

fn network(peer: IpAddr) -> IpAddr {
    match peer {
        IpAddr::V4(address) => IpAddr::V4(Ipv4Addr::from_bits(address.to_bits() & !0xff)),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 72 << 72)),
    }
}

#[cfg(test)]
mod tests;
