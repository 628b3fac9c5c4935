// Follows the stream of changes and shows events, stories, people and sums. Everything that an event
// or message says goes in as text (textContent), never as markup.
"use strict";

const SHOWN_MAX = 300; // events in the list
const NOW_MS = 1000;
const SUMS_MS = 2000;
const MESSAGES_MS = 1500;

const $ = (id) => document.getElementById(id);
const events = new Map(); // id -> line
const acts = new Map(); // number -> act
let version = null;
let selected = null;
let people = [];
let messages = [];
let clock = { now: 0, at: 0, speed: 1 };
let frame = 0;

const SYMBOLS = { good: "✓", open: "…", waiting: "◷", quiet: "–", bad: "!" };
const CHANNELS = { push: "push", email: "e-mail", sms: "text", in_app: "inbox", webhook: "webhook" };

function element(tag, className, text, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined && text !== null) made.textContent = text;
  made.append(...children);
  return made;
}

async function json(path) {
  const answer = await fetch(path);
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.error || answer.statusText);
  return body;
}

const spaced = (word) => word.replaceAll("_", " ");
const name = (user) => user.charAt(0).toUpperCase() + user.slice(1);
const city = (zone) => zone.split("/").pop().replaceAll("_", " ");
const hue = (user) => [...user].reduce((sum, letter) => (sum * 31 + letter.charCodeAt(0)) % 360, 7);

function avatar(user) {
  const made = element("span", "avatar", user ? user.charAt(0).toUpperCase() : "?");
  made.style.setProperty("--hue", user ? hue(user) : 0);
  return made;
}

function localTime(at, zone, seconds) {
  const shape = { hour: "2-digit", minute: "2-digit", hourCycle: "h23", timeZone: zone || "UTC" };
  if (seconds) shape.second = "2-digit";
  try {
    return new Date(at).toLocaleTimeString("en-GB", shape);
  } catch {
    return new Date(at).toISOString().slice(11, 16);
  }
}

const zoneOf = (user) => (people.find((person) => person.user === user) || {}).zone;

function chip(tone, text, extra) {
  return element("span", `chip ${tone}${extra ? " " + extra : ""}`, null, element("i", "", SYMBOLS[tone]), document.createTextNode(text));
}

// What an event's line says of its fate.
function chips(line) {
  const made = element("p", "chips");
  if (!line.end) return made.append(chip("open", "arrived")), made;
  made.append(chip(line.end.tone, `${spaced(line.end.word)}${line.end.word === "accepted" ? "" : ": " + line.end.text}`));
  const loud = (line.channels || []).filter((one) => !one.silent);
  const told = loud.some((one) => one.tone === "good" || one.tone === "open");
  for (const channel of line.channels || []) {
    // One way is in the fate's own words already, and a silent copy is worth a word only where it is all there is.
    if (channel.silent ? told : loud.length === 1 && (line.end.word !== "notified" || told)) continue;
    const label = channel.silent ? "inbox, silently" : CHANNELS[channel.channel] || channel.channel;
    made.append(chip(channel.tone, `${label}${channel.silent ? "" : " " + spaced(channel.word)}`, "small"));
  }
  return made;
}

function eventItem(line) {
  const at = line.at || (line.untold && line.untold.at);
  const user = line.user || (line.untold && line.untold.user) || "";
  const title = line.title || (line.untold && line.untold.title) || "a record";
  const item = element("li", "event");
  item.dataset.id = line.id;
  const button = element("button", "pick");
  const head = element("p", "head", null, element("strong", "", title.charAt(0).toUpperCase() + title.slice(1)));
  if (line.priority) head.append(element("span", `priority ${line.priority}`, line.priority));
  const when = element("time", "", localTime(at, line.zone || zoneOf(user)));
  when.dateTime = at;
  const who = element("p", "who", null, element("span", "", user ? `for ${name(user)}` : "for nobody known"), when);
  button.append(avatar(user), element("div", "", null, head, who, chips(line)));
  if (line.caption) button.lastChild.append(element("p", "caption", line.caption));
  item.append(button);
  return item;
}

function actItem(act) {
  const item = element("li", "act", null, avatar(act.user), element("p", "", act.text));
  return item;
}

