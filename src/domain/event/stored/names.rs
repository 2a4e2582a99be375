//! What stands before each value of a detection.

/// A detection's fields in the order in which they stand in its data: a bit each.
#[derive(Clone, Copy)]
pub(super) enum Field {
    SrcIp,
    SrcPort,
    DestIp,
    DestPort,
    Proto,
    AppProto,
    FlowId,
    CommunityId,
    Vlan,
    InIface,
    Direction,
    Action,
    Gid,
    SignatureId,
    Rev,
    Signature,
    Category,
    Severity,
    Metadata,
    Context,
}

const COUNT: usize = Field::Context as usize + 1;

/// What stands before a value. Copied in one piece of a fixed size, which is quicker than
/// one of its own.
pub(super) struct Name {
    pub(super) padded: [u8; Self::MOST],
    pub(super) length: usize,
}

impl Name {
    const MOST: usize = 24;

    const fn new(text: &[u8]) -> Self {
        let mut padded = [0; Self::MOST];
        let (start, _) = padded.split_at_mut(text.len());
        start.copy_from_slice(text);
        Self {
            padded,
            length: text.len(),
        }
    }
}

/// By [`Field`].
pub(super) static NAMES: [Name; COUNT] = [
    Name::new(br#","src_ip":""#),
    Name::new(br#","src_port":"#),
    Name::new(br#","dest_ip":""#),
    Name::new(br#","dest_port":"#),
    Name::new(br#","proto":""#),
    Name::new(br#","app_proto":""#),
    Name::new(br#","flow_id":"#),
    Name::new(br#","community_id":""#),
    Name::new(br#","vlan":["#),
    Name::new(br#","in_iface":""#),
    Name::new(br#","direction":""#),
    Name::new(br#","action":""#),
    Name::new(br#","gid":"#),
    Name::new(br#","signature_id":"#),
    Name::new(br#","rev":"#),
    Name::new(br#","signature":""#),
    Name::new(br#","category":""#),
    Name::new(br#","severity":"#),
    Name::new(br#","metadata":{"#),
    Name::new(br#","context":"#),
];
pub(super) const FIELDS: u32 = (1 << COUNT) - 1;
