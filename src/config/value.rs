//! Parsers of variables: each reads one kind of value, and describes what it accepts with an example.
//!
//! Clap calls the parser of an option with the text from the command line, the environment or the default. Text that is
//! refused becomes a `ConfigError`, which names the variable; `cli` prints it as one line in place of clap's own message.
//! The same declaration feeds `docs/configuration.md`: clap hands out "what it accepts" and the example as the help and
//! the name of a possible value, which is the one place of `clap::Arg` where a parser can describe itself.

use std::{ffi::OsStr, fmt, net::SocketAddr, path::PathBuf, str::FromStr, sync::Arc, time::Duration};

use clap::{
    Arg, Command,
    builder::{PossibleValue, TypedValueParser},
};

use super::ConfigError;

/// A value that may be absent. Clap gives an `Option` no text that is empty; this alias it treats as a plain value.
pub type Optional<T> = Option<T>;
/// Several values in one text. Clap reads a `Vec` as an option that is repeated; this alias it treats as a plain value.
pub type List<T> = Vec<T>;

type Parse<T> = Arc<dyn Fn(&str) -> Result<T, String> + Send + Sync>;

/// Reads the text of one variable.
pub struct Value<T> {
    parse: Parse<T>,
    accepts: String,
    example: &'static str,
}

impl<T> Clone for Value<T> {
    fn clone(&self) -> Self {
        Self { parse: self.parse.clone(), accepts: self.accepts.clone(), example: self.example }
    }
}

/// Returns a parser. `accepts` completes the sentence "It accepts …"; `parse` returns the value or what is wrong with
/// the text, without repeating a secret.
pub fn value<T>(
    example: &'static str,
    accepts: impl Into<String>,
    parse: impl Fn(&str) -> Result<T, String> + Send + Sync + 'static,
) -> Value<T> {
    Value { parse: Arc::new(parse), accepts: accepts.into(), example }
}

impl<T: 'static> Value<T> {
    /// Reads empty text as `None`.
    pub fn optional(self) -> Value<Optional<T>> {
        let Self { parse, accepts, example } = self;
        value(example, format!("{accepts}, or empty"), move |text| match text.trim() {
            "" => Ok(None),
            text => parse(text).map(Some),
        })
    }

    /// Reads empty text as if it were `default`.
    pub fn or_default(self, default: &'static str) -> Self {
        let Self { parse, accepts, example } = self;
        value(example, accepts, move |text| parse(if text.trim().is_empty() { default } else { text }))
    }

    /// Describes what it accepts in other words.
    pub fn accepting(self, accepts: &str) -> Self {
        Self { accepts: accepts.to_owned(), ..self }
    }

    /// Converts the value that was read.
    pub fn map<U>(self, convert: impl Fn(T) -> U + Send + Sync + 'static) -> Value<U> {
        let Self { parse, accepts, example } = self;
        value(example, accepts, move |text| parse(text).map(&convert))
    }
}

impl<T: Clone + Send + Sync + 'static> TypedValueParser for Value<T> {
    type Value = T;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, text: &OsStr) -> Result<T, clap::Error> {
        let variable = arg.and_then(Arg::get_env).unwrap_or_default().to_string_lossy().into_owned();
        let (parse, example) = (self.parse.clone(), self.example);
        let parse =
            move |text: &str| parse(text).map_err(|problem| ConfigError::new(variable.clone(), problem, example));
        TypedValueParser::parse_ref(&parse, command, arg, text)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(std::iter::once(PossibleValue::new(self.example).help(self.accepts.clone()))))
    }
}

