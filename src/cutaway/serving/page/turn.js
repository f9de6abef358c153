// One answer on the page: thinking, text or tokens, tool calls with their results, and what is said below.

import { STOPPED } from "./answer.js";
import { h, icon, iconButton } from "./dom.js";
import { number, t } from "./i18n.js";
import { copyText, showMarkdown } from "./markdown.js";
import { tokenView } from "./tokens.js";

/** The element of an answer, and `update(messages, last)`: the assistant's messages and tool results after a question. */
export function makeAnswer(actions) {
  const parts = h("div.parts");
  const notes = h("div.notes");
  const stats = h("span.stats");
  const foot = h("footer.actions");
  const element = h("article.turn.answer", { "aria-label": t("answer") }, parts, notes, foot);
  const views = new Map();
  let showTokens = false;

  function update(messages, last, running) {
    const written = messages.filter((message) => message.role === "assistant");
    for (const message of written) {
      if (!views.has(message)) {
        const view = makePart();
        views.set(message, view);
        parts.append(view.element);
      }
      const results = messages.filter(({ role }) => role === "tool");
      views.get(message).update(message, results, showTokens);
    }
    element.setAttribute("aria-busy", String(running));
    const note = noteOf(written.at(-1), actions.limit);
    notes.replaceChildren(...(note && !running ? [h("p.note", {}, note)] : []));
    stats.textContent = written.length ? statsOf(written) : "";
    const tokens = written.some((message) => message.tokens?.length);
    // Buttons are made anew only when there are others, so that one with the focus keeps it.
    const kind = `${running}${last}${tokens}`;
    if (foot.dataset.kind === kind) return;
    foot.dataset.kind = kind;
    foot.replaceChildren(...(running ? [stats] : buttons(messages, last, tokens)));
  }

  function buttons(messages, last, tokens) {
    const text = () => messages.filter(({ role }) => role === "assistant").map(({ content }) => content).join("\n\n").trim();
    const copy = iconButton("copy", t("copy"), () => copyText(text(), copy));
    const again = last && iconButton("redo", t("regenerate"), actions.regenerate);
    const toggle = tokens && iconButton("tokens", t("showTokens"), () => {
      showTokens = !showTokens;
      toggle.setAttribute("aria-pressed", String(showTokens));
      update(messages, last, false);
    }, { "aria-pressed": String(showTokens) });
    return [copy, again, toggle, stats].filter(Boolean);
  }

  return { element, update };
}

/** One message of the model; an answer has several where tools were called. */
function makePart() {
  const thinking = makeThinking();
  const body = h("div.body");
  const cards = h("div.cards");
  const element = h("section.part", {}, thinking.element, body, cards);
  let drawn = null;

  function update(message, results, showTokens) {
    thinking.update(message);
    const tokens = showTokens && message.tokens?.length;
    const key = `${tokens}${document.documentElement.lang}`;
    if (tokens && drawn !== key) body.replaceChildren(tokenView(message.tokens));
    if (!tokens && drawn) body.replaceChildren();
    drawn = tokens ? key : null;
    if (!tokens) showMarkdown(body, message.content);
    thinking.element.hidden = Boolean(tokens) || !message.reasoning_content;
    body.classList.toggle("waiting", message.state === "writing" && !message.content && !message.reasoning_content && !message.tool_calls);
    const calls = message.tool_calls ?? [];
    cards.replaceChildren(...calls.map((call) => toolCard(call, results.find((result) => result.tool_call_id === call.id), message.state)));
  }

  return { element, update };
}

/** Folded away, and so it stays unless the reader opens it; what is being thought shows in a line beside the word. */
function makeThinking() {
  const label = h("span");
  const glimpse = h("span.glimpse");
  const text = h("div.thought", { lang: "" });
  const element = h("details.thinking", {}, h("summary", {}, icon("bulb"), label, glimpse), text);

  function update({ reasoning_content: thought = "", content, state }) {
    const now = state === "writing" && !content;
    label.textContent = t(now ? "thinkingNow" : "thoughts");
    glimpse.textContent = now ? thought.slice(-80).replace(/\s+/g, " ") : "";
    element.classList.toggle("now", now);
    text.textContent = thought;
  }

  return { element, update };
}

function toolCard(call, result, state) {
  const pending = state === "writing" || result?.state === "running";
  const status = pending ? "running" : result?.state ?? "waiting";
  const word = { running: "toolRunning", done: "toolDone", failed: "toolFailed", waiting: "toolNoResult" }[status];
  return h(`section.card.${status}`, { "aria-label": `${t("toolCall")}: ${call.function.name}` },
    h("div.card-head", {}, icon("wrench"), h("code", {}, call.function.name), h("span.status", {}, t(word))),
    h("dl", {}, ...argumentRows(call.function.arguments)),
    result && result.state !== "running" && h("div.result", {}, h("span.hidden", {}, t("toolResult")), h("pre", { tabIndex: 0 }, result.content === STOPPED ? t("stopped") : result.content)));
}

/** An object's members as rows; anything else, such as JSON that is still being written, as it is. */
function argumentRows(text) {
  let value = null;
  try {
    value = JSON.parse(text);
  } catch {
    // Shown as text below.
  }
  if (value === null || typeof value !== "object" || Array.isArray(value)) return text ? [h("dd.whole", {}, text)] : [];
  return Object.entries(value).flatMap(([name, member]) => [
    h("dt", {}, name),
    h("dd", {}, typeof member === "string" ? member : JSON.stringify(member)),
  ]);
}

function noteOf(message, limit) {
  if (message?.state === "stopped") return t("stopped");
  if (message?.state === "failed") return t("brokenOff");
  if (message?.finish === "length") return t("cutOff", { count: number(message.stats?.tokens ?? limit ?? 0) });
  return null;
}

function statsOf(messages) {
  const known = messages.map(({ stats }) => stats).filter(Boolean);
  if (!known.length) return "";
  const tokens = known.reduce((sum, stats) => sum + stats.tokens, 0);
  const speeds = known.filter(({ speed }) => speed);
  const words = [t("statTokens", { count: number(tokens) })];
  if (speeds.length) words.push(t("statSpeed", { speed: number(speeds.at(-1).speed) }));
  if (known[0].wait !== null) words.push(t("statWait", { seconds: number(known[0].wait, 2) }));
  return words.join(" · ");
}