function render() {
  frame = 0;
  const wanted = $("user").value;
  const all = [
    ...[...events.values()].map((line) => ({ at: Date.parse(line.at || line.untold.at), order: line.place, line, user: line.user || (line.untold || {}).user })),
    ...[...acts.values()].map((act) => ({ at: Date.parse(act.at), order: 0, act, user: act.user })),
  ].filter((one) => !wanted || one.user === wanted);
  all.sort((one, two) => two.at - one.at || two.order - one.order);
  const list = $("list");
  const top = list.scrollTop;
  list.replaceChildren(...all.slice(0, SHOWN_MAX).map((one) => (one.line ? eventItem(one.line) : actItem(one.act))));
  list.scrollTop = top;
  mark();
  if (!all.length) list.append(element("li", "empty", "Nothing has arrived yet."));
  const users = [...new Set([...people.map((person) => person.user), ...[...events.values()].map((line) => line.user).filter(Boolean)])].sort();
  const known = [...$("user").options].map((option) => option.value).slice(1);
  if (users.join() !== known.join()) {
    $("user").replaceChildren(new Option("everyone", ""), ...users.map((user) => new Option(name(user), user)));
    $("user").value = wanted;
  }
}

const renderSoon = () => (frame = frame || requestAnimationFrame(render));

function mark() {
  for (const item of $("list").querySelectorAll(".event")) item.classList.toggle("chosen", item.dataset.id === selected);
}

// The story of one event.
function showStory(story) {
  const box = $("story");
  box.replaceChildren();
  box.append(element("p", "headline", story.headline));
  const meta = element("p", "meta");
  for (const word of [story.type && spaced(story.type), story.category, story.priority && `${story.priority} priority`, `for ${story.user ? name(story.user) : "nobody known"}`, `times in ${city(story.zone)}`]) {
    if (word) meta.append(element("span", "", word));
  }
  box.append(meta);
  if (story.channels.length) {
    const table = element("div", "channels");
    for (const channel of story.channels) {
      const label = channel.silent ? "Inbox (silent)" : CHANNELS[channel.channel] || channel.channel;
      table.append(element("div", `channel ${channel.tone}`, null, element("b", "", label), element("span", "", channel.text)));
    }
    box.append(table);
  }
  const steps = element("ol", "steps");
  let last = null;
  for (const step of story.steps) {
    const item = element("li", step.tone, null, element("time", "", step.local === last ? "" : step.local), element("span", "dot"), element("p", "", step.text, element("small", "", spaced(step.by))));
    last = step.local;
    steps.append(item);
  }
  box.append(steps);
  const part = (title, items, className) => {
    if (!items.length) return;
    box.append(element("h3", "", title));
    box.append(element("ul", className, null, ...items.map((text) => element("li", "", text))));
  };
  part("What was not done", story.not_done, "plain");
  part("What would have made a difference", story.hints, "plain hints");
  const ids = [["event", story.ids.event], ["producer’s id", story.ids.own], ["intent", story.ids.intent], ...story.ids.notifications.map((id) => ["notification", id]), ["group", story.ids.group]].filter((pair) => pair[1]);
  const details = element("details", "ids", null, element("summary", "", "Ids, and how to ask again"));
  for (const [label, id] of ids) details.append(element("p", "", null, element("span", "", label), element("code", "", id)));
  details.append(element("p", "", null, element("span", "", "terminal"), element("code", "", `tidings explain ${story.ids.event}`)));
  box.append(details);
}

async function explain(id, by) {
  try {
    const story = await json(`/api/explain/${encodeURIComponent(id)}`);
    selected = story.ids.event;
    showStory(story);
    if (by) tab("why");
  } catch (error) {
    $("story").replaceChildren(element("p", "empty", error.message));
  }
  mark();
  const chosen = $("list").querySelector(".chosen");
  if (chosen) chosen.scrollIntoView({ block: "nearest" });
}

// Phones and mail.
const personOf = (message) => message.user || message.address;

function pushCard(message) {
  const content = message.content;
  return element("div", "note", null, element("p", "", null, element("b", "", content.title), element("time", "", localTime(message.at, zoneOf(message.user)))), element("p", "", [content.subtitle, content.body].filter(Boolean).join(" · ")));
}

function mailCard(message) {
  const content = message.content;
  return element("div", "note mail", null, element("p", "", null, element("b", "", content.subject), element("time", "", localTime(message.at, zoneOf(message.user)))), element("p", "", content.text));
}

