import { ask, describe } from "./api.js";
import { conversations, forget, keep, keepSettings, settings } from "./history.js";
import { copyText } from "./markdown.js";
import { picture, save } from "./picture.js";
import { clearRace, race, tell } from "./race.js";
import { View } from "./view.js";

const $ = id => document.getElementById(id);
const IDEAS = ["Why is the sky blue?", "Write a Python function that reverses a list.", "List the planets, with one fact about each."];
const KEPT = ["system", "block", "temperature", "max-tokens", "colours", "thinking"];   // of the settings; never the key
const newTalk = () => ({ id: `${Date.now()}-${Math.random().toString(36).slice(2)}`, turns: [] });
let talk = newTalk(), control = null, isRace = false, editing = null, model = null;

const key = () => $("key").value;
const block = () => Number($("block").value) || "auto";   // the left end leaves it to the controller
const opening = () => ($("system").value.trim() ? [{ role: "system", content: $("system").value.trim() }] : []);
const wish = (turns, blockSize, more = {}) => ({
  messages: [...opening(), ...turns], block_size: blockSize, temperature: Number($("temperature").value),
  max_tokens: Number($("max-tokens").value) || 1024,
  ...(!$("thinking-label").hidden && { chat_template_kwargs: { enable_thinking: $("thinking").checked } }), ...more,
});

function add(parent, tag, kind, text = "") {
  const node = document.createElement(tag);
  node.className = kind; node.textContent = text; parent.append(node);
  return node;
}

function button(parent, text, label, act) {
  const node = add(parent, "button", "quiet", text);
  [node.type, node.ariaLabel, node.onclick] = ["button", label, act];
  return node;
}

/** Keeps the end in sight while it is; who has scrolled up goes on reading. */
function follow(box) {
  const isAtEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 120;
  return () => { if (isAtEnd) box.scrollTop = box.scrollHeight; };
}

const cut = (view, most) => `Cut at ${view.tokens} tokens: ${view.tokens < most ? "the model’s context ends here; New begins afresh." : "Max tokens, under Settings."}`;
const NOTES = { length: cut, stopped: () => "Stopped.", broken: () => "The connection broke off." };

/** The bubble and the card of turn number `at`. */
function drawTurn(at) {
  const turn = talk.turns[at];
  const asked = add($("chat"), "div", "turn user", turn.prompt);
  const card = add($("chat"), "article", "turn");
  const view = new View(card);
  return { asked, card, view };
}

/** What can be done with a turn once it is over. */
function offer({ asked, card, view }, at) {
  const turn = talk.turns[at];
  const tools = add(card, "div", "tools");
  const note = NOTES[view.reason];
  if (note) add(tools, "span", "note", note(view, turn.most));
  const copy = button(tools, "Copy", "Copy the answer", () => copyText(view.said, copy));
  button(tools, "Again", "Answer again", () => send(turn.prompt, at));
  button(tools, "Edit", "Edit the question", () => edit(at));
  button(tools, "Image", "Save as an image", async () => save(await picture(view, turn.prompt, model?.id ?? ""), "flashdraft.png"));
  asked.ondblclick = () => edit(at);
}

function edit(at) {
  editing = at;
  $("prompt").value = talk.turns[at].prompt;
  $("prompt").focus();
  document.querySelectorAll("#chat .turn").forEach((node, i) => node.classList.toggle("replaced", i >= 2 * at));
}

function stopEditing() {
  editing = null;
  document.querySelectorAll(".replaced").forEach(node => node.classList.remove("replaced"));
}

/** The page as `talk` has it. */
function drawTalk() {
  document.querySelectorAll("#chat .turn").forEach(node => node.remove());
  $("hello").hidden = talk.turns.length > 0;
  talk.turns.forEach((turn, at) => {
    const drawn = drawTurn(at);
    drawn.view.restore(turn.answer);
    offer(drawn, at);
  });
}

async function chat(prompt, at = talk.turns.length) {
  const own = talk;                              // New may begin another one meanwhile
  own.turns.length = at;
  drawTalk();
  $("hello").hidden = true;
  const turns = own.turns.flatMap(turn => [{ role: "user", content: turn.prompt }, { role: "assistant", content: turn.answer.said }]);
  own.turns.push({ prompt, answer: null, most: Number($("max-tokens").value) });
  const drawn = drawTurn(at), { view } = drawn;
  $("main").scrollTop = $("main").scrollHeight;
  let reason = null;
  try {
    for await (const [choice, seconds] of ask(wish([...turns, { role: "user", content: prompt }], block()), key(), control.signal)) {
      view.onpaint = follow($("main"));
      view.show(choice, seconds);
    }
  } catch (error) {
    reason = error.name === "AbortError" ? "stopped" : "broken";
    if (!view.said) { own.turns.pop(); drawn.asked.remove(); drawn.card.remove(); }
    if (!view.said || reason === "broken") throw error;
  } finally {
    view.onpaint = null;
    if (view.said) {
      view.end(reason ?? view.reason);
      own.turns[at].answer = view.saved();
      if (own === talk) offer(drawn, at);
      keep(own);
      listTalks();
    }
    $("hello").hidden = talk.turns.length > 0;
    $("main").scrollTop = $("main").scrollHeight;
  }
}

