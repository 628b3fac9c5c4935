//! `when` and `dedup_key`, as far as the oracle's topologies use them: names, texts, numbers,
//! `== != in not and or ( )` and `has`. What lies beyond is refused, not guessed.

use std::collections::BTreeMap;

use serde_json::Value;

/// What a name stands for. Null compares false with everything, `!=` included.
pub(super) trait Named {
    fn named(&self, name: &str) -> Value;
}

/// A condition.
#[derive(Clone, Debug)]
pub(super) enum Condition {
    Equal(String, Vec<Value>, bool),
    Has(String),
    Not(Box<Condition>),
    All(Vec<Condition>),
    Any(Vec<Condition>),
}

const NAMES: [&str; 8] = ["user_id", "type", "category", "tenant", "priority", "channel", "actors", "activities"];

impl Condition {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut words = split(text)?;
        words.reverse();
        let condition = any(&mut words)?;
        match words.pop() {
            None => Ok(condition),
            Some(word) => Err(format!("the oracle does not model `{text}`: `{word}` is left over")),
        }
    }

    pub(super) fn holds(&self, facts: &impl Named) -> bool {
        match self {
            Self::Equal(name, values, wanted) => {
                let found = facts.named(name);
                !found.is_null() && values.iter().any(|value| !value.is_null() && *value == found) == *wanted
            }
            Self::Has(name) => !facts.named(name).is_null(),
            Self::Not(inner) => !inner.holds(facts),
            Self::All(all) => all.iter().all(|one| one.holds(facts)),
            Self::Any(any) => any.iter().any(|one| one.holds(facts)),
        }
    }
}

/// The value below `data` at a dotted path, null where there is none.
pub(super) fn below(data: &BTreeMap<String, Value>, path: &str) -> Value {
    let mut keys = path.split('.');
    let mut found = keys.next().and_then(|key| data.get(key));
    for key in keys {
        found = found.and_then(|value| value.as_object()).and_then(|object| object.get(key));
    }
    found.cloned().unwrap_or(Value::Null)
}

fn split(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = if first == '"' {
            rest[1..].find('"').map(|end| end + 2).ok_or_else(|| format!("`{text}`: a text without an end"))?
        } else if first.is_alphanumeric() || first == '_' {
            rest.find(|c: char| !c.is_alphanumeric() && c != '_' && c != '.').unwrap_or(rest.len())
        } else if rest.starts_with("==") || rest.starts_with("!=") {
            2
        } else {
            1
        };
        words.push(rest[..length].to_owned());
        rest = rest[length..].trim_start();
    }
    Ok(words)
}

fn any(words: &mut Vec<String>) -> Result<Condition, String> {
    let mut all = vec![every(words)?];
    while words.pop_if(|word| word == "or").is_some() {
        all.push(every(words)?);
    }
    Ok(if all.len() == 1 { all.remove(0) } else { Condition::Any(all) })
}

fn every(words: &mut Vec<String>) -> Result<Condition, String> {
    let mut all = vec![one(words)?];
    while words.pop_if(|word| word == "and").is_some() {
        all.push(one(words)?);
    }
    Ok(if all.len() == 1 { all.remove(0) } else { Condition::All(all) })
}

fn one(words: &mut Vec<String>) -> Result<Condition, String> {
    let word = words.pop().ok_or("a condition ends too early")?;
    match word.as_str() {
        "not" => Ok(Condition::Not(Box::new(one(words)?))),
        "(" => {
            let inner = any(words)?;
            expect(words, ")")?;
            Ok(inner)
        }
        "has" => {
            expect(words, "(")?;
            let name = words.pop().ok_or("`has` needs a name")?;
            expect(words, ")")?;
            Ok(Condition::Has(name))
        }
        name if NAMES.contains(&name) || name.starts_with("data.") => compared(name.to_owned(), words),
        other => Err(format!("the oracle does not model `{other}` in a condition")),
    }
}

fn compared(name: String, words: &mut Vec<String>) -> Result<Condition, String> {
    let operator = words.pop().ok_or_else(|| format!("`{name}` is compared with nothing"))?;
    match operator.as_str() {
        "==" => Ok(Condition::Equal(name, vec![literal(words)?], true)),
        "!=" => Ok(Condition::Equal(name, vec![literal(words)?], false)),
        "in" => Ok(Condition::Equal(name, list(words)?, true)),
        "not" => {
            expect(words, "in")?;
            Ok(Condition::Equal(name, list(words)?, false))
        }
        other => Err(format!("the oracle does not model `{other}` after `{name}`")),
    }
}

fn list(words: &mut Vec<String>) -> Result<Vec<Value>, String> {
    expect(words, "[")?;
    let mut values = vec![literal(words)?];
    while words.pop_if(|word| word == ",").is_some() {
        values.push(literal(words)?);
    }
    expect(words, "]")?;
    Ok(values)
}

fn literal(words: &mut Vec<String>) -> Result<Value, String> {
    let word = words.pop().ok_or("a comparison ends too early")?;
    serde_json::from_str(&word).map_err(|_| format!("the oracle does not model the value `{word}`"))
}

fn expect(words: &mut Vec<String>, wanted: &str) -> Result<(), String> {
    match words.pop() {
        Some(word) if word == wanted => Ok(()),
        found => Err(format!("expected `{wanted}`, found `{}`", found.unwrap_or_default())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Facts;
    impl Named for Facts {
        fn named(&self, name: &str) -> Value {
            match name {
                "category" => "social".into(),
                "priority" => "low".into(),
                "data.order.id" => 7.into(),
                _ => Value::Null,
            }
        }
    }

    #[test]
    fn conditions_hold_as_the_language_says() {
        for (text, holds) in [
            (r#"category == "social" and priority in ["medium", "low"]"#, true),
            (r#"category != "social" or not (priority == "low")"#, false),
            (r#"priority not in ["medium", "high"]"#, true),
            ("data.order.id == 7 and has(data.order.id)", true),
            // Null compares false with everything.
            (r#"data.x != "y""#, false),
            (r#"data.x not in ["y"]"#, false),
        ] {
            assert_eq!(Condition::parse(text).unwrap().holds(&Facts), holds, "{text}");
        }
        for text in ["actors > 3", "time >= \"2026-01-01T00:00:00Z\"", "category"] {
            assert!(Condition::parse(text).is_err(), "{text}");
        }
    }
}
