//! Requests to domain values: every violation of a request at once.

use std::{collections::BTreeSet, fmt::Display};

use super::{
    convert,
    errors::{ApiError, Violations},
};
use crate::{
    domain::{
        arn::{Partition, RoleArn, StreamArn},
        external_id::ExternalId,
        organization::OrganizationId,
        status::Status,
    },
    proto::v1::{ConfigureRequest, ListRequest},
    store::Configure,
};

/// Organizations that one status stream may name.
const MOST_ORGANIZATIONS: usize = 1000;
const DEFAULT_PAGE: usize = 100;
const MOST_PAGE: u32 = 1000;
/// An etag is shorter than this.
const MOST_ETAG: usize = 128;

/// Entries of a List's filter. There are four statuses; a few more do no harm.
const MOST_STATUSES: usize = 100;

impl Violations {
    fn read<T, E: Display>(&mut self, field: impl Display, value: Result<T, E>) -> Option<T> {
        match value {
            Ok(value) => Some(value),
            Err(error) => {
                self.add(field, error);
                None
            }
        }
    }

    fn refuse(self) -> ApiError {
        ApiError::Invalid(self)
    }
}

pub(super) fn organization_id(text: &str) -> Result<OrganizationId, ApiError> {
    OrganizationId::new(text).map_err(|error| ApiError::invalid("organization_id", error))
}

/// The organizations of a status stream; empty means all.
pub(super) fn organization_ids(texts: &[String]) -> Result<Vec<OrganizationId>, ApiError> {
    let mut violations = Violations::default();
    if texts.len() > MOST_ORGANIZATIONS {
        violations.add(
            "organization_ids",
            format!("may name at most {MOST_ORGANIZATIONS} organizations; name none for all"),
        );
        return Err(violations.refuse());
    }
    let mut organizations = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        let field = format_args!("organization_ids[{index}]");
        organizations.extend(violations.read(field, OrganizationId::new(text)));
    }
    match violations.is_empty() {
        true => Ok(organizations),
        false => Err(violations.refuse()),
    }
}

/// A page of a list.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) size: usize,
    /// The organization after which it begins.
    pub(super) after: String,
    /// Empty means all.
    pub(super) statuses: Vec<Status>,
}

pub(super) fn page(request: ListRequest) -> Result<Page, ApiError> {
    let mut violations = Violations::default();
    if request.page_size > MOST_PAGE {
        violations.add(
            "page_size",
            format!("may be at most {MOST_PAGE}; 0 means {DEFAULT_PAGE}"),
        );
    }
    if !request.page_token.is_empty() && OrganizationId::new(&request.page_token).is_err() {
        violations.add(
            "page_token",
            "is not one that this service gave; leave it empty to begin",
        );
    }
    let mut statuses = Vec::new();
    if request.statuses.len() > MOST_STATUSES {
        violations.add(
            "statuses",
            format_args!("may have at most {MOST_STATUSES} entries; leave it empty for all"),
        );
    }
    let given = request.statuses.iter().take(MOST_STATUSES).enumerate();
    let mut unknown = BTreeSet::new();
    for (index, value) in given {
        match convert::status_filter(*value) {
            Some(status) if statuses.contains(&status) => {}
            Some(status) => statuses.push(status),
            // Each unknown number is named once.
            None if unknown.insert(*value) => violations.add(
                format_args!("statuses[{index}]"),
                format_args!("is {value}, which is not a status to filter by"),
            ),
            None => {}
        }
    }
    match violations.is_empty() {
        true => Ok(Page {
            size: match request.page_size {
                0 => DEFAULT_PAGE,
                size => size as usize,
            },
            after: request.page_token,
            statuses,
        }),
        false => Err(violations.refuse()),
    }
}

/// `exists` tells whether there is an integration whose external ID may be kept.
pub(super) fn configure(
    request: ConfigureRequest,
    exists: bool,
    issued_only: bool,
    own_partition: Option<Partition>,
    caller: Box<str>,
) -> Result<Configure, ApiError> {
    let mut violations = Violations::default();
    let organization_id = violations.read(
        "organization_id",
        OrganizationId::new(&request.organization_id),
    );
    let stream_arn = violations.read(
        "kinesis_stream_arn",
        StreamArn::parse(&request.kinesis_stream_arn),
    );
    let role_arn = violations.read("role_arn", RoleArn::parse(&request.role_arn));
    let external_id = match request.external_id {
        empty if empty.is_empty() => {
            if !exists {
                violations.add("external_id", "is required to create an integration");
            }
            None
        }
        text => violations.read("external_id", ExternalId::parse(text)),
    };
    if request.keep_previous_external_id && external_id.is_none() {
        violations.add(
            "keep_previous_external_id",
            "needs a new external_id beside it",
        );
    }
    if request.etag.len() > MOST_ETAG {
        violations.add("etag", "is not one that this service gave");
    }
    if let (Some(stream_arn), Some(role_arn)) = (&stream_arn, &role_arn)
        && !stream_arn.same_partition(role_arn)
    {
        violations.add(
            "role_arn",
            "is in another AWS partition than the stream; no role is assumed across partitions",
        );
    }
    if let (Some(own), Some(stream_arn)) = (own_partition, &stream_arn)
        && stream_arn.partition() != own
    {
        violations.add(
            "kinesis_stream_arn",
            format!(
                "is in AWS partition {}, and this service's own credentials are of partition {own}: it can deliver to partition {own} only",
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
                caller,
            })
        }
        _ => Err(violations.refuse()),
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
    fn names_every_violation_of_a_configure() {
        let error = configure(
            ConfigureRequest::default(),
            false,
            false,
            None,
            "test".into(),
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
    fn refuses_a_role_of_another_partition() {
        let request = ConfigureRequest {
            organization_id: "acme".into(),
            kinesis_stream_arn: "arn:aws:kinesis:us-east-1:111122223333:stream/alerts".into(),
            role_arn: "arn:aws-cn:iam::111122223333:role/relay".into(),
            external_id: "an-external-id".into(),
            ..ConfigureRequest::default()
        };
        let error = configure(request, false, false, None, "test".into()).unwrap_err();
        assert_eq!(fields(error), ["role_arn"]);
    }

    #[test]
    fn refuses_a_partition_that_our_credentials_are_not_of() {
        let configured = |own| {
            let request = ConfigureRequest {
                organization_id: "acme".into(),
                kinesis_stream_arn: "arn:aws-cn:kinesis:cn-north-1:111122223333:stream/alerts"
                    .into(),
                role_arn: "arn:aws-cn:iam::111122223333:role/relay".into(),
                external_id: "an-external-id".into(),
                ..ConfigureRequest::default()
            };
            configure(request, false, false, own, "test".into())
        };
        assert_eq!(
            fields(configured(Some(Partition::Aws)).unwrap_err()),
            ["kinesis_stream_arn"]
        );
        assert!(configured(Some(Partition::AwsCn)).is_ok());
        assert!(configured(None).is_ok());
    }

    #[test]
    fn a_page_is_bounded() {
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
    fn a_filter_is_bounded() {
        let of = |statuses| ListRequest {
            statuses,
            ..ListRequest::default()
        };
        assert_eq!(page(of(vec![2; 100])).unwrap().statuses, [Status::Active]);
        let error = page(of(vec![99; 101])).unwrap_err();
        assert_eq!(fields(error), ["statuses", "statuses[0]"]);
    }
}
