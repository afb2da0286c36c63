/* What the browser keeps, on this machine alone: conversations, the newest first, and settings. */

const MOST = 30;

function read(name, fallback) {
  try { return JSON.parse(localStorage.getItem(name)) ?? fallback; } catch { return fallback; }
}

export const conversations = () => read("conversations", []);
export const settings = () => read("settings", {});
export const keepSettings = values => localStorage.setItem("settings", JSON.stringify(values));

/** Keeps `talk`, {id, turns: [{prompt, answer, most}]}, in front; the oldest go where there is no room. False: none at all. */
export function keep(talk) {
  const others = conversations().filter(one => one.id !== talk.id);
  for (let count = MOST; count > 0; count = Math.floor(count / 2)) {
    try {
      localStorage.setItem("conversations", JSON.stringify([talk, ...others].slice(0, count)));
      return true;
    } catch { /* the browser's limit: fewer of them */ }
  }
  return false;
}

export function forget(id) {
  localStorage.setItem("conversations", JSON.stringify(conversations().filter(one => one.id !== id)));
}
