//! Whether the keys of a fleet fit each other, and whether this machine could join it. Nothing is
//! sent and nothing is written.

use super::Settings;
use super::combine::pick;
use super::keys::Layer;
use super::problem::{ConfigProblem, Given, Problems};
use super::resolve::{Purpose, Sources};
use crate::store::node::Role;

impl Sources {
    /// All settings, and whether this machine could join its fleet: for `certs config check`.
    ///
    /// # Errors
    /// Every problem of both.
    pub(crate) fn checked_settings(&self) -> Result<Settings, Vec<ConfigProblem>> {
        let settings = self.settings(&Purpose::All);
        let mut problems = Problems::default();
        let found = settings.as_ref().err().into_iter().flatten();
        for problem in found.chain(&self.fleet_problems()) {
            problems.add(&problem.origin, &problem.message, &problem.hint);
        }
        match settings {
            Ok(settings) => problems.or(settings),
            Err(_) => Err(problems.sorted()),
        }
    }

    /// What keeps this machine from joining its fleet, besides the store itself.
    pub(crate) fn fleet_problems(&self) -> Vec<ConfigProblem> {
        let mut problems = self.problems.clone();
        self.contradictions_of_fleet(&mut problems);
        let layers = self.layers();
        if let Some(store) = pick(&layers, |layer| &layer.store)
            && let Err((message, advice)) = store.value.check()
        {
            let message = format!("store {}: {message}", store.value);
            problems.add(&store.origin, message, advice);
        }
        if let Some(file) = pick(&layers, |layer| &layer.seal_key_file)
            && let Err(error) = self.fleet().1.check_seal()
        {
            let hint = error.hint_of_shared().unwrap_or_default();
            problems.add(&file.origin, error.to_string(), hint);
        }
        problems.sorted()
    }

    /// Keys of a fleet that contradict each other.
    pub(super) fn contradictions_of_fleet(&self, problems: &mut Problems) {
        let layers = self.layers();
        let is_given = |name: &str| layers.iter().any(|layer| layer.invalid.contains(name));
        let store = pick(&layers, |layer| &layer.store);
        let file = pick(&layers, |layer| &layer.seal_key_file).map(|given| &given.origin);
        let program = pick(&layers, |layer| &layer.seal_key_exec).map(|given| &given.origin);
        if let (None, Some(origin)) = (store, file.or(program))
            && !is_given("store")
        {
            let hint = "add store = \"…\" in one of the forms of docs/fleet.md, or leave the sealing key out";
            problems.add(origin, "a sealing key without a store", hint);
        }
        if let Some(role) = serves(pick(&layers, |layer| &layer.role))
            && store.is_none()
            && !is_given("store")
        {
            let message =
                "role = \"serve\" without a store: this machine would have no certificates";
            let hint = "add store = \"…\" in one of the forms of docs/fleet.md, or leave role out";
            problems.add(&role.origin, message, hint);
        }
        for layer in layers {
            only_for_orders(layer, problems);
        }
    }
}

/// The role, if it is to serve only.
fn serves(role: Option<&Given<Role>>) -> Option<&Given<Role>> {
    role.filter(|role| role.value == Role::Serve)
}

/// Keys of an account beside `role = "serve"` in one source: such a machine never reads one.
fn only_for_orders(layer: &Layer, problems: &mut Problems) {
    if serves(layer.role.as_ref()).is_none() {
        return;
    }
    let shared = &layer.shared;
    let files = [
        ("eab_hmac_file", &shared.eab_hmac_file),
        ("fallback_eab_hmac_file", &shared.fallback_eab_hmac_file),
    ];
    for (name, file) in files {
        if let Some(file) = file {
            let message =
                format!("{name} beside role = \"serve\": this machine registers no account");
            let hint = format!("leave {name} out here: a machine of role full needs it");
            problems.add(&file.origin, message, hint);
        }
    }
}
