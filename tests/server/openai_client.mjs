// What the official npm client gets from a server: node openai_client.mjs FOLDER_OF_NODE_MODULES URL; JSON on stdout.
import { createRequire } from "node:module";

const { OpenAI } = createRequire(process.argv[2] + "/")("openai");
const client = new OpenAI({ baseURL: process.argv[3] + "/v1", apiKey: "EMPTY", maxRetries: 0 });
const model = (await client.models.list()).data[0].id;
const asked = { model, messages: [{ role: "user", content: "hi" }], max_tokens: 12, temperature: 0 };

const whole = await client.chat.completions.create(asked);
let text = "", usage = null;
for await (const chunk of await client.chat.completions.create({ ...asked, stream: true, stream_options: { include_usage: true } })) {
  text += chunk.choices[0]?.delta.content ?? "";
  usage = chunk.usage ?? usage;
}
const completion = await client.completions.create({ model, prompt: "abc", max_tokens: 5, logprobs: 2 });
const response = await client.responses.create({ model, input: "hi", max_output_tokens: 16 });
let refused = null;
try { await client.chat.completions.create({ ...asked, temperature: -1 }); } catch (error) { refused = error.status; }
console.log(JSON.stringify({
  model, whole: whole.choices[0].message.content, text, tokens: [whole.usage.completion_tokens, usage.completion_tokens],
  logprobs: completion.choices[0].logprobs.tokens.length, response: response.output_text, refused,
}));
