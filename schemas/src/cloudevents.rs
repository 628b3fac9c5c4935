//! CloudEvents 1.0 as they come over Kafka, in both of its modes, read as our [`Event`].
//!
//! | CloudEvents | event |
//! |---|---|
//! | `source` and `id` | `id`: both, with a space between, which no `source` contains |
//! | `subject` | `user_id` |
//! | `type`, `time` | `type`, `time` |
//! | `data` | `data`: an object, or nothing |
//! | extension named like a field of an event (`tenant`, `priority`, `op`) | that field |
//! | any other extension | an unknown key: refused, or moved to `data` where the source says so |
//!
//! `dataschema`, `partitionkey`, `traceparent` and `tracestate` speak of the way and not of the event; they
//! are left out. *Structured* is a record with content type `application/cloudevents+json`, or an object
//! with `specversion`; *binary* one with the header `ce_specversion`. In both the content type of the
//! data must be JSON. Batches and other formats are refused.

use bytes::Bytes;
use serde_json::{Map, Value};

use crate::event::{Event, InvalidEvent, RECORD_BYTES_MAX, shape};

/// The one content type of the structured mode that is read.
const STRUCTURED: &str = "application/cloudevents+json";
/// What every content type of the structured mode, and of its batches, starts with.
const STRUCTURED_ANY: &str = "application/cloudevents";
/// The header that says what the value is.
const CONTENT_TYPE: &str = "content-type";
/// The header that says that a record is of the binary mode.
const BINARY: &str = "ce_specversion";
/// What the binary mode puts before an attribute's name.
const BINARY_PREFIX: &str = "ce_";
/// Attributes that say nothing of the event.
const LEFT_OUT: [&str; 4] = ["dataschema", "partitionkey", "traceparent", "tracestate"];

/// Reads a record as an event: a CloudEvent in either mode, or a plain one. `content_type` is the
/// record's own where the transport has one beside the headers; else the header counts.
///
/// # Errors
/// When the record is none of the three, or a field is missing or out of bounds.
pub fn parse_record(
    headers: &[(String, Bytes)],
    content_type: Option<&str>,
    value: &[u8],
    unknown_to_data: bool,
) -> Result<Event, InvalidEvent> {
    if value.len() > RECORD_BYTES_MAX {
        return Err(InvalidEvent::TooLarge(value.len()));
    }
    let header = |(_, value): &(String, Bytes)| std::str::from_utf8(value).ok().map(str::to_owned);
    let named = headers.iter().rev().find(|(name, _)| name.eq_ignore_ascii_case(CONTENT_TYPE));
    let content_type = content_type.map(str::to_owned).or_else(|| named.and_then(header)).unwrap_or_default();
    let media = media_type(&content_type);
    if media.starts_with(STRUCTURED_ANY) {
        if media != STRUCTURED {
            return Err(field("content-type", format!("expected `{STRUCTURED}`, found `{media}`")));
        }
        return structured(serde_json::from_slice(value).map_err(shape)?, unknown_to_data);
    }
    if headers.iter().any(|(name, _)| name.eq_ignore_ascii_case(BINARY)) {
        return binary(headers, &media, value, unknown_to_data);
    }
    if mentions_specversion(value)
        && let Ok(object) = serde_json::from_slice::<Map<String, Value>>(value)
        && object.contains_key("specversion")
    {
        return structured(object, unknown_to_data);
    }
    Event::from_json(value, unknown_to_data)
}

/// Whether the headers may say that a record is a CloudEvent. Where they don't, its value may.
#[must_use]
pub fn in_headers(headers: &[(String, Bytes)]) -> bool {
    let says = |name: &str| name.eq_ignore_ascii_case(CONTENT_TYPE) || name.eq_ignore_ascii_case(BINARY);
    headers.iter().any(|(name, _)| says(name))
}

/// Spares plain events a second parse.
fn mentions_specversion(value: &[u8]) -> bool {
    const NAME: &[u8] = b"\"specversion\"";
    value.windows(NAME.len()).any(|window| window == NAME)
}

