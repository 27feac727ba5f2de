"""`bedplate serve audit` and `serve receipt`: proofs, checked offline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bedplate.cli.app import Here


def verify(folder: Path, *, key: Path | None = None, anchors: tuple[str, ...] = (), start: int = 1, console: Here) -> None:
    """Say whether every record of an audit is there, unchanged and in order; exit code 4 where one is not.

    Args:
        folder: the audit's folder; nothing in it is changed.
        key: the gateway's public key (PEM), from somewhere safe; by default the one in the folder, which whoever can write there can exchange.
        anchors: places of the log noted elsewhere, as n:hash; an earlier verification told one. May be repeated.
        start: the first record that must be there, where earlier files were archived.
    """
    from bedplate.core.errors import ConfigError, IntegrityError
    from bedplate.serve import audit_verify
    from bedplate.serve.audit_chain import Entry
    from bedplate.serve.audit_files import PUBLIC
    from bedplate.serve.signing import PublicKey

    try:
        noted = tuple(Entry.parse(text) for text in anchors)
    except ValueError as error:
        raise ConfigError(str(error), "an anchor is a record's number and its hash, 12:ab...") from error
    public = PublicKey.read(key if key is not None else folder / PUBLIC)
    report = audit_verify.verify(folder, public, start=start, anchors=noted)
    if key is None:
        console.say(f"checked with the key in the folder itself ({public.id}); whoever can write there can exchange it: give --key from somewhere safe")
    for finding in report.findings:
        console.print(str(finding))
    end = "closed" if report.closed else f"open: {report.unsigned} records after the last checkpoint are chained, not signed yet"
    torn = f"; half a line of {report.torn_bytes} bytes at its end, as a crash leaves" if report.torn_bytes else ""
    console.say(f"{report.records} records in {report.files} files, signed to record {report.signed_n} by {report.checkpoints} checkpoints; {end}{torn}")
    console.data(
        {
            "holds": report.holds,
            "records": report.records,
            "files": report.files,
            "checkpoints": report.checkpoints,
            "signed_n": report.signed_n,
            "closed": report.closed,
            "torn_bytes": report.torn_bytes,
            "key": public.id,
            "anchor": str(report.end),
            "findings": [finding._asdict() for finding in report.findings],
        }
    )
    if not report.holds:
        more = f" (and {len(report.findings) - 1} more)" if len(report.findings) > 1 else ""
        hint = "compare it with a copy; what stands before the first finding holds"
        raise IntegrityError(f"the audit in {folder} does not hold: {report.findings[0]}{more}", hint)
    console.say(f"to find a log that was put back to this state or an earlier one, keep elsewhere and give next time: --anchors {report.end}")
    console.print("holds")


def receipt(receipt: Path, *, key: Path, prompt: Path | None = None, answer: Path | None = None, console: Here) -> None:
    """Say whether the gateway signed this receipt, and whether it is about these words; exit code 4 where not.

    Args:
        receipt: the receipt as JSON, as the gateway hands it out.
        key: the gateway's public key (PEM).
        prompt: a text file that should hold the question, turns as "role: text", one below the other.
        answer: a text file that should hold the answer, exactly.
    """
    from bedplate.core.errors import DataError, IntegrityError
    from bedplate.core.files import read_json
    from bedplate.serve import receipts
    from bedplate.serve.signing import PublicKey

    try:
        raw: Any = read_json(receipt)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{receipt} cannot be read: {error}", "give the receipt as JSON") from error
    if not isinstance(raw, dict):
        raise DataError(f"{receipt} is no receipt", "give the receipt as JSON")
    read, public = receipts.Receipt.from_json(raw), PublicKey.read(key)
    if not receipts.holds(read, public):
        raise IntegrityError(f"the receipt was not signed by the key {public.id}", f"it names the key {read.key}; was it changed?")
    words = [None if path is None else path.read_text(encoding="utf-8") for path in (prompt, answer)]
    if not receipts.tells_of(read, *words):
        raise IntegrityError("the gateway signed this receipt, but for other words", "every character counts, the last line's end too")
    facts = read.facts
    console.say(f"{facts.id}: {facts.model} answered {facts.tenant} at {facts.at}; route {facts.route or 'not said'}; finish {facts.finish}")
    console.print("holds")
    compared = [name for name, path in (("prompt", prompt), ("answer", answer)) if path is not None]
    console.data({"holds": True, "id": facts.id, "key": public.id, "compared": compared})
