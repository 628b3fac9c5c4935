//! Rendered results as they must read.

use serde_json::json;

use super::*;

type Data = BTreeMap<String, serde_json::Value>;

fn data(json: serde_json::Value) -> Data {
    serde_json::from_value(json).unwrap()
}

fn templates(files: &[(&str, &str)]) -> Templates {
    store::from_sources(files.iter().map(|(name, source)| (Path::new(*name), *source)), "en").unwrap()
}

/// What the loader says about one file.
fn refused(name: &str, source: &str) -> String {
    let errors = store::from_sources([(Path::new(name), source)].into_iter(), "en").unwrap_err();
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

fn subject<'a>(event_type: &'a str, channel: Channel, data: &'a Data) -> Subject<'a> {
    let (template_id, locale, object) = (None, None, None);
    Subject {
        template_id,
        event_type,
        channel,
        locale,
        user: "u1",
        data,
        actors: &[],
        actors_count: 0,
        activities: 1,
        object,
    }
}

fn body(content: Content) -> String {
    match content {
        Content::Push(push) => push.body,
        Content::Email(email) => email.text,
        Content::Sms(sms) => sms.text,
        Content::InApp(in_app) => in_app.body,
    }
}

/// "… liked your photo" in a locale, from the embedded templates.
fn liked(locale: &str, actors: &[&str], actors_count: u64) -> String {
    let none = Data::new();
    let subject = Subject {
        locale: Some(locale),
        actors,
        actors_count,
        activities: actors_count,
        object: Some(("photo7", Some("photo"))),
        ..subject("like", Channel::Push, &none)
    };
    body(Templates::embedded().unwrap().render(&subject).unwrap())
}

/// One push whose body is `text`, in a locale.
fn says(text: &str, locale: &str, actors: &[&str], actors_count: u64) -> Result<String, RenderError> {
    let source =
        json!({"template_id": "t", "channel": "push", "locale": locale, "title": "x", "body": text}).to_string();
    let none = Data::new();
    let subject =
        Subject { locale: Some(locale), actors, actors_count, activities: 3, ..subject("t", Channel::Push, &none) };
    // Isolates are invisible: brackets are not.
    let body = templates(&[("t.json", &source)]).render(&subject).map(body)?;
    Ok(body.replace('\u{2068}', "[").replace('\u{2069}', "]"))
}

#[test]
fn the_golden_rows_of_n_others() {
    let names = ["John", "Sarah", "Bob"];
    assert_eq!(liked("en_US", &names[..1], 1), "John liked your photo");
    assert_eq!(liked("en_US", &names[..2], 2), "John and Sarah liked your photo");
    assert_eq!(liked("en_US", &names, 3), "John, Sarah, and 1 other liked your photo");
    assert_eq!(liked("en_US", &names, 5), "John, Sarah, and 3 others liked your photo");
    assert_eq!(liked("en_GB", &names, 5), "John, Sarah and 3 others liked your photo");
    assert_eq!(liked("de", &names, 5), "John, Sarah und 3 weitere Personen haben dein Foto mit „Gefällt mir“ markiert");
    assert_eq!(liked("de", &names, 1), liked("de", &names, 3), "a count below the names is raised to them");
    assert_eq!(liked("de", &names[..1], 1), "John hat dein Foto mit „Gefällt mir“ markiert");
    assert_eq!(liked("fr", &names, 5), "John, Sarah, and 3 others liked your photo", "no French text: all English");
}

#[test]
fn people_are_named_and_counted_as_each_language_does() {
    let who = "{{ actors | who }}";
    for (text, locale, actors, count, expected) in [
        ("{{ actors | who(1) }}", "en", &["Alice"][..], 43, "Alice and 42 others"),
        ("{{ actors | who(1) }}", "en", &["Alice"], 5_000, "Alice and 4,999 others"),
        ("{{ actors | who(3) }}", "en", &["Ann", "Bo", "Cy"], 3, "Ann, Bo, and Cy"),
        (who, "en_GB", &["Ann", "Bo"], 3, "Ann, Bo and 1 other"),
        (who, "en_AU", &["Ann", "Bo"], 3, "Ann, Bo and 1 other"),
        (who, "de", &["Ann", "Bo"], 3, "Ann, Bo und 1 weitere Person"),
        (who, "fr", &["Ann", "Bo"], 3, "Ann, Bo et 1 autre personne"),
        (who, "fr", &["Ann", "Bo"], 1_000_002, "Ann, Bo et 1\u{202f}000\u{202f}000 d’autres personnes"),
        (who, "es", &["Juan", "Isabel"], 2, "Juan e Isabel"),
        (who, "es", &["Juan", "Hielo"], 2, "Juan y Hielo"),
        (who, "es", &["Juan", "Ana"], 5, "Juan, Ana y 3 personas más"),
        (who, "pt_BR", &["Ana", "Rui"], 3, "Ana, Rui e mais 1 pessoa"),
        (who, "pl", &["Ann", "Bo"], 3, "Ann, Bo i 1 inna osoba"),
        (who, "pl", &["Ann", "Bo"], 5, "Ann, Bo i 3 inne osoby"),
        (who, "pl", &["Ann", "Bo"], 7, "Ann, Bo i 5 innych osób"),
        (who, "pl", &["Ann", "Bo"], 24, "Ann, Bo i 22 inne osoby"),
        (who, "ar", &["سارة", "علي"], 3, "سارة وعلي وشخصًا آخر"),
        (who, "ar", &["سارة", "علي"], 4, "سارة وعلي وشخصين آخرين"),
        (who, "ar", &["John", "Sarah"], 5, "[John] و[Sarah] و3 أشخاص آخرين"),
        (who, "ar_EG", &["سارة"], 12, "سارة و١١ شخصًا آخر"),
        (who, "ja", &["Ann", "Bo"], 5, "Ann、Boさん、他3人"),
        (who, "ja", &["Ann"], 1, "Annさん"),
        // Without a phrase of its own the whole of it is English, unless the template brings the forms.
        (who, "cs", &["Ann", "Bo"], 2, "Ann a\u{a0}Bo"),
        (who, "cs", &["Ann", "Bo"], 5, "Ann, Bo, and 3 others"),
        ("{{ actors | who(few='# další', other='# dalších') }}", "cs", &["Ann", "Bo"], 5, "Ann, Bo a\u{a0}3 další"),
        // Names may be unknown, foreign, or an attack.
        (who, "en", &[], 0, "Someone"),
        (who, "en", &[], 3, "Someone and 2 others"),
        (who, "en", &["سارة", "Bo"], 2, "[سارة] and Bo"),
        (who, "en", &["Ev\u{202e}e\n\u{7}Mal", " "], 2, "Eve Mal and 1 other"),
        (who, "en", &["Taumatawhakatangihangakoauauotamateaturipukaka"], 1, "Taumatawhakatangihangakoauauotamateatur…"),
    ] {
        assert_eq!(says(text, locale, actors, count).as_deref(), Ok(expected), "{locale} {actors:?} {count}");
    }
}

#[test]
fn plural_categories_are_those_of_cldr() {
    let forms = "zero='zero', one='one', two='two', few='few', many='many', other='other'";
    for (locale, rows) in [
        ("en", &[("1", "one"), ("0", "other"), ("2", "other"), ("5", "other"), ("1.5", "other")][..]),
        ("de", &[("1", "one"), ("0", "other")]),
        ("fr", &[("0", "one"), ("1", "one"), ("2", "other"), ("1000000", "many")]),
        ("es", &[("1", "one"), ("0", "other"), ("1000000", "many")]),
        ("it", &[("1", "one"), ("1000000", "many")]),
        ("pt", &[("0", "one"), ("1", "one"), ("2", "other"), ("1000000", "many")]),
        (
            "pl",
            &[
                ("1", "one"),
                ("2", "few"),
                ("4", "few"),
                ("22", "few"),
                ("104", "few"),
                ("0", "many"),
                ("5", "many"),
                ("21", "many"),
                ("25", "many"),
                ("100", "many"),
                ("111", "many"),
                ("1.5", "other"),
            ],
        ),
        (
            "ru",
            &[
                ("1", "one"),
                ("21", "one"),
                ("101", "one"),
                ("2", "few"),
                ("22", "few"),
                ("0", "many"),
                ("11", "many"),
                ("111", "many"),
            ],
        ),
        ("cs", &[("1", "one"), ("2", "few"), ("4", "few"), ("5", "other"), ("1.5", "many")]),
        (
            "ar",
            &[
                ("0", "zero"),
                ("1", "one"),
                ("2", "two"),
                ("3", "few"),
                ("10", "few"),
                ("103", "few"),
                ("11", "many"),
                ("99", "many"),
                ("111", "many"),
                ("100", "other"),
                ("101", "other"),
                ("102", "other"),
            ],
        ),
        ("he", &[("1", "one"), ("2", "two"), ("20", "other")]),
        ("lt", &[("21", "one"), ("2", "few"), ("9", "few"), ("10", "other"), ("20", "other")]),
        (
            "lv",
            &[
                ("0", "zero"),
                ("10", "zero"),
                ("20", "zero"),
                ("100", "zero"),
                ("1", "one"),
                ("21", "one"),
                ("101", "one"),
            ],
        ),
        ("cy", &[("0", "zero"), ("1", "one"), ("2", "two"), ("3", "few"), ("6", "many"), ("4", "other")]),
        ("ja", &[("0", "other"), ("1", "other")]),
        ("zh", &[("1", "other")]),
        ("ko", &[("1", "other")]),
    ] {
        for (number, expected) in rows {
            let text = format!("{{{{ plural({number}, {forms}) }}}}");
            assert_eq!(says(&text, locale, &[], 0).as_deref(), Ok(*expected), "{locale} {number}");
        }
    }
}

#[test]
fn lists_are_joined_as_cldr_says() {
    for (locale, two, three) in [
        ("en", "John and Sarah", "John, Sarah, and Bob"),
        ("en_GB", "John and Sarah", "John, Sarah and Bob"),
        ("fr", "John et Sarah", "John, Sarah et Bob"),
        ("pl", "John i Sarah", "John, Sarah i Bob"),
        ("de", "John und Sarah", "John, Sarah und Bob"),
        ("ar", "[John] و[Sarah]", "[John] و[Sarah] و[Bob]"),
        ("ja", "John、Sarahさん", "John、Sarah、Bobさん"),
        ("zh", "John和Sarah", "John、Sarah和Bob"),
        ("he", "[John] ו\u{2011}[Sarah]", "[John], [Sarah] ו\u{2011}[Bob]"),
    ] {
        let actors = ["John", "Sarah", "Bob"];
        assert_eq!(says("{{ actors | who }}", locale, &actors[..2], 2).as_deref(), Ok(two), "{locale}");
        assert_eq!(says("{{ actors | who(3) }}", locale, &actors, 3).as_deref(), Ok(three), "{locale}");
    }
}

#[test]
fn numbers_follow_the_locale() {
    for (locale, expected) in [("en", "12,345"), ("de", "12.345"), ("pl", "12\u{a0}345"), ("ar_EG", "١٢٬٣٤٥")] {
        assert_eq!(says("{{ 12345 | number }}", locale, &[], 0).as_deref(), Ok(expected));
    }
    assert_eq!(
        says("{{ plural(1234, one='# photo', other='# photos') }}", "en", &[], 0).as_deref(),
        Ok("1,234 photos")
    );
}

const SEED: &str = r##"{
  "template_id": "order_shipped",
  "channel": "push",
  "locale": "en_US",
  "title": "Your order is on its way!",
  "body": "Your order #{{order_id}} shipped via {{carrier}}. Track: {{tracking_url}}"
}"##;

