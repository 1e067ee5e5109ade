//! HTTP-01 against listeners with right and wrong answers.

use std::net::Ipv4Addr;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::ca::{problem, validate};

/// Answers one request on `listener` with `reply` and returns the request's head.
async fn answer(listener: tokio::net::TcpListener, reply: String) -> String {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    stream.write_all(reply.as_bytes()).await.unwrap();
    String::from_utf8(head).unwrap()
}

async fn validated(reply: Option<&str>) -> (Result<(), problem::Problem>, String) {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .unwrap();
    let port = listener.local_addr().unwrap().port();
    let resolve = Resolve::Fixed(Ipv4Addr::LOCALHOST.into());
    let name = Identifier::parse("a.example").unwrap();
    let fetched = validate::http01(&name, "TOKEN", "TOKEN.thumb", port, resolve);
    match reply {
        Some(reply) => tokio::join!(fetched, answer(listener, reply.to_owned())),
        None => {
            drop(listener);
            (fetched.await, String::new())
        }
    }
}

#[tokio::test]
async fn validation_accepts_only_the_key_authorization() {
    let ok = |body: &str| {
        format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )
    };
    let (ended, head) = validated(Some(&ok("TOKEN.thumb\n"))).await;
    assert_eq!(ended, Ok(()));
    assert!(
        head.starts_with("GET /.well-known/acme-challenge/TOKEN HTTP/1.1\r\n"),
        "{head}"
    );
    assert!(head.to_lowercase().contains("host: a.example:"), "{head}");
    for (reply, kind, words) in [
        (
            Some(ok("TOKEN.other")),
            problem::ErrorType::Unauthorized,
            "`TOKEN.other`",
        ),
        (
            Some(ok("\x1b[31mred")),
            problem::ErrorType::Unauthorized,
            "\\x1b[31mred",
        ),
        (
            Some(ok(&"x".repeat(1025))),
            problem::ErrorType::IncorrectResponse,
            "1 KiB",
        ),
        (
            Some("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".into()),
            problem::ErrorType::Unauthorized,
            "HTTP 404",
        ),
        (
            Some(
                "HTTP/1.1 302 Found\r\nLocation: http://10.0.0.1/\r\nContent-Length: 0\r\n\r\n"
                    .into(),
            ),
            problem::ErrorType::IncorrectResponse,
            "redirect to `http://10.0.0.1/`",
        ),
        (
            Some("nonsense\r\n\r\n".into()),
            problem::ErrorType::Connection,
            "no HTTP answer",
        ),
        (None, problem::ErrorType::Connection, "127.0.0.1"),
    ] {
        let problem = validated(reply.as_deref()).await.0.unwrap_err();
        assert_eq!(problem.kind, kind, "{problem}");
        assert!(problem.to_string().contains(words), "{problem}");
    }
}

#[tokio::test]
async fn unreachable_name_makes_its_order_invalid() {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .unwrap();
    let port = listener.local_addr().unwrap().port();
    let resolve = Resolve::Fixed(Ipv4Addr::LOCALHOST.into());
    drop(listener);
    let (server, _) = server(|settings| {
        settings.validation = Validation::Connect {
            ports: Ports::both(port),
            resolve,
        }
    });
    let client = Client::registered(&server).await;
    let order = client
        .order(&server, json!({"identifiers": identifiers(&["a.example"])}))
        .await;
    let ended = client.authorize(&server, &order.location()).await;
    assert_eq!(ended["status"], "invalid");
    assert_eq!(
        ended["error"]["subproblems"][0]["identifier"]["value"],
        "a.example"
    );
    let authorization = order.json()["authorizations"][0]
        .as_str()
        .unwrap()
        .to_owned();
    let shown = client.read(&server, &authorization).await;
    assert_eq!(
        shown["challenges"][0]["error"]["type"],
        "urn:ietf:params:acme:error:connection"
    );
}
