"""Text of every kind to one string: encodings found and repaired, Markdown, HTML and e-mail reduced to what a reader reads."""

from __future__ import annotations

import codecs
import contextlib
import email
import email.message
import email.policy
import re
from html.parser import HTMLParser

_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)
_MOJIBAKE = re.compile("[ÃÂâ][\u0080-\u00bf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]")

LANGUAGES: dict[str, str] = {
    ".py": "python", ".pyi": "python", ".c": "c", ".h": "c", ".cc": "c++", ".cpp": "c++", ".hpp": "c++", ".cs": "c#", ".go": "go", ".rs": "rust",
    ".java": "java", ".kt": "kotlin", ".scala": "scala", ".swift": "swift", ".js": "javascript", ".mjs": "javascript", ".ts": "typescript",
    ".tsx": "typescript", ".jsx": "javascript", ".rb": "ruby", ".php": "php", ".pl": "perl", ".lua": "lua", ".r": "r", ".jl": "julia", ".sh": "shell",
    ".bash": "shell", ".ps1": "powershell", ".bat": "batch", ".sql": "sql", ".hs": "haskell", ".ml": "ocaml", ".ex": "elixir", ".erl": "erlang",
    ".clj": "clojure", ".m": "matlab", ".f90": "fortran", ".asm": "assembly", ".s": "assembly", ".css": "css", ".scss": "css", ".vue": "vue",
    ".toml": "toml", ".yaml": "yaml", ".yml": "yaml", ".ini": "ini", ".cfg": "ini", ".tf": "terraform", ".proto": "protobuf", ".cmake": "cmake",
    ".mk": "make", ".dart": "dart", ".zig": "zig", ".nim": "nim", ".v": "verilog", ".vhd": "vhdl", ".tcl": "tcl", ".yar": "yara",
}  # fmt: skip
"""Extension -> programming language: what makes a file code and not prose."""

_SHEBANG = re.compile(r"^#!.*?\b(python|bash|sh|zsh|perl|ruby|node|lua|Rscript|php)[\d.]*\b")
_SHEBANG_LANGUAGE = {"bash": "shell", "sh": "shell", "zsh": "shell", "node": "javascript", "Rscript": "r"}


def decode(data: bytes) -> tuple[str, tuple[str, ...]]:
    """The text in `data` and what was repaired on the way. Never fails: what is no encoding at all comes back as cp1252 with a note."""
    notes: list[str] = []
    text = _decode(data, notes)
    if "\x00" in text:
        text = text.replace("\x00", "")
        notes.append("NUL characters removed")
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if len(_MOJIBAKE.findall(text, 0, 100_000)) >= 3:
        text = _repair_mojibake(text, notes)
    return text, tuple(notes)


def is_binary(data: bytes) -> bool:
    """Whether bytes that claim to be text are not: NULs without a UTF-16 or UTF-32 mark, or many control characters."""
    head = data[:8192]
    if any(head.startswith(mark) for mark, _ in _BOMS):
        return False
    if b"\x00" in head:
        return _looks_utf16(head) is None
    control = sum(head.count(bytes([c])) for c in (*range(1, 7), *range(14, 27), *range(28, 32)))
    return control > len(head) // 20


def language_of(name: str, text: str) -> str:
    """The programming language of a file by its extension, its name or its first line; "" for prose."""
    lower = name.lower()
    base = lower.rsplit("/", 1)[-1]
    if base in ("makefile", "gnumakefile"):
        return "make"
    if base == "dockerfile":
        return "dockerfile"
    dot = base.rfind(".")
    if dot > 0:
        return LANGUAGES.get(base[dot:], "")
    found = _SHEBANG.match(text[:200])
    return _SHEBANG_LANGUAGE.get(found[1], found[1]) if found else ""