const SEED_WITH_SCHEMA: &str = r##"{
  "template_id": "tmpl_order_shipped_push_en_v3",
  "notification_type": "ORDER_SHIPPED",
  "channel": "push",
  "language": "en",
  "title": "Your order is on the way! 📦",
  "body": "Order #{{order_id}} shipped via {{carrier}}. Estimated delivery: {{eta}}.",
  "image_url": "{{product_image_url}}",
  "action_url": "myapp://orders/{{order_id}}/tracking",
  "variables": {
    "order_id": {"type": "string", "required": true},
    "carrier": {"type": "string", "required": true},
    "eta": {"type": "string", "required": true},
    "product_image_url": {"type": "string", "required": false}
  }
}"##;

#[test]
fn a_seeds_template_fails_with_its_own_post_and_speaks_with_matching_data() {
    let posted = data(json!({"order_id": "ORD-12345", "tracking_url": "https://track.example.com/12345"}));
    let matching =
        data(json!({"order_id": 4412, "carrier": "FedEx", "eta": "April 17", "tracking_url": "https://t.example/1"}));
    let american = |data| Subject { locale: Some("en_US"), ..subject("order_shipped", Channel::Push, data) };

    let seed = templates(&[("order_shipped.json", SEED)]);
    assert_eq!(
        seed.render(&american(&posted)).unwrap_err().to_string(),
        "template `order_shipped` (order_shipped.json) needs `carrier`, missing from the event's `data`: send it, \
         or declare it optional or with a default in the template"
    );
    assert_eq!(
        body(seed.render(&american(&matching)).unwrap()),
        "Your order #4412 shipped via FedEx. Track: https://t.example/1"
    );

    let declared = templates(&[("push.json", SEED_WITH_SCHEMA)]);
    let by_id = |id, data| Subject { template_id: Some(id), ..american(data) };
    let error = declared.render(&by_id("tmpl_order_shipped", &posted)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "template `tmpl_order_shipped_push_en_v3` (push.json) needs `carrier`, `eta`, missing from the event's `data`: \
         send it, or declare it optional or with a default in the template"
    );
    assert_eq!(error.reason(), Reason::RenderFailed);
    let expected = Content::Push(Box::new(Push {
        title: "Your order is on the way! 📦".to_owned(),
        body: "Order #4412 shipped via FedEx. Estimated delivery: April 17.".to_owned(),
        action_url: Some("myapp://orders/4412/tracking".to_owned()),
        ..Push::default()
    }));
    // By the caller's id without channel, by the walkthrough's without version, by the full one, by type.
    for id in ["tmpl_order_shipped", "tmpl_order_shipped_push_en", "tmpl_order_shipped_push_en_v3", "order_shipped"] {
        assert_eq!(declared.render(&by_id(id, &matching)).as_ref(), Ok(&expected), "{id}");
    }
}

