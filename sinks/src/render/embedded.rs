//! The templates that are part of the program, so that a demo needs nothing but the binary.

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../../examples/templates/", $name)))),*]
    };
}

/// File name and content of each file in `examples/templates`.
pub const EMBEDDED: &[(&str, &str)] = files![
    "comment.yaml",
    "comment_reply.yaml",
    "default.yaml",
    "layout.html",
    "like.de.yaml",
    "like.yaml",
    "marketing_campaign.de.yaml",
    "marketing_campaign.yaml",
    "new_follower.yaml",
    "new_message.yaml",
    "order_shipped.de.yaml",
    "order_shipped.yaml",
    "password_reset.yaml",
    "payment_failed.yaml",
    "recommendation.yaml",
    "security_alert.yaml",
    "verification_code.yaml",
    "weekly_digest.yaml",
];
