const make = (tag, kind, parent, text = "") => {
  const node = document.createElement(tag);
  node.className = kind; node.textContent = text; parent.append(node);
  return node;
};

const MEANING = { accepted: "drafted, and the model agreed", bonus: "the model’s own, after a draft", plain: "the model’s own, nothing drafted" };

/** One answer on the page: its tokens, its rounds, its figures. */
export class View {
  constructor(parent) {
    this.text = make("div", "text live", parent);
    this.strip = make("div", "strip", parent);
    this.strip.ariaLabel = "Rounds: drafted against accepted";
    this.most = 0;
    this.#grow(4);
    const figures = make("dl", "figures", parent);
    this.figures = Object.fromEntries(["tokens/s", "acceptance length", "TTFT", "tokens", "drafts accepted"].map(name => {
      const pair = make("div", "", figures);
      make("dt", "", pair, name);
      return [name, make("dd", "", pair, "–")];
    }));
    this.said = "";                              // without thoughts: what a next turn quotes
    this.tokens = this.drafted = this.accepted = this.rounds = 0;
    this.ttft = null;
  }

  /** News: a choice of the stream, and when it came. */
  show(choice, seconds) {
    const { delta = {}, token_texts: texts = [], token_origins: origins = [], num_drafted: drafted = 0, num_accepted: accepted = 0 } = choice;
    const isFirst = this.ttft === null;
    if (isFirst) this.ttft = seconds;
    this.said += delta.content ?? "";
    const isThought = delta.reasoning_content && !delta.content;
    texts.forEach((text, i) => {
      this.tokens += 1;
      if (text) make("span", origins[i] + (isThought ? " thought" : ""), this.text, text).title = `${origins[i]}: ${MEANING[origins[i]]}`;
    });
    if (!isFirst && (texts.length || drafted)) this.#round(drafted, accepted);   // the first token comes from the prompt
    this.text.scrollTop = this.text.scrollHeight;
    this.#tell(seconds, choice.meta_info);
  }

  /** No more will come. */
  end() { this.text.classList.remove("live"); }

  #round(drafted, accepted) {
    const column = make("div", "round", this.strip);
    const parts = [["accepted", accepted], [drafted ? "bonus" : "plain", 1], ["rejected", drafted - accepted]];
    for (const [kind, count] of parts) if (count) make("i", kind, column).style.setProperty("--count", count);
    this.#grow(1 + drafted);
    column.title = drafted ? `${accepted} of ${drafted} drafted tokens accepted` : "plain: nothing drafted";
    this.strip.scrollLeft = this.strip.scrollWidth;
    this.rounds += 1; this.drafted += drafted; this.accepted += accepted;
  }

  /** The strip is as high as its largest round. */
  #grow(size) {
    this.most = Math.max(this.most, size);
    this.strip.style.setProperty("--most", this.most);
  }

  #tell(seconds, metaInfo) {
    this.tokens = metaInfo?.completion_tokens ?? this.tokens;
    this.speed = this.tokens / seconds;
    const length = metaInfo?.spec_accept_length ?? (this.rounds ? (this.tokens - 1) / this.rounds : 1);
    const rows = {
      "tokens/s": this.speed.toFixed(1), "acceptance length": length.toFixed(2), TTFT: `${Math.round(1000 * this.ttft)} ms`,
      tokens: this.tokens, "drafts accepted": `${this.accepted} of ${this.drafted}`,
    };
    for (const [name, value] of Object.entries(rows)) this.figures[name].textContent = value;
  }
}
