//! The black-box tests, by topic; real servers where a user has real servers.
