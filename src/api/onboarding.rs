//! GetOnboarding: the documents that a customer applies in its AWS account.

use std::sync::Arc;

use super::errors::{ApiError, Violations};
use crate::{
    domain::external_id::ExternalId,
    onboarding::{Document, Inputs, Problem},
    proto::v1::{GetOnboardingRequest, GetOnboardingResponse, OnboardingDocument},
};

/// Bytes of one field. The longest allowed value is an external ID of 1,224 characters.
const MAX_FIELD: usize = 2048;

/// Makes the documents. `account` is that of this service's own credentials, the principal unless
/// the request names another one.
pub(super) fn documents(
    request: GetOnboardingRequest,
    account: Option<Arc<str>>,
) -> Result<GetOnboardingResponse, ApiError> {
    let mut violations = Violations::default();
    for (field, value) in [
        ("stream", &request.stream),
        ("region", &request.region),
        ("account", &request.account),
        ("role_name", &request.role_name),
        ("principal", &request.principal),
    ] {
        if value.len() > MAX_FIELD {
            violations.add(field, "is too long");
        }
    }
    let given = |text: String| Some(text).filter(|text| !text.is_empty());
    let external_id = given(request.external_id)
        .and_then(|text| violations.parsed("external_id", ExternalId::parse(text)));
    // An account as principal stands for its identities that may assume roles. A session's ARN
    // would not do: it lacks the path of the role, and IAM accepts existing identities only.
    let principal = given(request.principal).or_else(|| account.map(|account| account.to_string()));
    if principal.is_none() {
        violations.add(
            "principal",
            "is required until this service knows its own AWS account; give the account, or try again later",
        );
    }
    let checked = match violations.is_empty() {
        true => Inputs {
            stream: given(request.stream),
            region: given(request.region),
            account: given(request.account),
            role_name: given(request.role_name),
            principal: principal.clone(),
            ..Inputs::default()
        }
        .check(),
        false => Err(Vec::new()),
    };
    let onboarding = match checked {
        Ok(onboarding) => onboarding,
        Err(problems) => {
            for Problem { field, message } in problems {
                violations.add(field.replace('-', "_"), message);
            }
            return Err(ApiError::Invalid(violations));
        }
    };
    let trust_policy = external_id.map(Document::TrustPolicy);
    let documents = trust_policy.into_iter().chain([
        Document::PermissionPolicy,
        Document::CloudFormation,
        Document::Terraform,
    ]);
    let documents = documents.map(|document| OnboardingDocument {
        file_name: document.file_name().to_owned(),
        title: document.title().to_owned(),
        text: onboarding.text(&document),
    });
    Ok(GetOnboardingResponse {
        documents: documents.collect(),
        kinesis_stream_arn: onboarding.stream().as_str().to_owned(),
        role_arn: onboarding.role().as_str().to_owned(),
        principal: principal.unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> GetOnboardingRequest {
        GetOnboardingRequest {
            stream: "detections".into(),
            region: "us-east-1".into(),
            account: "222222222222".into(),
            role_name: "siem-delivery".into(),
            ..GetOnboardingRequest::default()
        }
    }

    #[test]
    fn the_principal_is_our_account_and_only_the_trust_policy_has_the_external_id() {
        let request = GetOnboardingRequest {
            external_id: "an-external-id".into(),
            ..request()
        };
        let answer = documents(request, Some("111111111111".into())).unwrap();
        assert_eq!(
            answer.role_arn,
            "arn:aws:iam::222222222222:role/siem-delivery"
        );
        let with_id: Vec<_> = answer
            .documents
            .iter()
            .filter(|document| document.text.contains("an-external-id"))
            .map(|document| document.file_name.as_str())
            .collect();
        assert_eq!(with_id, ["trust-policy.json"]);
        assert!(answer.documents[0].text.contains("111111111111"));
        assert_eq!(answer.documents.len(), 4);
    }

    #[test]
    fn without_an_external_id_there_is_no_trust_policy() {
        let answer = documents(request(), Some("111111111111".into())).unwrap();
        assert_eq!(answer.documents.len(), 3);
    }

    #[test]
    fn every_problem_is_named_with_its_field() {
        let request = GetOnboardingRequest {
            region: "nowhere".into(),
            role_name: "a b".into(),
            ..request()
        };
        let Err(ApiError::Invalid(violations)) = documents(request, Some("111111111111".into()))
        else {
            panic!("accepted");
        };
        let fields: Vec<_> = violations.named().iter().map(|each| &each.field).collect();
        assert_eq!(fields, ["region", "role_name"]);
        let Err(ApiError::Invalid(violations)) = documents(GetOnboardingRequest::default(), None)
        else {
            panic!("accepted");
        };
        assert_eq!(violations.named()[0].field, "principal");
    }
}
