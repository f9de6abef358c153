// The page: what is shown, what runs, and what a control does.

import { answer, STOPPED } from "./answer.js";
import { ApiError, listModels, listTools } from "./api.js";
import { makeDrawers, makeToast } from "./drawers.js";
import { $ } from "./dom.js";
import { drawIcons, languageSwitch, preferredLanguage, setLanguage, t } from "./i18n.js";
import { explain } from "./problems.js";
import { drawSettings, drawThinking, drawTools } from "./settings.js";
import { makeSidebar } from "./sidebar.js";
import { announce, speak } from "./speak.js";
import * as store from "./store.js";
import { setTheme, themeSwitch } from "./theme.js";
import { makeThread, submits } from "./thread.js";

const state = {
  settings: store.loadSettings(),
  key: store.loadKey(),
  keyAsked: false,
  conversation: store.newConversation(),
  /** By conversation: `{controller, conversation}` of the answers being written, and what went wrong with the last. */
  running: new Map(),
  problems: new Map(),
  models: [],
  tools: [],
};
const drawers = makeDrawers();
const toast = makeToast();
const thread = makeThread({ regenerate, edit, suggest, settings: () => drawers.open("settings") });
const sidebar = makeSidebar({ open, renamed, deleted, toast });

function change(patch) {
  Object.assign(state.settings, patch);
  store.saveSettings(state.settings);
  drawTools(state.settings, state.tools, card().tools, change);
}

/** What the chosen model can do. */
function card() {
  return state.models.find(({ id }) => id === $("model").value)?.cutaway ?? { chat: true, sampling: {} };
}

/** Models and tools of the server; the API key may be needed for them. */
async function connect() {
  try {
    [state.models, state.tools] = await Promise.all([listModels(state.key), listTools(state.key)]);
    state.keyAsked = false;
    state.problems.delete("connection");
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    state.problems.set("connection", error);
    // The field for the key is there already, and someone may be writing in it.
    if (error.status === 401 && state.keyAsked) return show();
    state.keyAsked = error.status === 401;
  }
  draw();
  if (state.keyAsked) drawers.open("settings", "key");
}

function draw() {
  setLanguage(state.settings.language ?? preferredLanguage());
  drawModels();
  themeSwitch(state.settings, change);
  drawControls();
  show();
}

/** What depends on the model. */
function drawControls() {
  const { thinking, tools, sampling, max_new_tokens: max_tokens } = card();
  drawThinking(state.settings, thinking, change);
  drawTools(state.settings, state.tools, tools, change);
  drawSettings(state.settings, { ...sampling, max_tokens }, { key: state.key, asked: state.keyAsked }, change, keyed);
}

function drawModels() {
  const select = $("model");
  const ids = state.models.map(({ id }) => id);
  const model = ids.includes(state.settings.model) ? state.settings.model : ids[0] ?? "";
  select.replaceChildren(...ids.map((id) => new Option(id, id, false, id === model)));
  $("model-chip").hidden = !ids.length;
}

const isRunning = () => state.running.has(state.conversation.id);

function problem() {
  const error = state.problems.get(state.conversation.id) ?? state.problems.get("connection");
  return error && explain(error, state.problems.has(state.conversation.id));
}

/** Draw the conversation anew, or only its end. */
function show(whole = true) {
  const { conversation } = state;
  thread[whole ? "show" : "update"](conversation, isRunning(), problem(), card().chat);
  // A button that is hidden loses the focus, and the keyboard its place on the page.
  if (document.activeElement === $(isRunning() ? "send" : "stop")) $("question").focus();
  $("stop").hidden = !isRunning();
  $("send").hidden = isRunning();
  $("title").textContent = conversation.title || t("newChat");
  document.title = conversation.title ? `${conversation.title} · Cutaway` : "Cutaway";
  if (!whole) return;
  // A reload comes back here.
  history.replaceState(null, "", conversation.messages.length ? `#${conversation.id}` : "#");
  sidebar.draw(conversation.id);
}

function keep(conversation, touch = true) {
  if (!store.saveConversation(conversation, touch)) toast(t("storageFull"));
}

