//! Conversion of requests into domain values. All violations of a request are reported at
//! once.

use std::{collections::BTreeSet, fmt::Display};

use jiff::Timestamp;

use super::{
    convert,
    errors::{ApiError, Violations},
};
use crate::{
    domain::{
        arn::{Partition, RoleArn, StreamArn},
        audit::Actor,
        external_id::ExternalId,
        organization::OrganizationId,
        rights::Pattern,
        status::Status,
    },
    proto::v1::{ConfigureRequest, ListAuditEntriesRequest, ListRequest, StreamStatusRequest},
    store::{AuditPosition, AuditQuery, Configure},
};

/// Organizations in the request of one status stream.
const MAX_ORGANIZATIONS: usize = 1000;
const DEFAULT_PAGE: usize = 100;
const MAX_PAGE: u32 = 1000;
/// Bytes of an etag. Issued ones are shorter.
const MAX_ETAG: usize = 128;
/// Bytes of a resume token. Issued ones are shorter.
const MAX_RESUME_TOKEN: usize = 256;
/// Entries of a List's filter: more than there are statuses, so that duplicates and future
/// statuses are no error of size.
const MAX_STATUSES: usize = 100;
/// Problem of a page token.
const FOREIGN_TOKEN: &str = "was not issued by this service; leave it empty for the first page";

impl Violations {
    /// Returns the value, or adds its error as a violation.
    pub(super) fn parsed<T, E: Display>(
        &mut self,
        field: impl Display,
        value: Result<T, E>,
    ) -> Option<T> {
        match value {
            Ok(value) => Some(value),
            Err(error) => {
                self.add(field, error);
                None
            }
        }
    }

    /// Returns the value of a valid request.
    fn check<T>(self, value: T) -> Result<T, ApiError> {
        match self.is_empty() {
            true => Ok(value),
            false => Err(ApiError::Invalid(self)),
        }
    }
}

pub(super) fn organization_id(text: &str) -> Result<OrganizationId, ApiError> {
    OrganizationId::new(text).map_err(|error| ApiError::invalid("organization_id", error))
}

/// Returns the organizations of a status stream; empty means all.
pub(super) fn status_stream(
    request: &StreamStatusRequest,
) -> Result<Vec<OrganizationId>, ApiError> {
    let mut violations = Violations::default();
    if request.resume_token.len() > MAX_RESUME_TOKEN {
        violations.add(
            "resume_token",
            "was not issued by this service; leave it empty for a full snapshot",
        );
    }
    if request.organization_ids.len() > MAX_ORGANIZATIONS {
        violations.add(
            "organization_ids",
            format_args!("may have at most {MAX_ORGANIZATIONS} entries; leave it empty for all"),
        );
    }
    let texts = request.organization_ids.iter().take(MAX_ORGANIZATIONS);
    let mut organizations = Vec::with_capacity(texts.len());
    for (index, text) in texts.enumerate() {
        let field = format_args!("organization_ids[{index}]");
        organizations.extend(violations.parsed(field, OrganizationId::new(text)));
    }
    violations.check(organizations)
}

/// Validated [`ListRequest`].
#[derive(Debug)]
pub(super) struct Page {
    pub(super) size: usize,
    /// Last organization of the previous page; empty for the first page.
    pub(super) after: String,
    /// Empty means all.
    pub(super) statuses: Vec<Status>,
}

pub(super) fn page(request: ListRequest) -> Result<Page, ApiError> {
    let mut violations = Violations::default();
    check_page_size(request.page_size, &mut violations);
    if !request.page_token.is_empty() && OrganizationId::new(&request.page_token).is_err() {
        violations.add("page_token", FOREIGN_TOKEN);
    }
    let mut statuses = Vec::new();
    if request.statuses.len() > MAX_STATUSES {
        violations.add(
            "statuses",
            format_args!("may have at most {MAX_STATUSES} entries; leave it empty for all"),
        );
    }
    let given = request.statuses.iter().take(MAX_STATUSES).enumerate();
    let mut unknown = BTreeSet::new();
    for (index, value) in given {
        match convert::status_filter(*value) {
            Some(status) if statuses.contains(&status) => {}
            Some(status) => statuses.push(status),
            // Each unknown number is reported once.
            None if unknown.insert(*value) => violations.add(
                format_args!("statuses[{index}]"),
                format_args!("is {value}, which is not a status that integrations have"),
            ),
            None => {}
        }
    }
    violations.check(Page {
        size: page_size(request.page_size),
        after: request.page_token,
        statuses,
    })
}