function textCard(message) {
  const content = message.content;
  return element("div", "note", null, element("p", "", null, element("b", "", content.title || "Text message"), element("time", "", localTime(message.at, zoneOf(message.user)))), element("p", "", content.body || content.text));
}

function device(title, cards, className) {
  return element("div", `device ${className}`, null, element("p", "label", title), ...cards);
}

function showPeople() {
  const users = [...new Set([...people.map((person) => person.user), ...messages.map(personOf)])];
  const boxes = users.map((user) => {
    const person = people.find((one) => one.user === user);
    const of = messages.filter((message) => personOf(message) === user);
    const head = element("div", "person", null, avatar(user), element("div", "", null, element("b", "", name(user)), element("p", "", person ? `${city(person.zone)}${person.quiet_hours ? " · quiet " + person.quiet_hours : ""}` : "")));
    if (person) head.append(element("span", person.quiet ? "time quiet" : "time", person.quiet ? `☾ ${person.local}` : person.local));
    const box = element("div", "human", null, head);
    const off = [...(person && person.off.length ? [`off: ${person.off.join(", ")}`] : []), ...(person && person.locale ? [`language: ${person.locale}`] : [])];
    if (off.length) box.append(element("p", "off", off.join(" · ")));
    const kinds = [["push", "phone", pushCard, "phone", 3], ["email", "mail", mailCard, "letters", 2], ["sms", "texts", textCard, "phone", 2], ["in_app", "inbox in the app", textCard, "inbox", 2]];
    let any = false;
    for (const [channel, title, card, className, most] of kinds) {
      const shown = of.filter((message) => message.channel === channel).slice(0, most);
      if (!shown.length) continue;
      any = true;
      const total = of.filter((message) => message.channel === channel).length;
      box.append(device(total > shown.length ? `${title} · ${total}` : title, shown.map(card), className));
    }
    if (!any) box.append(element("p", "empty", person && person.quiet ? "asleep, and left in peace" : "nothing yet"));
    return [of.length ? Date.parse(of[0].at) : 0, box];
  });
  boxes.sort((one, two) => two[0] - one[0]);
  const box = $("phones");
  const top = box.scrollTop;
  box.replaceChildren(...boxes.map((pair) => pair[1]));
  box.scrollTop = top;
}

// Sums.
const TONES = { notified: "good", delivered: "good", queued: "good", merged: "open", parked: "waiting", returned: "open", in_flight: "open", rejected: "bad", lost: "bad", failed: "bad", dead_lettered: "bad", unknown: "bad", unaccounted: "bad" };

function showSums(answer) {
  const totals = $("totals");
  const sum = answer.sums[0];
  totals.replaceChildren(...sum.fates.filter((fate) => fate.units).map((fate) => {
    const tone = TONES[fate.fate] || "quiet";
    return element("li", tone, null, element("b", "", String(fate.units)), document.createTextNode(spaced(fate.fate)));
  }));
  const all = answer.sums.every((sum) => sum.adds_up);
  $("verdict").textContent = all ? "all three sums add up" : "some are being decided";
  $("verdict").className = all ? "ok" : "off";
  const words = { event: "events", leg: "legs", delivery: "deliveries" };
  $("tables").replaceChildren(...answer.sums.map((sum) => {
    const box = element("div", "sum");
    box.append(element("p", "sum-head", null, element("b", "", `${sum.created} ${words[sum.unit]}`), element("span", sum.adds_up ? "ok" : "off", sum.adds_up ? "" : sum.orphans ? "does not add up" : `${sum.unaccounted} open`)));
    const bar = element("div", "bars");
    for (const fate of sum.fates.filter((fate) => fate.units)) {
      const part = element("span", TONES[fate.fate] || "quiet");
      part.style.flexGrow = fate.units;
      part.title = `${fate.units} ${spaced(fate.fate)}`;
      bar.append(part);
    }
    box.append(bar);
    const table = element("table");
    const rows = sum.fates.filter((fate) => fate.units);
    for (const fate of rows) {
      const reasons = fate.fate === "suppressed" ? answer.suppressed.filter((one) => one.unit === sum.unit) : [];
      const word = element("th", "", spaced(fate.fate));
      if (reasons.length) word.append(element("span", "because", ` (${reasons.map((one) => `${one.units} ${spaced(one.reason)}`).join(", ")})`));
      table.append(element("tr", TONES[fate.fate] || "quiet", null, element("td", "", String(fate.units)), word));
    }
    box.append(table);
    return box;
  }));
}