def from_markdown(text: str) -> str:
    """Markdown without its front matter and comments; the marks stay, they are part of how people write."""
    text = re.sub(r"\A---\n.{0,20000}?\n(?:---|\.\.\.)\n", "", text, count=1, flags=re.DOTALL)
    return re.sub(r"<!--.{0,5000}?-->\n?", "", text, flags=re.DOTALL)


def from_html(text: str) -> str:
    """What a reader of the page reads: no scripts, styles, navigation, forms."""
    parser = _HtmlText()
    try:
        parser.feed(text)
        parser.close()
    except (AssertionError, ValueError, RecursionError):  # html.parser on hostile markup; what was read so far stays
        pass
    lines = [" ".join(line.split()) for line in "".join(parser.parts).split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def from_mail(data: bytes) -> str:
    """Subject and body of a mail; the plain part where there is one, attachments left out."""
    try:
        message = email.message_from_bytes(data, policy=email.policy.compat32)
        subject = str(message.get("Subject", "")).strip()
        plain = [part for part in message.walk() if part.get_content_type() == "text/plain" and part.get_filename() is None]
        pages = [part for part in message.walk() if part.get_content_type() == "text/html" and part.get_filename() is None]
        bodies = [_part_text(part) for part in plain] or [from_html(_part_text(part)) for part in pages]
    except (ValueError, LookupError, AttributeError, TypeError, IndexError, RecursionError):
        return ""
    body = "\n\n".join(body.strip() for body in bodies if body.strip())
    return f"Subject: {subject}\n\n{body}" if subject else body


def _part_text(part: email.message.Message) -> str:
    payload = part.get_payload(decode=True)
    return decode(payload)[0] if isinstance(payload, bytes) else str(payload or "")


def _decode(data: bytes, notes: list[str]) -> str:
    for mark, name in _BOMS:
        if data.startswith(mark):
            text = data.decode(name, errors="replace")
            return text.removeprefix("\ufeff")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        pass
    wide = _looks_utf16(data[:8192])
    if wide is not None:
        notes.append(f"encoding: {wide}")
        return data.decode(wide, errors="replace")
    repaired = data.decode("utf-8", errors="replace")
    if repaired.count("\ufffd") <= max(3, len(data) // 1000):  # UTF-8 with a few broken bytes, not another encoding
        notes.append("encoding: utf-8 with broken bytes")
        return repaired
    notes.append("encoding: cp1252")
    return data.decode("cp1252", errors="replace")


def _looks_utf16(head: bytes) -> str | None:
    """UTF-16 without a mark: every other byte is mostly NUL."""
    pairs = len(head) // 2
    if pairs < 4:
        return None
    even, odd = head[0 : 2 * pairs : 2].count(0), head[1 : 2 * pairs : 2].count(0)
    if odd > pairs * 0.7 and even < pairs * 0.1:
        return "utf-16-le"
    return "utf-16-be" if even > pairs * 0.7 and odd < pairs * 0.1 else None


def _repair_mojibake(text: str, notes: list[str]) -> str:
    """UTF-8 that somebody once read as cp1252: undone line by line where that gives valid UTF-8."""
    repaired = []
    for line in text.split("\n"):
        if _MOJIBAKE.search(line):
            with contextlib.suppress(UnicodeError):
                line = line.encode("cp1252").decode("utf-8")
        repaired.append(line)
    result = "\n".join(repaired)
    if result != text:
        notes.append("encoding: doubly encoded lines repaired")
    return result


class _HtmlText(HTMLParser):
    SILENT = frozenset(("script", "style", "nav", "noscript", "template", "svg", "form", "button", "select", "head"))
    BREAKS = frozenset(
        ["p", "br", "div", "li", "tr", "h1", "h2", "h3", "h4", "h5", "h6", "pre", "section", "article", "table", "ul", "ol", "blockquote", "title"]
    )

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._silent: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self.SILENT:
            self._silent.append(tag)
        elif tag in self.BREAKS:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._silent:
            while self._silent.pop() != tag:
                pass
        elif tag in self.BREAKS:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.parts.append(data)
