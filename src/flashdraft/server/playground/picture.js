/* An answer as an image to share: prompt, tokens on their colours, figures. */

const WIDTH = 960, EDGE = 32, LINE = 30;

/** A PNG of `prompt` and `view`, in the page's colours, as a blob. */
export function picture(view, prompt, model) {
  const style = getComputedStyle(document.documentElement);
  const probe = document.createElement("i");
  document.body.append(probe);
  const colour = name => { probe.style.color = style.getPropertyValue(`--${name}`); return getComputedStyle(probe).color; };
  const colours = Object.fromEntries(["card", "ink", "soft", "accepted", "bonus", "plain"].map(name => [name, colour(name)]));
  probe.remove();
  const canvas = document.createElement("canvas"), pen = canvas.getContext("2d");
  const font = "17px system-ui, sans-serif", bold = `600 ${font}`;
  const asked = place(pen, [[prompt, ""]], bold), answered = place(pen, view.pieces, font);
  const height = 2 * EDGE + LINE * (asked.lines + answered.lines + 3);
  const scale = Math.min(2, 16000 / height);
  [canvas.width, canvas.height] = [WIDTH * scale, height * scale];
  pen.scale(scale, scale);
  pen.fillStyle = colours.card; pen.fillRect(0, 0, WIDTH, height);
  pen.textBaseline = "middle";
  write(pen, asked.parts, bold, EDGE, colours);
  write(pen, answered.parts, font, EDGE + LINE * (asked.lines + .5), colours);
  pen.font = "15px system-ui, sans-serif"; pen.fillStyle = colours.soft;
  const figures = ["tokens/s", "acceptance length", "drafts accepted"].map(name => `${name} ${view.figures[name].textContent}`);
  pen.fillText([`flashdraft, ${model}`, ...figures].join("   ·   "), EDGE, height - EDGE - LINE / 2);
  return new Promise(done => canvas.toBlob(done, "image/png"));
}

/** `pieces` in lines that fit: {parts: [text, kind, x, line], lines}. */
function place(pen, pieces, font) {
  pen.font = font;
  const parts = [];
  let x = 0, line = 0;
  for (const [text, kind] of pieces) {
    for (const part of text.split(/(\n)|(?<= )/).filter(Boolean)) {
      if (part === "\n") { x = 0; line += 1; continue; }
      const width = pen.measureText(part).width;
      if (x && x + width > WIDTH - 2 * EDGE) { x = 0; line += 1; }
      parts.push([part, kind, x, line, width]);
      x += width;
    }
  }
  return { parts, lines: line + 1 };
}

function write(pen, parts, font, top, colours) {
  pen.font = font;
  for (const [text, kind, x, line, width] of parts) {
    const y = top + LINE * (line + .5);
    if (kind) { pen.fillStyle = colours[kind]; pen.fillRect(EDGE + x, y - LINE * .4, width, LINE * .8); }
    pen.fillStyle = colours.ink; pen.fillText(text, EDGE + x, y);
  }
}

/** Offers `blob` to be saved as `name`. */
export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
