//! What the endpoint turns down, and in which words.

use http::header::{ALLOW, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{Method, StatusCode};
use serde_json::{Map, Value};

use super::{Answer, BODY_LIMIT, json};
use crate::{driver, lease};

/// Declares the codes with their statuses, so that there is one list of them.
macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $variant:ident = $status:ident, $name:literal;)+) => {
        /// What a refusal is called. A program branches on it: none changes its meaning.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub(super) enum Code {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Code {
            /// All there are.
            #[cfg(test)]
            pub(super) const ALL: &[Self] = &[$(Self::$variant),+];

            pub(super) fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            pub(super) fn status(self) -> StatusCode {
                match self {
                    $(Self::$variant => StatusCode::$status,)+
                }
            }
        }
    };
}

codes! {
    /// No `Host`, or more than one.
    BadHost = BAD_REQUEST, "bad_host";
    /// A query that cannot be read.
    BadQuery = BAD_REQUEST, "bad_query";
    /// A body that is not what the request takes.
    BadBody = BAD_REQUEST, "bad_body";
    /// No token, or not the right one.
    Unauthorized = UNAUTHORIZED, "unauthorized";
    /// With an `Origin`.
    FromABrowser = FORBIDDEN, "from_a_browser";
    /// No such path.
    NotFound = NOT_FOUND, "not_found";
    /// A path that is there, but not for this method.
    WrongMethod = METHOD_NOT_ALLOWED, "wrong_method";
    /// A body that does not come.
    TooSlow = REQUEST_TIMEOUT, "too_slow";
    /// [`driver::Refused::Busy`].
    Busy = CONFLICT, "busy";
    /// [`driver::Refused::Stuck`].
    Stuck = CONFLICT, "stuck";
    /// [`lease::Refused::Taken`].
    Taken = CONFLICT, "taken";
    /// [`lease::Refused::TakenByTracker`].
    TakenByTracker = CONFLICT, "taken_by_tracker";
    /// [`lease::Refused::NotReady`].
    NotReady = CONFLICT, "not_ready";
    /// [`lease::Refused::NotHolder`].
    NotHolder = CONFLICT, "not_holder";
    /// [`lease::Refused::StaleRun`].
    StaleRun = GONE, "stale_run";
    /// A body of too many bytes.
    TooLarge = PAYLOAD_TOO_LARGE, "too_large";
    /// A body that is not declared as JSON.
    NotJson = UNSUPPORTED_MEDIA_TYPE, "not_json";
    /// A `Host` that somebody else may have a say in.
    WrongHost = MISDIRECTED_REQUEST, "wrong_host";
    /// An answer that JSON cannot say.
    NotUtf8 = INTERNAL_SERVER_ERROR, "not_utf8";
    /// The driver broke.
    Broken = SERVICE_UNAVAILABLE, "broken";
    /// The driver did not take up what was asked of it.
    NoReply = SERVICE_UNAVAILABLE, "no_reply";
    /// [`driver::Refused::ShuttingDown`].
    ShuttingDown = SERVICE_UNAVAILABLE, "shutting_down";
}

/// A request that is turned down.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Refusal {
    pub(super) code: Code,
    /// What, why and what to do.
    pub(super) message: String,
    /// What a program may want to know besides.
    more: Map<String, Value>,
    header: Option<(HeaderName, HeaderValue)>,
}

impl Refusal {
    pub(super) fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            more: Map::new(),
            header: None,
        }
    }

    fn with_header(self, name: HeaderName, value: impl Into<HeaderValue>) -> Self {
        let header = Some((name, value.into()));
        Self { header, ..self }
    }

    pub(super) fn answer(self) -> Answer {
        let mut body = self.more;
        body.insert("error".to_owned(), json!(self.code.name()));
        body.insert("message".to_owned(), json!(self.message));
        let mut answer = json(self.code.status(), &body);
        if let Some((name, value)) = self.header {
            answer.headers_mut().insert(name, value);
        }
        answer
    }
}

pub(super) fn wrong_method(method: &Method, allow: &'static str) -> Refusal {
    let message = format!("{method} is not possible here; use {allow}");
    Refusal::new(Code::WrongMethod, message).with_header(ALLOW, HeaderValue::from_static(allow))
}

pub(super) fn unauthorized() -> Refusal {
    let message = "this request needs the tracker's token: send Authorization: Bearer and the \
                   token of maintenance.readiness.token_file or \
                   TORRUST_TRACKER_MAINTENANCE_TOKEN, as the tracker has it";
    Refusal::new(Code::Unauthorized, message)
        .with_header(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
}

pub(super) fn too_large() -> Refusal {
    let message = format!("a body may have {BODY_LIMIT} bytes; none of these needs a tenth of it");
    Refusal::new(Code::TooLarge, message)
}

impl From<driver::Refused> for Refusal {
    fn from(refused: driver::Refused) -> Self {
        use driver::Refused;
        let code = match refused {
            Refused::Busy { .. } => Code::Busy,
            Refused::Stuck { .. } => Code::Stuck,
            Refused::ShuttingDown => Code::ShuttingDown,
        };
        Self::new(code, refused.to_string())
    }
}

impl From<lease::Refused> for Refusal {
    fn from(refused: lease::Refused) -> Self {
        use lease::Refused;
        let message = refused.to_string();
        match refused {
            Refused::StaleRun => Self::new(Code::StaleRun, message),
            Refused::TakenByTracker => Self::new(Code::TakenByTracker, message),
            Refused::NotReady { .. } => Self::new(Code::NotReady, message),
            Refused::NotHolder => Self::new(Code::NotHolder, message),
            Refused::Taken { holder, expires } => {
                let seconds = expires.as_secs_f64();
                let mut refusal = Self::new(Code::Taken, message);
                refusal.more.insert("holder".to_owned(), json!(holder));
                refusal
                    .more
                    .insert("expires_seconds".to_owned(), json!(seconds));
                // Rounded up: before that there is nothing to be had.
                let after = expires.as_secs() + u64::from(expires.subsec_nanos() > 0);
                refusal.with_header(RETRY_AFTER, after.max(1))
            }
        }
    }
}