/// Bytes of a token of [`audit_token`].
const MAX_AUDIT_TOKEN: usize = 64;

/// Token of the page after a position of the audit.
pub(super) fn audit_token(position: AuditPosition) -> String {
    format!("{}.{}", position.at.as_microsecond(), position.id)
}

fn audit_position(token: &str) -> Option<AuditPosition> {
    let (at, id) = token
        .split_once('.')
        .filter(|_| token.len() <= MAX_AUDIT_TOKEN)?;
    Some(AuditPosition {
        at: Timestamp::from_microsecond(at.parse().ok()?).ok()?,
        id: id.parse().ok()?,
    })
}

pub(super) fn audit_query(request: &ListAuditEntriesRequest) -> Result<AuditQuery, ApiError> {
    let mut violations = Violations::default();
    let organizations = match request.organization_id.as_str() {
        "" => None,
        id => {
            let id = violations.parsed("organization_id", OrganizationId::new(id));
            id.map(|id| vec![Pattern::from(id)])
        }
    };
    let mut time = |field, time: Option<prost_types::Timestamp>| {
        let time = time?;
        let valid = (0..1_000_000_000)
            .contains(&time.nanos)
            .then(|| Timestamp::new(time.seconds, time.nanos).ok())
            .flatten();
        let problem = "is not a time between the years 1 and 9999";
        violations.parsed(field, valid.ok_or(problem))
    };
    let start = time("start_time", request.start_time);
    let end = time("end_time", request.end_time);
    if let (Some(start), Some(end)) = (start, end)
        && end < start
    {
        violations.add("end_time", "is before start_time");
    }
    check_page_size(request.page_size, &mut violations);
    let before = match request.page_token.as_str() {
        "" => None,
        token => violations.parsed("page_token", audit_position(token).ok_or(FOREIGN_TOKEN)),
    };
    violations.check(AuditQuery {
        organizations,
        start,
        end,
        before,
        limit: page_size(request.page_size),
    })
}

fn check_page_size(size: u32, violations: &mut Violations) {
    if size > MAX_PAGE {
        violations.add(
            "page_size",
            format_args!("may be at most {MAX_PAGE}; 0 means {DEFAULT_PAGE}"),
        );
    }
}

fn page_size(size: u32) -> usize {
    match size {
        0 => DEFAULT_PAGE,
        size => size as usize,
    }
}

