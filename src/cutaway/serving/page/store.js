// What the browser keeps: settings, and conversations, each under a key of its own. The API key stays in the tab.

const SETTINGS = "cutaway.settings";
const INDEX = "cutaway.conversations";
const ONE = "cutaway.conversation.";
const KEY = "cutaway.key";

const DEFAULTS = { theme: "system", language: null, model: null, system: "", thinking: "auto", tools: [], probabilities: true, sampling: {} };

// Where storage is forbidden (a private window, say), the page works and forgets.
const memory = new Map();
const forgetful = {
  getItem: (name) => memory.get(name) ?? null,
  setItem: (name, text) => void memory.set(name, text),
  removeItem: (name) => void memory.delete(name),
};

function storage(kind) {
  try {
    window[kind].setItem("cutaway.probe", "");
    window[kind].removeItem("cutaway.probe");
    return window[kind];
  } catch {
    return forgetful;
  }
}

const local = storage("localStorage");
const session = storage("sessionStorage");

function read(name, otherwise) {
  try {
    return JSON.parse(local.getItem(name)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

export const loadSettings = () => ({ ...DEFAULTS, ...read(SETTINGS, {}) });
export const saveSettings = (settings) => local.setItem(SETTINGS, JSON.stringify(settings));
export const loadKey = () => session.getItem(KEY) ?? "";
export const saveKey = (key) => session.setItem(KEY, key);

/** `{id, title, updated}` of every conversation, the newest first. */
export const listConversations = () => read(INDEX, []).toSorted((a, b) => b.updated - a.updated);

export function newConversation() {
  return { id: crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`, title: "", system: null, messages: [] };
}

export const loadConversation = (id) => read(ONE + id, null);

/** Keep a conversation. False where there is no room even without the token views of all conversations. */
export function saveConversation(conversation, touch = true) {
  const listed = listConversations();
  const old = listed.find((entry) => entry.id === conversation.id);
  const updated = touch || !old ? Date.now() : old.updated;
  const entry = { id: conversation.id, title: conversation.title, updated };
  return (
    write(ONE + conversation.id, JSON.stringify(conversation)) &&
    write(INDEX, JSON.stringify([entry, ...listed.filter((other) => other.id !== conversation.id)]))
  );
}

export function deleteConversation(id) {
  local.removeItem(ONE + id);
  local.setItem(INDEX, JSON.stringify(read(INDEX, []).filter((entry) => entry.id !== id)));
}

/** Browsers give about 5 MB. Token views are the bulk of it, so they go first, those of the oldest conversation before
 * the others'. */
function write(name, text) {
  const oldest = [...listConversations().reverse().map((entry) => ONE + entry.id), name];
  for (let given = 0; ; given++) {
    try {
      local.setItem(name, name.startsWith(ONE) && given > oldest.length - 1 ? slim(text) : text);
      return true;
    } catch {
      if (given > oldest.length) return false;
      const stored = local.getItem(oldest[given] ?? "");
      if (stored) local.setItem(oldest[given], slim(stored));
    }
  }
}

function slim(text) {
  const conversation = JSON.parse(text);
  for (const message of conversation.messages) delete message.tokens;
  return JSON.stringify(conversation);
}

/** Call back when another tab changes the list. */
export function onOtherTab(callback) {
  window.addEventListener("storage", (event) => event.key === INDEX && callback());
}
