// Light or dark, before anything is drawn: as the system says, or as was chosen on this machine.
"use strict";
{
  const ORDER = ["auto", "light", "dark"];
  const chosen = () => (ORDER.includes(localStorage.getItem("theme")) ? localStorage.getItem("theme") : "auto");
  const apply = () => {
    document.documentElement.dataset.theme = chosen();
    const button = document.getElementById("theme");
    if (button) button.textContent = `Theme: ${chosen()}`;
  };
  apply();
  addEventListener("DOMContentLoaded", () => {
    apply();
    document.getElementById("theme").addEventListener("click", () => {
      localStorage.setItem("theme", ORDER[(ORDER.indexOf(chosen()) + 1) % ORDER.length]);
      apply();
    });
  });
}
