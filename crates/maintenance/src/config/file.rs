//! The table as it was written.

use figment::Figment;
use toml::Value;

/// The name of the table.
pub(super) const TABLE: &str = "maintenance";

/// The `[maintenance]` table as it was written: a tree of values, nothing read into them yet.
#[derive(Debug, Clone, PartialEq)]
pub struct File(pub(super) Value);

impl File {
    /// The table in a whole configuration; `None` if there is none.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, or is not TOML.
    pub fn find_in(configuration: &Figment) -> Result<Option<Self>, Box<figment::Error>> {
        match configuration.find_value(TABLE) {
            Ok(value) => Ok(Some(Self(as_toml(value)))),
            Err(error) if error.missing() => Ok(None),
            Err(error) => Err(Box::new(error)),
        }
    }
}

/// TOML has no whole number above `i64::MAX`: one that an environment variable holds becomes
/// a text, which a size may be.
fn as_toml(value: figment::value::Value) -> Value {
    use figment::value::Value as Any;
    match value {
        Any::String(_, text) => Value::String(text),
        Any::Char(_, letter) => Value::String(letter.to_string()),
        Any::Bool(_, flag) => Value::Boolean(flag),
        Any::Num(_, number) => {
            let unsigned = || number.to_u128().and_then(|whole| whole.try_into().ok());
            match number.to_i128().or_else(unsigned) {
                Some(whole) => i64::try_from(whole)
                    .map_or_else(|_| Value::String(whole.to_string()), Value::Integer),
                None => Value::Float(number.to_f64().unwrap_or(f64::NAN)),
            }
        }
        Any::Empty(..) => Value::String(String::new()),
        Any::Dict(_, entries) => {
            let entries = entries.into_iter();
            Value::Table(entries.map(|(key, value)| (key, as_toml(value))).collect())
        }
        Any::Array(_, values) => Value::Array(values.into_iter().map(as_toml).collect()),
    }
}
