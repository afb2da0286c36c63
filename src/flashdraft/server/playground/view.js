import { drawMarkdown } from "./markdown.js";

const make = (tag, kind, parent, text = "") => {
  const node = document.createElement(tag);
  node.className = kind; node.textContent = text; parent.append(node);
  return node;
};

export const MEANING = { accepted: "drafted, and the model agreed", bonus: "the model’s own, after a draft", plain: "the model’s own, nothing drafted" };
const FIGURES = ["tokens/s", "acceptance length", "TTFT", "tokens", "drafts accepted"];

/** One answer on the page: its tokens, its rounds, its figures. */
export class View {
  constructor(parent) {
    this.card = parent;
    this.text = make("div", "text live", parent);
    this.strip = make("div", "strip", parent);
    this.strip.ariaLabel = "Rounds: drafted against accepted";
    this.most = 0;
    this.#grow(4);
    const figures = make("dl", "figures", parent);
    this.figures = Object.fromEntries(FIGURES.map(name => {
      const pair = make("div", "", figures);
      make("dt", "", pair, name);
      return [name, make("dd", "", pair, "–")];
    }));
    this.said = "";                              // without thoughts: what a next turn quotes
    this.pieces = []; this.thoughts = []; this.rounds = [];   // [text, origin] twice; [drafted, accepted]
    this.tokens = 0;
    this.ttft = this.reason = null;
    this.speed = 0;
  }

  /** News: a choice of the stream, and when it came. */
  show(choice, seconds) {
    const { delta = {}, token_texts: texts = [], token_origins: origins = [], num_drafted: drafted = 0, num_accepted: accepted = 0 } = choice;
    const isFirst = this.ttft === null;
    if (isFirst) this.ttft = seconds;
    this.said += delta.content ?? "";
    const pieces = delta.reasoning_content && !delta.content ? this.thoughts : this.pieces;
    texts.forEach((text, i) => { this.tokens += 1; if (text) pieces.push([text, origins[i]]); });
    // The first token comes from the prompt. A step whose text waits for more says nothing yet, and is a round all the same.
    if (!isFirst && (texts.length || drafted || !choice.finish_reason)) this.#round(drafted, accepted);
    this.reason = choice.finish_reason ?? this.reason;
    this.#tell(seconds, choice.meta_info);
    this.#draw();
  }

  /** No more will come. */
  end(reason = this.reason, note = "") {
    this.reason = reason;
    this.#paint();
    this.text.classList.remove("live");
    if (note) make("p", "note", this.card, note);
  }

  /** What `restore` draws again. */
  saved() {
    const { said, pieces, thoughts, rounds, tokens, reason } = this;
    const figures = Object.fromEntries(Object.entries(this.figures).map(([name, node]) => [name, node.textContent]));
    return { said, pieces, thoughts, rounds, tokens, reason, figures };
  }

  restore(saved) {
    const { rounds, figures, ...rest } = saved;
    Object.assign(this, rest);
    rounds.forEach(round => this.#round(...round));
    for (const [name, value] of Object.entries(figures)) this.figures[name].textContent = value;
    this.#paint();
    this.text.classList.remove("live");
  }

  /** Once a frame: a fast answer brings many tokens in one. */
  #draw() {
    if (this.isWaiting) return;
    this.isWaiting = true;
    requestAnimationFrame(() => { if (this.isWaiting) this.#paint(); });
  }

  #paint() {
    this.isWaiting = false;
    const titled = pieces => pieces.map(([text, origin]) => [text, origin, `${origin}: ${MEANING[origin]}`]);
    drawMarkdown(this.text, titled(this.pieces));
    if (this.thoughts.length) {
      const box = document.createElement("div");
      box.className = "thoughts";
      for (const [text, origin, title] of titled(this.thoughts)) make("span", `${origin} thought`, box, text).title = title;
      this.text.prepend(box);
    }
    this.text.scrollTop = this.text.scrollHeight;
    this.onpaint?.();
  }

  #round(drafted, accepted) {
    const column = make("div", "round", this.strip);
    const parts = [["accepted", accepted], [drafted ? "bonus" : "plain", 1], ["rejected", drafted - accepted]];
    for (const [kind, count] of parts) if (count) make("i", kind, column).style.setProperty("--count", count);
    this.#grow(1 + drafted);
    column.title = drafted ? `${accepted} of ${drafted} drafted tokens accepted` : "plain: nothing drafted";
    this.strip.scrollLeft = this.strip.scrollWidth;
    this.rounds.push([drafted, accepted]);
  }

  /** The strip is as high as its largest round. */
  #grow(size) {
    this.most = Math.max(this.most, size);
    this.strip.style.setProperty("--most", this.most);
  }

  #tell(seconds, metaInfo) {
    this.tokens = metaInfo?.completion_tokens ?? this.tokens;
    this.speed = this.tokens / seconds;
    const [drafted, accepted] = [0, 1].map(at => this.rounds.reduce((sum, round) => sum + round[at], 0));
    const length = metaInfo?.spec_accept_length ?? (this.rounds.length ? (this.tokens - 1) / this.rounds.length : 1);
    const rows = [this.speed.toFixed(1), length.toFixed(2), `${Math.round(1000 * this.ttft)} ms`, this.tokens, drafted ? `${accepted} of ${drafted}` : "none"];
    FIGURES.forEach((name, at) => { this.figures[name].textContent = rows[at]; });
  }
}