#[test]
fn the_seeds_sms_and_email_templates_load_too() {
    let sms = r#"{"template_id": "tmpl_2fa_sms_en_v1", "notification_type": "VERIFICATION_CODE", "channel": "sms",
        "body": "{{app_name}}: Your code is {{code}}. Expires in {{expiry_min}} min. Don't share this code.",
        "variables": {"app_name": {"type": "string", "default": "MyApp"}, "code": {"type": "string", "required": true},
            "expiry_min": {"type": "number", "default": 10}}}"#;
    let email = r#"{"template_id": "tmpl_order_shipped_email_en_v3", "notification_type": "ORDER_SHIPPED", "channel": "email",
        "subject": "Your order #{{order_id}} has shipped!", "body": "Hi {{user_name}}, your order has shipped...",
        "html_body": "<!DOCTYPE html><p>Hi {{user_name}}"}"#;
    let templates = templates(&[("email.json", email), ("sms.json", sms)]);
    let code = data(json!({"code": 123456}));
    let said = templates.render(&subject("verification_code", Channel::Sms, &code)).unwrap();
    assert_eq!(body(said), "MyApp: Your code is 123456. Expires in 10 min. Don't share this code.");

    let order = data(json!({"order_id": "A-1\r\nBcc: all@example.com", "user_name": "<b>Eve</b> & 'co'"}));
    let said = templates.render(&subject("order_shipped", Channel::Email, &order)).unwrap();
    assert_eq!(
        said,
        Content::Email(Email {
            subject: "Your order #A-1 Bcc: all@example.com has shipped!".to_owned(),
            html: Some("<!DOCTYPE html><p>Hi &lt;b&gt;Eve&lt;/b&gt; &amp; &#x27;co&#x27;".to_owned()),
            text: "Hi <b>Eve</b> & 'co', your order has shipped...".to_owned(),
        })
    );
}

