//! Troubles at AWS or in the network, and their repair.

use aws_stand_in::{Control, Effect, Fault, FaultId, Operation, StreamSpec};

use crate::harness::{Customer, fault};

/// A trouble of one customer.
#[derive(Clone, Copy, Debug)]
pub enum Trouble {
    /// The role trusts us with another external ID, and its sessions are revoked.
    Distrusted,
    /// The role is deleted.
    NoRole,
    /// The role's permission policy does not allow writing.
    MayNotWrite,
    /// The stream has a KMS key of the customer, which the role's policy does not allow.
    MayNotUseKey,
    /// The stream is deleted.
    NoStream,
    /// The call is answered with an error of AWS.
    Error(Operation, &'static str, u16),
    /// The call succeeds, and each of its records fails.
    Records(&'static str),
    /// The call gets no answer.
    Hang(Operation),
    /// The connection is reset.
    Reset(Operation),
    /// A proxy answers in place of AWS, with a page.
    Page(Operation, u16),
    /// The test itself makes the trouble.
    External,
}

impl Trouble {
    /// Operation that fails.
    pub fn operation(self) -> Operation {
        match self {
            Self::Distrusted | Self::NoRole => Operation::AssumeRole,
            Self::MayNotWrite | Self::MayNotUseKey | Self::NoStream | Self::Records(_) => {
                Operation::PutRecords
            }
            Self::Error(operation, ..)
            | Self::Hang(operation)
            | Self::Reset(operation)
            | Self::Page(operation, _) => operation,
            Self::External => Operation::AssumeRole,
        }
    }

    /// Outcome of the call in the stand-in's list of calls; None if the answer has no request id.
    pub fn outcome(self, code: &str) -> Option<&str> {
        match self {
            Self::Records(_) => Some("OK"),
            Self::Hang(_) | Self::Reset(_) | Self::Page(..) | Self::External => None,
            _ => Some(code),
        }
    }

    /// Whether a failed call may have taken effect, so that retries make duplicates.
    pub fn may_repeat(self) -> bool {
        matches!(self, Self::Hang(_))
    }

    /// Makes the customer's role and stream.
    pub fn make_account(self, customer: &Customer, aws: &Control) {
        customer.make_role_that_may(aws, "*");
        let mut stream = StreamSpec::new(&customer.stream_arn, 1);
        if matches!(self, Self::MayNotUseKey) {
            stream.kms_key_arn = Some("arn:aws:kms:eu-west-1:222222222222:key/one".to_owned());
        }
        aws.create_stream(stream).unwrap();
    }

    /// Begins the trouble; a fault of calls may be limited to a number of them. Returns the fault, which
    /// [`Trouble::repair`] clears.
    pub fn begin(self, customer: &Customer, aws: &Control, calls: Option<u64>) -> Option<FaultId> {
        match self {
            Self::Distrusted => {
                aws.delete_role(&customer.role_arn);
                customer.with_external_id("of-somebody-else").make_role(aws);
            }
            Self::NoRole => assert!(aws.delete_role(&customer.role_arn)),
            Self::MayNotWrite => customer.make_role_that_may(aws, "kms:*"),
            Self::MayNotUseKey => customer.make_role_that_may(aws, "kinesis:*"),
            Self::NoStream => assert!(aws.delete_stream(&customer.stream_arn)),
            Self::External => {}
            _ => {
                let fault = self.fault(customer, calls);
                let id = aws.add_fault(fault).unwrap();
                if self.operation() == Operation::AssumeRole {
                    // A deleted role's sessions end, so that it is assumed again.
                    aws.delete_role(&customer.role_arn);
                    customer.make_role_that_may(aws, "*");
                }
                return Some(id);
            }
        }
        None
    }

    fn fault(self, customer: &Customer, calls: Option<u64>) -> Fault {
        let operation = self.operation();
        let target = match operation {
            Operation::AssumeRole => &customer.role_arn,
            _ => &customer.stream_arn,
        };
        let effect = match self {
            Self::Error(_, code, status) => Effect::Error {
                code: code.to_owned(),
                status,
                message: "as requested by the test".to_owned(),
            },
            Self::Records(code) => Effect::FailRecords {
                probability: 1.0,
                seed: 0,
                code: code.to_owned(),
            },
            Self::Hang(_) => Effect::Hang,
            Self::Reset(_) => Effect::Reset,
            Self::Page(_, status) => Effect::Garbage { status },
            _ => panic!("{self:?} is no fault"),
        };
        Fault {
            calls,
            ..fault(operation, Some(target), effect)
        }
    }

    /// Ends the trouble.
    pub fn repair(self, customer: &Customer, aws: &Control, fault: Option<FaultId>) {
        match self {
            Self::NoStream => customer.make_stream(aws, 1),
            Self::Distrusted | Self::NoRole | Self::MayNotWrite | Self::MayNotUseKey => {
                customer.make_role_that_may(aws, "*");
            }
            Self::External => {}
            _ => assert!(fault.is_some_and(|fault| aws.clear_fault(fault))),
        }
    }
}
