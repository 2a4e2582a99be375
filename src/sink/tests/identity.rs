//! Attribution of denials, and the proof that a role requires the external ID.

use super::{
    stand_in::{World, policy, trust},
    *,
};
use aws_stand_in::{Effect, Fault as SetFault, Operation, RoleSpec, StreamSpec, When};

/// Customers whose roles can be assumed.
async fn customers(count: i64) -> (World, Vec<Arc<Integration>>) {
    let world = World::start().await;
    let everything = policy(&json!({"Effect": "Allow", "Action": "*", "Resource": "*"}));
    for which in 0..count {
        let of_it = StreamSpec::new(stream(which), 1);
        world.control.create_stream(of_it).unwrap();
        let spec = RoleSpec::new(role(which), trust(EXTERNAL_ID), &everything);
        world.control.put_role(spec).unwrap();
    }
    let customers: Vec<_> = (0..count).map(customer).collect();
    for customer in &customers {
        world
            .sink
            .put_records(customer, records(1), &[])
            .await
            .unwrap();
    }
    (world, customers)
}

async fn meaning(world: &World, customer: &Arc<Integration>) -> Meaning {
    world.control.expire_sessions();
    let answer = world.sink.put_records(customer, records(1), &[]).await;
    answer.unwrap_err().meaning()
}

async fn one_denial_among_many_is_the_customers_fault() {
    let (world, customers) = customers(6).await;
    world.control.delete_role(&role(0));
    let denied = Meaning::Refused(Reason::AssumeRoleDenied);
    assert_eq!(meaning(&world, &customers[0]).await, denied);
    assert_eq!(*world.sink.identity_state().borrow(), IdentityState::Good);
}

async fn denials_of_most_roles_are_our_fault_until_one_is_assumed() {
    let (world, customers) = customers(6).await;
    let fault = SetFault {
        operation: Some(Operation::AssumeRole),
        target: None,
        calls: None,
        when: When::Before,
        effect: Effect::Error {
            code: "AccessDenied".to_owned(),
            status: 403,
            message: "User is not authorized to perform: sts:AssumeRole".to_owned(),
        },
    };
    world.control.add_fault(fault).unwrap();
    for customer in &customers {
        assert_eq!(meaning(&world, customer).await, Meaning::Ours);
    }
    assert_eq!(
        *world.sink.identity_state().borrow(),
        IdentityState::MayNotAssume
    );
    world.control.clear_faults();
    jump(Duration::from_secs(1)).await;
    let answer = world.sink.put_records(&customers[3], records(1), &[]).await;
    assert!(answer.is_ok());
    assert_eq!(*world.sink.identity_state().borrow(), IdentityState::Good);
}

async fn two_customers_are_not_enough_evidence() {
    let (world, customers) = customers(2).await;
    world.control.delete_role(&role(0));
    world.control.delete_role(&role(1));
    let denied = Meaning::Refused(Reason::AssumeRoleDenied);
    assert_eq!(meaning(&world, &customers[0]).await, denied);
    assert_eq!(meaning(&world, &customers[1]).await, denied);
}

async fn refused_own_credentials_become_the_state() {
    let server = Server::start(|call| match call.is_sts() {
        true => server::sts_error(403, "InvalidClientTokenId", "The security token is invalid"),
        false => written(call),
    })
    .await;
    let sink = sink(&server).await;
    let fault = sink.put_records(&integration(), records(1), &[]).await;
    assert_eq!(fault.unwrap_err().meaning(), Meaning::Ours);
    let refused = IdentityState::CredentialsRefused {
        code: "InvalidClientTokenId".into(),
    };
    assert_eq!(*sink.identity_state().borrow(), refused);
}

async fn proof(trust_policy: &str) -> ExternalIdProof {
    let world = World::start().await;
    world.stream(None);
    let everything = policy(&json!({"Effect": "Allow", "Action": "*", "Resource": "*"}));
    let spec = RoleSpec::new(ROLE, trust_policy, &everything);
    world.control.put_role(spec).unwrap();
    let record = records(1).remove(0);
    let report = world.sink.test(&integration(), record.clone()).await;
    let validation = world.sink.validate_only(&integration(), record).await;
    assert_eq!(validation.external_id, report.external_id);
    assert_eq!(validation.write, Some(Ok(DryRun::WouldSucceed)));
    let written = world
        .sink
        .put_records(&integration(), records(1), &[])
        .await;
    let proof = report.external_id.clone().unwrap();
    let accepted = world.control.stream(STREAM).unwrap().accepted;
    if proof == ExternalIdProof::Required {
        assert!(report.fault().is_none() && written.is_ok());
        assert_eq!(accepted, 2);
    } else {
        let refused = Fault::external_id_not_required();
        assert_eq!(report.fault(), Some(refused.clone()));
        assert_eq!(written, Err(refused));
        assert_eq!(accepted, 0);
    }
    proof
}

async fn an_open_role_is_distinguished_from_one_that_requires_the_external_id() {
    let open = policy(&json!({
        "Effect": "Allow",
        "Principal": {"AWS": "arn:aws:iam::111111111111:root"},
        "Action": "sts:AssumeRole",
    }));
    let any = policy(&json!({
        "Effect": "Allow",
        "Principal": {"AWS": "arn:aws:iam::111111111111:root"},
        "Action": "sts:AssumeRole",
        "Condition": {"StringLike": {"sts:ExternalId": "*"}},
    }));
    assert_eq!(proof(&trust(EXTERNAL_ID)).await, ExternalIdProof::Required);
    assert_eq!(proof(&open).await, ExternalIdProof::NotRequired);
    assert_eq!(proof(&any).await, ExternalIdProof::AnyAccepted);
}

with_either_client!(
    one_denial_among_many_is_the_customers_fault,
    denials_of_most_roles_are_our_fault_until_one_is_assumed,
    two_customers_are_not_enough_evidence,
    refused_own_credentials_become_the_state,
    an_open_role_is_distinguished_from_one_that_requires_the_external_id,
);