/** Ask the model for what follows the messages of a conversation. */
async function run(conversation) {
  const { settings } = state;
  const controller = new AbortController();
  const { chat, thinking, tools } = card();
  const offered = tools ? state.tools.filter((tool) => settings.tools.includes(tool.function.name)) : [];
  const options = { ...settings, model: $("model").value, chat, system: conversation.system, tools: offered, key: state.key };
  if (!thinking) options.thinking = "auto";
  if (offered.length) conversation.tools = offered;
  state.running.set(conversation.id, { controller, conversation });
  state.problems.delete(conversation.id);
  keep(conversation);
  show();
  let drawing = 0;
  let saved = performance.now();
  const changed = (message) => {
    if (state.conversation === conversation) {
      drawing ||= requestAnimationFrame(() => {
        drawing = 0;
        if (state.conversation === conversation) show(false);
      });
      speak(message, message.state !== "writing");
    }
    if (performance.now() - saved > 2000 && state.running.has(conversation.id)) {
      keep(conversation);
      saved = performance.now();
    }
  };
  try {
    if (await answer(conversation, options, controller.signal, changed)) toast(t("tooManyCalls"));
  } catch (error) {
    if (error.name !== "AbortError" && !(error instanceof ApiError)) console.error(error);
    if (error.name === "AbortError") announce(t("stopped"));
    else state.problems.set(conversation.id, error);
    if (error.status === 401) {
      state.keyAsked = true;
      drawControls();
      drawers.open("settings", "key");
    }
  } finally {
    cancelAnimationFrame(drawing);
    // A conversation that was deleted meanwhile is not brought back.
    if (state.running.delete(conversation.id)) keep(conversation);
    if (state.conversation === conversation) show(false);
    sidebar.draw();
  }
}

function send() {
  const text = $("question").value.trim();
  if (!text || isRunning()) return;
  const { conversation, settings } = state;
  if (!conversation.messages.length) conversation.system = settings.system || null;
  conversation.title ||= text.replace(/\s+/g, " ").slice(0, 60);
  conversation.messages.push({ role: "user", content: text });
  $("question").value = "";
  resize();
  thread.follow(true);
  run(conversation);
}

function lastQuestion() {
  return state.conversation.messages.findLastIndex(({ role }) => role === "user");
}

function regenerate() {
  if (isRunning() || lastQuestion() < 0) return;
  state.conversation.messages.splice(lastQuestion() + 1);
  run(state.conversation);
  $("stop").focus();
}

function edit(text) {
  if (isRunning()) return;
  state.conversation.messages.splice(lastQuestion(), Infinity, { role: "user", content: text });
  run(state.conversation);
  $("question").focus();
}

function suggest(text) {
  $("question").value = text;
  resize();
  $("question").focus();
}

/** Show a conversation; one that is being answered goes on meanwhile. */
function open(id) {
  const conversation = state.running.get(id)?.conversation ?? store.loadConversation(id);
  if (!conversation) return;
  if (!state.running.has(id)) settle(conversation);
  state.conversation = conversation;
  drawers.closeNarrow();
  show();
  $("question").focus();
}

/** The page may have been closed in the middle of an answer. */
function settle(conversation) {
  for (const message of conversation.messages) {
    if (message.state === "writing") Object.assign(message, { state: "stopped", tool_calls: undefined });
    if (message.state === "running") Object.assign(message, { state: "failed", content: STOPPED });
  }
}

function begin() {
  state.conversation = store.newConversation();
  drawers.closeNarrow();
  show();
  $("question").focus();
}

function renamed(id, title) {
  const { conversation } = state.running.get(id) ?? state;
  if (conversation.id === id) conversation.title = title;
  show(false);
}

function deleted(id) {
  state.running.get(id)?.controller.abort();
  state.running.delete(id);
  if (state.conversation.id === id) begin();
}

function keyed(key) {
  state.key = key;
  store.saveKey(key);
  connect();
}

/** The question's field grows with its text where the browser does not do it by itself. */
function resize() {
  const area = $("question");
  if (CSS.supports("field-sizing", "content")) return;
  area.style.height = "auto";
  area.style.height = `${Math.min(area.scrollHeight, 220)}px`;
}

function listen() {
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  $("question").addEventListener("keydown", (event) => {
    if (!submits(event)) return;
    event.preventDefault();
    send();
  });
  $("question").addEventListener("input", resize);
  $("stop").addEventListener("click", () => {
    state.running.get(state.conversation.id)?.controller.abort();
    $("question").focus();
  });
  $("new-chat").addEventListener("click", begin);
  $("model").addEventListener("change", () => {
    change({ model: $("model").value });
    drawControls();
    show();
  });
  store.onOtherTab(() => sidebar.draw());
  window.addEventListener("pagehide", () => {
    for (const { conversation } of state.running.values()) keep(conversation);
  });
}

setTheme(state.settings.theme);
setLanguage(state.settings.language ?? preferredLanguage());
drawIcons();
languageSwitch((language) => {
  change({ language });
  draw();
});
listen();
const wanted = store.loadConversation(location.hash.slice(1));
if (wanted) {
  settle(wanted);
  state.conversation = wanted;
}
draw();
connect();
$("question").focus();
