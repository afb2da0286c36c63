import { ask, describe } from "./api.js";
import { View } from "./view.js";

const $ = id => document.getElementById(id);
const IDEAS = ["Why is the sky blue?", "Write a Python function that reverses a list.", "List the planets, with one fact about each."];
let messages = [], control = null, isRace = false;

const key = () => $("key").value;
const block = () => Number($("block").value) || "auto";   // the left end leaves it to the controller
const wish = (turns, blockSize, more = {}) => ({
  messages: turns, block_size: blockSize, temperature: Number($("temperature").value),
  max_tokens: Number($("max-tokens").value) || 256,
  ...(!$("thinking-label").hidden && { chat_template_kwargs: { enable_thinking: $("thinking").checked } }), ...more,
});

function add(parent, tag, kind, text = "") {
  const node = document.createElement(tag);
  node.className = kind; node.textContent = text; parent.append(node);
  return node;
}

/** Keeps the end in sight while it is; who has scrolled up goes on reading. */
function follow(box) {
  const isAtEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 90;
  return () => { if (isAtEnd) box.scrollTop = box.scrollHeight; };
}

async function chat(prompt) {
  $("hello").hidden = true;
  messages.push({ role: "user", content: prompt });
  add($("chat"), "div", "turn user", prompt);
  const view = new View(add($("chat"), "article", "turn"));
  $("main").scrollTop = $("main").scrollHeight;
  try {
    for await (const [choice, seconds] of ask(wish(messages, block()), key(), control.signal)) {
      const keepUp = follow($("main"));
      view.show(choice, seconds);
      keepUp();
    }
  } finally {
    view.end();
    if (view.said) messages.push({ role: "assistant", content: view.said }); else messages.pop();
  }
}

const lane = name => { const box = document.querySelector(`#lane-${name} .lane`); box.replaceChildren(); return box; };
const tell = (headline, ...lines) => {
  $("verdict").replaceChildren();
  if (headline) add($("verdict"), "b", "", headline);
  for (const line of lines) add($("verdict"), "p", "", line);
};

async function race(prompt) {
  const fastBlock = block() === 1 ? 2 : block(), names = ["plain", "dflash"];
  const seed = Math.floor(Math.random() * 2 ** 31);     // one seed, one text, whatever the block
  names.forEach(name => $(`lane-${name}`).classList.remove("won"));
  let views = names.map(name => new View(lane(name)));
  const tapes = [[], []];
  for (const [at, size] of [1, fastBlock].entries()) {
    tell("", `${at + 1} of 2: ${at ? "DFlash" : "plain decoding"}, with the machine to itself`);
    const turns = [{ role: "user", content: prompt }];
    for await (const news of ask(wish(turns, size, { seed }), key(), control.signal)) { tapes[at].push(news); views[at].show(...news); }
    views[at].end();
  }
  tell("", "Replay, on one clock");
  views = names.map(name => new View(lane(name)));
  await replay(tapes, views);
  const [plain, fast] = tapes.map(tape => tape.at(-1)[1]), ratio = views[1].speed / views[0].speed;
  $(ratio >= 1 ? "lane-dflash" : "lane-plain").classList.add("won");
  const isSame = views[0].said === views[1].said;
  tell(`${ratio.toFixed(2)}×`, `the tokens a second: DFlash ${fast.toFixed(2)} s, plain ${plain.toFixed(2)} s`,
    isSame ? "The same text, token for token." : "The texts part where two tokens nearly tie: serve with --dtype float32 to see them equal.");
}

async function replay(tapes, views) {
  const isStill = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const started = performance.now(), next = [0, 0];
  while (next.some((at, i) => at < tapes[i].length)) {
    if (control.signal.aborted) throw new DOMException("stopped", "AbortError");
    const seconds = isStill ? Infinity : (performance.now() - started) / 1000;
    tapes.forEach((tape, i) => {
      while (next[i] < tape.length && tape[next[i]][1] <= seconds) views[i].show(...tape[next[i]++]);
      if (next[i] === tape.length) views[i].end();
    });
    await new Promise(requestAnimationFrame);
  }
}

async function send(prompt) {
  if (!prompt || control) return;
  control = new AbortController();
  $("prompt").value = ""; $("send").disabled = true; $("stop").hidden = false; setControls(false);
  document.querySelectorAll(".error").forEach(one => one.remove());
  try { await (isRace ? race : chat)(prompt); }
  catch (error) {
    if (isRace) tell("", "Stopped.");
    if (error.status === 401) { $("key-label").hidden = false; setControls(true); }
    if (error.name !== "AbortError") add(isRace ? $("race") : $("chat"), "p", "turn error", error.message).setAttribute("role", "alert");
  }
  control = null; $("send").disabled = false; $("stop").hidden = true; $("prompt").focus();
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

$("form").onsubmit = event => { event.preventDefault(); send($("prompt").value.trim()); };
$("prompt").onkeydown = event => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); $("form").requestSubmit(); }
};
document.onkeydown = event => {
  if (event.key === "Escape") { control?.abort(); setControls(false); }
  if (event.key === "/" && !event.target.matches("input, textarea")) { event.preventDefault(); $("prompt").focus(); }
};
$("stop").onclick = () => control?.abort();
for (const name of ["chat", "race"]) {
  $(`tab-${name}`).onclick = () => showTab(name);
  $(`tab-${name}`).onkeydown = event => {
    if (event.key.startsWith("Arrow")) { showTab(isRace ? "chat" : "race"); $(`tab-${isRace ? "race" : "chat"}`).focus(); }
  };
}
$("clear").onclick = () => {
  control?.abort(); messages = []; tell("", "One prompt, decoded plain and with DFlash, side by side.");
  document.querySelectorAll("#chat .turn, #race > .error").forEach(one => one.remove());
  for (const name of ["plain", "dflash"]) { lane(name); $(`lane-${name}`).classList.remove("won"); }
  $("hello").hidden = false; $("prompt").focus();
};
$("open-controls").onclick = () => setControls(!$("controls").classList.contains("open"));
$("theme").onclick = () => { const names = Object.keys(THEMES); setTheme(names[(names.indexOf(document.documentElement.dataset.theme) + 1) % 3]); };
$("temperature").oninput = () => { $("temperature-out").value = $("temperature").value; };
$("block").oninput = () => { $("block-out").value = block(); };
$("colours").onchange = () => document.body.classList.toggle("no-colours", !$("colours").checked);
for (const idea of IDEAS) add($("ideas"), "button", "", idea).onclick = () => send(idea);

async function begin() {
  const model = await describe(key());
  $("key-label").hidden = Boolean(model) && !key();
  if (!model) { setControls(true); return; }
  $("model").textContent = model.id;
  $("block").max = model.block_size;
  $("thinking-label").hidden = !model.thinking;
}
$("key").onchange = begin;
setTheme(localStorage.getItem("theme") in THEMES ? localStorage.getItem("theme") : "");
begin();
