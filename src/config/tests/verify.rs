//! `verify`, a key and a table.

use super::*;

#[test]
fn verify_is_a_list_or_a_table() {
    let certificate = "agree_tos = true\n[[certificate]]\nnames = 'example.com'\n";
    let read = |file: &str| Case::new(file).settings(&Purpose::All);
    let list = read(&format!("verify = ['a.example:443']\n{certificate}"));
    let table = read(&format!(
        "{certificate}[verify]\nendpoints = 'a.example:443'\nevery = '30s'\nwithin = '2m'\n"
    ));
    assert_eq!(list.certificates, table.certificates);
    assert_eq!(list.certificates[0].verify.len(), 1);
    let every = [&list, &table].map(|settings| settings.verify_every.length().as_secs());
    assert_eq!(every, [600, 30]);
    let within =
        [&list, &table].map(|settings| settings.verify_within.map(|it| it.length().as_secs()));
    assert_eq!(within, [None, Some(120)]);
    let case = Case::new(&format!(
        "{certificate}[verify]\nevery = '1s'\nendpoint = 'a:1'\n"
    ));
    let problems = messages(&case.sources().settings(&Purpose::All).unwrap_err());
    assert!(problems[0].contains("between 10s and 24h"), "{problems:?}");
    assert!(
        problems[1].contains("unknown key `endpoint`"),
        "{problems:?}"
    );
}