#[test]
fn json_is_read_as_json_has_it() {
    // Tabs and surrogate escapes are JSON's, and not YAML's.
    let source =
        "{\n\t\"template_id\": \"t\",\n\t\"channel\": \"sms\",\n\t\"body\": \"on its way \\ud83d\\udce6 \\/ now\"\n}";
    let none = Data::new();
    assert_eq!(
        body(templates(&[("t.json", source)]).render(&subject("t", Channel::Sms, &none)).unwrap()),
        "on its way 📦 / now"
    );
}

fn text(locale: &str, version: u32, extra: &str, body: &str) -> String {
    format!("template_id: t\nlocale: {locale}\nversion: {version}\nchannel: sms\nbody: {body}\n{extra}")
}

#[test]
fn the_locale_chain_ends_at_the_default_unless_the_template_forbids_it() {
    let none = Data::new();
    let brazilian = text("pt_BR", 1, "", "brasileiro");
    let portuguese = text("pt", 1, "", "português");
    let english = text("en", 1, "", "english");
    let english_only = text("en", 1, "locale_fallback: false", "english");
    let neutral = text("default", 1, "", "42");
    let taiwanese = text("zh_Hant", 1, "", "繁體");
    for (files, locale, expected) in [
        (&[&brazilian, &portuguese, &english][..], Some("pt_BR"), Ok("brasileiro")),
        (&[&brazilian, &portuguese, &english], Some("pt-br"), Ok("brasileiro")),
        (&[&portuguese, &english], Some("pt_BR"), Ok("português")),
        (&[&brazilian, &english], Some("pt_PT"), Ok("english")),
        (&[&brazilian, &english], None, Ok("english")),
        (&[&taiwanese, &english], Some("zh_Hant_TW"), Ok("繁體")),
        (&[&taiwanese, &english], Some("zh_TW"), Ok("english")),
        (&[&english, &neutral], Some("fr"), Ok("42")),
        (&[&english], Some("not a locale!"), Ok("english")),
        (&[&english_only], Some("en_GB"), Ok("english")),
        (&[&english_only], None, Ok("english")),
        (&[&english_only], Some("fr"), Err("no_locale")),
        (&[&brazilian], Some("fr"), Err("no_locale")),
        (&[&brazilian], None, Err("no_locale")),
    ] {
        let names: Vec<String> = (0..files.len()).map(|at| format!("{at}.yaml")).collect();
        let files: Vec<(&str, &str)> =
            names.iter().zip(files).map(|(name, file)| (name.as_str(), file.as_str())).collect();
        let said = templates(&files).render(&Subject { locale, ..subject("t", Channel::Sms, &none) });
        assert_eq!(
            said.map(body).as_deref().map_err(|error| error.reason().as_str()),
            expected,
            "{locale:?} {files:?}"
        );
    }
    let error = templates(&[("t.yaml", &english_only)])
        .render(&Subject { locale: Some("fr"), ..subject("t", Channel::Sms, &none) })
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "template `t` has no text for locale `fr` on sms: add one, or allow its default text with `locale_fallback: true`"
    );
}

#[test]
fn the_highest_active_version_speaks() {
    let none = Data::new();
    let (first, second) = (text("en", 1, "", "one"), text("en", 2, "", "two"));
    let third = text("en", 3, "is_active: false", "three");
    let all = templates(&[("1.yaml", &first), ("2.yaml", &second), ("3.yaml", &third)]);
    assert_eq!(body(all.render(&subject("t", Channel::Sms, &none)).unwrap()), "two");
    let twice = [("1.yaml", first.as_str()), ("again.yaml", first.as_str())];
    let errors = store::from_sources(twice.iter().map(|(name, source)| (Path::new(*name), *source)), "en").unwrap_err();
    assert_eq!(
        errors.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [
            "again.yaml: `t` has version 1 for sms in `en` in 1.yaml too: raise one's `version`, set `is_active: false`, or \
             leave out the `notification_type` of one that is found by its id alone"
        ]
    );
}

#[test]
fn a_default_locale_is_a_locale() {
    let german = text("de", 1, "", "deutsch");
    let templates = templates(&[("t.yaml", &german)]).with_default_locale("de_DE").unwrap();
    let none = Data::new();
    let said = templates.render(&Subject { locale: Some("fr"), ..subject("t", Channel::Sms, &none) });
    assert_eq!(said.map(body).as_deref(), Ok("deutsch"));
    let errors = templates.with_default_locale("the usual").unwrap_err();
    assert_eq!(errors[0].to_string(), "default locale: `the usual` is no locale; write it like `en` or `pt_BR`");
}

#[test]
fn a_type_with_several_templates_is_spoken_for_by_the_one_that_bears_its_name() {
    let campaign = |id: &str| format!("template_id: {id}\nnotification_type: campaign\nchannel: sms\nbody: {id}\n");
    let (spring, summer, campaign) = (campaign("spring"), campaign("summer"), campaign("campaign"));
    let none = Data::new();
    let all = [("a.yaml", spring.as_str()), ("b.yaml", summer.as_str()), ("c.yaml", campaign.as_str())];
    let said = |template_id| {
        body(templates(&all).render(&Subject { template_id, ..subject("campaign", Channel::Sms, &none) }).unwrap())
    };
    assert_eq!(said(None), "campaign");
    assert_eq!(said(Some("summer")), "summer");
}

