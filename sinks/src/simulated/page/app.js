// Asks for what is new once a second and shows it as its receivers would see it. Everything a
// message says goes in as text (textContent), never as markup; a mail's HTML stays in a sandboxed frame.
"use strict";

const POLL_MS = 1000;
const SHOWN_MAX = 200; // per list; the rest stays in /api/messages
const KEPT_MAX = 2000;
const $ = (id) => document.getElementById(id);

let messages = []; // newest first
let accepted = 0;
let selected = null;

const PRESETS = {
  "all is well": { rules: [] },
  "APNs is down": { rules: [{ provider: "apns", fault: { kind: "server_error", status: 503 } }] },
  "FCM throttles every third": {
    rules: [{ provider: "fcm", every: 3, fault: { kind: "too_many_requests", retry_after: "5" } }],
  },
  "SES accepts, then never answers": { rules: [{ provider: "ses", times: 1, fault: { kind: "no_answer" } }] },
  "every answer takes 500 ms": { latency_ms: 500, rules: [] },
};

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined && text !== null) made.textContent = text;
  return made;
}

const personOf = (message) => message.user || message.address;
const short = (text) => (text.length > 18 ? text.slice(0, 8) + "…" + text.slice(-6) : text);
const time = (message) => new Date(message.at).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
const kind = (message) => message.content.channel;
const shown = () => messages.filter((message) => !$("person").value || personOf(message) === $("person").value);

function footer(message) {
  const line = element("p", "from", `${message.provider} → ${message.user || short(message.address)}`);
  if (message.copy > 1) line.append(" ", element("strong", "copy", `copy ${message.copy} of this delivery`));
  line.title = [message.notification, message.delivery, message.provider_id].filter(Boolean).join("\n");
  return line;
}

// A phone shows one notification per collapse key: the newest.
function onScreen(pushes) {
  const seen = new Map();
  for (const push of pushes) {
    const key = push.collapse_key ? `${push.address} ${push.collapse_key}` : push.seq;
    if (!seen.has(key)) seen.set(key, { push, replaced: 0 });
    else seen.get(key).replaced += 1;
  }
  return [...seen.values()];
}

function pushCard({ push, replaced }) {
  const content = push.content;
  const card = element("li", "card");
  const top = element("p", "top");
  top.append(element("span", "app", push.headers["apns-topic"] || "app"), element("time", "", time(push)));
  card.append(top, element("h3", "", content.title));
  if (content.subtitle) card.append(element("p", "subtitle", content.subtitle));
  card.append(element("p", "body", content.body));
  if (content.image_url) card.append(element("p", "extra", `picture: ${content.image_url}`));
  if (content.action_url) card.append(element("p", "extra", `opens ${content.action_url}`));
  if (content.badge) card.append(element("span", "badge", content.badge));
  if (replaced) card.append(element("p", "extra", `replaced ${replaced} earlier`));
  card.append(footer(push));
  return card;
}

function mailRow(mail) {
  const row = element("li");
  const button = element("button", mail.seq === selected ? "current" : "");
  button.type = "button";
  button.append(
    element("time", "", time(mail)),
    element("span", "sender", mail.headers.From || ""),
    element("span", "subject", mail.content.subject),
    element("span", "preview", mail.content.text.slice(0, 120)),
  );
  button.addEventListener("click", () => {
    selected = mail.seq;
    render();
    read(mail);
  });
  row.append(button);
  return row;
}

function read(mail) {
  const content = mail.content;
  const parts = [element("h3", "", content.subject)];
  const headers = element("dl", "headers");
  const rows = { To: mail.address, Date: new Date(mail.at).toLocaleString(), ...mail.headers };
  for (const [name, value] of Object.entries(rows)) headers.append(element("dt", "", name), element("dd", "", value));
  parts.push(headers);
  if (content.html) {
    const frame = element("iframe");
    frame.setAttribute("sandbox", "");
    frame.title = "The mail's HTML";
    frame.src = `/api/messages/${mail.seq}/html`;
    parts.push(frame);
  }
  const text = element("details");
  text.append(element("summary", "", "Text part"), element("pre", "", content.text));
  text.open = !content.html;
  parts.push(text, footer(mail));
  $("reading").replaceChildren(...parts);
}

function textBubble(text) {
  const bubble = element("li", "bubble");
  bubble.append(element("p", "", text.content.text), footer(text));
  return bubble;
}

function persons() {
  const chosen = $("person").value;
  const names = [...new Set(messages.map(personOf))].sort();
  const options = names.map((name) => {
    const option = element("option", "", short(name));
    option.value = name;
    return option;
  });
  const everyone = element("option", "", "everyone");
  everyone.value = "";
  $("person").replaceChildren(everyone, ...options);
  $("person").value = names.includes(chosen) ? chosen : "";
}

function render() {
  const visible = shown();
  const of = (wanted) => visible.filter((message) => kind(message) === wanted);
  const pushes = onScreen(of("push")).slice(0, SHOWN_MAX);
  $("pushes").replaceChildren(...pushes.map(pushCard));
  $("no-pushes").hidden = pushes.length > 0;
  $("mails").replaceChildren(...of("email").slice(0, SHOWN_MAX).map(mailRow));
  const texts = of("sms").slice(0, SHOWN_MAX);
  $("sms-section").hidden = texts.length === 0;
  $("texts").replaceChildren(...texts.map(textBubble));
}

function showTraffic(providers) {
  const cells = Object.entries(providers).flatMap(([name, traffic]) => [
    element("dt", "", name),
    element("dd", "", traffic.faults ? `${traffic.accepted} (${traffic.faults} faults)` : traffic.accepted),
  ]);
  $("counts").replaceChildren(...cells);
}

async function poll() {
  try {
    const answer = await fetch(`/api/messages?after=${accepted}`);
    const total = Number(answer.headers.get("x-accepted"));
    if (total < accepted) {
      // The simulated providers were started anew.
      messages = [];
      accepted = 0;
      selected = null;
      return;
    }
    const news = await answer.json();
    if (news.length > 0) {
      accepted = Math.max(accepted, news[0].seq);
      messages = news.concat(messages).slice(0, KEPT_MAX);
      persons();
      const mail = shown().find((message) => kind(message) === "email");
      const first = selected === null && mail !== undefined;
      if (first) selected = mail.seq;
      render();
      if (first) read(mail);
    }
    showTraffic(await (await fetch("/api/traffic")).json());
    $("status").textContent = `${total} accepted`;
    document.body.classList.remove("lost");
  } catch {
    $("status").textContent = "no connection to the simulated providers";
    document.body.classList.add("lost");
  } finally {
    $("clock").textContent = new Date().toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
    setTimeout(poll, POLL_MS);
  }
}

async function apply() {
  const body = $("script").value;
  const answer = await fetch("/api/faults", { method: "POST", headers: { "content-type": "application/json" }, body });
  const said = answer.headers.get("content-type") === "application/json" ? await answer.json() : {};
  $("applied").textContent = answer.ok ? "applied" : said.error || `refused: ${answer.status}`;
}

function choose(script) {
  $("script").value = JSON.stringify(script, null, 2);
}

for (const [name, script] of Object.entries(PRESETS)) {
  const button = element("button", "", name);
  button.type = "button";
  button.addEventListener("click", () => {
    choose(script);
    apply();
  });
  $("presets").append(button, " ");
}
choose(PRESETS["all is well"]);
$("apply").addEventListener("click", apply);
$("person").addEventListener("change", render);
poll();
