// What an error of the server means to the user, in the language of the page.

import { ApiError } from "./api.js";
import { t } from "./i18n.js";

const KNOWN = { 0: "errorUnreachable", 401: "errorKey", 413: "errorTooLong", 429: "errorBusy", 503: "errorStopped" };
const CODES = { context_length_exceeded: "errorContext", model_not_found: "errorModel" };

/** `{text, retry, settings}` for the card below the conversation; `asked`: a question was the cause. */
export function explain(error, asked) {
  if (!(error instanceof ApiError)) return { text: t("errorPage", { message: String(error) }), retry: asked };
  const key = CODES[error.code] ?? KNOWN[error.status] ?? "errorServer";
  const text = t(key, { status: error.status, message: error.message });
  const own = error.message && !text.includes(error.message) ? ` (${error.message})` : "";
  return { text: text + own, retry: asked, settings: error.status === 401 || error.status === 400 };
}