proptest::proptest! {
    #[test]
    fn no_file_and_no_data_makes_it_panic(text in "[ a-z{}%|.()'\"\\[\\]é\\n]{0,40}", name in ".{0,12}") {
        let source = json!({"template_id": "t", "channel": "email", "subject": "s", "body": text, "html_body": text});
        let source = source.to_string();
        if let Ok(templates) = store::from_sources([(Path::new("t.json"), source.as_str())].into_iter(), "en") {
            let data = data(json!({ "a": name }));
            let subject = Subject { actors: &[&name], actors_count: 9, ..subject("t", Channel::Email, &data) };
            let _ = templates.render(&subject);
        }
        let _ = store::from_sources([(Path::new("t.yaml"), text.as_str())].into_iter(), "en");
    }

    #[test]
    fn a_name_never_breaks_out_of_html(name in "[<>&'\"a-zא-ת\u{202a}-\u{202e}\u{2066}-\u{2069}]{1,12}") {
        let source = r#"{"template_id": "t", "channel": "email", "subject": "s", "body": "x", "html_body": "{{ actors | who }}"}"#;
        let none = Data::new();
        let subject = Subject { actors: &[&name], actors_count: 1, ..subject("t", Channel::Email, &none) };
        let Ok(Content::Email(email)) = templates(&[("t.json", source)]).render(&subject) else { panic!("no e-mail") };
        let html = email.html.unwrap().replace("<bdi>", "").replace("</bdi>", "");
        assert!(!html.contains(['<', '>', '"', '\'', '\u{202e}', '\u{2068}']), "{html}");
    }
}

#[test]
fn what_has_no_template_is_said_generically_or_refused() {
    let told = data(json!({"message": "Your seat is 12A"}));
    let none = Data::new();
    let embedded = Templates::embedded().unwrap();
    let push = |said| match said {
        Content::Push(push) => (push.title, push.body),
        other => panic!("not a push: {other:?}"),
    };
    let said = embedded.render(&subject("seat_changed", Channel::Push, &told)).unwrap();
    assert_eq!(push(said), ("Seat changed".to_owned(), "Your seat is 12A".to_owned()));
    let said = embedded.render(&subject("seat_changed", Channel::Push, &none)).unwrap();
    assert_eq!(push(said), ("Seat changed".to_owned(), "You have news: seat changed.".to_owned()));

    let named = Subject { template_id: Some("tmpl_nope"), ..subject("seat_changed", Channel::Push, &none) };
    let error = embedded.render(&named).unwrap_err();
    assert_eq!(
        (error.reason(), error.to_string().as_str()),
        (
            Reason::NoTemplate,
            "no template is named `tmpl_nope`: add a file with this `template_id`, or correct the event's"
        )
    );
    let seed = templates(&[("order_shipped.json", SEED)]);
    for channel in [Channel::Sms, Channel::Webhook] {
        let error = seed.render(&subject("order_shipped", channel, &none)).unwrap_err();
        assert_eq!(error.reason(), Reason::NoTemplate);
        let expected =
            format!("`order_shipped` has no template for {channel}: add one, or a `default` template for {channel}");
        assert_eq!(error.to_string(), expected);
    }
}

#[test]
fn variables_are_coerced_to_their_declared_type_or_refused() {
    let source = "template_id: t\nchannel: sms\nbody: 'v={{ v }}'\nvariables: { v: { type: TYPE } }";
    for (of, value, expected) in [
        ("string", json!("a"), Ok("v=a")),
        ("string", json!(4412), Ok("v=4412")),
        ("string", json!(1.5), Ok("v=1.5")),
        ("string", json!(true), Ok("v=true")),
        ("string", json!(null), Ok("v=")),
        ("string", json!({"a": 1}), Err("must be a string, found the object")),
        ("string", json!(["a"]), Err("must be a string, found the list")),
        ("number", json!(7), Ok("v=7")),
        ("number", json!(" 7 "), Ok("v=7")),
        ("number", json!("seven"), Err("must be a number, found the string `seven`")),
        ("number", json!(true), Err("must be a number, found the boolean `true`")),
        ("boolean", json!("true"), Ok("v=true")),
        ("boolean", json!(1), Err("must be a boolean, found the number `1`")),
        ("list", json!("a"), Err("must be a list, found the string `a`")),
    ] {
        let templates = templates(&[("t.yaml", &source.replace("TYPE", of))]);
        let data = data(json!({ "v": value }));
        let said = templates.render(&subject("t", Channel::Sms, &data)).map(body);
        let expected = expected.map(str::to_owned).map_err(|problem| {
            format!("template `t` (t.yaml): variable `v` {problem}; correct the event's `data` or the declared type")
        });
        assert_eq!(said.map_err(|error| error.to_string()), expected, "{of} {value}");
    }
}

