//! The audit: entries about changes, tests and refusals, and the coalescing of refusals.

use std::{
    borrow::Cow,
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use jiff::Timestamp;
use uuid::Uuid;

use super::{
    integration::{Integration, IntegrationId},
    status::{Reason, StatusDetail},
};

/// Principal of changes that this service makes by itself.
pub const SERVICE: &str = "siem-relay";
/// Code of a call that succeeded.
pub const OK: &str = "OK";
/// Principal of refusals that were counted together because too many different ones came.
const OTHERS: &str = "(others)";
/// Different refusals of one [`CallerClass`] that are kept apart until they are taken.
const MAX_KEYS: usize = 64;
/// Different refusals of one caller that are kept apart by organization.
const MAX_KEYS_PER_CALLER: usize = 8;

/// Author of a change or an attempt, and the request that made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    /// Unique name of the caller.
    pub principal: Arc<str>,
    /// Issuer of the caller's token, if it has one.
    pub issuer: Option<Arc<str>>,
    /// Remote address of the connection.
    pub peer: Option<SocketAddr>,
    /// Id that this service gave to the request.
    pub request_id: Option<Uuid>,
    /// Id that the caller gave to the request.
    pub client_request_id: Option<Box<str>>,
}

impl Actor {
    /// Creates an author without a request.
    pub fn named(principal: &str) -> Self {
        Self {
            principal: principal.into(),
            issuer: None,
            peer: None,
            request_id: None,
            client_request_id: None,
        }
    }

    /// This service.
    pub fn service() -> Self {
        Self::named(SERVICE)
    }
}

named_enum! {
    /// Kind of an audit entry.
    pub enum AuditAction {
        /// An integration was created.
        Create = "create",
        /// The configuration of an integration was replaced, by the same one if there are no changes.
        Replace = "replace",
        /// An integration was deleted.
        Delete = "delete",
        /// An external ID was issued to an organization.
        IssueExternalId = "issue_external_id",
        /// The previous external ID is not used any more, because the current one has worked.
        ExternalIdTookOver = "external_id_took_over",
        /// Delivery or a test changed the status.
        Status = "status",
        /// A test event was sent.
        SendTest = "send_test",
        /// A call was refused.
        Refuse = "refuse",
    }
}

/// Change of one field. External IDs have no values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditChange {
    /// Name of the field, as the API has it.
    pub field: Cow<'static, str>,
    /// Value before; empty if there was none, or it is not known.
    pub old: Cow<'static, str>,
    /// Value since; empty if there is none.
    pub new: Cow<'static, str>,
}

impl AuditChange {
    /// Creates the change of a field.
    pub fn new(
        field: &'static str,
        old: impl Into<Cow<'static, str>>,
        new: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            field: field.into(),
            old: old.into(),
            new: new.into(),
        }
    }
}

/// Entry of the audit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEntry {
    /// Number in the storage; 0 until it is stored. Those of refusals are negative.
    pub id: i64,
    /// Time of the first occurrence.
    pub at: Timestamp,
    /// Time of the last occurrence.
    pub last_at: Timestamp,
    /// Number of occurrences, at least 1.
    pub count: u64,
    /// Kind; None for one that a newer version wrote.
    pub action: Option<AuditAction>,
    /// Author of the first occurrence.
    pub actor: Actor,
    /// Path of the RPC without its leading slash, of refusals only.
    pub method: Box<str>,
    /// Organization; empty if none is known.
    pub organization_id: Box<str>,
    /// Integration, if there is one.
    pub integration_id: Option<IntegrationId>,
    /// Canonical code of the outcome, such as [`OK`].
    pub code: Box<str>,
    /// Reason of an error, as in `ErrorInfo`; else empty.
    pub reason: Box<str>,
    /// Changed fields.
    pub changes: Vec<AuditChange>,
}

impl AuditEntry {
    /// Creates an entry about one successful action.
    pub fn new(action: AuditAction, actor: Actor, organization_id: &str, at: Timestamp) -> Self {
        Self {
            id: 0,
            at,
            last_at: at,
            count: 1,
            action: Some(action),
            actor,
            method: "".into(),
            organization_id: organization_id.into(),
            integration_id: None,
            code: OK.into(),
            reason: "".into(),
            changes: Vec::new(),
        }
    }

    /// Adds the integration and the changed fields.
    pub fn about(mut self, integration_id: IntegrationId, changes: Vec<AuditChange>) -> Self {
        self.integration_id = Some(integration_id);
        self.changes = changes;
        self
    }
}

