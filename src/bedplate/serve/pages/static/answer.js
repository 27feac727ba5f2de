// One question to the gateway and its answer piece by piece, as /v1/chat/completions tells it.

// What went wrong, in words, and what to do about it.
export class Trouble extends Error {
  constructor(message, { todo = "", status = 0, retryAfter = 0 } = {}) {
    super(message);
    Object.assign(this, { todo, status, retryAfter });
  }
}

const TODO = {
  400: "Change the question or the settings, then regenerate. A conversation that has become too long can be begun anew.",
  401: "Log in again; this conversation is kept in this tab.",
  403: "Another key, other data classes or another wording may be allowed.",
  404: "Choose another model.",
  413: "Shorten it.",
  429: "Wait a little, then regenerate.",
  503: "Wait a little, then regenerate.",
};

// Ask. Calls `onPiece(text, first)` for every stretch of text; gives {route, receipt, pieces, firstMs, seconds, usage, finish} at the end.
export async function ask(body, { labels = "", signal, onHead = () => {}, onPiece = () => {} }) {
  const began = performance.now();
  const told = { route: "", receipt: "", pieces: 0, firstMs: null, seconds: 0, usage: null, finish: "" };
  const headers = { "content-type": "application/json" };
  if (labels) headers["x-bedplate-labels"] = labels;
  let response;
  try {
    response = await fetch("/v1/chat/completions", { method: "POST", headers, signal, body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }) });
  } catch (error) {
    if (error.name === "AbortError") return { ...told, finish: "stopped" };
    throw new Trouble("The gateway cannot be reached.", { todo: "See whether it runs and this machine is connected, then regenerate. Your question is kept." });
  }
  told.route = response.headers.get("x-bedplate-route") ?? "";
  told.receipt = response.headers.get("x-bedplate-receipt") ?? "";
  if (!response.ok) throw await refused(response);
  onHead(told);
  let lastMs = began;
  try {
    for await (const event of events(response.body)) {
      if (event.error) throw new Trouble(event.error.message ?? "The answer broke off.", { todo: "Regenerate; if it stays so, tell whoever runs the gateway." });
      if (event.usage) told.usage = event.usage;
      const choice = event.choices?.[0];
      if (choice?.finish_reason) told.finish = choice.finish_reason;
      const text = choice?.delta?.content;
      if (!text) continue;
      lastMs = performance.now();
      told.firstMs ??= lastMs - began;
      told.pieces += 1;
      told.seconds = (lastMs - began - told.firstMs) / 1000;
      onPiece(text, told);
    }
  } catch (error) {
    if (error.name === "AbortError") return { ...told, finish: "stopped" };
    if (error instanceof Trouble) throw error;
    throw new Trouble("The connection broke off in the middle of the answer.", { todo: "Regenerate to ask again." });
  }
  if (!told.finish) throw new Trouble("The answer ended before it was complete.", { todo: "Regenerate to ask again." });
  return told;
}

async function refused(response) {
  let message = `The gateway answered ${response.status}.`;
  try {
    message = (await response.json()).error.message;
  } catch { /* no JSON: a proxy in between */ }
  if (response.status === 401) message = "Your session has ended.";
  return new Trouble(message, { status: response.status, todo: TODO[response.status] ?? "Try again; if it stays so, tell whoever runs the gateway.", retryAfter: Number(response.headers.get("retry-after")) || 0 });
}

// The events of a stream, as JSON.
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let kept = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    kept += value;
    const whole = kept.split("\n\n");
    kept = whole.pop();
    for (const event of whole) {
      const data = event.startsWith("data: ") ? event.slice(6) : "";
      if (data && data !== "[DONE]") yield JSON.parse(data);
    }
  }
}