#[test]
fn what_cannot_be_rendered_says_where_and_why() {
    let data = data(json!({"map": {"a": 1}, "list": [1], "who": "x"}));
    let failed = |problem: &str| format!("template `t` (t.yaml): `body`, line 1: {problem}");
    for (text, expected) in [
        (
            "{{ order }}",
            "template `t` (t.yaml) needs `order`, missing from the event's `data`: send it, or declare it optional or \
             with a default in the template"
                .to_owned(),
        ),
        ("{{ map.b }}", failed("uses something undefined: send it in `data`, or guard it with `is defined`")),
        ("{{ map }}", failed("invalid operation: only strings, numbers and booleans can be printed, found map")),
        ("{{ list }}", failed("invalid operation: only strings, numbers and booleans can be printed, found sequence")),
        ("{{ plural('many', other='x') }}", failed("invalid operation: `plural` needs a number, found string `many`")),
        (
            "{{ plural(2, one='x') }}",
            failed("missing argument: `plural` needs the form `other=\"…\"`, which every language has"),
        ),
        (
            "{{ plural(2, others='x') }}",
            failed("too many arguments: `plural` knows the forms zero, one, two, few, many and other"),
        ),
        ("{% if list %} {% endif %}", failed("came out empty; give it words that need no variable")),
    ] {
        let source = format!("template_id: t\nchannel: sms\nbody: |\n  {text}\n");
        let error = templates(&[("t.yaml", &source)]).render(&subject("t", Channel::Sms, &data)).unwrap_err();
        assert_eq!(error.to_string(), expected, "{text}");
    }
}

#[test]
fn a_template_is_bounded_in_steps_and_output() {
    let items = data(json!({"items": vec!["x"; 20_000]}));
    let said = |text: &str| {
        let source = format!("template_id: t\nchannel: sms\nbody: |\n  {text}\n");
        let templates = templates(&[("t.yaml", &source)]);
        templates.render(&subject("t", Channel::Sms, &items)).unwrap_err().to_string()
    };
    assert_eq!(
        said("{% for a in data['items'] %}{% for b in data['items'] %}{{ b }}{% endfor %}{% endfor %}"),
        "template `t` (t.yaml): `body`, line 1: takes more than 100000 steps: loop over less"
    );
    assert_eq!(
        said("{% for a in data['items'] %}{{ a * 1000 }}{% endfor %}"),
        "template `t` (t.yaml): `body`, line 1: writes more than 524288 bytes: say less, or link to it"
    );
    for (text, expected) in [
        (
            "{% set all = namespace(s=1) %}",
            "t.yaml:3:21: calls what is no function: texts know `plural`, `range` and `dict`",
        ),
        ("{{ 7 | indent(999999999) }}", "t.yaml:3:15: filter indent is unknown"),
        ("{% macro a() %}{{ a() }}{% endmacro %}", "t.yaml:3:11: syntax error: unknown statement macro"),
        ("{% include \"t.yaml\" %}", "t.yaml:3:11: syntax error: unknown statement include"),
    ] {
        assert_eq!(refused("t.yaml", &format!("template_id: t\nchannel: sms\nbody: '{text}'\n")), expected);
    }
    // One that loops whatever the data is refused before anybody waits for it.
    let endless = "template_id: t\nchannel: sms\nbody: '{% for a in range(10000) %}{% for b in range(10000) %}x{% endfor %}{% endfor %}'\n";
    assert!(refused("t.yaml", endless).starts_with("t.yaml:3:"), "{}", refused("t.yaml", endless));
}

#[test]
fn names_and_links_are_escaped_for_their_place() {
    let source = r#"
template_id: t
channels:
  email:
    subject: "{{ actors | who }}"
    body: "{{ actors | who }}"
    html_body: "<a href='{{ action_url }}'>{{ actors | who }}</a> {{ note }}"
    action_url: "https://example.com/p?q={{ note }}&a=1"
  push:
    title: "{{ actors | who }}"
    body: "{{ note }}"
    action_url: "{{ link }}"
"#;
    let templates = templates(&[("t.yaml", source)]);
    let evil = data(json!({"note": "a&b=\"<é>", "link": "https://example.com/ok?x=1&y=2"}));
    let actors = ["<script>", "سارة"];
    let subject = |channel| Subject { actors: &actors, actors_count: 3, ..subject("t", channel, &evil) };
    let Content::Email(email) = templates.render(&subject(Channel::Email)).unwrap() else { panic!("no e-mail") };
    assert_eq!(email.subject, "<script>, \u{2068}سارة\u{2069}, and 1 other");
    assert_eq!(
        email.html.as_deref(),
        Some(
            "<a href='https://example.com/p?q=a%26b%3D%22%3C%C3%A9%3E&amp;a=1'>&lt;script&gt;, <bdi>سارة</bdi>, and 1 other</a> \
             a&amp;b=&quot;&lt;é&gt;"
        )
    );
    let Content::Push(push) = templates.render(&subject(Channel::Push)).unwrap() else { panic!("no push") };
    assert_eq!(push.body, "a&b=\"<é>");
    assert_eq!(push.action_url.as_deref(), Some("https://example.com/ok?x=1&y=2"), "a whole link is taken as it is");

    for link in ["javascript:alert(1)", "JavaScript:alert(1)", "data:text/html,x", "orders/7", "https://a b", ":x"] {
        let evil = data(json!({ "note": "", "link": link }));
        let subject = Subject { data: &evil, ..subject(Channel::Push) };
        let error = templates.render(&subject).unwrap_err().to_string();
        let expected = format!(
            "template `t` (t.yaml): `action_url`, line 1: `{link}` is no link; expected a scheme, like `https://…` or `myapp://…`"
        );
        assert_eq!(error, expected);
    }
}