/// Changes between two configurations; None stands for no integration. Nothing of an external ID
/// is shown but that it changed.
pub fn configuration_changes(
    before: Option<&Integration>,
    after: Option<&Integration>,
    external_id_changed: bool,
) -> Vec<AuditChange> {
    let mut changes = Vec::new();
    let mut compare = |field, of: fn(&Integration) -> &str| {
        let [old, new] = [before, after].map(|one| one.map_or("", of));
        if old != new {
            changes.push(AuditChange::new(field, old.to_owned(), new.to_owned()));
        }
    };
    compare("kinesis_stream_arn", |one| one.stream_arn.as_str());
    compare("role_arn", |one| one.role_arn.as_str());
    if external_id_changed {
        changes.push(AuditChange::new("external_id", "", "changed"));
    }
    let [old, new] = [before, after].map(|one| one.is_some_and(|one| one.previous.is_some()));
    if old != new || new && external_id_changed {
        let shown = |is_used| if is_used { "in use" } else { "" };
        changes.push(AuditChange::new(
            "previous_external_id",
            shown(old),
            shown(new),
        ));
    }
    changes
}

/// Fields of a status, before and after a change.
pub fn status_changes(before: &StatusDetail, after: &StatusDetail) -> Vec<AuditChange> {
    let reason = |status: &StatusDetail| status.reason.map_or("", Reason::as_str);
    let text = |text: &Option<Box<str>>| text.as_deref().unwrap_or("").to_owned();
    let mut changes = vec![
        AuditChange::new("status", before.status.as_str(), after.status.as_str()),
        AuditChange::new("reason", reason(before), reason(after)),
        AuditChange::new(
            "aws_error_code",
            text(&before.aws_error_code),
            text(&after.aws_error_code),
        ),
        AuditChange::new(
            "aws_request_id",
            text(&before.aws_request_id),
            text(&after.aws_request_id),
        ),
    ];
    changes.retain(|change| !(change.old.is_empty() && change.new.is_empty()));
    changes
}

/// Kind of callers, each of which has its own share of [`Refusals`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallerClass {
    /// Its identity was verified.
    Authenticated,
    /// Anyone who can reach the port; counted by network.
    Anonymous,
}

/// One refused call.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// Caller.
    pub actor: Actor,
    /// Kind of the caller.
    pub class: CallerClass,
    /// Path of the RPC without its leading slash; empty if there is no such RPC.
    pub method: Box<str>,
    /// Organization that the request names; empty if none is known.
    pub organization_id: Box<str>,
    /// Canonical code of the error.
    pub code: Box<str>,
    /// Reason in `ErrorInfo`; may be empty.
    pub reason: Box<str>,
    /// Field of the request that was refused, if it was one.
    pub field: Option<&'static str>,
    /// Number of events or names that were refused together, at least 1.
    pub count: u64,
}

/// Refusals that have the same caller, method, organization and error.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Key {
    caller: Box<str>,
    issuer: Box<str>,
    method: Box<str>,
    organization_id: Box<str>,
    code: Box<str>,
    reason: Box<str>,
}

/// Refusals since the last [`Refusals::take`], equal ones counted together.
///
/// Bounded: of each [`CallerClass`] at most 64 different ones are kept apart, and those
/// of one caller by organization only up to 8; further ones are one entry.
#[derive(Debug, Default)]
pub struct Refusals {
    authenticated: HashMap<Key, AuditEntry>,
    anonymous: HashMap<Key, AuditEntry>,
}

impl Refusals {
    /// Counts a refusal.
    pub fn add(&mut self, refusal: Refusal, now: Timestamp) {
        let Refusal { actor, class, .. } = refusal;
        let (entries, caller) = match class {
            CallerClass::Authenticated => (&mut self.authenticated, (*actor.principal).into()),
            CallerClass::Anonymous => (&mut self.anonymous, network(actor.peer)),
        };
        let mut key = Key {
            caller,
            issuer: actor.issuer.as_deref().unwrap_or("").into(),
            method: refusal.method,
            organization_id: refusal.organization_id,
            code: refusal.code,
            reason: refusal.reason,
        };
        let mut actor = actor;
        if !entries.contains_key(&key) {
            let of_caller = entries.keys().filter(|known| known.caller == key.caller);
            if of_caller.count() >= MAX_KEYS_PER_CALLER {
                key.organization_id = "".into();
            }
            if entries.len() >= MAX_KEYS && !entries.contains_key(&key) {
                key = Key::default();
                actor = Actor::named(OTHERS);
            }
        }
        let entry = entries.entry(key).or_insert_with_key(|key| AuditEntry {
            method: key.method.clone(),
            code: key.code.clone(),
            reason: key.reason.clone(),
            count: 0,
            changes: refusal
                .field
                .map(|field| AuditChange::new(field, "", "refused"))
                .into_iter()
                .collect(),
            ..AuditEntry::new(AuditAction::Refuse, actor, &key.organization_id, now)
        });
        entry.count += refusal.count;
        entry.last_at = now;
    }