/** Sends `prompt`; `at`: in place of that turn and what follows it. What failed is said above the prompt, which is given back. */
async function send(prompt, at = editing ?? undefined) {
  if (!prompt || control) return;
  control = new AbortController();
  stopEditing();
  $("prompt").value = ""; $("send").disabled = true; $("stop").hidden = false; setControls(false); say("");
  const turns = [{ role: "user", content: prompt }], size = block() === 1 ? 2 : block();
  let next = $("prompt");
  try { await (isRace ? race(prompt, size, (one, seed) => wish(turns, one, { seed }), key(), control.signal) : chat(prompt, at)); }
  catch (error) {
    if (isRace) tell("", "Stopped.");
    if (error.status === 401) { $("key-label").hidden = false; setControls(true); next = $("key"); }
    if (error.name !== "AbortError") { say(error.status === 401 ? "This server asks for an API key: put it under Settings." : error.message); $("prompt").value ||= prompt; }
  }
  control = null; $("send").disabled = false; $("stop").hidden = true;
  next.focus();
}

/** One line right above the prompt. */
function say(text) {
  $("error").textContent = text;
  $("error").hidden = !text;
}

function listTalks() {
  $("talks").replaceChildren();
  for (const one of conversations()) {
    const line = add($("talks"), "li", one.id === talk.id ? "current" : "");
    button(line, one.turns[0]?.prompt ?? "", "Open this conversation", () => { if (!control) { talk = one; showTab("chat"); drawTalk(); listTalks(); setControls(false); } });
    button(line, "×", "Delete this conversation", () => { forget(one.id); if (one.id === talk.id && !control) beginAnew(); listTalks(); });
  }
  $("talks-label").hidden = !$("talks").children.length;
}

function showTab(name) {
  isRace = name === "race";
  for (const one of ["chat", "race"]) {
    $(one).hidden = one !== name;
    $(`tab-${one}`).setAttribute("aria-selected", one === name);
    $(`tab-${one}`).tabIndex = one === name ? 0 : -1;
  }
  $("send").textContent = isRace ? "Race" : "Send";
}

function setControls(isOpen) {
  $("controls").classList.toggle("open", isOpen);
  $("open-controls").setAttribute("aria-expanded", isOpen);
}

const THEMES = { "": ["◐", "as the system has them"], light: ["☀", "light"], dark: ["☾", "dark"] };
function setTheme(name) {
  document.documentElement.dataset.theme = name;
  [$("theme").textContent, $("theme").ariaLabel] = [THEMES[name][0], `Colours: ${THEMES[name][1]}`];
  $("theme").title = $("theme").ariaLabel;
  localStorage.setItem("theme", name);
}

function beginAnew() {
  control?.abort();
  talk = newTalk(); stopEditing(); say(""); clearRace(); tell("", "One prompt, decoded plain and with DFlash, side by side.");
  drawTalk(); listTalks(); $("prompt").focus();
}

const value = node => (node.type === "checkbox" ? node.checked : node.value);
function showSettings() {
  $("temperature-out").value = $("temperature").value;
  $("block-out").value = block();
  document.body.classList.toggle("no-colours", !$("colours").checked);
}

$("form").onsubmit = event => { event.preventDefault(); send($("prompt").value.trim()); };
$("prompt").onkeydown = event => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); $("form").requestSubmit(); }
  if (event.key === "ArrowUp" && !$("prompt").value && !isRace && talk.turns.length && !control) { event.preventDefault(); edit(talk.turns.length - 1); }
};
document.onkeydown = event => {
  if (event.key === "Escape") { if (editing !== null) { $("prompt").value = ""; stopEditing(); } control?.abort(); setControls(false); }
  if (event.key === "/" && !event.target.matches("input, textarea")) { event.preventDefault(); $("prompt").focus(); }
};
$("stop").onclick = () => control?.abort();
for (const name of ["chat", "race"]) {
  $(`tab-${name}`).onclick = () => showTab(name);
  $(`tab-${name}`).onkeydown = event => {
    if (event.key.startsWith("Arrow")) { showTab(isRace ? "chat" : "race"); $(`tab-${isRace ? "race" : "chat"}`).focus(); }
  };
}
$("clear").onclick = beginAnew;
$("open-controls").onclick = () => setControls(!$("controls").classList.contains("open"));
$("theme").onclick = () => { const names = Object.keys(THEMES); setTheme(names[(names.indexOf(document.documentElement.dataset.theme) + 1) % 3]); };
for (const name of KEPT) {
  $(name).oninput = () => { showSettings(); keepSettings(Object.fromEntries(KEPT.map(one => [one, value($(one))]))); };
}
for (const idea of IDEAS) add($("ideas"), "button", "", idea).onclick = () => send(idea);

async function begin() {
  try { model = await describe(key()); } catch { say("The server does not answer."); return; }
  $("key-label").hidden = Boolean(model) && !key();
  if (!model) { setControls(true); return; }
  $("model").textContent = $("race-model").textContent = model.id;
  $("block").max = model.block_size;
  $("thinking-label").hidden = !model.thinking;
  showSettings();
}
$("key").onchange = begin;
for (const [name, kept] of Object.entries(settings())) {
  if (KEPT.includes(name)) $(name)[$(name).type === "checkbox" ? "checked" : "value"] = kept;
}
setTheme(localStorage.getItem("theme") in THEMES ? localStorage.getItem("theme") : "");
showSettings();
if (sessionStorage.getItem("talk")) talk = conversations().find(one => one.id === sessionStorage.getItem("talk")) ?? talk;
window.onpagehide = () => sessionStorage.setItem("talk", talk.id);
drawTalk();
listTalks();
begin();
