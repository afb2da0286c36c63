const headers = key => ({ "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) });

/** The model that is served; null where a key is missing. */
export async function describe(key) {
  const response = await fetch("v1/models", { headers: headers(key) });
  return response.ok ? (await response.json()).data[0] : null;
}

/** What the browser calls a network error, in words that help. */
async function reached(words, promise) {
  try { return await promise; }
  catch (error) { throw error.name === "AbortError" ? error : new Error(words); }
}

/** The answer to `wish` as it streams: [choice, seconds since it was asked]. Throws what the server says is wrong. */
export async function* ask(wish, key, signal) {
  const body = { ...wish, stream: true, token_origins: true, return_meta_info: true };
  const started = performance.now();
  const sent = { method: "POST", headers: headers(key), body: JSON.stringify(body), signal };
  const response = await reached("The server does not answer. Is it still running?", fetch("v1/chat/completions", sent));
  if (!response.ok) throw Object.assign(new Error((await response.json()).error.message), { status: response.status });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = "", part; !(part = await reached("The connection to the server broke off. What came is kept.", reader.read())).done;) {
    const events = (rest + part.value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      yield [chunk.choices[0], (performance.now() - started) / 1000];
    }
  }
}
