//! Requests for keys before and after validation.
//!
//! `POST /keys` and `app keys create` both build a `KeyDraft`, so that both follow the same rules. `validate` reports
//! everything that is wrong at once and returns a `KeySpec`, which cannot be made in another way.

use time::OffsetDateTime;

use super::{caller::Scope, limits::KeyLimits};
use crate::{
    config::identity::RateLimit,
    core::{id::TenantId, invalid::Invalid},
};

const NAME_BYTES_MAX: usize = 255;
/// The longest time that a rotated key is still accepted, in seconds: a week.
pub const GRACE_S_MAX: u32 = 604_800;

/// A new key as a client asks for it.
#[derive(Clone, Debug, Default)]
pub struct KeyDraft {
    /// The name of the key in lists.
    pub name: String,
    /// The texts of the scopes.
    pub scopes: Vec<String>,
    /// The key's own limit; `None`: that of its creator.
    pub limits: Option<LimitsDraft>,
    /// The key is refused before this moment.
    pub not_before: Option<OffsetDateTime>,
    /// The key is refused from this moment on; `None`: it never expires.
    pub expires_at: Option<OffsetDateTime>,
    /// The tenant that owns the key; `None`: that of its creator.
    pub tenant: Option<TenantId>,
}

/// A rate limit as a client asks for it.
#[derive(Clone, Copy, Debug)]
pub struct LimitsDraft {
    /// Requests per second; 0: no limit.
    pub rps: f64,
    /// Requests at once.
    pub burst: u32,
}

/// A new key that is valid by itself. `grants` checks what its creator may grant.
#[derive(Clone, Debug)]
pub struct KeySpec {
    pub(super) name: String,
    pub(super) scopes: Vec<Scope>,
    pub(super) limits: Option<KeyLimits>,
    pub(super) not_before: Option<OffsetDateTime>,
    pub(super) expires_at: Option<OffsetDateTime>,
    pub(super) tenant: Option<TenantId>,
}

impl KeyDraft {
    /// Validates the draft at `now`.
    ///
    /// # Errors
    /// Everything that is wrong, with pointers into the body of `POST /keys`.
    pub fn validate(self, now: OffsetDateTime) -> Result<KeySpec, Vec<Invalid>> {
        let mut wrong = Vec::new();
        check_name(&self.name, &mut wrong);
        let scopes = parse_scopes(&self.scopes, &mut wrong);
        check_expiry(self.expires_at, now, &mut wrong);
        let limits = self.limits.and_then(|limits| parse_limits(limits, &mut wrong));
        if self.not_before.is_some_and(|from| self.expires_at.is_some_and(|to| to <= from)) {
            wrong.push(Invalid::new("/not_before", "out_of_range", "is not before expires_at"));
        }
        if !wrong.is_empty() {
            return Err(wrong);
        }
        let Self { name, not_before, expires_at, tenant, .. } = self;
        Ok(KeySpec { name, scopes, limits, not_before, expires_at, tenant })
    }
}

/// A change of a key as a client asks for it; `None`: the field stays as it is.
#[derive(Clone, Debug, Default)]
pub struct KeyPatchDraft {
    /// The new name.
    pub name: Option<String>,
    /// The texts of the new scopes.
    pub scopes: Option<Vec<String>>,
    /// The new expiry; `Some(None)`: the key never expires.
    pub expires_at: Option<Option<OffsetDateTime>>,
    /// The new limit; `Some(None)`: the general one.
    pub limits: Option<Option<LimitsDraft>>,
}

/// A valid change of a key; `None`: the field stays as it is.
#[derive(Clone, Debug, Default)]
pub struct KeyPatch {
    pub(super) name: Option<String>,
    pub(super) scopes: Option<Vec<Scope>>,
    pub(super) expires_at: Option<Option<OffsetDateTime>>,
    pub(super) limits: Option<KeyLimits>,
}

impl KeyPatchDraft {
    /// Validates the draft at `now`.
    ///
    /// # Errors
    /// Everything that is wrong, with pointers into the body of `PATCH /keys/{id}`.
    pub fn validate(self, now: OffsetDateTime) -> Result<KeyPatch, Vec<Invalid>> {
        let mut wrong = Vec::new();
        if let Some(name) = &self.name {
            check_name(name, &mut wrong);
        }
        let scopes = self.scopes.map(|texts| parse_scopes(&texts, &mut wrong));
        check_expiry(self.expires_at.flatten(), now, &mut wrong);
        let limits = self
            .limits
            .map(|limits| limits.and_then(|limits| parse_limits(limits, &mut wrong)).unwrap_or(KeyLimits::GENERAL));
        if !wrong.is_empty() {
            return Err(wrong);
        }
        Ok(KeyPatch { name: self.name, scopes, expires_at: self.expires_at, limits })
    }
}

/// Returns how long a rotated key is still accepted, in seconds.
///
/// # Errors
/// When `seconds` is not from 0 to `GRACE_S_MAX`.
pub fn parse_grace(seconds: i64) -> Result<u32, Invalid> {
    u32::try_from(seconds)
        .ok()
        .filter(|seconds| *seconds <= GRACE_S_MAX)
        .ok_or_else(|| Invalid::new("/grace_s", "out_of_range", format!("must be from 0 to {GRACE_S_MAX}")))
}

fn check_name(name: &str, wrong: &mut Vec<Invalid>) {
    if name.trim().is_empty() || name.len() > NAME_BYTES_MAX {
        wrong.push(Invalid::new("/name", "invalid", format!("must have 1 to {NAME_BYTES_MAX} bytes")));
    }
}

