// The conversation on the page: turns, a problem below them, scrolling, and the empty state.

import { $, h, icon, iconButton } from "./dom.js";
import { t } from "./i18n.js";
import { copyText } from "./markdown.js";
import { hideTip } from "./tokens.js";
import { makeAnswer } from "./turn.js";

/** Distance from the end, in pixels, at which the page still follows what is written. */
const FOLLOW = 90;

/** `actions`: `{regenerate, edit(text), suggest(text)}`. */
export function makeThread(actions) {
  const root = $("thread");
  const scroller = $("scroller");
  let turns = [];
  let following = true;

  scroller.addEventListener("scroll", () => {
    following = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < FOLLOW;
    $("to-end").hidden = following;
    hideTip();
  });
  $("to-end").addEventListener("click", () => follow(true));

  function follow(force = false) {
    if (force || following) scroller.scrollTop = scroller.scrollHeight;
  }

  /** Everything anew: another conversation, another language. */
  function show(conversation, running, problem, chat) {
    turns = [];
    root.replaceChildren();
    update(conversation, running, problem, chat);
    follow(true);
  }

  /** After a change at the end of the conversation. */
  function update(conversation, running, problem, chat) {
    const wanted = grouped(conversation.messages);
    root.classList.toggle("empty", !wanted.length && !problem);
    if (!wanted.length) root.replaceChildren(welcome(actions, chat));
    else root.querySelector(".welcome")?.remove();
    wanted.forEach((messages, index) => {
      const recent = index >= wanted.length - 2;
      const last = index === wanted.length - 1;
      if (turns[index]?.first !== messages[0] || turns[index].editable !== editable(messages, recent)) put(index, messages, recent);
      else if (!recent) return;
      turns[index].view?.update(messages, last, last && running);
    });
    for (const { element } of turns.splice(wanted.length)) element.remove();
    root.querySelector(".problem")?.remove();
    if (problem) root.append(problemCard(problem, actions));
    follow();
  }

  const editable = (messages, recent) => recent && messages[0].role === "user";

  function put(index, messages, recent) {
    const view = messages[0].role === "user" ? null : makeAnswer(actions);
    const element = view?.element ?? question(messages[0], recent && actions.edit);
    if (turns[index]) turns[index].element.replaceWith(element);
    else root.append(element);
    turns[index] = { first: messages[0], editable: editable(messages, recent), element, view };
  }

  return { show, update, follow };
}

/** Questions alone, and the messages of each answer together. */
function grouped(messages) {
  const groups = [];
  for (const message of messages) {
    if (message.role === "user" || groups.at(-1)?.[0].role === "user" || !groups.length) groups.push([message]);
    else groups.at(-1).push(message);
  }
  return groups;
}

function question(message, edit) {
  const text = h("div.bubble", { lang: "" }, message.content);
  const copy = iconButton("copy", t("copy"), () => copyText(message.content, copy));
  const change = edit && iconButton("edit", t("edit"), () => element.replaceChildren(editor(message.content, edit, restore)));
  const restore = () => {
    element.replaceChildren(h("div.asked", {}, text, foot));
    change.focus();
  };
  const foot = h("footer.actions", {}, change, copy);
  const element = h("article.turn.question", { "aria-label": t("you") }, h("div.asked", {}, text, foot));
  return element;
}

function editor(content, done, cancel) {
  const area = h("textarea", { value: content, rows: 3, "aria-label": t("edit") });
  const send = () => area.value.trim() && done(area.value.trim());
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !event.isComposing) cancel();
    if (!submits(event)) return;
    event.preventDefault();
    send();
  });
  requestAnimationFrame(() => area.focus());
  return h("div.editor", {}, area, h("div.row", {},
    h("button.plain", { type: "button", onclick: cancel }, t("cancel")),
    h("button.primary", { type: "button", onclick: send }, t("send"))));
}

/** Enter sends, Shift+Enter does not; nor does the Enter that takes a candidate of an input method (Safari reports that
 * one after the composition, with key code 229). */
export function submits(event) {
  return event.key === "Enter" && !event.shiftKey && !event.isComposing && event.keyCode !== 229;
}

function problemCard({ text, retry, settings }, actions) {
  return h("section.problem", { role: "alert" }, icon("warning"), h("p", {}, text),
    settings && h("button.plain", { type: "button", onclick: actions.settings }, t("settings")),
    retry && h("button.plain", { type: "button", onclick: actions.regenerate }, t("retry")));
}

function welcome(actions, chat) {
  const keys = chat ? ["example1", "example2", "example3"] : ["beginning1", "beginning2"];
  const examples = keys.map((key) => h("button.example", { type: "button", onclick: () => actions.suggest(t(key)) }, t(key)));
  return h("div.welcome", {}, h("img", { src: "icon.svg", alt: "", width: 52, height: 52 }),
    h("p.greeting", {}, t(chat ? "greeting" : "greetingText")), h("p.soft", {}, t("greetingMore")), h("div.examples", {}, ...examples));
}