/// Returns a parser of numbers from `min` to `max`.
pub fn number<T>(min: T, max: T, example: &'static str) -> Value<T>
where
    T: FromStr + PartialOrd + fmt::Display + Copy + Send + Sync + 'static,
{
    value(example, format!("{min} to {max}"), move |text| match text.trim().parse::<T>() {
        Ok(value) if value >= min && value <= max => Ok(value),
        _ => Err(format!("\"{text}\" is not a number from {min} to {max}")),
    })
}

/// Returns a parser of whole milliseconds from `min` to `max`.
pub fn millis(min: u64, max: u64, example: &'static str) -> Value<Duration> {
    number(min, max, example).map(Duration::from_millis)
}

/// Returns a parser of whole seconds from `min` to `max`.
pub fn seconds(min: u64, max: u64, example: &'static str) -> Value<Duration> {
    number(min, max, example).map(Duration::from_secs)
}

/// Returns a parser of booleans; empty text is false.
pub fn flag(example: &'static str) -> Value<bool> {
    value(example, "`true`, `on`, `yes`, `1`, or `false`, `off`, `no`, `0`", |text| match text.trim() {
        "1" | "true" | "on" | "yes" => Ok(true),
        "" | "0" | "false" | "off" | "no" => Ok(false),
        other => Err(format!("\"{other}\" is neither true nor false")),
    })
}

/// Returns a parser of one of two names.
pub fn either<T: Copy + Send + Sync + 'static>(choices: [(&'static str, T); 2], example: &'static str) -> Value<T> {
    let [(first, _), (second, _)] = choices;
    value(example, format!("`{first}` or `{second}`"), move |text| {
        let chosen = choices.iter().find(|(name, _)| *name == text);
        chosen.map(|(_, value)| *value).ok_or_else(|| format!("\"{text}\" is neither {first} nor {second}"))
    })
}

/// Returns a parser of the path of a directory, which need not exist.
pub fn directory(example: &'static str) -> Value<PathBuf> {
    value(example, "a directory, which is created when it is missing", |text| match text.trim() {
        "" => Err("names no directory".to_owned()),
        path => Ok(PathBuf::from(path)),
    })
}

/// Returns a parser of the path of a file.
pub fn file(example: &'static str) -> Value<PathBuf> {
    value(example, "the path of a file", |text| Ok(PathBuf::from(text.trim())))
}

/// Returns a parser of an IP address with a port, to listen on or to connect to.
pub fn address(example: &'static str) -> Value<SocketAddr> {
    value(example, "`ADDRESS:PORT`", |text| text.trim().parse().map_err(|_| format!("\"{text}\" is not ADDRESS:PORT")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command<T: Clone + Send + Sync + 'static>(parser: Value<T>) -> Command {
        Command::new("test").arg(Arg::new("value").long("value").env("TEST_VALUE").value_parser(parser))
    }

    fn read<T: Clone + Send + Sync + 'static>(parser: Value<T>, text: &str) -> Result<T, String> {
        let matches = command(parser).try_get_matches_from(["test", &format!("--value={text}")]);
        match matches {
            Ok(mut matches) => Ok(matches.remove_one::<T>("value").expect("the value was given")),
            Err(error) => Err(ConfigError::of_clap(&error).expect("our own error").to_string()),
        }
    }

    #[test]
    fn refused_text_names_variable_problem_and_example() {
        let error = read(millis(600, 3_600_000, "30000"), "30s").expect_err("not a number");

        assert_eq!(error, "TEST_VALUE: \"30s\" is not a number from 600 to 3600000; example: TEST_VALUE=30000");
    }

    #[test]
    fn empty_text_is_none_default_or_false_where_declared() {
        assert_eq!(read(number(1, 9, "5").optional(), ""), Ok(None));
        assert_eq!(read(number(1, 9, "5").optional(), " 7 "), Ok(Some(7)));
        assert_eq!(read(number(1, 9, "5").or_default("5"), ""), Ok(5));
        assert_eq!(read(flag("true"), ""), Ok(false));
        assert!(read(number(1, 9, "5"), "").is_err());
    }

    #[test]
    fn numbers_outside_their_bounds_are_refused() {
        for text in ["0", "10", "NaN", "1e1", "-1"] {
            assert!(read(number(1, 9, "5"), text).is_err(), "{text}");
        }
        assert!(read(number(0.0, 1.0, "0.5"), "NaN").is_err());
    }

    #[test]
    fn parser_describes_itself_to_clap() {
        let command = command(number(1, 9, "5").optional());
        let described = command.get_arguments().next().expect("one argument").get_possible_values();

        assert_eq!(described[0].get_name(), "5");
        assert_eq!(described[0].get_help().expect("help").to_string(), "1 to 9, or empty");
    }
}