fn media_type(content_type: &str) -> String {
    content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

fn field(field: &'static str, problem: String) -> InvalidEvent {
    InvalidEvent::Field { field, problem }
}

fn structured(mut attributes: Map<String, Value>, unknown_to_data: bool) -> Result<Event, InvalidEvent> {
    if attributes.contains_key("data_base64") {
        return Err(field("data_base64", "expected JSON in `data`, found binary data".to_owned()));
    }
    let data = attributes.remove("data");
    event(attributes, data, unknown_to_data)
}

fn binary(
    headers: &[(String, Bytes)],
    media: &str,
    value: &[u8],
    unknown_to_data: bool,
) -> Result<Event, InvalidEvent> {
    let mut attributes = Map::new();
    for (name, value) in headers {
        let name = name.to_ascii_lowercase();
        let Some(name) = name.strip_prefix(BINARY_PREFIX) else { continue };
        let Ok(value) = std::str::from_utf8(value) else {
            return Err(InvalidEvent::Shape(format!("header `{BINARY_PREFIX}{name}` is not UTF-8")));
        };
        if matches!(name, "data" | "datacontenttype") {
            let place = if name == "data" { "the record's value" } else { "the header `content-type`" };
            return Err(InvalidEvent::Shape(format!("header `{BINARY_PREFIX}{name}`: in binary mode it is {place}")));
        }
        attributes.insert(name.to_owned(), Value::String(value.to_owned()));
    }
    if !media.is_empty() {
        attributes.insert("datacontenttype".to_owned(), Value::String(media.to_owned()));
    }
    let data = if value.is_empty() { None } else { Some(serde_json::from_slice(value).map_err(shape)?) };
    event(attributes, data, unknown_to_data)
}

fn event(
    mut attributes: Map<String, Value>,
    data: Option<Value>,
    unknown_to_data: bool,
) -> Result<Event, InvalidEvent> {
    let version = text(&mut attributes, "specversion")?;
    if version != "1.0" {
        return Err(field("specversion", format!("expected `1.0`, found `{version}`")));
    }
    let (source, id) = (text(&mut attributes, "source")?, text(&mut attributes, "id")?);
    if source.contains(char::is_whitespace) {
        return Err(field("source", format!("expected a URI reference, found `{source}`")));
    }
    let subject = text(&mut attributes, "subject")?;
    if let Some(Value::String(content_type)) = attributes.remove("datacontenttype") {
        let media = media_type(&content_type);
        if !(media == "application/json" || media == "text/json" || media.ends_with("+json")) {
            return Err(field("datacontenttype", format!("expected `application/json`, found `{media}`")));
        }
    }
    for name in LEFT_OUT {
        attributes.remove(name);
    }
    for taken in ["user_id", "data"] {
        if attributes.contains_key(taken) {
            let place = if taken == "data" { "data" } else { "subject" };
            return Err(InvalidEvent::Shape(format!("attribute `{taken}` of a CloudEvent: use `{place}`")));
        }
    }
    attributes.insert("id".to_owned(), Value::String(format!("{source} {id}")));
    attributes.insert("user_id".to_owned(), Value::String(subject));
    match data {
        None | Some(Value::Null) => {}
        Some(data @ Value::Object(_)) => {
            attributes.insert("data".to_owned(), data);
        }
        Some(_) => return Err(InvalidEvent::Shape("`data` must be an object".to_owned())),
    }
    Event::from_map(attributes, unknown_to_data)
}

/// Takes a required attribute.
fn text(attributes: &mut Map<String, Value>, name: &'static str) -> Result<String, InvalidEvent> {
    match attributes.remove(name) {
        Some(Value::String(text)) if !text.is_empty() => Ok(text),
        None | Some(Value::Null) if name == "subject" => {
            Err(field(name, "expected the id of the user who is to be told, found nothing".to_owned()))
        }
        None | Some(Value::Null) => Err(field(name, "a CloudEvent needs it, found nothing".to_owned())),
        Some(other) => Err(field(name, format!("expected a text, found `{other}`"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &str = r#"{"album":"x"}"#;

    /// Headers beside the common ones, the value, what is read or said.
    type Case = (&'static [(&'static str, &'static str)], &'static str, &'static str);

    fn headers(list: &[(&str, &str)]) -> Vec<(String, Bytes)> {
        list.iter().map(|(name, value)| ((*name).to_owned(), Bytes::copy_from_slice(value.as_bytes()))).collect()
    }

    fn said(result: Result<Event, InvalidEvent>) -> String {
        match result {
            Ok(event) => format!(
                "{} {} {} {} {}",
                event.id.unwrap_or_default(),
                event.user_id,
                event.event_type,
                event.time.map_or_else(String::new, |time| time.to_string()),
                serde_json::to_string(&event.data).unwrap()
            ),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn structured_mode() {
        let ce = |rest: &str| {
            format!(r#"{{"specversion":"1.0","source":"/shop","id":"7","subject":"u1","type":"order.shipped"{rest}}}"#)
        };
        let cases = [
            (ce(""), "/shop 7 u1 order_shipped  {}"),
            (ce(r#","data":{"eta":"Tue"}"#), r#"/shop 7 u1 order_shipped  {"eta":"Tue"}"#),
            (ce(r#","time":"2026-03-28T22:10:00Z""#), "/shop 7 u1 order_shipped 2026-03-28T22:10:00Z {}"),
            (ce(r#","datacontenttype":"application/json; charset=utf-8","data":null"#), "/shop 7 u1 order_shipped  {}"),
            (ce(r#","dataschema":"/s","traceparent":"00-1","partitionkey":"u1""#), "/shop 7 u1 order_shipped  {}"),
            (
                ce(r#","datacontenttype":"text/xml","data":"<a/>""#),
                "field `datacontenttype`: expected `application/json`, found `text/xml`",
            ),
            (ce(r#","data":[1]"#), "not an event: `data` must be an object"),
            (ce(r#","data_base64":"e30=""#), "field `data_base64`: expected JSON in `data`, found binary data"),
            (ce(r#","user_id":"u2""#), "not an event: attribute `user_id` of a CloudEvent: use `subject`"),
            (
                ce(r#","time":"noon""#),
                "not an event: expected an RFC 3339 time like `2026-03-28T22:10:00Z`, found `noon`",
            ),
            (ce("").replace("1.0", "0.3"), "field `specversion`: expected `1.0`, found `0.3`"),
            (ce("").replace(r#""id":"7","#, ""), "field `id`: a CloudEvent needs it, found nothing"),
            (ce("").replace(r#""7""#, "7"), "field `id`: expected a text, found `7`"),
            (ce("").replace("/shop", "a shop"), "field `source`: expected a URI reference, found `a shop`"),
            (
                ce("").replace(r#""subject":"u1","#, ""),
                "field `subject`: expected the id of the user who is to be told, found nothing",
            ),
        ];
        for (json, expected) in cases {
            assert_eq!(said(parse_record(&[], None, json.as_bytes(), false)), expected, "{json}");
            let typed = parse_record(&[], Some("application/cloudevents+json; charset=UTF-8"), json.as_bytes(), false);
            assert_eq!(said(typed), expected, "{json}");
        }
    }

    #[test]
    fn binary_mode() {
        let base = [
            ("ce_specversion", "1.0"),
            ("ce_source", "/shop"),
            ("ce_id", "7"),
            ("ce_subject", "u1"),
            ("ce_type", "like"),
            ("g", "not an attribute"),
        ];
        let cases: [Case; 8] = [
            (&[("content-type", "application/json")], BODY, r#"/shop 7 u1 like  {"album":"x"}"#),
            (
                &[("Content-Type", "application/vnd.shop+json"), ("CE_TIME", "2026-03-28T22:10:00Z")],
                BODY,
                r#"/shop 7 u1 like 2026-03-28T22:10:00Z {"album":"x"}"#,
            ),
            (&[], "", "/shop 7 u1 like  {}"),
            (
                &[("content-type", "application/avro")],
                BODY,
                "field `datacontenttype`: expected `application/json`, found `application/avro`",
            ),
            (&[], "[]", "not an event: `data` must be an object"),
            (&[], "{", "not JSON: EOF while parsing an object at line 1 column 1"),
            (
                &[("ce_datacontenttype", "application/json")],
                BODY,
                "not an event: header `ce_datacontenttype`: in binary mode it is the header `content-type`",
            ),
            (&[("ce_data", "{}")], BODY, "not an event: header `ce_data`: in binary mode it is the record's value"),
        ];
        for (more, value, expected) in cases {
            let headers = headers(&[&base, more].concat());
            assert_eq!(said(parse_record(&headers, None, value.as_bytes(), false)), expected);
        }
        let mut broken = headers(&base);
        broken.push(("ce_tenant".to_owned(), Bytes::from_static(b"\xff")));
        assert_eq!(said(parse_record(&broken, None, b"", false)), "not an event: header `ce_tenant` is not UTF-8");
    }

    #[test]
    fn extensions_are_fields_or_unknown_keys() {
        let json = r#"{"specversion":"1.0","source":"/shop","id":"7","subject":"u1","type":"like","priority":"high",
            "tenant":"acme","storeid":9,"data":{"album":"x"}}"#;
        let refused = parse_record(&[], None, json.as_bytes(), false).unwrap_err().to_string();
        assert!(refused.starts_with("not an event: unknown field `storeid`, expected one of"), "{refused}");
        let event = parse_record(&[], None, json.as_bytes(), true).unwrap();
        assert_eq!((event.tenant.as_str(), event.priority), ("acme", Some(crate::channel::Priority::High)));
        assert_eq!(serde_json::to_string(&event.data).unwrap(), r#"{"album":"x","storeid":9}"#);
        let headers = headers(&[
            ("ce_specversion", "1.0"),
            ("ce_source", "/shop"),
            ("ce_id", "7"),
            ("ce_subject", "u1"),
            ("ce_type", "like"),
            ("ce_storeid", "9"),
        ]);
        let event = parse_record(&headers, None, BODY.as_bytes(), true).unwrap();
        assert_eq!(serde_json::to_string(&event.data).unwrap(), r#"{"album":"x","storeid":"9"}"#);
    }

    #[test]
    fn plain_events_stay_plain() {
        let cases = [
            (r#"{"id":"e1","user_id":"u1","type":"like"}"#, "e1 u1 like  {}"),
            (r#"{"user_id":"u1","type":"like","data":{"specversion":"1.0"}}"#, r#" u1 like  {"specversion":"1.0"}"#),
            ("{", "not JSON: EOF while parsing an object at line 1 column 1"),
        ];
        for (json, expected) in cases {
            assert_eq!(said(parse_record(&[], None, json.as_bytes(), false)), expected);
        }
        let json = headers(&[("content-type", "application/json")]);
        assert_eq!(said(parse_record(&json, None, br#"{"user_id":"u1","type":"like"}"#, false)), " u1 like  {}");
    }

    #[test]
    fn other_formats_and_large_records_are_refused() {
        for content_type in ["application/cloudevents+avro", "application/cloudevents-batch+json"] {
            let error = parse_record(&[], Some(content_type), b"[]", true).unwrap_err().to_string();
            let expected = "field `content-type`: expected `application/cloudevents+json`, found `";
            assert_eq!(error, format!("{expected}{content_type}`"));
        }
        let large = vec![b' '; RECORD_BYTES_MAX + 1];
        let error = parse_record(&headers(&[("ce_specversion", "1.0")]), None, &large, false).unwrap_err();
        assert_eq!(error, InvalidEvent::TooLarge(RECORD_BYTES_MAX + 1));
    }
}
