// What a screen reader hears of an answer: whole sentences as they are finished, not every token.

import { $, h } from "./dom.js";

// Full-width marks by their numbers: in many fonts they look like those of ASCII.
const ENDS = /[.!?。\uFF01\uFF1F\uFF1B…\n](?=\s|$|[^\d\s])/g;
let said = 0;
let whose = null;

/** Say the sentences of `message` that are new; all that is left when it is complete. */
export function speak(message, complete) {
  if (whose !== message) [whose, said] = [message, 0];
  const rest = message.content.slice(said);
  const ends = [...rest.matchAll(ENDS)];
  const length = complete ? rest.length : ends.length ? ends.at(-1).index + 1 : 0;
  if (length) announce(rest.slice(0, length));
  said += length;
}

export function announce(text) {
  const live = $("live");
  if (!text.trim()) return;
  live.append(h("p", {}, text.trim()));
  while (live.children.length > 20) live.firstChild.remove();
}
