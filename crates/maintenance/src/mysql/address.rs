//! Where a database is and who asks for it, as the service's own configuration says it.

use std::fmt;
use std::str::FromStr;

use percent_encoding::percent_decode_str;
use url::{Host, Url};

/// The port of a URL that names none.
const PORT: u16 = 3306;

/// `mysql://user:password@host:port/name`, the form the service's own driver reads.
/// Nothing it can be printed with shows the password.
#[derive(Clone, PartialEq, Eq)]
pub struct Address {
    user: String,
    password: Option<Password>,
    host: String,
    port: u16,
    database: String,
}

/// A password, which is only shown to the client program.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

/// Why a text is no [`Address`]. Never quotes the text, which may hold a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotAnAddress {
    /// It is no URL at all.
    #[error("is not a URL such as mysql://user:password@host:3306/name: {0}")]
    Url(url::ParseError),
    /// It is of something else.
    #[error("does not begin with mysql://")]
    Scheme,
    /// No host.
    #[error("names no host; write mysql://user:password@host:3306/name")]
    Host,
    /// No database.
    #[error("names no database after the host; write mysql://user:password@host:3306/name")]
    Database,
    /// A sign that no option file can carry.
    #[error("has a sign of value 0 or a broken escape in the user, password or name")]
    Sign,
}

impl Address {
    /// The name of the database.
    #[must_use]
    pub fn database(&self) -> &str {
        &self.database
    }

    /// The user's password, if one is written.
    #[must_use]
    pub fn password(&self) -> Option<&Password> {
        self.password.as_ref()
    }

    /// The same with this password.
    #[must_use]
    pub fn with_password(self, password: Option<Password>) -> Self {
        Self { password, ..self }
    }

    /// The same server and user, another database.
    #[must_use]
    pub fn with_database(self, database: String) -> Self {
        Self { database, ..self }
    }

    /// Whether both are one user of one server, whose password is then the same.
    #[must_use]
    pub fn same_login(&self, other: &Self) -> bool {
        let login = |address: &Self| {
            let Self {
                user, host, port, ..
            } = address.clone();
            (user, host, port)
        };
        login(self) == login(other)
    }

    /// What a client program reads to log in: an option file, with the password. By TCP, as
    /// the service itself connects; to a client program `localhost` would be a socket.
    ///
    /// The service does not check the server's certificate either. MariaDB's clients since
    /// 11.4 would refuse a server without one.
    pub(super) fn options(&self) -> String {
        let Self {
            user, host, port, ..
        } = self;
        let mut options = format!(
            "[client]\nprotocol=tcp\nhost={}\nport={port}\nuser={}\n\
             loose-disable-ssl-verify-server-cert\n",
            quoted(host),
            quoted(user),
        );
        if let Some(Password(password)) = &self.password {
            options.push_str("password=");
            options.push_str(&quoted(password));
            options.push('\n');
        }
        options
    }

    /// A text without the password, should it be in it.
    pub(super) fn redacted(&self, text: &str) -> String {
        match &self.password {
            Some(Password(password)) => {
                // As it was told to the program, too.
                let quoted = text.replace(&quoted(password), "***");
                quoted.replace(password, "***")
            }
            None => text.to_owned(),
        }
    }
}

/// A value of an option file, whatever is in it (the manual's "Using Option Files").
fn quoted(value: &str) -> String {
    let mut quoted = String::from("\"");
    for sign in value.chars() {
        match sign {
            '\\' => quoted.push_str("\\\\"),
            '"' => quoted.push_str("\\\""),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            sign => quoted.push(sign),
        }
    }
    quoted.push('"');
    quoted
}

impl Password {
    /// The first line of a text, such as a file has; `None` if that is empty.
    #[must_use]
    pub fn first_line(text: &str) -> Option<Self> {
        let line = text.lines().next()?.to_owned();
        (!line.is_empty() && !line.contains('\0')).then_some(Self(line))
    }
}

impl FromStr for Address {
    type Err = NotAnAddress;

    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        let url = Url::parse(text).map_err(NotAnAddress::Url)?;
        if url.scheme() != "mysql" {
            return Err(NotAnAddress::Scheme);
        }
        let decoded = |part: &str| {
            let decoded = percent_decode_str(part).decode_utf8();
            let decoded = decoded.map_err(|_| NotAnAddress::Sign)?.into_owned();
            if decoded.contains('\0') {
                return Err(NotAnAddress::Sign);
            }
            Ok(decoded)
        };
        let host = match url.host().ok_or(NotAnAddress::Host)? {
            Host::Domain(name) => decoded(name)?,
            Host::Ipv4(address) => address.to_string(),
            Host::Ipv6(address) => address.to_string(),
        };
        let database = decoded(url.path().trim_start_matches('/'))?;
        if database.is_empty() {
            return Err(NotAnAddress::Database);
        }
        Ok(Self {
            user: decoded(url.username())?,
            password: url
                .password()
                .map(decoded)
                .transpose()?
                .filter(|password| !password.is_empty())
                .map(Password),
            host,
            port: url.port().unwrap_or(PORT),
            database,
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            user,
            host,
            port,
            database,
            ..
        } = self;
        let host = if host.contains(':') {
            format!("[{host}]")
        } else {
            host.clone()
        };
        write!(f, "mysql://{user}@{host}:{port}/{database}")
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        text.parse().expect("an address")
    }

    #[test]
    fn all_parts_are_read_and_the_port_has_a_default() {
        let read = address("mysql://tr%40ck:s3%27c%23%22%5C%2Fx@db.example:3307/torrust%20db");
        assert_eq!(read.user, "tr@ck");
        assert_eq!(read.password, Some(Password("s3'c#\"\\/x".to_owned())));
        assert_eq!((read.host.as_str(), read.port), ("db.example", 3307));
        assert_eq!(read.database(), "torrust db");
        assert_eq!(address("mysql://root@localhost/x").port, 3306);
        assert_eq!(address("mysql://root@[::1]/x").host, "::1");
    }

    #[test]
    fn what_is_none_is_told_without_being_quoted() {
        for (text, expected) in [
            ("./sqlite3.db", None),
            ("postgres://u:hunter2@h/x", Some(NotAnAddress::Scheme)),
            ("mysql://u:hunter2@h", Some(NotAnAddress::Database)),
            ("mysql://u:hunter2@h/", Some(NotAnAddress::Database)),
            ("mysql:///x", Some(NotAnAddress::Host)),
            ("mysql://u:hunter2%00@h/x", Some(NotAnAddress::Sign)),
            ("mysql://u:hunter2%ff@h/x", Some(NotAnAddress::Sign)),
        ] {
            let error = text.parse::<Address>().expect_err(text);
            assert!(expected.is_none_or(|expected| expected == error), "{error}");
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn the_password_is_not_shown() {
        let address = address("mysql://u:hunter2@h:1/x");
        assert_eq!(address.to_string(), "mysql://u@h:1/x");
        assert_eq!(format!("{address:?}"), "mysql://u@h:1/x");
        assert_eq!(format!("{:?}", address.password()), "Some(***)");
        assert_eq!(address.redacted("no hunter2 here"), "no *** here");
        assert!(address.options().contains("password=\"hunter2\"\n"));
    }

    #[test]
    fn an_option_carries_any_sign() {
        assert_eq!(quoted("a'#\"\\\n\t ;"), r#""a'#\"\\\n\t ;""#);
    }
}
