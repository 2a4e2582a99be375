//! Pure values, rules and rendering: no input or output, and the time is an argument.

/// Defines an enum with a unique name for each variant. The store parses names by a search of
/// `ALL`, so `ALL` is generated and cannot miss a variant.
macro_rules! named_enum {
    (
        $(#[$attribute:meta])*
        pub enum $enum:ident {
            $($(#[$doc:meta])* $variant:ident = $name:literal,)+
        }
    ) => {
        $(#[$attribute])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $enum {
            $($(#[$doc])* $variant,)+
        }

        impl $enum {
            /// Every value.
            pub const ALL: [Self; [$($name),+].len()] = [$(Self::$variant),+];

            /// Stable name, as it is stored, logged and sent.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}

pub mod arn;
pub mod attribution;
pub mod audit;
pub mod backoff;
pub mod bitmap;
pub mod character;
pub mod chunk;
pub mod delivery;
pub mod error_chain;
pub mod event;
pub mod external_id;
pub mod integration;
pub mod map;
pub mod organization;
pub mod rate;
pub mod retention;
pub mod rights;
pub mod segment;
pub mod sequences;
pub mod service_url;
pub mod shard_rates;
pub mod status;
pub mod trace;
pub mod verdict;
