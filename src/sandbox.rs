//! The sandbox: a local stand-in for the AWS services that delivery talks to.

pub mod aws;
