// The openai package for Node against a live server: argv is its base URL, the tool, the question, the tool's result.
// Prints one JSON object with what it got; the test looks at that.
import { createRequire } from "node:module";

const require = createRequire(process.env.CLIENTS + "/");
const OpenAI = require("openai");
const [baseURL, tool, question, result, greeting] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "right", maxRetries: 0 });
const tools = [JSON.parse(tool)];
const ask = (messages, more = {}) => client.chat.completions.create({ model: "learned", messages, ...more });
const user = (content) => [{ role: "user", content }];

const found = {};
found.models = (await client.models.list()).data.map((card) => card.id);
const plain = await ask(user(greeting), { logprobs: true, top_logprobs: 2 });
found.chat = plain.choices[0].message.content;
found.logprobs = plain.choices[0].logprobs.content.length;

const stream = await ask(user(greeting), { stream: true, stream_options: { include_usage: true } });
found.streamed = "";
for await (const chunk of stream) {
  found.streamed += chunk.choices[0]?.delta.content ?? "";
  found.usage = chunk.usage ?? found.usage;
}

const messages = user(question);
const first = (await ask(messages, { tools })).choices[0];
found.finish = first.finish_reason;
found.call = first.message.tool_calls[0].function;
messages.push(first.message, { role: "tool", tool_call_id: first.message.tool_calls[0].id, content: result });
found.answer = (await ask(messages, { tools })).choices[0].message.content;

const runner = client.chat.completions.stream({ model: "learned", messages: user(question), tools });
found.streamedCall = (await runner.finalChatCompletion()).choices[0].message.tool_calls[0].function;

found.errors = {};
const fails = async (name, work) => {
  try {
    await work();
  } catch (error) {
    found.errors[name] = [error.constructor.name, error.status, error.code];
  }
};
await fails("model", () => client.chat.completions.create({ model: "nope", messages: user("x") }));
await fails("temperature", () => ask(user("x"), { temperature: 9 }));
await fails("key", () => new OpenAI({ baseURL, apiKey: "wrong", maxRetries: 0 }).models.list());

const abort = new AbortController();
const long = await client.chat.completions.create(
  { model: "learned", messages: user(greeting), stream: true, max_tokens: 900, logit_bias: {} },
  { signal: abort.signal },
);
for await (const chunk of long) abort.abort();
console.log(JSON.stringify(found));