#[test]
fn a_push_carries_its_whole_presentation_and_a_bounded_text() {
    let source = r##"
template_id: t
channel: push
title: "{{ name }}"
body: "{{ text }}"
presentation:
  subtitle: "about {{ name }}"
  badge: 1
  sound: default
  category: MESSAGE
  thread_id: "room-{{ object.id }}"
  interruption_level: active
  mutable_content: true
  collapse_key: "c-{{ object.id }}"
  ttl: 86400s
  channel_id: messages
  color: "#00ff00"
  icon: chat
  click_action: OPEN_CHAT
  custom: { room: "{{ object.id }}", v: "1" }
"##;
    let data = data(json!({"name": "Bob", "text": "é".repeat(3_000)}));
    let subject = Subject { object: Some(("r1", None)), ..subject("t", Channel::Push, &data) };
    let Content::Push(push) = templates(&[("t.yaml", source)]).render(&subject).unwrap() else { panic!("no push") };
    assert_eq!(push.body.len(), 2_047);
    assert_eq!(push.body, format!("{}…", "é".repeat(1_022)));
    let json = serde_json::to_string(&Push { body: String::new(), ..*push }).unwrap();
    assert_eq!(
        json,
        r##"{"title":"Bob","subtitle":"about Bob","body":"","badge":1,"sound":"default","category":"MESSAGE","thread_id":"room-r1","interruption_level":"active","mutable_content":true,"collapse_key":"c-r1","ttl_s":86400,"channel_id":"messages","color":"#00ff00","icon":"chat","click_action":"OPEN_CHAT","custom":{"room":"r1","v":"1"}}"##
    );
}

#[test]
fn a_broken_file_is_refused_with_line_column_and_remedy() {
    for (source, expected) in [
        ("template_id: t\nchannel: push\n", "t.yaml: push needs `title`: add it\nt.yaml: push needs `body`: add it"),
        ("template_id: t\nchannel: sms\nbody: x\ntitle: y\n", "t.yaml:4:8: `title` has no place on sms: remove it"),
        ("channel: sms\nbody: x\n", "t.yaml: needs `template_id` or `notification_type`, which events find it by"),
        (
            "template_id: t\nbody: x\n",
            "t.yaml: needs `channel: push` (email, sms, in_app), or `channels` with the texts of each",
        ),
        (
            "template_id: t\nchannel: sms\nchannels: { sms: {} }\nbody: x\n",
            "t.yaml:2:10: `channel` and `channels` exclude each other: keep one",
        ),
        (
            "template_id: t\nchannel: webhook\nbody: x\n",
            "t.yaml: a webhook carries the event itself and has no template: remove the channel",
        ),
        (
            "template_id: t\nchannel: sms\nlocale: klingonish_!\nbody: x\n",
            "t.yaml:3:9: `klingonish_!` is no locale; write it like `en`, `pt_BR` or `default`",
        ),
        (
            "template_id: t\nchannel: sms\nbody: x\nvariables:\n  a: { type: string, required: true, default: b }\n",
            "t.yaml:5:6: variable `a` is required, so its default is never used: drop one",
        ),
        (
            "template_id: t\nchannel: sms\nbody: x\nvariables:\n  a: { type: number, default: many }\n",
            "t.yaml:5:6: the default of variable `a` must be a number, found the string `many`",
        ),
        (
            "template_id: t\nchannel: push\ntitle: x\nbody: x\npresentation:\n  ttl: 5w\n  custom: { aps: x }\n",
            "t.yaml:6:8: `ttl` is `5w`, expected a duration of at most 28d, like `86400s` or `24h`\n\
             t.yaml:7:18: the custom key `aps` is the provider's own: choose another",
        ),
        (
            "template_id: t\nchannel: push\ntitle: x\nbody: x\npresentation:\n  ttl: 29d\n  custom: { gcm.x: x, google.x: x, x: x }\n",
            "t.yaml:6:8: `ttl` is `29d`, expected a duration of at most 28d, like `86400s` or `24h`\n\
             t.yaml:7:20: the custom key `gcm.x` is the provider's own: choose another\n\
             t.yaml:7:33: the custom key `google.x` is the provider's own: choose another",
        ),
        // Within a text: plain, quoted, in a block, in JSON.
        (
            "template_id: t\nchannel: sms\nbody: Order {{ id }\n",
            "t.yaml:3:19: syntax error: unexpected `}`, expected end of variable block",
        ),
        ("template_id: t\nchannel: sms\nbody: \"Order {{ id | nope }}\"\n", "t.yaml:3:22: filter nope is unknown"),
        (
            "template_id: t\nchannel: sms\nbody: |\n  Hello\n\n  {% if x %}you {{ id(1) }}{% endif %}\n",
            "t.yaml:6:20: calls what is no function: texts know `plural`, `range` and `dict`",
        ),
        (
            "{\n  \"template_id\": \"t\",\n  \"channel\": \"sms\",\n  \"body\": \"{% if %}\"\n}\n",
            "t.yaml:4:18: syntax error: unexpected end of block",
        ),
    ] {
        assert_eq!(refused("t.yaml", source), expected, "{source}");
    }
}

#[test]
fn yaml_that_is_no_template_is_refused_where_it_stands() {
    for (source, expected) in [
        ("template_id: t\nchanel: sms\nbody: x\n", "t.yaml:2:1: unknown field `chanel`"),
        ("template_id: t\nchannel: smoke\nbody: x\n", "t.yaml:2:10: unknown variant `smoke`"),
        ("template_id: t\nchannel: sms\nbody: [x\n", "t.yaml:"),
        ("template_id: t\ntemplate_id: u\nchannel: sms\nbody: x\n", "t.yaml:2:1: duplicate mapping key"),
        ("template_id: t\nchannel: sms\nbody: x\nversion: -1\n", "t.yaml:4:10: invalid"),
    ] {
        let said = refused("t.yaml", source);
        assert!(said.starts_with(expected), "{said}");
    }
}

