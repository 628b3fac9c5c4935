//! Templates → a leg's text: what the lane asks [`Render`] for, answered by the template store.

use tidings_schemas::lane::LaneRecord;
use tidings_schemas::reason::Reason;

use super::{Render, Unrendered};
use crate::providers::content as carried;
use crate::render::{self, Content, Subject, TemplateStore};

impl Render for TemplateStore {
    fn render(&self, leg: &LaneRecord) -> Result<carried::Content, Unrendered> {
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
        self.current().render(&subject).map(carried).map_err(|error: render::RenderError| Unrendered {
            reason: error.reason().parse().unwrap_or(Reason::RenderFailed),
            detail: error.to_string(),
        })
    }
}

/// As the adapters carry it.
fn carried(content: Content) -> carried::Content {
    match content {
        Content::Push(it) => carried::Content::Push(carried::Push {
            title: it.title,
            subtitle: it.subtitle,
            body: it.body,
            image_url: it.image_url,
            action_url: it.action_url,
            badge: it.badge,
            sound: it.sound,
            category: it.category,
            channel_id: it.channel_id,
            color: it.color,
            click_action: it.click_action,
            custom: it.custom,
        }),
        Content::Email(it) => carried::Content::Email(carried::Email {
            subject: it.subject,
            html: it.html.unwrap_or_default(),
            text: it.text,
        }),
        Content::Sms(it) => carried::Content::Sms(carried::Sms { text: it.text }),
        Content::InApp(it) => {
            carried::Content::InApp(carried::InApp { title: it.title, body: it.body, action_url: it.action_url })
        }
    }
}

#[cfg(test)]
mod tests {
    use tidings_schemas::channel::{Channel, Priority};

    use super::super::samples;
    use super::*;
    use crate::render::Templates;

    #[test]
    fn a_leg_is_rendered_by_its_template_and_a_missing_one_is_named() {
        let store = TemplateStore::fixed(Templates::embedded().unwrap());
        let content = Render::render(&store, &samples::leg(Channel::Push, Priority::Medium)).unwrap();
        let carried::Content::Push(push) = content else { panic!("{content:?}") };
        assert!(push.body.contains("Bob"), "{push:?}");
        let missing = LaneRecord { template_id: Some("nope".into()), ..samples::leg(Channel::Push, Priority::Medium) };
        let error = Render::render(&store, &missing).unwrap_err();
        assert!(error.reason == Reason::NoTemplate && error.detail.contains("`nope`"), "{error:?}");
    }
}
