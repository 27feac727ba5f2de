"""Who is computed when: nobody starves, no page leaks or is written by two, budgets hold, tenants share, whatever comes and goes."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bedplate.core.generation import Sampling
from bedplate.infer.pages import Chain, Pages, pages_for
from bedplate.infer.request import Request
from bedplate.infer.scheduler import Scheduler
from bedplate.infer.sequence import Running
from bedplate.infer.step import PAGE
from bedplate.modality.sequence import Sequence as Positions
from bedplate.testing.heard import Heard

BLOCK = 40
"""Positions of the largest picture."""


def request(tokens, blocks=(), tenant="", **asked):
    block = np.zeros(len(tokens), np.int32)
    for number, (start, end) in enumerate(blocks):
        block[start:end] = number + 1
    positions = Positions(np.array(tokens, np.int32), np.zeros(len(tokens), np.int8), block, np.zeros(len(tokens), bool))
    layers = asked.pop("layers", None)
    return Request(positions, Sampling(**asked), tenant=tenant, layers=layers)


class Simulation:
    """The engine without the model: every token said is a function of its place, guesses are right or wrong as a coin falls."""

    def __init__(self, pages=64, positions=32, most_running=8, share=True, guesses=6, seed=0):
        self.pages = Pages(pages)
        self.scheduler = Scheduler(self.pages, positions=positions, most_running=most_running, guesses=guesses, share_beginnings=share)
        self.rng = np.random.default_rng(seed)
        self.ended: list[Running] = []
        self.numbers = self.steps = 0
        self.owner: dict[bytes, tuple] = {}
        self.shared_positions = Counter()
        self.put_back: list[Running] = []
        put_back = self.scheduler._put_back
        self.scheduler._put_back = lambda one: (self.check_victim(one), put_back(one))

    def add(self, asked):
        running = Running(asked, Heard(), None, None, False)
        self.numbers += 1
        running.number = self.numbers
        self.scheduler.add(running)
        return running

    def step(self):
        self.steps += 1
        before = {one: one.computed for one in self.scheduler.running}
        portions = self.scheduler.plan()
        self.check(portions, before)
        for running, _, end in portions:
            if end < running.length:
                running.computed = end
                running.name_pages(self.name)
                continue
            running.computed = running.length
            running.name_pages(self.name)
            if running.request.layers is not None:
                self.end(running)
                continue
            right = int(self.rng.integers(len(running.drafted) + 1))
            for _ in range(min(1 + right, running.most - running.length)):
                running.append(running.length % 50)
            running.computed = min(running.length - 1, running.computed + len(running.drafted))
            running.name_pages(self.name)
            running.drafted = np.zeros(0, np.int64)
            if running.length >= running.most:
                self.end(running)
            else:
                most = min(int(self.rng.integers(9)), running.most - running.length - 1)
                running.drafted = np.arange(most)
        self.pages.check()
        return portions

    def name(self, page, key):
        self.pages.name(page, key)

    def end(self, running):
        self.scheduler.remove(running)
        self.ended.append(running)

    def check(self, portions, before):
        scheduler = self.scheduler
        self.pages.check()
        held = Counter(page for one in scheduler.running for page in one.pages)
        assert self.pages.held == len(held), "a page leaked"
        assert all(not one.pages and not one.computed for queue in scheduler._waiting.values() for one in queue)
        assert len(scheduler.running) <= scheduler.most_running and [r.number for r in scheduler.running] == sorted(r.number for r in scheduler.running)
        assert sum(end - start for _, start, end in portions) < scheduler.positions + BLOCK
        assert sum(len(one.drafted) for one, _, _ in portions) <= scheduler.guesses
        assert len({one for one, _, _ in portions}) == len(portions)
        for one, start, end in portions:
            assert one in scheduler.running and start == one.computed < end == min(end, one.length + len(one.drafted)) and len(one.pages) >= pages_for(end)
            assert all(held[page] == 1 for page in one.pages[start // PAGE :]), "two would write one page"
            assert one.sees(start, end).max() < end or end > one.length, "a picture was parted"
            if one not in before:
                self.shared_positions[one.request.tenant] += start
        ready = [one for one in before if one in scheduler.running and one.said and one.length - one.computed == 1]
        assert {one for one, _, _ in portions} >= set(ready), "one that answers was passed over"

    def check_victim(self, one):
        """Never the first that runs; of the tenant that holds most, but for a tenant whose only request is the first."""
        running = self.scheduler.running
        self.put_back.append(one)
        tenants = {other.request.tenant for other in running}
        held = {who: len({page for other in running if other.request.tenant == who for page in other.pages}) for who in tenants}
        assert one is not running[0] or len(running) == 1, "the first was put back"
        others = {other.request.tenant for other in running[1:]}
        assert all(held[one.request.tenant] >= held[who] for who in others), "one of a tenant that holds less was put back"

    def finish(self, most_steps):
        while self.scheduler.running or self.scheduler.waiting:
            assert self.steps < most_steps, "somebody starves"
            assert self.step(), "nothing is done though there is something to do"
        assert self.pages.held == 0


@st.composite
def requests(draw):
    count = draw(st.integers(1, 120))
    base = draw(st.integers(0, 2))  # beginnings that are alike
    tokens = [*[base] * min(count, draw(st.integers(0, 80))), *draw(st.lists(st.integers(0, 49), min_size=count, max_size=count))][:count]
    blocks = []
    at = 0
    for gap, size in draw(st.lists(st.tuples(st.integers(0, 20), st.integers(1, BLOCK)), max_size=3)):
        if at + gap + size <= count:
            blocks.append((at + gap, at + gap + size))
            at += gap + size
    tenant = draw(st.sampled_from("abc"))
    if draw(st.integers(0, 5)) == 0:
        return request(tokens, blocks, tenant, layers=draw(st.integers(0, 2)))
    return request(tokens, blocks, tenant, max_tokens=draw(st.integers(1, 30)))


@settings(max_examples=120)
@given(st.data())
def test_everybody_ends_and_no_page_leaks(data):
    pages = data.draw(st.integers(10, 60), label="pages")  # the longest request needs ten
    most_running = data.draw(st.integers(1, 9), label="most_running")
    positions = data.draw(st.integers(most_running, 64), label="positions")
    world = Simulation(pages, positions, most_running, data.draw(st.booleans(), label="share"), seed=data.draw(st.integers(0, 99)))
    everybody = []
    for asked in data.draw(st.lists(requests(), max_size=14)):
        everybody.append(world.add(asked))
        for _ in range(data.draw(st.integers(0, 3))):
            world.step()
        if data.draw(st.integers(0, 6)) == 0 and (alive := list(world.scheduler.all())):
            world.end(data.draw(st.sampled_from(alive)))  # cancelled
    work = sum(one.most + 1 for one in everybody)
    world.finish(world.steps + work * (1 + len(everybody)))
    assert sorted(one.number for one in world.ended) == [one.number for one in everybody]


def test_the_first_is_never_put_back():
    world = Simulation(pages=12, positions=64, most_running=8)
    first = world.add(request(range(40), max_tokens=100))
    others = [world.add(request(np.arange(40) + n, max_tokens=100)) for n in range(1, 6)]
    computed = 0
    while first not in world.ended:
        world.step()
        assert first.computed >= computed
        computed = first.computed
    assert world.scheduler.preemptions > 0
    world.finish(5000)
    assert [one.number for one in world.ended] == [one.number for one in (first, *others)]


def test_a_flood_puts_back_its_own():
    """One tenant's requests do not fit together; another's single one, that came last, holds less and goes on undisturbed."""
    world = Simulation(pages=16, positions=64, most_running=8)
    for n in range(12):
        world.add(request((np.arange(40) + n) % 50, tenant="many", max_tokens=60))
        world.step()
    few = world.add(request(range(20), tenant="few", max_tokens=40))
    while few not in world.ended:
        world.step()
    assert world.scheduler.preemptions > 5 and few not in world.put_back
    world.finish(5000)


@settings(max_examples=40)
@given(st.data())
def test_nobody_starves_while_another_never_stops_asking(data):
    """However large what each holds becomes: two that put each other back in turn would never end."""
    world = Simulation(data.draw(st.integers(10, 24)), data.draw(st.integers(4, 40)), 4, data.draw(st.booleans()), seed=data.draw(st.integers(0, 9)))
    sizes = st.tuples(st.integers(1, 100), st.integers(1, 50))
    flood = data.draw(st.lists(sizes, min_size=1, max_size=5))
    number = 0
    for tenant in data.draw(st.permutations("ab")):
        asked, most = data.draw(sizes)
        one = world.add(request((np.arange(asked) + 7) % 50, tenant=tenant, max_tokens=most))
        other = "ab"[tenant == "a"]
        began = world.steps
        while one not in world.ended:
            assert world.steps - began < 2500, "it starves"
            if sum(each.request.tenant == other for each in world.scheduler.all()) < 6:
                asked, most = flood[number % len(flood)]
                number += 1
                world.add(request((np.arange(asked) + number) % 50, tenant=other, max_tokens=most))
            world.step()


def test_who_is_not_ready_is_passed_over_and_keeps_its_place():
    """Such as one whose adapter is being read."""
    world = Simulation(most_running=1)
    unready = set()
    world.scheduler._ready = lambda one: one not in unready
    first, second, third = (world.add(request(range(n, n + 5), max_tokens=2)) for n in range(3))
    other = world.add(request(range(9), tenant="other", max_tokens=2))
    unready.add(first)
    while not world.ended:
        assert world.step()
    assert world.ended == [second] and other not in world.ended
    unready.clear()
    world.finish(200)
    assert [one for one in world.ended if one is not other] == [second, first, third]
    unready.add(alone := world.add(request(range(5), max_tokens=2)))
    assert world.step() == [] and world.scheduler.waiting == 1
    unready.clear()
    assert world.step() and alone in world.scheduler.running


def test_a_guess_puts_nobody_back():
    world = Simulation(pages=4, positions=64, most_running=4, guesses=100)
    running = [world.add(request(np.arange(10) + n, max_tokens=20)) for n in range(4)]
    world.step()
    for one in running:
        one.drafted = np.zeros(0, np.int64)
    running[0].drafted = np.arange(12)  # would need a second page, and there is none
    portions = world.step()
    assert world.scheduler.preemptions == 0 and len(portions) == 4 and portions[0].end == PAGE, "as far as its own page reaches"


def test_guesses_come_after_everybodys_own_position():
    world = Simulation(pages=6, positions=4, most_running=4, guesses=100)
    running = [world.add(request(range(n, n + 3), max_tokens=12)) for n in range(4)]
    for _ in range(60):
        for one in world.scheduler.running:
            if one.said:
                one.drafted = np.arange(one.most - one.length - 1)
        if not world.step():
            break
    assert world.scheduler.preemptions == 0 and len(world.ended) == len(running)


def test_a_large_picture_does_not_wait_for_the_end_of_all_answers():
    world = Simulation(pages=64, positions=8, most_running=8)
    for n in range(6):
        world.add(request(range(n, n + 3), max_tokens=200))
    for _ in range(20):
        world.step()
    picture = world.add(request(range(BLOCK + 2), [(1, 1 + BLOCK)], max_tokens=1))
    for _ in range(4):
        world.step()
    assert picture in world.ended


def test_a_tenant_with_many_requests_delays_one_with_few_by_about_a_turn():
    """The others' turn is what they hold when it comes: then it is first to begin, before 100 that came earlier."""
    world = Simulation(pages=400, positions=64, most_running=4)
    for n in range(100):
        world.add(request(np.arange(20) + n, tenant="many", max_tokens=10))
    while len(world.scheduler.running) < 4 or world.steps < 7:
        world.step()
    few = world.add(request(range(30), tenant="few", max_tokens=10))
    ended = len(world.ended)
    while few not in world.scheduler.running:
        world.step()
    assert len(world.ended) - ended <= 4, "one turn of those that ran"
    while few not in world.ended:
        world.step()
    assert len(world.ended) - ended < 20
    world.finish(2000)


