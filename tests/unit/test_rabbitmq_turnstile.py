"""Which delivery starts next, without a broker."""

from hypothesis import given
from hypothesis import strategies as st

from worker.adapters.rabbitmq.turnstile import PATIENCE, Turnstile


def arrivals(*names: str) -> Turnstile[str]:
    """Fill a turnstile: `tool2` joins the lane `tool`, `TOOL2` its high lane."""
    turnstile: Turnstile[str] = Turnstile()
    for name in names:
        turnstile.arrive(name, lane=name.rstrip("0123456789").lower(), high=name.isupper())
    return turnstile


def entered(turnstile: Turnstile[str]) -> list[str]:
    """Let in all who wait."""
    names = []
    while (name := turnstile.let_in()) is not None:
        names.append(name)
    return names


def test_lanes_take_turns() -> None:
    """A lane with many waiting holds up no other lane; within a lane the first comes first."""
    assert entered(arrivals("a1", "a2", "a3", "b1", "c1", "c2")) == ["a1", "b1", "c1", "a2", "c2", "a3"]


def test_high_lanes_go_first() -> None:
    """All high lanes, in turn, come before the others."""
    assert entered(arrivals("a1", "b1", "B1", "B2", "A1")) == ["B1", "A1", "B2", "a1", "b1"]


def test_nobody_starves() -> None:
    """In an endless stream of high ones, every PATIENCE-th start is another's."""
    turnstile = arrivals(*(f"A{n}" for n in range(3 * PATIENCE)), "b1", "b2")
    order = entered(turnstile)
    assert [order.index("b1"), order.index("b2")] == [PATIENCE - 1, 2 * PATIENCE - 1]


def test_all_who_wait_can_be_sent_home() -> None:
    """After clear nobody waits."""
    turnstile = arrivals("a1", "a2", "B1", "c1")
    assert (turnstile.let_in(), turnstile.waiting) == ("B1", 3)
    assert sorted(turnstile.clear()) == ["a1", "a2", "c1"]
    assert (turnstile.let_in(), turnstile.waiting) == (None, 0)


@given(st.lists(st.sampled_from(["a", "b", "A", "B", None])))
def test_everyone_is_let_in_once(steps: list[str | None]) -> None:
    """Whatever the order of arriving and letting in, nobody is lost or let in twice."""
    turnstile: Turnstile[int] = Turnstile()
    came, went = 0, []
    for step in steps:
        if step is None:
            went.append(turnstile.let_in())
        else:
            turnstile.arrive(came, lane=step.lower(), high=step.isupper())
            came += 1
    inside = [one for one in went if one is not None]
    assert sorted([*inside, *turnstile.clear()]) == list(range(came))