// The clock ticks by itself between answers.
function tick() {
  if (!clock.at) return;
  const now = clock.now + (performance.now() - clock.at) * clock.speed;
  const date = new Date(now).toISOString();
  $("clock").replaceChildren(element("b", "", date.slice(11, 16)), element("span", "", `UTC${clock.speed > 1 ? ` · ${clock.speed}× faster` : ""}`));
}

// The stream.
function follow() {
  const stream = new EventSource(`/api/stream?since=${encodeURIComponent(version)}`);
  const link = $("link");
  stream.onopen = () => ((link.textContent = "live"), (link.className = "live"));
  stream.onerror = () => ((link.textContent = "connecting"), (link.className = ""));
  stream.addEventListener("event", (sent) => {
    const line = JSON.parse(sent.data);
    const known = events.has(line.id);
    events.set(line.id, line);
    if (!known && events.size > SHOWN_MAX) {
      const oldest = [...events.values()].reduce((one, two) => (one.place < two.place ? one : two));
      events.delete(oldest.id);
    }
    if (line.id === selected && line.headline) showStory(line);
    renderSoon();
  });
  stream.addEventListener("act", (sent) => {
    const act = JSON.parse(sent.data);
    acts.set(act.act, act);
    renderSoon();
  });
  stream.addEventListener("resync", () => {
    stream.close();
    load().then(follow).catch(retry);
  });
}

async function load() {
  const answer = await json(`/api/events?limit=${SHOWN_MAX}`);
  version = answer.version;
  events.clear();
  acts.clear();
  answer.events.forEach((line) => events.set(line.id, line));
  answer.acts.forEach((act) => acts.set(act.act, act));
  renderSoon();
}

function retry() {
  $("link").textContent = "connecting";
  setTimeout(() => load().then(follow).catch(retry), 1000);
}

async function everySo(milliseconds, act) {
  try {
    await act();
  } catch {
    // The next turn asks again; the stream's state is shown beside the clock.
  }
  setTimeout(() => everySo(milliseconds, act), milliseconds);
}

function tab(wanted) {
  document.querySelector("main").dataset.tab = wanted;
  for (const button of $("tabs").children) button.setAttribute("aria-pressed", String(button.dataset.tab === wanted));
}

const EXAMPLE = { type: "like", user_id: "john", actor: { id: "you", name: "You" }, object: { id: "photo7", kind: "photo" } };

addEventListener("DOMContentLoaded", () => {
  for (const button of $("tabs").children) button.addEventListener("click", () => tab(button.dataset.tab));
  $("list").addEventListener("click", (click) => {
    const item = click.target.closest(".event");
    if (item) explain(item.dataset.id, true);
  });
  $("user").addEventListener("change", render);
  $("ask").addEventListener("change", () => $("ask").value.trim() && explain($("ask").value.trim(), true));
  $("new").addEventListener("click", () => {
    $("body").value = $("body").value || JSON.stringify(EXAMPLE, null, 2);
    $("emitted").textContent = "";
    $("emit").showModal();
  });
  $("send").addEventListener("click", async (click) => {
    click.preventDefault();
    $("emitted").textContent = "…";
    const answer = await fetch("/api/events?wait=3s", { method: "POST", headers: { "content-type": "application/json" }, body: $("body").value });
    const body = await answer.json();
    $("emitted").textContent = body.error || (body.story ? body.story.headline : `accepted as ${body.event}`);
    if (body.event) explain(body.event, false);
  });
  $("story").replaceChildren(element("p", "empty", "Choose an event to see what happened to it, and why."));
  everySo(NOW_MS, async () => {
    const answer = await json("/api/now");
    clock = { now: Date.parse(answer.now), at: performance.now(), speed: answer.speed };
    people = answer.people;
    $("extent").textContent = answer.extent.seen > answer.extent.kept ? `The newest ${answer.extent.kept} of ${answer.extent.seen} events are kept here.` : `${answer.extent.seen} events`;
    showPeople();
  });
  everySo(SUMS_MS, async () => showSums(await json("/api/fates")));
  everySo(MESSAGES_MS, async () => {
    messages = await json("/api/messages");
    showPeople();
  });
  setInterval(tick, 200);
  const asked = new URLSearchParams(location.search).get("explain");
  load().then(follow).then(() => asked && explain(asked, true)).catch(retry);
});
