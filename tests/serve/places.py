"""Places that answer as told, and remember what they were asked."""

from bedplate.core.errors import BedplateError
from bedplate.core.generation import Alternative, Load, Piece, TokenLogprob, Usage, WorkerCard


class Clock:
    """Seconds that a test moves."""

    def __init__(self, at_s=1_800_000_000.0):
        self.at_s = at_s

    def __call__(self):
        return self.at_s


def said(*texts, logprob=None, finish="stop", usage=(5, 0, None), choice=0):
    """The pieces of an answer, one a text; the last says why and what it cost."""
    pieces = []
    for n, text in enumerate(texts):
        last = n == len(texts) - 1
        told = () if logprob is None else (TokenLogprob(Alternative(text, logprob)),)
        cost = Usage(usage[0], usage[1], len(texts) if usage[2] is None else usage[2]) if last and usage else None
        pieces.append(Piece(choice, text, logprobs=told, finish=finish if last else None, usage=cost))
    return pieces


class Ticket:
    def __init__(self, place):
        self.place = place
        self.cancelled = False

    def cancel(self):
        self.cancelled = True


class Place:
    """A Generator that answers with a script: pieces, errors (delivered), or an exception to be raised by submit.

    With `by_hand`, nothing is delivered before `go`; `deliver` is kept.
    """

    def __init__(self, *answers, name="", by_hand=False, tokens=7):
        self.answers = list(answers) or [said("ok")]
        self.name, self.by_hand, self.tokens = name, by_hand, tokens
        self.asked, self.tickets, self.waiting, self.counted = [], [], [], []
        self.closed = False

    def submit(self, ask, deliver):
        self.asked.append(ask)
        answer = self.answers[min(len(self.asked), len(self.answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        ticket = Ticket(self)
        self.tickets.append(ticket)
        if self.by_hand:
            self.waiting.append((deliver, list(answer)))
        else:
            for piece in answer:
                deliver(error_piece(piece))
        return ticket

    def go(self, pieces=None, which=0):
        """Deliver the next pieces (by default all that are left)."""
        deliver, left = self.waiting[which]
        for _ in range(len(left) if pieces is None else pieces):
            deliver(error_piece(left.pop(0)))

    def workers(self):
        return [WorkerCard(self.name, "generate", {"model": "ab"}, 1000)]

    def count(self, ask):
        self.counted.append(ask)
        return self.tokens

    def load(self):
        return Load(1, 2, 0.5, 10.0, {"steps": 3.0})

    def close(self):
        self.closed = True


def error_piece(piece):
    return Piece(finish="error", error=piece) if isinstance(piece, BedplateError) else piece


class Heard(list):
    """Takes pieces."""

    __call__ = list.append

    @property
    def text(self):
        return "".join(piece.text for piece in self)

    @property
    def error(self):
        return next((piece.error for piece in self if piece.error is not None), None)
