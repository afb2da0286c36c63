import { ask } from "./api.js";
import { View } from "./view.js";

const NAMES = ["plain", "dflash"];
const $ = id => document.getElementById(id);
const lane = name => { const box = document.querySelector(`#lane-${name} .lane`); box.replaceChildren(); return box; };

/** What stands above the lanes: a figure, then lines. */
export function tell(headline, ...lines) {
  $("verdict").replaceChildren();
  for (const [tag, text] of [["b", headline], ...lines.map(line => ["p", line])]) {
    if (!text) continue;
    const node = document.createElement(tag);
    node.textContent = text;
    $("verdict").append(node);
  }
}

/** Both lanes empty, nobody has won. */
export function clearRace() {
  $("race-prompt").textContent = "";
  for (const name of NAMES) { lane(name); $(`lane-${name}`).classList.remove("won"); }
}

/** One prompt, plain and in blocks of `size`: each with the machine to itself, then both replayed on one clock. */
export async function race(prompt, size, wishFor, key, signal) {
  clearRace();
  $("race-prompt").textContent = prompt;
  const seed = Math.floor(Math.random() * 2 ** 31);     // one seed, one text, whatever the block
  const tapes = [[], []];
  let views = NAMES.map(name => new View(lane(name)));
  for (const [at, block] of [1, size].entries()) {
    tell("", `${at + 1} of 2: ${at ? "DFlash" : "plain decoding"}, with the machine to itself`);
    for await (const news of ask(wishFor(block, seed), key, signal)) { tapes[at].push(news); views[at].show(...news); }
    views[at].end();
  }
  tell("", "Replay, on one clock");
  views = NAMES.map(name => new View(lane(name)));
  $("skip").hidden = false;
  try { await replay(tapes, views, signal); } finally { $("skip").hidden = true; }
  const [plain, fast] = tapes.map(tape => tape.at(-1)[1]), ratio = views[1].speed / views[0].speed;
  $(ratio >= 1 ? "lane-dflash" : "lane-plain").classList.add("won");
  tell(`${ratio.toFixed(2)}×`, `the tokens a second: DFlash ${fast.toFixed(2)} s, plain ${plain.toFixed(2)} s`,
    views[0].said === views[1].said ? "The same text, token for token."
      : "The texts part where two tokens nearly tie: serve with --dtype float32 to see them equal.");
}

async function replay(tapes, views, signal) {
  let isSkipped = matchMedia("(prefers-reduced-motion: reduce)").matches;
  $("skip").onclick = () => { isSkipped = true; };
  const started = performance.now(), next = [0, 0];
  while (next.some((at, i) => at < tapes[i].length)) {
    if (signal.aborted) throw new DOMException("stopped", "AbortError");
    const seconds = isSkipped ? Infinity : (performance.now() - started) / 1000;
    tapes.forEach((tape, i) => {
      while (next[i] < tape.length && tape[next[i]][1] <= seconds) views[i].show(...tape[next[i]++]);
      if (next[i] === tape.length) views[i].end();
    });
    await new Promise(requestAnimationFrame);
  }
}
