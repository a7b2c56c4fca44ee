// The token, which is this tab's alone, and requests with it.

const KEY = "failavoid-token";

export const token = () => sessionStorage.getItem(KEY) ?? "";
export const setToken = (word) => sessionStorage.setItem(KEY, word.trim());
export const headers = () => ({ Authorization: `Bearer ${token()}` });

/** Whether the token is an operator's; the controller judges for itself. */
export const mayAct = () => token().startsWith("operator.");

/** The parsed answer of the monitor; an Error with its sentence if it refuses. */
export async function ask(path, body) {
  const options = body === undefined ? {} : { method: "POST", body: JSON.stringify(body) };
  const answer = await fetch(path, { ...options, headers: { ...headers(), "Content-Type": "application/json" } });
  const document = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(document.detail ?? `${answer.status} ${answer.statusText}`);
  return document;
}
