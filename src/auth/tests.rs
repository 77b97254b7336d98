use std::time::Duration;

use super::{
    token::{IssueError, LONGEST_LIFE, TokenRequest},
    *,
};
use crate::config::secret::Secret;

const NOW: SystemTime = SystemTime::UNIX_EPOCH;

fn now() -> SystemTime {
    NOW + Duration::from_secs(1_800_000_000)
}

/// An `admin` key of `shop`, a `watch` key of `bank`, and a pool.
fn closed() -> (Auth, [Secret; 3], Config) {
    let (admin, admin_entry) = key::generate("boss", "shop", &[Scope::Admin, Scope::Watch]).unwrap();
    let (viewer, viewer_entry) = key::generate("viewer", "bank", &[Scope::Watch]).unwrap();
    let (pool, pool_entry) = key::generate("pool", "shop", &[Scope::Publish]).unwrap();
    let config = Config {
        keys: vec![admin_entry, viewer_entry, pool_entry],
        pools: vec!["pool".to_owned()],
        ..Config::default()
    };
    (Auth::from_config(&config), [admin, viewer, pool], config)
}

fn watch_token(auth: &Auth, issuer: &Grant) -> String {
    let sessions = Some(BTreeSet::from(["a1".to_owned()]));
    let request = TokenRequest { scopes: vec![Scope::Watch], sessions, ..TokenRequest::default() };
    auth.issue(issuer, &request, now()).unwrap().token.expose().to_owned()
}

#[test]
fn a_key_grants_its_project_and_scopes_and_nothing_else() {
    let (auth, [admin, viewer, pool], _) = closed();
    assert_eq!(admin.expose().len(), 44);
    let grant = auth.authenticate(viewer.expose()).unwrap();
    assert_eq!((&*grant.project, &*grant.who), ("bank", "viewer"));
    assert!(grant.may(Scope::Watch) && !grant.may(Scope::Answer) && !grant.may(Scope::Publish));
    assert!(grant.may_see("bank", "s") && !grant.may_see("shop", "s") && !grant.may_serve("bank"));
    let grant = auth.authenticate(pool.expose()).unwrap();
    assert!(grant.may_serve("shop") && grant.may_serve("bank") && !grant.may_see("bank", "s"));
    assert_eq!(grant.credential.to_string(), "key:pool");
}

#[test]
fn wrong_keys_and_tokens_are_unknown() {
    let (auth, [admin, ..], config) = closed();
    let right = admin.expose();
    let token = watch_token(&auth, &auth.authenticate(right).unwrap());
    let (payload, mac) = token.split_once('.').unwrap();
    let wrong = [
        right[..43].to_owned(),
        format!("{right}a"),
        right.to_uppercase(),
        config.keys[0].sha256.to_hex(),
        payload.to_owned(),
        format!("{payload}."),
        format!("{payload}x.{mac}"),
        format!("{payload}.{}", &mac[..mac.len() - 2]),
        format!("{token}x"),
        "olt_.".to_owned(),
        "x".repeat(10_000_000),
    ];
    for credential in wrong {
        assert_eq!(auth.authenticate_at(&credential, now()), Err(AuthError::Unknown), "{credential:.80}");
    }
    assert_eq!(auth.authenticate(""), Err(AuthError::Missing));
    let other = Auth::from_config(&config);
    assert_eq!(other.authenticate_at(&token, now()), Err(AuthError::Unknown), "signed by another process");
}

#[test]
fn a_token_is_limited_to_its_sessions_scopes_and_life() {
    let (auth, [admin, ..], _) = closed();
    let token = watch_token(&auth, &auth.authenticate(admin.expose()).unwrap());
    let grant = auth.authenticate_at(&token, now()).unwrap();
    assert!(grant.may(Scope::Watch) && !grant.may(Scope::Answer) && !grant.may(Scope::Admin));
    assert!(grant.may_see("shop", "a1") && !grant.may_see("shop", "a2") && !grant.may_see("bank", "a1"));
    let hour = Duration::from_secs(3600);
    assert!(auth.authenticate_at(&token, now() + hour - Duration::from_secs(1)).is_ok());
    assert_eq!(auth.authenticate_at(&token, now() + hour), Err(AuthError::Expired));
    assert!(grant.is_expired(now() + hour));
}