/// Returns the scopes, sorted and without duplicates.
fn parse_scopes(texts: &[String], wrong: &mut Vec<Invalid>) -> Vec<Scope> {
    if texts.is_empty() {
        wrong.push(Invalid::new("/scopes", "invalid", "must not be empty"));
    }
    let mut scopes = Vec::new();
    for (at, text) in texts.iter().enumerate() {
        match text.parse::<Scope>() {
            Ok(scope) => scopes.push(scope),
            Err(_) => {
                let known = Scope::ALL.iter().map(|scope| scope.as_str()).collect::<Vec<_>>().join(", ");
                wrong.push(Invalid::new(format!("/scopes/{at}"), "invalid", format!("is not one of {known}")));
            }
        }
    }
    scopes.sort_unstable();
    scopes.dedup();
    scopes
}

fn check_expiry(expires_at: Option<OffsetDateTime>, now: OffsetDateTime, wrong: &mut Vec<Invalid>) {
    if expires_at.is_some_and(|at| at <= now) {
        wrong.push(Invalid::new("/expires_at", "out_of_range", "is in the past"));
    }
}

fn parse_limits(LimitsDraft { rps, burst }: LimitsDraft, wrong: &mut Vec<Invalid>) -> Option<KeyLimits> {
    if RateLimit::new(rps, 1).is_none() {
        let range = format!("must be 0 (no limit) or from {} to {}", RateLimit::RPS_MIN, RateLimit::RPS_MAX);
        wrong.push(Invalid::new("/limits/rps", "out_of_range", range));
    }
    if RateLimit::new(0.0, burst).is_none() {
        let range = format!("must be from 1 to {}", RateLimit::BURST_MAX);
        wrong.push(Invalid::new("/limits/burst", "out_of_range", range));
    }
    RateLimit::new(rps, burst).map(KeyLimits::own)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, option, prelude::*};
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2030-01-01 00:00:00 UTC);

    fn draft() -> KeyDraft {
        KeyDraft { name: "ci".into(), scopes: vec!["keys:read".into()], ..KeyDraft::default() }
    }

    proptest! {
        #[test]
        fn draft_is_valid_or_refused_with_places_in_the_body(
            name in any::<String>(),
            scopes in vec(prop_oneof![any::<String>(), Just("admin".to_owned()), Just("keys:read".to_owned())], 0..4),
            limits in option::of((any::<f64>(), any::<u32>())),
            expires_in_s in option::of(-1000..1000_i64),
        ) {
            let draft = KeyDraft {
                name: name.clone(),
                scopes: scopes.clone(),
                limits: limits.map(|(rps, burst)| LimitsDraft { rps, burst }),
                expires_at: expires_in_s.map(|seconds| NOW + time::Duration::seconds(seconds)),
                ..KeyDraft::default()
            };

            match draft.validate(NOW) {
                Ok(spec) => {
                    let known: Vec<&str> = spec.scopes.iter().map(|scope| scope.as_str()).collect();
                    prop_assert!(scopes.iter().all(|scope| known.contains(&scope.as_str())) && !known.is_empty());
                    prop_assert_eq!(spec.name, name);
                }
                Err(wrong) => {
                    let fields = ["/name", "/scopes", "/limits/rps", "/limits/burst", "/expires_at"];
                    let is_known = |pointer: &str| fields.iter().any(|field| pointer.starts_with(field));
                    prop_assert!(!wrong.is_empty() && wrong.iter().all(|one| is_known(&one.pointer)), "{:?}", wrong);
                }
            }
        }
    }

    #[test]
    fn draft_reports_everything_that_is_wrong_at_once() {
        let draft = KeyDraft {
            name: " ".into(),
            scopes: ["admin", "root", "Admin"].map(str::to_owned).into(),
            limits: Some(LimitsDraft { rps: -1.0, burst: 0 }),
            not_before: Some(NOW),
            expires_at: Some(NOW),
            tenant: None,
        };

        let wrong = draft.validate(NOW).expect_err("nothing in it is right");

        let pointers: Vec<&str> = wrong.iter().map(|one| one.pointer.as_str()).collect();
        let expected =
            ["/name", "/scopes/1", "/scopes/2", "/expires_at", "/limits/rps", "/limits/burst", "/not_before"];
        assert_eq!(pointers, expected);
    }

    #[test]
    fn valid_draft_has_sorted_scopes_and_no_limits_unless_given() {
        let scopes = ["keys:write", "keys:read", "keys:write"].map(str::to_owned).into();

        let spec = KeyDraft { scopes, ..draft() }.validate(NOW).expect("valid");

        assert_eq!((spec.scopes, spec.limits), (vec![Scope::KeysRead, Scope::KeysWrite], None));
    }

    #[test]
    fn patch_without_fields_changes_nothing_and_null_clears() {
        let nothing = KeyPatchDraft::default().validate(NOW).expect("valid");
        let cleared = KeyPatchDraft { expires_at: Some(None), limits: Some(None), ..KeyPatchDraft::default() };

        let cleared = cleared.validate(NOW).expect("valid");

        assert!(nothing.name.is_none() && nothing.scopes.is_none() && nothing.expires_at.is_none());
        assert_eq!(nothing.limits, None);
        assert_eq!((cleared.expires_at, cleared.limits), (Some(None), Some(KeyLimits::GENERAL)));
    }

    #[test]
    fn grace_is_at_most_a_week() {
        assert_eq!(parse_grace(0), Ok(0));
        assert_eq!(parse_grace(604_800), Ok(604_800));
        for seconds in [-1, 604_801, i64::MAX, i64::MIN] {
            assert!(parse_grace(seconds).is_err(), "{seconds}");
        }
    }
}
