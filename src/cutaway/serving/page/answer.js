// From a question to its answer: the chunks become a message, tool calls are run, and the model goes on with the results.

import { callTool, streamChat, streamText } from "./api.js";

/** Answers of one turn: a small model may call tools for ever. */
const MAX_ROUNDS = 8;
const ALTERNATIVES = 5;
/** What the model is told of a call that was not run to its end. */
export const STOPPED = "Error: stopped by the user";

/** Write the answer to the end of `conversation.messages`, telling `changed(message)` of every step.
 *
 * `options`: `{model, chat, system, thinking, tools, sampling, probabilities, key}`. Throws ApiError, and AbortError after
 * `signal`; what was written until then stays. Gives back true where the calls went on for MAX_ROUNDS.
 */
export async function answer(conversation, options, signal, changed) {
  for (let round = 0; round < MAX_ROUNDS; round++) {
    const message = await oneAnswer(conversation, options, signal, changed);
    if (!message.tool_calls?.length) return false;
    await runTools(conversation, message, options.key, signal, changed);
  }
  return true;
}

async function oneAnswer(conversation, options, signal, changed) {
  const body = requestBody(conversation.messages, options);
  const message = { role: "assistant", content: "", model: options.model, state: "writing" };
  conversation.messages.push(message);
  const clock = { started: performance.now(), first: 0, last: 0, chunks: 0 };
  changed(message);
  try {
    const chunks = (options.chat ? streamChat : streamText)(body, options.key, signal);
    for await (const chunk of chunks) {
      absorb(message, chunk, clock);
      changed(message);
    }
    message.state = "done";
  } catch (error) {
    message.state = error.name === "AbortError" ? "stopped" : "failed";
    // Calls that were not written to their end cannot be answered.
    delete message.tool_calls;
    if (!message.content && !message.reasoning_content) conversation.messages.pop();
    throw error;
  } finally {
    measure(message, clock);
    changed(message);
  }
  return message;
}

function requestBody(messages, { model, chat, system, thinking, tools, sampling, probabilities }) {
  // A model that only continues text is shown the last text, and nothing of a conversation.
  if (!chat) return { model, prompt: messages.at(-1).content, ...sampling, ...(probabilities && { logprobs: ALTERNATIVES }) };
  const turns = messages.map(forServer);
  const body = { model, messages: system ? [{ role: "system", content: system }, ...turns] : turns, ...sampling };
  if (tools.length) body.tools = tools;
  if (thinking !== "auto") body.chat_template_kwargs = { open_thinking: thinking === "on" };
  if (probabilities) Object.assign(body, { logprobs: true, top_logprobs: ALTERNATIVES });
  return body;
}

/** A message as the interface has it, without what only the page needs. */
export function forServer({ role, content, reasoning_content, tool_calls, tool_call_id }) {
  return { role, content, ...(reasoning_content && { reasoning_content }), ...(tool_calls && { tool_calls }), ...(tool_call_id && { tool_call_id }) };
}

function absorb(message, chunk, clock) {
  if (chunk.usage) message.usage = chunk.usage;
  const choice = chunk.choices?.[0];
  if (!choice) return;
  const { content, reasoning_content: reasoning, tool_calls: calls } = choice.delta ?? {};
  const tokens = choice.logprobs?.content ?? [];
  if (content || reasoning || calls || tokens.length) {
    clock.last = performance.now();
    clock.first ||= clock.last;
    clock.chunks += tokens.length || 1;
  }
  if (content) message.content += content;
  if (reasoning) message.reasoning_content = (message.reasoning_content ?? "") + reasoning;
  for (const call of calls ?? []) mergeCall((message.tool_calls ??= []), call);
  if (tokens.length) (message.tokens ??= []).push(...tokens.map(compact));
  if (choice.finish_reason) message.finish = choice.finish_reason;
}

/** Calls come in parts, too: the name first, the arguments piece by piece. */
function mergeCall(calls, { index = 0, id, function: part }) {
  const call = (calls[index] ??= { id: "", type: "function", function: { name: "", arguments: "" } });
  if (id) call.id = id;
  call.function.name += part?.name ?? "";
  call.function.arguments += part?.arguments ?? "";
}

/** A token as an array, since storage is small: bytes in hex or text, logprob, alternatives likewise. */
function compact({ token, bytes, logprob, top_logprobs: top }) {
  const one = (entry) => [text(entry), Math.round(entry.logprob * 1000) / 1000];
  return [...one({ token, bytes, logprob }), (top ?? []).map(one)];
}

/** A token's text, or its bytes as an array where it holds only a part of a character. */
function text({ token, bytes }) {
  if (!bytes) return token;
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(new Uint8Array(bytes)) || token;
  } catch {
    return bytes;
  }
}

function measure(message, clock) {
  const count = message.usage?.completion_tokens ?? clock.chunks;
  const seconds = (clock.last - clock.first) / 1000;
  message.stats = { tokens: count, wait: clock.first ? (clock.first - clock.started) / 1000 : null, speed: count > 1 && seconds > 0 ? (count - 1) / seconds : null };
}

async function runTools(conversation, message, key, signal, changed) {
  for (const call of message.tool_calls) {
    const result = { role: "tool", tool_call_id: call.id, content: "", state: "running" };
    conversation.messages.push(result);
    changed(message);
    try {
      const { text: content, ok } = await callTool(call.function.name, call.function.arguments, key, signal);
      Object.assign(result, { content, state: ok ? "done" : "failed" });
    } catch (error) {
      // A call without a result would make the next request invalid.
      const stopped = error.name === "AbortError";
      Object.assign(result, { content: stopped ? STOPPED : `Error: ${error.message}`, state: "failed" });
      if (stopped) {
        answerRest(conversation, message);
        throw error;
      }
    } finally {
      changed(message);
    }
  }
}

function answerRest(conversation, message) {
  const answered = new Set(conversation.messages.map((other) => other.tool_call_id));
  for (const call of message.tool_calls.filter((other) => !answered.has(other.id))) {
    conversation.messages.push({ role: "tool", tool_call_id: call.id, content: STOPPED, state: "failed" });
  }
}
