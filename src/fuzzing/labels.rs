//! Rules for containers and their labels from any source: each line of the input is a
//! list, an environment or an event.

use std::collections::BTreeSet;
use std::time::Duration;

use super::NOW;
use crate::config::{Options, Purpose, Sources};
use crate::discovery::companion::read_environment;
use crate::discovery::docker::is_relevant;
use crate::discovery::labels::Request;
use crate::discovery::list::read_list;
use crate::discovery::registry::Registry;

const GRACE: Duration = Duration::from_secs(3600);
const ENVIRONMENT: [(&str, &str); 6] = [
    ("CERTS_AGREE_TOS", "true"),
    ("CERTS_DATA_DIR", "/data"),
    ("CERTS_DOCKER_HOST", "tcp://proxy:2375"),
    ("CERTS_DOCKER_ALLOW", "*.example.com"),
    ("CERTS_DOCKER_LIMIT", "3"),
    ("CERTS_CONFIG", "/dev/null"),
];

/// Granted requests are allowed, bounded and distinct, and refusals have no control
/// characters.
pub fn labels(input: &[u8]) {
    let (mut requests, mut problems) = (Vec::new(), Vec::new());
    let mut containers = Vec::new();
    for line in input.split(|byte| *byte == b'\n') {
        // Each line is read as each of the three.
        let _ = is_relevant(line);
        containers.extend(read_list(line).unwrap_or_default().0);
        let variables = read_environment(line).unwrap_or_default();
        for container in &containers {
            for (more, complaints) in [container.requests(), container.requests_of(&variables)] {
                requests.extend(more);
                problems.extend(complaints.into_iter().map(|one| (&one).into()));
            }
        }
        // Thousands of entries test nothing more than some hundred.
        requests.truncate(200);
        problems.truncate(200);
        containers.truncate(50);
    }
    let environment = ENVIRONMENT.map(|(key, value)| (key.to_owned(), value.to_owned()));
    let sources = Sources::read(&Options::default(), &environment.into());
    let Ok(settings) = sources.settings(&Purpose::All) else {
        unreachable!("the environment is valid");
    };
    let granted = sources.granted(&requests.iter().collect::<Vec<_>>(), &settings);
    let all = granted.certificates.iter();
    let lineages: BTreeSet<_> = all.clone().map(|one| &one.lineage).collect();
    assert!(lineages.len() == granted.certificates.len() && lineages.len() <= 3);
    for one in all {
        assert!(
            one.names
                .iter()
                .all(|name| name.to_string().ends_with(".example.com"))
        );
        assert!(one.deploy.iter().all(|spec| spec.to_string() == "nginx"));
    }
    problems.extend(granted.refused);
    for problem in problems {
        let (message, hint) = problem.shown();
        let steers = |text: &str| text.replace('\n', "").contains(char::is_control);
        assert!(!steers(&message) && !steers(&hint));
    }
    let is_granted = |request: &&Request| {
        let mut all = granted.certificates.iter();
        all.any(|one| one.names == request.names)
    };
    let mut lineages = BTreeSet::new();
    let requests = requests.iter().filter(is_granted);
    let requests = requests.filter(|request| lineages.insert(request.lineage()));
    merged(&requests.cloned().collect::<Vec<_>>());
}

/// A repeated list changes nothing, and an empty one removes nothing at once.
fn merged(requests: &[Request]) {
    let (mut kept, unread) = (Registry::default(), BTreeSet::new());
    kept.merge(requests, &unread, NOW, GRACE);
    let before = kept.clone();
    assert!(kept.merge(requests, &unread, NOW + GRACE, GRACE).is_empty() && kept == before);
    assert_eq!(kept.merge(&[], &unread, NOW, GRACE).len(), requests.len());
    assert_eq!(kept.renewed().len(), requests.len());
    let json = serde_json::to_string(&kept).unwrap_or_default();
    assert_eq!(serde_json::from_str::<Registry>(&json).ok(), Some(kept));
}