    /// Removes and returns the entries, oldest first.
    pub fn take(&mut self) -> Vec<AuditEntry> {
        let entries = self.authenticated.drain().chain(self.anonymous.drain());
        let mut entries: Vec<AuditEntry> = entries.map(|(_, entry)| entry).collect();
        entries.sort_by_key(|entry| entry.at);
        entries
    }
}

/// Network of an address, since a peer may have many addresses: /24 of IPv4, /48 of IPv6.
fn network(peer: Option<SocketAddr>) -> Box<str> {
    let Some(peer) = peer else {
        return "".into();
    };
    let network = match peer.ip().to_canonical() {
        IpAddr::V4(ip) => {
            let [a, b, c, _] = ip.octets();
            IpAddr::V4(Ipv4Addr::new(a, b, c, 0))
        }
        IpAddr::V6(ip) => {
            let [a, b, c, ..] = ip.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0))
        }
    };
    network.to_string().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn refusal(class: CallerClass, caller: &str, organization_id: &str) -> Refusal {
        let mut actor = Actor::named(caller);
        if class == CallerClass::Anonymous {
            actor = Actor::named("unauthenticated");
            actor.peer = Some(caller.parse().unwrap());
        }
        Refusal {
            actor,
            class,
            method: "siem.v1.SiemIntegrationService/Delete".into(),
            organization_id: organization_id.into(),
            code: "PERMISSION_DENIED".into(),
            reason: "PERMISSION_DENIED".into(),
            field: None,
            count: 1,
        }
    }

    fn total(entries: &[AuditEntry]) -> u64 {
        entries.iter().map(|entry| entry.count).sum()
    }

    #[test]
    fn equal_refusals_are_one_entry() {
        let mut refusals = Refusals::default();
        for second in 0..5 {
            let one = refusal(CallerClass::Authenticated, "alice", "acme");
            refusals.add(one, at(second));
        }
        refusals.add(refusal(CallerClass::Authenticated, "bob", "acme"), at(9));
        let entries = refusals.take();
        let shown: Vec<_> = entries
            .iter()
            .map(|one| (&*one.actor.principal, one.count, one.at, one.last_at))
            .collect();
        assert_eq!(
            shown,
            [("alice", 5, at(0), at(4)), ("bob", 1, at(9), at(9))]
        );
        assert_eq!(refusals.take(), []);
    }

    #[test]
    fn anonymous_refusals_are_counted_by_network_and_leave_the_others_their_share() {
        let mut refusals = Refusals::default();
        let sent: u64 = 256 * 20;
        for number in 0..sent {
            let [a, b] = [number / 20, number % 20];
            let peer = format!("10.0.{a}.{b}:{}", 1000 + number);
            refusals.add(refusal(CallerClass::Anonymous, &peer, ""), at(0));
        }
        refusals.add(refusal(CallerClass::Authenticated, "alice", "acme"), at(1));
        let entries = refusals.take();
        assert_eq!(entries.len(), MAX_KEYS + 2);
        assert_eq!(total(&entries), sent + 1);
        let others = entries.iter().find(|one| &*one.actor.principal == OTHERS);
        assert_eq!(others.unwrap().count, sent - 20 * MAX_KEYS as u64);
        let alice = entries.last().unwrap();
        assert_eq!(
            (&*alice.actor.principal, &*alice.organization_id),
            ("alice", "acme")
        );
    }

    #[test]
    fn one_caller_cannot_take_the_share_of_others_by_naming_organizations() {
        let mut refusals = Refusals::default();
        for number in 0..10_000 {
            let one = refusal(CallerClass::Authenticated, "mallory", &format!("o{number}"));
            refusals.add(one, at(0));
        }
        refusals.add(refusal(CallerClass::Authenticated, "alice", "acme"), at(1));
        let entries = refusals.take();
        assert_eq!(entries.len(), MAX_KEYS_PER_CALLER + 2);
        assert_eq!(total(&entries), 10_001);
        assert_eq!(&*entries.last().unwrap().organization_id, "acme");
    }

    #[test]
    fn networks_are_those_of_the_canonical_address() {
        for (peer, expected) in [
            ("192.0.2.77:1", "192.0.2.0"),
            ("[::ffff:192.0.2.77]:1", "192.0.2.0"),
            ("[2001:db8:7:8::9]:1", "2001:db8:7::"),
        ] {
            assert_eq!(&*network(Some(peer.parse().unwrap())), expected);
        }
    }
}
