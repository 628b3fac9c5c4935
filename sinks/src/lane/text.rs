//! The text of a leg, from the templates.
//!
//! A leg is rendered right before its call, by the templates as they are then: a mended one serves the next attempt.

use std::sync::Arc;

use tidings_schemas::lane::LaneRecord;

use super::{Render, Unrendered};
use crate::render::{Content, RenderError, Subject, TemplateStore};

/// Makes texts from a store of templates.
#[derive(Clone, Debug)]
pub struct Texts {
    store: Arc<TemplateStore>,
}

impl Texts {
    /// Texts from `store`.
    #[must_use]
    pub const fn new(store: Arc<TemplateStore>) -> Self {
        Self { store }
    }
}

impl Render for Texts {
    fn render(&self, leg: &LaneRecord) -> Result<Content, Unrendered> {
        let actors: Vec<&str> = leg.actors.iter().map(String::as_str).collect();
        let subject = Subject {
            template_id: leg.template_id.as_deref(),
            event_type: &leg.event_type,
            channel: leg.channel,
            locale: leg.locale.as_deref(),
            user: &leg.user,
            data: &leg.data,
            actors: &actors,
            actors_count: leg.actors_count,
            activities: leg.activities,
            object: leg.object.as_ref().map(|object| (object.id.as_str(), object.kind.as_deref())),
        };
        self.store.current().render(&subject).map_err(Unrendered::from)
    }
}

impl From<RenderError> for Unrendered {
    fn from(error: RenderError) -> Self {
        Self { reason: error.reason(), detail: error.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tidings_schemas::channel::{Channel, Priority};
    use tidings_schemas::event::Object;
    use tidings_schemas::reason::Reason;

    use super::super::samples::leg;
    use super::*;
    use crate::render::{Email, InApp, Push, Sms, Templates};

    /// Bob and two others liked photo7.
    fn likes(channel: Channel) -> LaneRecord {
        LaneRecord {
            locale: Some("en_US".to_owned()),
            actors: vec!["bob".to_owned()],
            actors_count: 3,
            activities: 3,
            object: Some(Object { id: "photo7".into(), kind: Some("photo".into()) }),
            data: [("link".to_owned(), json!("myapp://photos/7"))].into(),
            ..leg(channel, Priority::Medium)
        }
    }

    fn embedded() -> Texts {
        Texts::new(Arc::new(TemplateStore::fixed(Templates::embedded().unwrap())))
    }

    #[test]
    fn bob_and_2_others_liked_photo7_on_every_channel() {
        let said = "bob and 2 others liked your photo";
        let (body, link) = (said.to_owned(), Some("myapp://photos/7".to_owned()));
        let texts = embedded();
        let push = Push {
            title: "New likes".to_owned(),
            body: body.clone(),
            action_url: link.clone(),
            sound: Some("default".to_owned()),
            thread_id: Some("like".to_owned()),
            collapse_key: Some("like-photo7".to_owned()),
            ttl_s: Some(86_400),
            channel_id: Some("social".to_owned()),
            ..Push::default()
        };
        let in_app = InApp { title: "New likes".to_owned(), body: body.clone(), action_url: link };
        for (channel, expected) in [
            (Channel::Push, Content::Push(Box::new(push))),
            (Channel::Sms, Content::Sms(Sms { text: body })),
            (Channel::InApp, Content::InApp(in_app)),
        ] {
            assert_eq!(texts.render(&likes(channel)), Ok(expected));
        }
        let Ok(Content::Email(Email { subject, text, html })) = texts.render(&likes(Channel::Email)) else {
            panic!("a mail")
        };
        assert_eq!((subject.as_str(), text), (said, format!("{said}\n\nSee it: myapp://photos/7")));
        assert!(html.is_some_and(|html| html.contains(said)));
        let german = LaneRecord { locale: Some("de_DE".to_owned()), ..likes(Channel::Sms) };
        let Ok(Content::Sms(Sms { text })) = texts.render(&german) else { panic!("a text message") };
        assert_eq!(text, "bob und 2 weitere Personen haben dein Foto mit „Gefällt mir“ markiert");
    }

    #[test]
    fn what_cannot_be_said_has_a_reason_for_the_row_and_a_remedy_for_the_dead_letter() {
        let unknown = LaneRecord { template_id: Some("tmpl_nope".to_owned()), ..likes(Channel::Push) };
        let webhook = likes(Channel::Webhook);
        let lacking = LaneRecord { event_type: "order_shipped".to_owned(), ..likes(Channel::Push) };
        for (leg, reason, detail) in [
            (&unknown, Reason::NoTemplate, "no template is named `tmpl_nope`: add a file with this `template_id`"),
            (&webhook, Reason::NoTemplate, "`like` has no template for webhook: add one"),
            (&lacking, Reason::RenderFailed, "needs `order_id`, missing from the event's `data`: send it"),
        ] {
            let unrendered = embedded().render(leg).unwrap_err();
            assert_eq!(unrendered.reason, reason);
            assert!(unrendered.detail.contains(detail), "{}", unrendered.detail);
        }
    }

    #[test]
    fn a_template_that_speaks_german_alone_says_so_until_it_is_mended() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("like.yaml");
        let german = "template_id: like\nlocale: de\nlocale_fallback: false\nbody: Gefällt\nchannels: { sms: {} }\n";
        std::fs::write(&file, german).unwrap();
        let store = Arc::new(TemplateStore::open(folder.path(), "de").unwrap());
        let texts = Texts::new(store.clone());
        let unrendered = texts.render(&likes(Channel::Sms)).unwrap_err();
        assert_eq!(unrendered.reason, Reason::NoLocale);
        assert!(unrendered.detail.contains("no text for locale `en_US` on sms"), "{}", unrendered.detail);
        std::fs::write(&file, german.replace("locale_fallback: false\n", "")).unwrap();
        assert!(store.refresh());
        assert_eq!(texts.render(&likes(Channel::Sms)), Ok(Content::Sms(Sms { text: "Gefällt".to_owned() })));
    }
}
