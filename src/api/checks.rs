//! What a test or a rehearsal found, in words.

use std::{borrow::Cow, time::Duration};

use super::convert;
use crate::{
    domain::{
        integration::Integration,
        status::{Fault, Meaning, Reason},
        verdict::{AssumedWith, DryRun, ExternalIdProof, TestVerdict, ValidationReport},
    },
    proto::v1::{Check, CheckName, CheckResult, SendTestResponse, TestReceipt},
};

/// The verdict of a test.
pub(super) fn verdict(verdict: &TestVerdict) -> SendTestResponse {
    let report = &verdict.report;
    let receipt = match &report.write {
        Some(Ok(receipt)) => Some(TestReceipt {
            event_id: verdict.event_id.to_string(),
            shard_id: receipt.shard_id.to_string(),
            sequence_number: receipt.sequence_number.to_string(),
            latency: Some(duration(report.latency)),
        }),
        Some(Err(_)) | None => None,
    };
    let integration = &verdict.after.integration;
    let fault = report.fault();
    let write = match (&report.write, &report.assume_role) {
        (Some(result), _) => check(CheckName::WriteRecord, result.as_ref().err(), integration),
        (None, Err(_)) => skipped(CheckName::WriteRecord, NOT_ASSUMED),
        (None, Ok(_)) => skipped(
            CheckName::WriteRecord,
            "nothing is written to a role that does not require the External ID",
        ),
    };
    SendTestResponse {
        delivered: receipt.is_some(),
        message: match fault {
            Some(fault) => explain(&fault, integration).0.to_owned(),
            None => "Delivered - the test event is in the stream".to_owned(),
        },
        checks: vec![
            assume_role(&report.assume_role, integration),
            external_id(report.external_id.as_ref()),
            write,
        ],
        receipt,
        status: Some(convert::status(&verdict.after)),
        warnings: warnings(integration),
    }
}

/// The checks of a rehearsal.
pub(super) fn rehearsal(report: &ValidationReport, integration: &Integration) -> Vec<Check> {
    let write = match &report.write {
        Some(Ok(DryRun::WouldSucceed)) => check(CheckName::WriteRecord, None, integration),
        Some(Ok(DryRun::Written)) => skipped(
            CheckName::WriteRecord,
            "the endpoint does not know DryRun: it wrote the record, a test event",
        ),
        Some(Err(fault)) => check(CheckName::WriteRecord, Some(fault), integration),
        None => skipped(CheckName::WriteRecord, NOT_ASSUMED),
    };
    vec![
        assume_role(&report.assume_role, integration),
        external_id(report.external_id.as_ref()),
        write,
        skipped(
            CheckName::UseKmsKey,
            "AWS does not say whether DryRun looks at the stream's KMS key; SendTest does",
        ),
    ]
}

/// What is allowed but seldom meant.
pub(super) fn warnings(integration: &Integration) -> Vec<String> {
    let accounts = (
        integration.role_arn.account(),
        integration.stream_arn.account(),
    );
    match accounts {
        (role, stream) if role != stream => vec![format!(
            "the role is of account {role} and the stream of account {stream}: writing needs a resource policy on the stream that allows the role"
        )],
        _ => Vec::new(),
    }
}

const NOT_ASSUMED: &str = "the role could not be assumed";

fn duration(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: duration.as_secs() as i64,
        nanos: duration.subsec_nanos() as i32,
    }
}

fn skipped(name: CheckName, message: &str) -> Check {
    Check {
        name: name.into(),
        result: CheckResult::Skipped.into(),
        message: message.to_owned(),
        ..Check::default()
    }
}

fn passed(name: CheckName) -> Check {
    Check {
        name: name.into(),
        result: CheckResult::Passed.into(),
        ..Check::default()
    }
}

fn check(name: CheckName, fault: Option<&Fault>, integration: &Integration) -> Check {
    let Some(fault) = fault else {
        return passed(name);
    };
    let (message, remedy) = explain(fault, integration);
    Check {
        name: name.into(),
        result: CheckResult::Failed.into(),
        message: message.to_owned(),
        remedy: remedy.into_owned(),
        aws_error_code: fault.code().to_owned(),
        aws_request_id: fault.request_id.as_deref().unwrap_or_default().to_owned(),
    }
}

fn assume_role(result: &Result<AssumedWith, Fault>, integration: &Integration) -> Check {
    match result {
        Ok(AssumedWith::Current) => passed(CheckName::AssumeRole),
        Ok(AssumedWith::Previous) => Check {
            message: "with the External ID before; the new one is still refused".to_owned(),
            remedy: Reason::AssumeRoleDenied.remedy().to_owned(),
            ..passed(CheckName::AssumeRole)
        },
        Err(fault) => check(CheckName::AssumeRole, Some(fault), integration),
    }
}

fn external_id(proof: Option<&ExternalIdProof>) -> Check {
    const NAME: CheckName = CheckName::ExternalIdRequired;
    let failed = |message: &str| Check {
        name: NAME.into(),
        result: CheckResult::Failed.into(),
        message: message.to_owned(),
        remedy: Reason::ExternalIdNotRequired.remedy().to_owned(),
        ..Check::default()
    };
    match proof {
        None => skipped(NAME, NOT_ASSUMED),
        Some(ExternalIdProof::Required) => passed(NAME),
        Some(ExternalIdProof::NotRequired) => {
            failed("the role can be assumed without an External ID")
        }
        Some(ExternalIdProof::AnyAccepted) => {
            failed("the role can be assumed with any External ID")
        }
        Some(ExternalIdProof::Unclear(fault)) => Check {
            aws_error_code: fault.code().to_owned(),
            aws_request_id: fault.request_id.as_deref().unwrap_or_default().to_owned(),
            ..skipped(NAME, "AWS gave no clear answer; test again")
        },
    }
}

/// Message and remedy for a fault of a test.
fn explain(fault: &Fault, integration: &Integration) -> (&'static str, Cow<'static, str>) {
    match fault.meaning() {
        Meaning::Refused(reason) => {
            let remedy = reason.remedy_for(integration, fault.code());
            (reason.message(), remedy)
        }
        Meaning::Throttled => (
            "Throttled - the stream takes no more at this moment",
            Reason::Throttled.remedy().into(),
        ),
        Meaning::Unreachable => (
            "Unreachable - AWS gave no usable answer",
            "Try again in a minute; check the network between this service and AWS if it lasts."
                .into(),
        ),
        Meaning::SessionInvalid | Meaning::Ours => (
            "Not tested - this service cannot call AWS at the moment",
            "Nothing to change in your account: the operator of this service has to mend its AWS credentials or its clock."
                .into(),
        ),
    }
}
