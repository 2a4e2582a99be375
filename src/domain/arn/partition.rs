//! AWS partitions, which are separate sets of regions and accounts.

use std::fmt;

/// An AWS partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Partition {
    /// `aws`: the commercial regions.
    Aws,
    /// `aws-cn`: China.
    AwsCn,
    /// `aws-us-gov`: GovCloud (US).
    AwsUsGov,
    /// `aws-eusc`: the European Sovereign Cloud.
    AwsEusc,
    /// `aws-iso`.
    AwsIso,
    /// `aws-iso-b`.
    AwsIsoB,
    /// `aws-iso-e`.
    AwsIsoE,
    /// `aws-iso-f`.
    AwsIsoF,
}

impl Partition {
    /// Every partition.
    pub const ALL: [Self; 8] = [
        Self::Aws,
        Self::AwsCn,
        Self::AwsUsGov,
        Self::AwsEusc,
        Self::AwsIso,
        Self::AwsIsoB,
        Self::AwsIsoE,
        Self::AwsIsoF,
    ];

    /// Returns the partition with this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.as_str() == name)
    }

    /// Returns the partition that contains a region of this name.
    pub fn of_region(region: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.has_region(region))
    }

    /// Name in ARNs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Aws => "aws",
            Self::AwsCn => "aws-cn",
            Self::AwsUsGov => "aws-us-gov",
            Self::AwsEusc => "aws-eusc",
            Self::AwsIso => "aws-iso",
            Self::AwsIsoB => "aws-iso-b",
            Self::AwsIsoE => "aws-iso-e",
            Self::AwsIsoF => "aws-iso-f",
        }
    }

    /// Whether a region of this name may be in the partition. Decided by the form of the name
    /// rather than by a list, because AWS adds regions.
    pub fn has_region(self, region: &str) -> bool {
        let of = |known: &Self| region.starts_with(known.region_prefix());
        has_region_form(region) && Self::ALL[1..].iter().find(|known| of(known)) == self.named()
    }

    fn named(&self) -> Option<&Self> {
        (*self != Self::Aws).then_some(self)
    }

    /// Prefix that only the names of its regions have; `aws` has all others.
    fn region_prefix(self) -> &'static str {
        match self {
            Self::Aws => "",
            Self::AwsCn => "cn-",
            Self::AwsUsGov => "us-gov-",
            Self::AwsEusc => "eusc-",
            Self::AwsIso => "us-iso-",
            Self::AwsIsoB => "us-isob-",
            Self::AwsIsoE => "eu-isoe-",
            Self::AwsIsoF => "us-isof-",
        }
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether a name matches `[a-z]{2,}(-[a-z]+)+-[0-9]+` and has at most 32 bytes. It becomes
/// a part of a host name.
fn has_region_form(region: &str) -> bool {
    let Some((words, number)) = region.rsplit_once('-') else {
        return false;
    };
    let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    let mut words = words.split('-');
    let area = words.next().unwrap_or_default();
    let lower = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase());
    let mut words = words.peekable();
    digits
        && region.len() <= 32
        && area.len() >= 2
        && lower(area)
        && words.peek().is_some()
        && words.all(lower)
}
