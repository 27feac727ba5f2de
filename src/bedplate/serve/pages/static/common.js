// What every page does: digests copy themselves, and logging out forgets what this tab remembers.
import { copy } from "./text.js";

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-copy]");
  if (button) copy(button.dataset.copy, button);
});

document.getElementById("logout")?.addEventListener("submit", () => sessionStorage.clear());
