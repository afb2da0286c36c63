import { Lexer } from "./marked.js";

/* Markdown as nodes of the page. marked only takes the text apart; no HTML is ever parsed, so an answer can say what it
   likes: tags in it are shown as text, pictures are links, and a link leads to http, https or mail alone. */

const SAFE_LINK = /^(https?:|mailto:)/i;

/** Draws `pieces`, [text, kind, title] that make up the source, into `box`; every letter keeps the kind of its piece. */
export function drawMarkdown(box, pieces) {
  const source = pieces.map(piece => piece[0]).join("");
  box.replaceChildren();
  const page = new Page(source, pieces);
  for (const token of new Lexer({ gfm: true }).lex(source)) page.block(box, token);
}

class Page {
  constructor(source, pieces) {
    this.source = source;
    this.pieces = pieces;
    this.at = 0;               // how far of the source is drawn
    this.piece = this.start = 0;   // the piece that holds it, and where that begins
  }

  block(parent, token) {
    const draw = { heading: "heading", list: "list", code: "code", table: "table", blockquote: "quote", hr: "rule" }[token.type];
    if (draw) this[draw](parent, token);
    else if (token.type === "paragraph") this.inline(this.make("p", parent), token.tokens);
    else if (token.type === "text") token.tokens ? this.inline(parent, token.tokens) : this.letters(parent, token.text);
    else if (token.type === "html") this.letters(this.make("p", parent), token.raw.trimEnd());
  }

  heading(parent, token) { this.inline(this.make(`h${Math.min(token.depth + 2, 6)}`, parent), token.tokens); }
  quote(parent, token) { const box = this.make("blockquote", parent); token.tokens.forEach(one => this.block(box, one)); }
  rule(parent) { this.make("hr", parent); }

  list(parent, token) {
    const box = this.make(token.ordered ? "ol" : "ul", parent);
    for (const item of token.items) {
      let line = this.make("li", box);
      if (token.ordered) {                         // its number is text of the answer like any other
        this.letters(this.make("div", line), item.raw.match(/^\s*(\d+[.)])/)[1]);
        line = this.make("div", line);
      }
      if (item.task) this.make("span", line, item.checked ? "☑ " : "☐ ");
      item.tokens.filter(one => one.type !== "checkbox").forEach(one => this.block(line, one));
    }
  }

  code(parent, token) {
    const box = this.make("div", parent);
    box.className = "code";
    const bar = this.make("div", box, token.lang?.split(/\s/)[0] ?? "");
    const copy = this.make("button", bar, "Copy");
    copy.type = "button";
    copy.onclick = () => copyText(token.text, copy);
    this.letters(this.make("code", this.make("pre", box)), token.text);
  }

  table(parent, token) {
    const box = this.make("div", parent);
    box.className = "wide";
    const table = this.make("table", box);
    for (const row of [token.header, ...token.rows]) {
      const line = this.make("tr", table);
      for (const cell of row) {
        const place = this.make(row === token.header ? "th" : "td", line);
        if (cell.align) place.style.textAlign = cell.align;
        this.inline(place, cell.tokens);
      }
    }
  }

  inline(parent, tokens) {
    for (const token of tokens) {
      const tag = { strong: "strong", em: "em", del: "del" }[token.type];
      if (tag) this.inline(this.make(tag, parent), token.tokens);
      else if (token.type === "codespan") this.letters(this.make("code", parent), token.text);
      else if (token.type === "br") this.make("br", parent);
      else if (token.type === "link") this.link(parent, token);
      else if (token.type === "image") this.link(parent, { ...token, tokens: [{ type: "text", text: token.text || token.href }] });
      else if (token.type === "text" && token.tokens) this.inline(parent, token.tokens);
      else this.letters(parent, token.type === "html" ? token.raw : token.text ?? token.raw);
    }
  }

  link(parent, token) {
    if (!SAFE_LINK.test(token.href)) return this.inline(parent, token.tokens);
    const link = this.make("a", parent);
    [link.href, link.rel, link.target] = [token.href, "noopener noreferrer", "_blank"];
    this.inline(link, token.tokens);
  }

  /** Text of the source, each letter in the colour of its piece. */
  letters(parent, text) {
    const from = this.source.indexOf(text, this.at);
    if (from < 0) return void this.make("span", parent, text);
    const to = from + text.length;
    for (this.at = from; this.at < to;) {
      while (this.start + this.pieces[this.piece][0].length <= this.at) this.start += this.pieces[this.piece++][0].length;
      const [piece, kind, title] = this.pieces[this.piece], end = Math.min(this.start + piece.length, to);
      const span = this.make("span", parent, this.source.slice(this.at, end));
      [span.className, span.title] = [kind, title];
      this.at = end;
    }
  }

  make(tag, parent, text = "") {
    const node = document.createElement(tag);
    if (text) node.textContent = text;
    parent.append(node);
    return node;
  }
}

/** Copies `text`; `button` says whether that worked. */
export async function copyText(text, button) {
  const before = button.textContent;
  try { await navigator.clipboard.writeText(text); button.textContent = "Copied"; }
  catch { button.textContent = "Not allowed"; }      // a page that is not served from this machine or by https
  setTimeout(() => { button.textContent = before; }, 1500);
}