def test_two_tenants_get_as_much():
    """In positions, not in requests: one asks long questions, the other short ones."""
    world = Simulation(pages=400, positions=32, most_running=2, share=False)
    for n in range(60):
        world.add(request((np.arange(60) + n) % 50, tenant="long", max_tokens=4))
        for m in range(5):
            world.add(request((np.arange(8) + 7 * n + m) % 50, tenant="short", max_tokens=4))
    got = Counter()
    for _ in range(150):
        for one, start, end in world.step():
            got[one.request.tenant] += end - start
    assert 0.75 < got["long"] / got["short"] < 1.34, got


def test_who_comes_back_gets_no_arrears():
    """A tenant that was away is not owed what the others got meanwhile."""
    world = Simulation(pages=400, positions=16, most_running=1)
    for n in range(40):
        world.add(request(range(n, n + 16), tenant="stays", max_tokens=2))
    for _ in range(30):
        world.step()
    for n in range(40):
        world.add(request(range(n, n + 16), tenant="comes", max_tokens=2))
    before = len(world.ended)
    while len(world.ended) < before + 12:
        world.step()
    order = [one.request.tenant for one in world.ended[before:]]
    assert 4 <= order.count("comes") <= 8, order


def test_a_beginning_is_found_again_until_its_pages_are_needed():
    world = Simulation(pages=20, positions=64)
    world.add(request([1] * 50, max_tokens=1))
    world.finish(100)
    again = world.add(request([1] * 50, max_tokens=1))
    assert world.step()[0].start == 48 and again in world.ended
    other = world.add(request([1] * 49 + [2] * 30, max_tokens=1))
    assert world.step()[0].start == 48
    world.finish(100)
    world.add(request([3] * 300, max_tokens=1))  # nineteen of the twenty pages
    world.finish(100)
    last = world.add(request([1] * 49 + [2] * 30, max_tokens=1))
    assert world.step()[0].start == 16, "the end of a beginning goes before its start"
    assert other in world.ended and last.computed


