//! What goes wrong at AWS or on the way to it, and how it is mended.

use aws_stand_in::{Control, Effect, Fault, FaultId, Operation, StreamSpec, When};

use crate::harness::Customer;

/// What goes wrong.
#[derive(Clone, Copy, Debug)]
pub enum Trouble {
    /// The role trusts us with another external ID, and its sessions are revoked.
    Distrusted,
    /// The role is deleted.
    NoRole,
    /// The role's permission policy does not allow writing.
    MayNotWrite,
    /// The stream has a customer's key, and the role's policy does not allow it.
    MayNotUseKey,
    /// The stream is deleted.
    NoStream,
    /// The call is answered with an error of AWS.
    Error(Operation, &'static str, u16),
    /// The call succeeds, and each of its records fails.
    Records(&'static str),
    /// The call is not answered.
    Hang(Operation),
    /// The connection is reset.
    Reset(Operation),
    /// A proxy answers in place of AWS, with a page of its own.
    Page(Operation, u16),
    /// The test itself sees to what goes wrong.
    Elsewhere,
}

impl Trouble {
    /// The call that fails.
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
            Self::Elsewhere => Operation::AssumeRole,
        }
    }

    /// What the stand-in says of such a call; None where nobody answers with a request id.
    pub fn outcome(self, code: &str) -> Option<&str> {
        match self {
            Self::Records(_) => Some("OK"),
            Self::Hang(_) | Self::Reset(_) | Self::Page(..) | Self::Elsewhere => None,
            _ => Some(code),
        }
    }

    /// Whether a call that failed may have been carried out.
    pub fn may_repeat(self) -> bool {
        matches!(self, Self::Hang(_))
    }

    /// Makes what the customer has in AWS.
    pub fn make_account(self, customer: &Customer, aws: &Control) {
        customer.make_role_that_may(aws, "*");
        let mut stream = StreamSpec::new(&customer.stream_arn, 1);
        if matches!(self, Self::MayNotUseKey) {
            stream.kms_key_arn = Some("arn:aws:kms:eu-west-1:222222222222:key/one".to_owned());
        }
        aws.create_stream(stream).unwrap();
    }

    /// Lets it begin, for so many calls where it can be counted. Answers what is to be
    /// cleared in the end.
    pub fn begin(self, customer: &Customer, aws: &Control, calls: Option<u64>) -> Option<FaultId> {
        match self {
            Self::Distrusted => {
                aws.delete_role(&customer.role_arn);
                let distrusting = Customer {
                    external_id: "of-somebody-else".to_owned(),
                    ..customer.clone()
                };
                distrusting.make_role(aws);
            }
            Self::NoRole => assert!(aws.delete_role(&customer.role_arn)),
            Self::MayNotWrite => customer.make_role_that_may(aws, "kms:*"),
            Self::MayNotUseKey => customer.make_role_that_may(aws, "kinesis:*"),
            Self::NoStream => assert!(aws.delete_stream(&customer.stream_arn)),
            Self::Elsewhere => {}
            _ => {
                let fault = self.fault(customer, calls);
                let id = aws.add_fault(fault).unwrap();
                if self.operation() == Operation::AssumeRole {
                    // Its sessions die with a role: it has to be assumed anew.
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
                message: "so it was asked for".to_owned(),
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
            operation: Some(operation),
            target: Some(target.clone()),
            calls,
            when: When::Before,
            effect,
        }
    }

    /// Mends it.
    pub fn mend(self, customer: &Customer, aws: &Control, fault: Option<FaultId>) {
        match self {
            Self::NoStream => customer.make_stream(aws, 1),
            Self::Distrusted | Self::NoRole | Self::MayNotWrite | Self::MayNotUseKey => {
                customer.make_role_that_may(aws, "*");
            }
            Self::Elsewhere => {}
            _ => assert!(fault.is_some_and(|fault| aws.clear_fault(fault))),
        }
    }
}
