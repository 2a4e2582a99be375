//! Protobuf's wire format, read from a slice.
//!
//! The format is that of <https://protobuf.dev/programming-guides/encoding/>; where
//! it leaves a choice, the choice is prost's.

/// How a value is laid out on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WireType {
    Varint,
    SixtyFourBit,
    LengthDelimited,
    StartGroup,
    EndGroup,
    ThirtyTwoBit,
}

/// Why bytes cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Problem {
    #[error("it ends in the middle of a value")]
    Truncated,
    #[error("a number is longer than 64 bits or cut short")]
    Varint,
    #[error("a field has an impossible number or wire type")]
    Key,
    #[error("a field has another wire type than the message says")]
    WireType,
    #[error("a group ends that did not start")]
    EndGroup,
    #[error("groups are nested too deeply")]
    TooDeep,
    #[error("text is not UTF-8")]
    Utf8,
}

/// What is left of one message, and how deep others may stand in it.
pub(super) struct Reader<'a> {
    rest: &'a [u8],
    depth: u32,
}

impl<'a> Reader<'a> {
    /// Reads a message that may hold others down to `depth`.
    pub(super) fn new(bytes: &'a [u8], depth: u32) -> Self {
        Self { rest: bytes, depth }
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The number and wire type of the next field.
    #[inline]
    pub(super) fn key(&mut self) -> Result<(u32, WireType), Problem> {
        let key = u32::try_from(self.varint()?).map_err(|_| Problem::Key)?;
        let wire_type = match key & 7 {
            0 => WireType::Varint,
            1 => WireType::SixtyFourBit,
            2 => WireType::LengthDelimited,
            3 => WireType::StartGroup,
            4 => WireType::EndGroup,
            5 => WireType::ThirtyTwoBit,
            _ => return Err(Problem::Key),
        };
        match key >> 3 {
            0 => Err(Problem::Key),
            tag => Ok((tag, wire_type)),
        }
    }

    /// A string.
    #[inline]
    pub(super) fn text(&mut self, wire_type: WireType) -> Result<&'a str, Problem> {
        let bytes = self.delimited(wire_type)?;
        str::from_utf8(bytes).map_err(|_| Problem::Utf8)
    }

    /// A number that is laid out as a varint.
    #[inline]
    pub(super) fn number(&mut self, wire_type: WireType) -> Result<u64, Problem> {
        expect(WireType::Varint, wire_type)?;
        self.varint()
    }

    /// A `uint32`: the low 32 bits of what is there.
    #[inline]
    pub(super) fn uint32(&mut self, wire_type: WireType) -> Result<u32, Problem> {
        Ok(self.number(wire_type)? as u32)
    }

    /// One field of a `repeated uint32`: one value, or many packed.
    pub(super) fn uint32s(
        &mut self,
        wire_type: WireType,
        mut push: impl FnMut(u32),
    ) -> Result<(), Problem> {
        if wire_type != WireType::LengthDelimited {
            push(self.uint32(wire_type)?);
            return Ok(());
        }
        let mut packed = Reader::new(self.delimited(wire_type)?, self.depth);
        while !packed.is_empty() {
            push(packed.uint32(WireType::Varint)?);
        }
        Ok(())
    }

    /// A message or a map's entry, to be read by a reader of its own.
    #[inline]
    pub(super) fn message(&mut self, wire_type: WireType) -> Result<Self, Problem> {
        let bytes = self.delimited(wire_type)?;
        match self.depth.checked_sub(1) {
            Some(depth) => Ok(Reader::new(bytes, depth)),
            None => Err(Problem::TooDeep),
        }
    }

    /// Reads past a field that is not known.
    pub(super) fn skip(&mut self, tag: u32, wire_type: WireType) -> Result<(), Problem> {
        self.skip_within(tag, wire_type, self.depth)
    }

    fn skip_within(&mut self, tag: u32, wire_type: WireType, depth: u32) -> Result<(), Problem> {
        if depth == 0 {
            return Err(Problem::TooDeep);
        }
        match wire_type {
            WireType::Varint => self.varint().map(|_| ()),
            WireType::ThirtyTwoBit => self.take(4).map(|_| ()),
            WireType::SixtyFourBit => self.take(8).map(|_| ()),
            WireType::LengthDelimited => self.delimited(wire_type).map(|_| ()),
            WireType::EndGroup => Err(Problem::EndGroup),
            WireType::StartGroup => loop {
                match self.key()? {
                    (inner, WireType::EndGroup) if inner == tag => return Ok(()),
                    (_, WireType::EndGroup) => return Err(Problem::EndGroup),
                    (inner, wire_type) => self.skip_within(inner, wire_type, depth - 1)?,
                }
            },
        }
    }

    #[inline]
    fn delimited(&mut self, wire_type: WireType) -> Result<&'a [u8], Problem> {
        expect(WireType::LengthDelimited, wire_type)?;
        let length = self.varint()?;
        self.take(usize::try_from(length).map_err(|_| Problem::Truncated)?)
    }

    #[inline]
    fn take(&mut self, length: usize) -> Result<&'a [u8], Problem> {
        let (taken, rest) = self
            .rest
            .split_at_checked(length)
            .ok_or(Problem::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }

    #[inline]
    fn varint(&mut self) -> Result<u64, Problem> {
        match self.rest {
            [byte, rest @ ..] if *byte < 0x80 => {
                self.rest = rest;
                Ok(u64::from(*byte))
            }
            _ => self.long_varint(),
        }
    }

    fn long_varint(&mut self) -> Result<u64, Problem> {
        let mut value = 0;
        for (at, &byte) in self.rest.iter().take(10).enumerate() {
            value |= u64::from(byte & 0x7f) << (at * 7);
            if byte < 0x80 {
                if at == 9 && byte > 1 {
                    break;
                }
                self.rest = &self.rest[at + 1..];
                return Ok(value);
            }
        }
        Err(Problem::Varint)
    }
}

#[inline]
fn expect(expected: WireType, given: WireType) -> Result<(), Problem> {
    if expected == given {
        Ok(())
    } else {
        Err(Problem::WireType)
    }
}
