//! Suricata EVE files into the service.

pub mod eve;
