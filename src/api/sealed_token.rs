//! Page tokens and resume tokens, encrypted for one caller: they name organizations and revisions,
//! and count the changes of all.

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    error::Unspecified,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use super::caller::Binding;

/// Bytes of a sealed token. Issued ones are shorter.
const MAX_SEALED: usize = 256;

/// Key of the tokens of one kind.
pub(super) struct SealedTokens {
    key: RandomizedNonceKey,
    kind: &'static str,
}

impl SealedTokens {
    /// `key` is the same on all instances. A token of one kind is not one of another.
    pub(super) fn new(key: &[u8; 32], kind: &'static str) -> Result<Self, Unspecified> {
        Ok(Self {
            key: RandomizedNonceKey::new(&AES_256_GCM, key)?,
            kind,
        })
    }

    /// Seals a token for a caller. Without authentication, and without content, it stays as it is.
    pub(super) fn seal(&self, binding: &Binding, token: String) -> String {
        let Some(aad) = self.aad(binding) else {
            return token;
        };
        if token.is_empty() {
            return token;
        }
        let mut sealed = token.into_bytes();
        match self.key.seal_in_place_append_tag(aad, &mut sealed) {
            Ok(nonce) => URL_SAFE_NO_PAD.encode([&nonce.as_ref()[..], &sealed].concat()),
            // A token that nobody can open begins anew.
            Err(Unspecified) => String::new(),
        }
    }

    /// Opens a token. None if it was not issued to this caller with the organizations that it has
    /// now.
    pub(super) fn open(&self, binding: &Binding, token: &str) -> Option<String> {
        let aad = match self.aad(binding) {
            Some(aad) if !token.is_empty() => aad,
            _ => return Some(token.to_owned()),
        };
        if token.len() > MAX_SEALED {
            return None;
        }
        let mut bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
        let (nonce, sealed) = bytes.split_at_mut_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let opened = self.key.open_in_place(nonce, aad, sealed).ok()?;
        String::from_utf8(opened.to_vec()).ok()
    }

    fn aad(&self, binding: &Binding) -> Option<Aad<Vec<u8>>> {
        let binding = binding.0.as_ref()?.as_ref();
        Some(Aad::from([binding, self.kind.as_bytes()].concat()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::caller::Caller,
        domain::rights::{Grant, Pattern, Rights},
    };

    fn caller(principal: &str, organization: &str) -> Binding {
        let pattern = Pattern::parse(organization).unwrap();
        let grant = Grant {
            organizations: [pattern].into_iter().collect(),
            ..Grant::default()
        };
        Caller::for_test(principal, Rights::intersection([grant.into()])).binding()
    }

    #[test]
    fn a_token_is_for_one_caller_and_its_organizations() {
        let of = |key, kind| SealedTokens::new(&[key; 32], kind).unwrap();
        let tokens = of(1, "page");
        let acme = caller("one", "acme*");
        let sealed = tokens.seal(&acme, "acme-17".to_owned());
        assert!(!sealed.contains("acme") && sealed.len() < MAX_SEALED);
        assert_eq!(tokens.open(&acme, &sealed).as_deref(), Some("acme-17"));
        assert_eq!(
            of(1, "page").open(&acme, &sealed).as_deref(),
            Some("acme-17")
        );
        for other in [
            caller("two", "acme*"),
            caller("one", "acme"),
            caller("one", "*"),
        ] {
            assert_eq!(tokens.open(&other, &sealed), None);
        }
        assert_eq!(of(2, "page").open(&acme, &sealed), None);
        assert_eq!(of(1, "resume").open(&acme, &sealed), None);
        for bad in [
            "acme-17",
            "x",
            &sealed[1..],
            &sealed[..sealed.len() - 2],
            &"A".repeat(300),
        ] {
            assert_eq!(tokens.open(&acme, bad), None, "{bad}");
        }
        assert_eq!(tokens.open(&acme, "").as_deref(), Some(""));
        assert_eq!(tokens.seal(&acme, String::new()), "");
    }

    #[test]
    fn without_authentication_a_token_is_not_sealed() {
        let tokens = SealedTokens::new(&[1; 32], "page").unwrap();
        let everybody = Caller::for_test("unauthenticated", Rights::UNLIMITED).binding();
        assert_eq!(tokens.seal(&everybody, "acme".to_owned()), "acme");
        assert_eq!(tokens.open(&everybody, "acme").as_deref(), Some("acme"));
    }
}