@pytest.mark.parametrize("change", ["tenant", "policy", "adapter"])
def test_a_beginning_crosses_neither_tenant_nor_policy_nor_adapter(change):
    salts = [("a", "p", "d"), ({"tenant": "b"}.get(change, "a"), {"policy": "q"}.get(change, "p"), {"adapter": "e"}.get(change, "d"))]
    chains = [Chain(salt) for salt in salts]
    for chain in chains:
        chain.extend(np.arange(PAGE))
    assert chains[0].keys[0] != chains[1].keys[0]
    assert Chain(("ab", "c", "")).keys == [] and key(("ab", "c", "")) != key(("a", "bc", "")) != key(("", "abc", ""))


def key(salt):
    chain = Chain(salt)
    chain.extend(np.zeros(PAGE, np.int64))
    return chain.keys[0]


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6), st.integers(0, 3)), max_size=60))
def test_pages_are_in_one_place_whatever_is_done(moves):
    pages = Pages(9)
    held: list[list[int]] = []
    for kind, size, which in moves:
        if kind == 0 and (taken := pages.take(size)) is not None:
            held.append(taken)
        elif kind == 1 and held:
            pages.give_back(held.pop(which % len(held)))
        elif kind == 2 and held and held[which % len(held)]:
            chosen = held[which % len(held)]
            pages.name(chosen[size % len(chosen)], bytes([size]))
        elif kind == 3:
            held.append(pages.share([bytes([size]), bytes([size + 1])]))
        elif kind == 4 and size == 0:
            pages.forget()
        pages.check()
        assert pages.held == len({page for one in held for page in one})
    for one in held:
        pages.give_back(one)
    assert pages.held == 0 and len(pages.take(9)) == 9
