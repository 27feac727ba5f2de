// Parts of a page that change: asked for again and again, less often where the answer takes long, and not while nobody looks.
const EVERY_MS = 2000;
const pause = document.getElementById("pause");
const state = document.querySelector(".live-state");

function tell(words) {
  if (state.textContent !== words) state.textContent = words;
}

// Put new content in place; the focus and a selection stay where they were.
function replace(part, html) {
  const focused = part.contains(document.activeElement) ? document.activeElement : null;
  const mark = focused && (focused.id ? `#${CSS.escape(focused.id)}` : ["href", "aria-label"].map((name) => focused.getAttribute(name) && `[${name}="${CSS.escape(focused.getAttribute(name))}"]`).find(Boolean));
  const across = [...part.querySelectorAll(".scroll")].map((box) => box.scrollLeft);
  part.dispatchEvent(new CustomEvent("replacing", { bubbles: true }));
  part.replaceChildren(...new DOMParser().parseFromString(html, "text/html").body.childNodes);
  part.querySelectorAll(".scroll").forEach((box, n) => { box.scrollLeft = across[n] || 0; });
  if (mark) part.querySelector(mark)?.focus({ preventScroll: true });
  part.dispatchEvent(new CustomEvent("replaced", { bubbles: true }));
}

async function once(part) {
  const answered = await fetch(part.dataset.live, { headers: { accept: "*/*" } });
  if (answered.status === 401) {
    tell("Your session has ended: log in again, then this page goes on.");
    location.assign(`/login?next=${encodeURIComponent(location.pathname)}`);
    return;
  }
  if (!answered.ok) throw new Error(`${answered.status}`);
  const html = await answered.text();
  const selected = getSelection();
  const reading = !selected.isCollapsed && part.contains(selected.anchorNode);
  if (html !== part.shownHtml && !reading) {
    replace(part, html);
    part.shownHtml = html;
  }
  tell("");
}

async function follow(part) {
  for (let took = 0; ;) {
    await new Promise((go) => setTimeout(go, Math.max(EVERY_MS, 5 * took)));
    const began = performance.now();
    if (!document.hidden && pause.getAttribute("aria-pressed") !== "true") {
      try {
        await once(part);
      } catch {
        tell("The gateway cannot be reached; what you see is older. This page keeps trying.");
      }
    }
    took = performance.now() - began;
  }
}

pause.addEventListener("click", () => {
  const paused = pause.getAttribute("aria-pressed") !== "true";
  pause.setAttribute("aria-pressed", String(paused));
  pause.textContent = paused ? "Go on" : "Pause";
});
document.querySelectorAll("[data-live]").forEach(follow);
