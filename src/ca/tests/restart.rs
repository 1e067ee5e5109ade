//! The state that survives a restart.

use std::path::Path;

use serde_json::json;

use super::*;

#[tokio::test]
async fn restart_keeps_root_accounts_and_orders() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ca");
    let open = || server(|settings| settings.directory = Some(path.clone())).0;
    let first = open();
    let client = Client::registered(&first).await;
    let order = client
        .order(&first, json!({"identifiers": identifiers(&["a.example"])}))
        .await;
    client.authorize(&first, &order.location()).await;
    let root = first.root_pem().to_owned();
    let clock = std::sync::Arc::new(VirtualClock::new(NOW));
    let mut settings = Settings::new(BASE);
    settings.directory = Some(path.clone());
    assert!(matches!(
        Server::new(settings, clock),
        Err(CaError::InUse(_))
    ));
    // The validation task keeps the server alive until it has saved its outcome.
    while std::sync::Arc::strong_count(&first.0) > 1 {
        tokio::task::yield_now().await;
    }
    drop(first);
    // The rests of a process that was killed while it wrote, and a file of somebody else.
    let rests = [".state.json.new-4711", ".root.key.new-1", ".state.json.new"];
    for name in rests {
        std::fs::write(path.join(name), "a key").unwrap();
    }
    let second = open();
    let left: Vec<_> = rests
        .into_iter()
        .filter(|name| path.join(name).exists())
        .collect();
    assert_eq!(left, [".state.json.new"]);
    assert_eq!(second.root_pem(), root);
    let key = rcgen::KeyPair::generate().unwrap();
    let reply = client
        .finalize(&second, &order.location(), csr(&key, &["a.example"]))
        .await;
    assert_eq!(reply.json()["status"], "valid", "{}", reply.json());
    let mode = |path: &Path| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    };
    assert_eq!(mode(&path), 0o700);
    for (name, expected) in [
        ("root.pem", 0o644),
        ("root.key", 0o600),
        ("intermediate.pem", 0o600),
        ("state.json", 0o600),
    ] {
        assert_eq!(mode(&path.join(name)), expected, "{name}");
    }
    drop(second);
    std::fs::write(path.join("root.key"), "").unwrap();
    let clock = std::sync::Arc::new(VirtualClock::new(NOW));
    let mut settings = Settings::new(BASE);
    settings.directory = Some(path.clone());
    let refused = Server::new(settings, clock);
    assert!(matches!(refused, Err(CaError::Corrupt { .. })));
    assert_eq!(
        std::fs::read_to_string(path.join("root.pem")).unwrap(),
        root
    );
}
