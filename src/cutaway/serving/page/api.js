// The server's HTTP interface: JSON, and chat completions as a stream of server-sent events.

/** What went wrong, as the server says it. Status 0: no answer at all. */
export class ApiError extends Error {
  constructor(status, message, code = null) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

async function request(path, key, options = {}) {
  const headers = { "Content-Type": "application/json" };
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    // Relative to the page, so that it also works below a path of a proxy.
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "");
  }
  if (!response.ok) throw await problem(response);
  return response;
}

async function problem(response) {
  const text = await response.text().catch(() => "");
  let told = {};
  try {
    told = JSON.parse(text).error ?? {};
  } catch {
    // A proxy's page in HTML, say: the status has to do.
  }
  return new ApiError(response.status, String(told.message ?? response.statusText), told.code);
}

/** Cards of the models: `{id, cutaway: {chat, thinking, tools, context, max_new_tokens, sampling}}`. */
export async function listModels(key) {
  return (await (await request("v1/models", key)).json()).data;
}

/** Schemas of the tools that the server runs itself. */
export async function listTools(key) {
  return (await (await request("cutaway/tools", key)).json()).tools;
}

/** Run a tool on the server: `{text, ok}`. `args` is JSON as the model wrote it. */
export async function callTool(name, args, key, signal) {
  const body = JSON.stringify({ name, arguments: args });
  return (await request("cutaway/tools/run", key, { method: "POST", body, signal })).json();
}

/** The chunks of a chat completion. ApiError also for an error that the server reports in mid-stream. */
export async function* streamChat(body, key, signal) {
  yield* stream("v1/chat/completions", body, key, signal);
}

/** A text that goes on, for a model that does not know conversations; its chunks as if they were those of a chat. */
export async function* streamText(body, key, signal) {
  for await (const chunk of stream("v1/completions", body, key, signal)) {
    yield { ...chunk, choices: chunk.choices.map(({ text, logprobs, finish_reason }) => ({
      delta: { content: text },
      logprobs: logprobs && { content: logprobs.tokens.map((token, i) => ({
        token,
        logprob: logprobs.token_logprobs[i],
        top_logprobs: Object.entries(logprobs.top_logprobs?.[i] ?? {}).map(([other, logprob]) => ({ token: other, logprob })),
      })) },
      finish_reason,
    })) };
  }
}

async function* stream(path, body, key, signal) {
  const options = { method: "POST", body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }), signal };
  const response = await request(path, key, options);
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(500, String(chunk.error.message), chunk.error.code);
    yield chunk;
  }
  throw new ApiError(0, "");
}

/** The data of server-sent events. */
async function* events(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    while (true) {
      const { done, value } = await reader.read().catch((error) => {
        throw error.name === "AbortError" ? error : new ApiError(0, "");
      });
      rest += decoder.decode(value, { stream: !done });
      const lines = rest.split(/\r?\n/);
      rest = lines.pop();
      for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
      if (done) return;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
