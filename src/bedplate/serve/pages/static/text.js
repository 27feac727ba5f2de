// Texts as they may be shown. Words of a model go into text nodes alone, never into markup.

// Characters that a reader does not see but that change what is seen, or what a terminal does with a copy. render.py has the same.
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\u{e0000}-\u{e007f}]/gu;

// A text with its hidden characters made visible.
export function shown(text) {
  return text.replace(HIDDEN, (found) => {
    const code = found.codePointAt(0);
    if (code < 0x20) return String.fromCharCode(0x2400 + code);
    return code === 0x7f ? "\u2421" : `[U+${code.toString(16).toUpperCase().padStart(4, "0")}]`;
  });
}

// Tell those who do not look at the screen.
export function say(text) {
  document.getElementById("said").textContent = text;
}

// Put a text into the clipboard, and say so on the button that asked for it.
export async function copy(text, button) {
  const before = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
    say("Copied");
  } catch {
    button.textContent = "Not allowed";
    say("This browser does not allow copying here; select the text and copy it by hand");
  }
  setTimeout(() => { button.textContent = before; }, 1200);
}
