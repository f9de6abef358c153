// The list of conversations: open, rename, export, delete with a way back.

import { $, h, icon, iconButton, placeMenu } from "./dom.js";
import { forServer } from "./answer.js";
import { t } from "./i18n.js";
import { deleteConversation, listConversations, loadConversation, saveConversation } from "./store.js";

/** `actions`: `{open(id), renamed(id, title), deleted(id), toast(text, action)}`. Gives back `draw(currentId)`. */
export function makeSidebar(actions) {
  const list = $("conversation-list");
  let current = null;

  function draw(id = current) {
    current = id;
    const entries = listConversations();
    list.replaceChildren(...entries.map(row));
    if (!entries.length) list.append(h("li.soft.none", {}, t("noConversations")));
  }

  function row(entry) {
    const title = entry.title || t("untitled");
    const open = h("button.open", { type: "button", title, lang: "", onclick: () => actions.open(entry.id) }, title);
    if (entry.id === current) open.setAttribute("aria-current", "true");
    const menuId = `menu-${entry.id}`;
    const menu = h("div.menu", { id: menuId, popover: "auto" },
      item("edit", t("rename"), () => rename(entry, element)),
      item("export", t("exportJsonl"), () => exportJsonl(entry)),
      item("export", t("exportMarkdown"), () => exportMarkdown(entry)),
      item("trash", t("delete"), () => remove(entry), "danger"));
    const more = iconButton("more", `${t("more")}: ${title}`, null, { popovertarget: menuId });
    menu.addEventListener("beforetoggle", () => placeMenu(menu, more, 225));
    const element = h("li", {}, open, more, menu);
    return element;
  }

  function item(name, text, action, kind = "plain") {
    return h(`button.menu-item.${kind}`, { type: "button", onclick: ({ currentTarget }) => {
      currentTarget.closest("[popover]").hidePopover();
      action();
    } }, icon(name), text);
  }

  function rename(entry, element) {
    let settled = false;
    const input = h("input", { value: entry.title, "aria-label": t("rename"), maxLength: 120 });
    const finish = (keep) => {
      if (settled) return;
      settled = true;
      const title = input.value.trim();
      if (keep && title && title !== entry.title) {
        saveConversation({ ...loadConversation(entry.id), title }, false);
        actions.renamed(entry.id, title);
      }
      draw();
      list.querySelector(`[id="menu-${entry.id}"]`)?.parentElement.querySelector(".open").focus();
    };
    input.addEventListener("keydown", (event) => {
      if (event.isComposing || event.keyCode === 229) return;
      if (event.key === "Enter") finish(true);
      if (event.key === "Escape") finish(false);
    });
    input.addEventListener("blur", () => finish(true));
    element.replaceChildren(input);
    input.focus();
    input.select();
  }

  function remove(entry) {
    const kept = loadConversation(entry.id);
    deleteConversation(entry.id);
    actions.deleted(entry.id);
    draw();
    actions.toast(t("deleted", { title: entry.title || t("untitled") }), { text: t("undo"), run: () => {
      if (kept) saveConversation(kept);
      draw();
    } });
  }

  return { draw };
}

/** One line of SFT data, as `cutaway chat` saves it, so that `cutaway sft` can train on what was said here. */
function exportJsonl(entry) {
  const { system, tools, messages } = loadConversation(entry.id);
  const turns = messages.map(forServer).map(({ tool_call_id: _, ...turn }) => turn);
  const first = { role: "system", content: system ?? "", ...(tools && { tools }) };
  const conversations = system || tools ? [first, ...turns] : turns;
  download(entry, "jsonl", `${JSON.stringify({ conversations })}\n`);
}

function exportMarkdown(entry) {
  const { title, messages } = loadConversation(entry.id);
  const fence = (text) => `\`\`\`\n${text}\n\`\`\``;
  const text = messages.flatMap(({ role, content, tool_calls: calls = [] }) => {
    if (role === "user") return [`## ${t("you")}`, content];
    if (role === "tool") return [fence(content)];
    return [`## ${t("answer")}`, content, ...calls.map((call) => fence(`${call.function.name}(${call.function.arguments})`))];
  });
  download(entry, "md", `# ${title}\n\n${text.filter(Boolean).join("\n\n")}\n`);
}

function download(entry, ending, text) {
  const name = (entry.title || "conversation").replace(/[\\/:*?"<>|\s]+/g, "-").slice(0, 60);
  const url = URL.createObjectURL(new Blob([text], { type: "text/plain;charset=utf-8" }));
  h("a", { href: url, download: `${name}.${ending}` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