/// `exists`: the organization has an integration, whose external ID an empty one keeps.
pub(super) fn configure(
    request: ConfigureRequest,
    exists: bool,
    issued_only: bool,
    own_partition: Option<Partition>,
    actor: Actor,
) -> Result<Configure, ApiError> {
    let mut violations = Violations::default();
    let organization_id = violations.parsed(
        "organization_id",
        OrganizationId::new(&request.organization_id),
    );
    let stream_arn = violations.parsed(
        "kinesis_stream_arn",
        StreamArn::parse(&request.kinesis_stream_arn),
    );
    let role_arn = violations.parsed("role_arn", RoleArn::parse(&request.role_arn));
    let external_id = match request.external_id {
        empty if empty.is_empty() => {
            if !exists {
                violations.add("external_id", "is required to create an integration");
            }
            None
        }
        text => violations.parsed("external_id", ExternalId::parse(text)),
    };
    if request.keep_previous_external_id && external_id.is_none() {
        violations.add(
            "keep_previous_external_id",
            "requires a new external_id in the same request",
        );
    }
    if request.etag.len() > MAX_ETAG {
        violations.add(
            "etag",
            "was not issued by this service; take it from the integration",
        );
    }
    if let (Some(stream_arn), Some(role_arn)) = (&stream_arn, &role_arn)
        && !stream_arn.same_partition(role_arn)
    {
        violations.add(
            "role_arn",
            "is in another AWS partition than the stream; roles cannot be assumed across partitions",
        );
    }
    if let (Some(own), Some(stream_arn)) = (own_partition, &stream_arn)
        && stream_arn.partition() != own
    {
        violations.add(
            "kinesis_stream_arn",
            format!(
                "is in AWS partition {}, but this service has credentials for partition {own} and can deliver only there",
                stream_arn.partition()
            ),
        );
    }
    match (organization_id, stream_arn, role_arn) {
        (Some(organization_id), Some(stream_arn), Some(role_arn)) if violations.is_empty() => {
            Ok(Configure {
                organization_id,
                stream_arn,
                role_arn,
                external_id,
                keep_previous: request.keep_previous_external_id,
                issued_only,
                etag: Some(request.etag).filter(|etag| !etag.is_empty()),
                actor,
            })
        }
        _ => Err(ApiError::Invalid(violations)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(error: ApiError) -> Vec<String> {
        match error {
            ApiError::Invalid(violations) => {
                let named = violations.named().iter();
                named.map(|violation| violation.field.clone()).collect()
            }
            other => panic!("{other}"),
        }
    }

    #[test]
    fn configure_reports_every_violation() {
        let error = configure(
            ConfigureRequest::default(),
            false,
            false,
            None,
            Actor::named("test"),
        )
        .unwrap_err();
        assert_eq!(
            fields(error),
            [
                "organization_id",
                "kinesis_stream_arn",
                "role_arn",
                "external_id"
            ]
        );
    }

    #[test]
    fn refuses_a_role_in_another_partition() {
        let request = ConfigureRequest {
            organization_id: "acme".into(),
            kinesis_stream_arn: "arn:aws:kinesis:us-east-1:111122223333:stream/alerts".into(),
            role_arn: "arn:aws-cn:iam::111122223333:role/relay".into(),
            external_id: "an-external-id".into(),
            ..ConfigureRequest::default()
        };
        let error = configure(request, false, false, None, Actor::named("test")).unwrap_err();
        assert_eq!(fields(error), ["role_arn"]);
    }

    #[test]
    fn refuses_a_partition_other_than_that_of_our_credentials() {
        let configured = |own| {
            let request = ConfigureRequest {
                organization_id: "acme".into(),
                kinesis_stream_arn: "arn:aws-cn:kinesis:cn-north-1:111122223333:stream/alerts"
                    .into(),
                role_arn: "arn:aws-cn:iam::111122223333:role/relay".into(),
                external_id: "an-external-id".into(),
                ..ConfigureRequest::default()
            };
            configure(request, false, false, own, Actor::named("test"))
        };
        assert_eq!(
            fields(configured(Some(Partition::Aws)).unwrap_err()),
            ["kinesis_stream_arn"]
        );
        assert!(configured(Some(Partition::AwsCn)).is_ok());
        assert!(configured(None).is_ok());
    }

    #[test]
    fn list_reports_every_violation() {
        let request = ListRequest {
            page_size: 1001,
            page_token: "not an organization".into(),
            statuses: vec![0, 99, 2, 99, 0],
        };
        let error = page(request).unwrap_err();
        assert_eq!(
            fields(error),
            ["page_size", "page_token", "statuses[0]", "statuses[1]"]
        );
    }

    #[test]
    fn the_audit_reports_every_violation() {
        let request = ListAuditEntriesRequest {
            organization_id: "not an organization".into(),
            start_time: Some(prost_types::Timestamp {
                seconds: i64::MAX,
                nanos: 0,
            }),
            end_time: Some(prost_types::Timestamp {
                seconds: 0,
                nanos: -1,
            }),
            page_size: 1001,
            page_token: "1.2.3".into(),
        };
        assert_eq!(
            fields(audit_query(&request).unwrap_err()),
            [
                "organization_id",
                "start_time",
                "end_time",
                "page_size",
                "page_token"
            ]
        );
        let position = AuditPosition {
            at: Timestamp::from_microsecond(-7).unwrap(),
            id: -9,
        };
        assert_eq!(audit_position(&audit_token(position)), Some(position));
    }

    #[test]
    fn list_bounds_its_filter() {
        let of = |statuses| ListRequest {
            statuses,
            ..ListRequest::default()
        };
        assert_eq!(page(of(vec![2; 100])).unwrap().statuses, [Status::Active]);
        let error = page(of(vec![99; 101])).unwrap_err();
        assert_eq!(fields(error), ["statuses", "statuses[0]"]);
    }
}