#[test]
fn only_admin_keys_issue_tokens_and_only_within_bounds() {
    let (auth, [admin, viewer, _], _) = closed();
    let admin = auth.authenticate(admin.expose()).unwrap();
    let request = |scopes: &[Scope]| TokenRequest { scopes: scopes.to_vec(), ..TokenRequest::default() };
    let issue = |issuer: &Grant, request: TokenRequest| auth.issue(issuer, &request, now()).map(|_| ());
    let viewer = auth.authenticate(viewer.expose()).unwrap();
    assert_eq!(issue(&viewer, request(&[Scope::Watch])), Err(IssueError::NotAllowed));
    let browser = auth.authenticate_at(&watch_token(&auth, &admin), now()).unwrap();
    assert_eq!(issue(&browser, request(&[Scope::Watch])), Err(IssueError::NotAllowed));
    assert_eq!(issue(&admin, request(&[])), Err(IssueError::Scopes));
    assert_eq!(issue(&admin, request(&[Scope::Watch, Scope::Publish])), Err(IssueError::Scopes));
    assert_eq!(issue(&admin, request(&[Scope::Admin])), Err(IssueError::Scopes));
    for (life, wanted) in [
        (Duration::ZERO, Err(IssueError::Life)),
        (LONGEST_LIFE, Ok(())),
        (LONGEST_LIFE + Duration::from_secs(1), Err(IssueError::Life)),
    ] {
        assert_eq!(issue(&admin, TokenRequest { life: Some(life), ..request(&[Scope::Watch]) }), wanted);
    }
    let nothing = TokenRequest { sessions: Some(BTreeSet::new()), ..request(&[Scope::Watch]) };
    assert_eq!(issue(&admin, nothing), Err(IssueError::Sessions));
}

#[test]
fn a_token_dies_with_the_key_that_issued_it() {
    let (_, [admin, ..], mut config) = closed();
    let kept = || token::SigningKey::from_bytes([7; 32]);
    let auth = Auth::with_signing_key(&config, kept());
    let token = watch_token(&auth, &auth.authenticate(admin.expose()).unwrap());
    assert!(Auth::with_signing_key(&config, kept()).authenticate_at(&token, now()).is_ok());
    config.keys.remove(0);
    assert_eq!(Auth::with_signing_key(&config, kept()).authenticate_at(&token, now()), Err(AuthError::Unknown));
}

#[test]
fn without_keys_everything_is_allowed_in_one_project_and_credentials_are_ignored() {
    let auth = Auth::from_config(&Config::default());
    for credential in ["", "olk_nonsense", "olt_x.y"] {
        let grant = auth.authenticate(credential).unwrap();
        assert!(Scope::ALL.into_iter().all(|scope| grant.may(scope)));
        assert!(grant.may_see("default", "s") && !grant.may_see("shop", "s") && grant.may_serve("default"));
    }
}

#[test]
fn a_generated_key_can_be_put_into_the_file_and_is_not_shown() {
    let (plain, entry) = key::generate("k1", "shop", &[Scope::Publish]).unwrap();
    let text = entry.to_string();
    assert!(text.contains("scopes = [\"publish\"]") && text.contains(&entry.sha256.to_hex()));
    assert!(!text.contains(plain.expose()) && !format!("{plain:?}{entry:?}").contains(plain.expose()));
    let directory = std::env::temp_dir().join(format!("onlooker-key-{}.toml", std::process::id()));
    std::fs::write(&directory, text).unwrap();
    let sources = crate::config::load::Sources { file: Some(directory.clone()), ..Default::default() };
    let loaded = crate::config::load::load(&sources);
    std::fs::remove_file(directory).unwrap();
    assert!(Auth::from_config(&loaded.unwrap().config).authenticate(plain.expose()).is_ok());
}
