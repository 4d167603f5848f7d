//! The right to go on with a session: a token that its client gets with the answer and shows when it connects again.

use contract::{Digest, Error, Reason, SessionId};

/// Hexadecimal digits of the secret half: 128 bits.
const SECRET: usize = 32;

/// `{session}.{secret}`
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct ResumeToken {
    pub(crate) session: SessionId,
    secret: String,
}

impl ResumeToken {
    /// Of a new session.
    pub(crate) fn fresh() -> Self {
        let secret = format!("{:0SECRET$x}", rand::random::<u128>());
        Self { session: SessionId::random(), secret }
    }

    /// # Errors
    /// `bad_token`, without repeating it.
    pub(crate) fn parse(text: &str) -> Result<Self, Error> {
        let parsed = text.split_once('.').and_then(|(session, secret)| {
            let hex = secret.len() == SECRET && secret.bytes().all(|b| b.is_ascii_hexdigit());
            Some(Self { session: session.parse().ok()?, secret: hex.then(|| secret.to_owned())? })
        });
        parsed.ok_or_else(|| Error::new(Reason::BadToken, "resumeToken is not one that this server gave"))
    }

    /// What the other services know it by.
    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&[self.secret.as_bytes()])
    }

    /// For its client alone.
    pub(crate) fn reveal(&self) -> String {
        format!("{}.{}", self.session, self.secret)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_what_its_client_was_given_and_nothing_else() {
        let token = ResumeToken::fresh();
        let shown = ResumeToken::parse(&token.reveal()).unwrap();
        assert!(shown == token && shown.digest() == token.digest());
        assert!(ResumeToken::fresh().digest() != token.digest());
        let session = token.session;
        for text in ["", "x.y", &session.to_string(), &format!("{session}."), &format!("{session}.{:033}", 1)]
        {
            let error = ResumeToken::parse(text).err().unwrap();
            assert_eq!(error.reason, Reason::BadToken, "{text}");
        }
    }
}
