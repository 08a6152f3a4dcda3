//! What the endpoint turns down, and in which words.

use std::time::Duration;

use http::header::{ALLOW, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{Method, StatusCode};

use super::{Answer, BODY_LIMIT, json};
use crate::lease::Holder;
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
    /// [`driver::Refused::TooSoon`].
    TooSoon = CONFLICT, "too_soon";
    /// [`driver::Refused::NoSwitch`].
    NoSwitch = CONFLICT, "no_switch";
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: Code,
    /// What, why and what to do.
    pub(super) message: String,
    besides: Besides,
}

/// What a program may want to know besides.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Besides {
    Nothing,
    /// Which methods are allowed.
    Allowed(&'static str),
    /// How to say who one is.
    Challenge,
    /// When it may be had.
    After(Duration),
    /// Who has the lease, and for how long.
    Leased {
        holder: Holder,
        expires: Duration,
    },
}

impl Refusal {
    pub(super) fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            besides: Besides::Nothing,
        }
    }

    fn with(self, besides: Besides) -> Self {
        Self { besides, ..self }
    }

    pub(super) fn answer(self) -> Answer {
        let mut body = json!({ "error": self.code.name(), "message": self.message });
        let header = match self.besides {
            Besides::Nothing => None,
            Besides::Allowed(methods) => Some((ALLOW, HeaderValue::from_static(methods))),
            Besides::Challenge => Some((WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))),
            Besides::After(left) => Some(retry_after(left)),
            Besides::Leased { holder, expires } => {
                body["holder"] = json!(holder);
                body["expires_seconds"] = json!(expires.as_secs_f64());
                Some(retry_after(expires))
            }
        };
        let mut answer = json(self.code.status(), &body);
        answer.headers_mut().extend(header);
        answer
    }
}

/// Rounded up: before that there is nothing to be had.
fn retry_after(left: Duration) -> (HeaderName, HeaderValue) {
    let seconds = left.as_secs() + u64::from(left.subsec_nanos() > 0);
    (RETRY_AFTER, seconds.max(1).into())
}

pub(super) fn wrong_method(method: &Method, allow: &'static str) -> Refusal {
    let message = format!("{method} is not possible here; use {allow}");
    Refusal::new(Code::WrongMethod, message).with(Besides::Allowed(allow))
}

pub(super) fn unauthorized() -> Refusal {
    let message = "this request needs the tracker's token: send Authorization: Bearer and the \
                   token of maintenance.readiness.token_file or \
                   TORRUST_TRACKER_MAINTENANCE_TOKEN, as the tracker has it";
    Refusal::new(Code::Unauthorized, message).with(Besides::Challenge)
}

pub(super) fn too_large() -> Refusal {
    let message = format!("a body may have {BODY_LIMIT} bytes; none of these needs a tenth of it");
    Refusal::new(Code::TooLarge, message)
}

impl From<driver::Refused> for Refusal {
    fn from(refused: driver::Refused) -> Self {
        use driver::Refused;
        let (code, besides) = match refused {
            Refused::Busy { .. } => (Code::Busy, Besides::Nothing),
            Refused::Stuck { .. } => (Code::Stuck, Besides::Nothing),
            Refused::TooSoon { left, .. } => (Code::TooSoon, Besides::After(left)),
            Refused::NoSwitch(_) => (Code::NoSwitch, Besides::Nothing),
            Refused::ShuttingDown => (Code::ShuttingDown, Besides::Nothing),
        };
        Self::new(code, refused.to_string()).with(besides)
    }
}

impl From<lease::Refused> for Refusal {
    fn from(refused: lease::Refused) -> Self {
        use lease::Refused;
        let message = refused.to_string();
        let (code, besides) = match refused {
            Refused::StaleRun => (Code::StaleRun, Besides::Nothing),
            Refused::TakenByTracker => (Code::TakenByTracker, Besides::Nothing),
            Refused::NotReady { .. } => (Code::NotReady, Besides::Nothing),
            Refused::NotHolder => (Code::NotHolder, Besides::Nothing),
            Refused::Taken { holder, expires } => {
                (Code::Taken, Besides::Leased { holder, expires })
            }
        };
        Self::new(code, message).with(besides)
    }
}