#[test]
fn an_email_without_html_is_set_in_the_layout_with_its_link_as_a_button() {
    let order = data(json!({"order_id": 4412, "carrier": "A&B", "tracking_url": "https://t.example/?a=1&b=2"}));
    let subject = Subject { locale: Some("de_AT"), ..subject("order_shipped", Channel::Email, &order) };
    let Content::Email(email) = Templates::embedded().unwrap().render(&subject).unwrap() else { panic!("no e-mail") };
    assert_eq!(email.subject, "Deine Bestellung 4412 ist unterwegs");
    assert_eq!(
        email.text,
        "Deine Bestellung 4412 wurde mit A&B verschickt.\n\nSendung verfolgen: https://t.example/?a=1&b=2"
    );
    insta::assert_snapshot!(email.html.unwrap());
}

#[test]
fn a_link_that_the_text_places_itself_is_not_repeated() {
    let said = |extra: &str, body: &str| {
        let source = format!(
            "template_id: t\nchannel: email\nsubject: s\nbody: '{body}'\naction_url: 'https://a.example/{{{{ id }}}}'\n{extra}"
        );
        let data = data(json!({"id": "7", "action_url": "sent"}));
        super::tests::body(templates(&[("t.yaml", &source)]).render(&subject("t", Channel::Email, &data)).unwrap())
    };
    assert_eq!(said("", "Look"), "Look\n\nhttps://a.example/7");
    assert_eq!(said("action_label: See", "Look"), "Look\n\nSee: https://a.example/7");
    assert_eq!(said("action_label: See", "Look at {{ action_url }}!"), "Look at https://a.example/7!");
    let declared = "variables: { action_url: { type: string } }";
    assert_eq!(
        said(declared, "Look {{ action_url }}"),
        "Look sent\n\nhttps://a.example/7",
        "a declared variable hides ours"
    );
}

/// Data that any of the default templates can be rendered with.
fn plenty() -> Data {
    data(json!({
        "order_id": 4412, "carrier": "FedEx", "eta": "Tue", "tracking_url": "https://t.example/4412", "code": "123456",
        "amount": "€ 12.50", "reset_url": "https://example.com/reset?t=1", "headline": "Spring sale",
        "message": "Everything for half.", "item": "a bicycle", "reason": "you like walking", "text": "Lunch?",
        "comment": "Nice!", "items": ["Bob liked a photo", "Eve follows you"], "link": "myapp://x", "device": "Pixel 9",
        "location": "Berlin", "title": "News",
    }))
}

const TYPES: [&str; 14] = [
    "verification_code",
    "security_alert",
    "payment_failed",
    "password_reset",
    "new_message",
    "new_follower",
    "order_shipped",
    "comment_reply",
    "marketing_campaign",
    "weekly_digest",
    "recommendation",
    "like",
    "comment",
    "something_else",
];

#[test]
fn every_default_template_speaks_on_every_channel() {
    let embedded = Templates::embedded().unwrap();
    let data = plenty();
    let mut said = String::new();
    for event_type in TYPES {
        for locale in ["en", "de"] {
            for channel in [Channel::Push, Channel::Email, Channel::Sms, Channel::InApp] {
                let subject = Subject {
                    locale: Some(locale),
                    actors: &["John", "Sarah", "Bob"],
                    actors_count: 5,
                    activities: 7,
                    object: Some(("photo7", Some("photo"))),
                    ..subject(event_type, channel, &data)
                };
                let content = match embedded.render(&subject) {
                    Ok(Content::Email(Email { subject, text, html })) => {
                        assert!(html.is_some_and(|html| html.starts_with("<!DOCTYPE html>")));
                        format!("{subject} | {}", text.replace('\n', "⏎"))
                    }
                    Ok(content) => serde_json::to_string(&content).unwrap(),
                    Err(error) => error.reason().to_string(),
                };
                let is_own_german = matches!(event_type, "like" | "order_shipped" | "marketing_campaign");
                if locale == "en" || is_own_german {
                    said.push_str(&format!("{event_type} {locale} {channel}: {content}\n"));
                }
            }
        }
    }
    insta::assert_snapshot!(said);
}

#[test]
fn default_templates_need_nothing_but_what_they_require() {
    let embedded = Templates::embedded().unwrap();
    let required = ["order_id", "code", "amount", "reset_url", "headline", "message", "item"];
    let data: Data = plenty().into_iter().filter(|(name, _)| required.contains(&name.as_str())).collect();
    for event_type in TYPES {
        for channel in [Channel::Push, Channel::Email, Channel::Sms, Channel::InApp] {
            let said = embedded.render(&subject(event_type, channel, &data));
            assert!(said.is_ok(), "{event_type} on {channel}: {said:?}");
        }
    }
}

#[test]
fn the_embedded_templates_are_those_of_the_folder() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/templates");
    let mut files: Vec<(String, String)> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read_to_string(&path).unwrap()))
        .collect();
    files.sort();
    let embedded: Vec<(String, String)> =
        EMBEDDED.iter().map(|(name, source)| ((*name).to_owned(), (*source).to_owned())).collect();
    assert_eq!(embedded, files);
    assert!(Templates::load(&folder).is_ok());
}
